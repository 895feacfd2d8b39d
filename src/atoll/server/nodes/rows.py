"""Nodes and join tokens as the database keeps them: questions and changes, each in the caller's transaction.

Theory of operation. A token is counted down by one `UPDATE` that also checks it, in the transaction that adds the node.
So of two machines that use the last use at once one joins, and a join that fails uses nothing up. A node that joins
again under its name has a new id and secret: the old ones are worth nothing from then on.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, exc, func, select

from atoll import errors
from atoll.server.accounts.tokens import Pepper
from atoll.server.cluster.contract import LOCAL
from atoll.server.database.database import Database
from atoll.server.nodes import credentials, names
from atoll.server.nodes.tables import node_tokens, nodes
from atoll.terminal_text import cell

MARK = "nodes"
"""Rises whenever a node joins, leaves or changes its state."""
ACTIVE, CORDONED, DRAINING, REMOVED = "active", "cordoned", "draining", "removed"
"""States: takes calls; takes no new ones; the same, and its calls are to end; its credentials are worth nothing."""
MOST_NODES = 10_000
MOST_TOKENS = 1000
MOST_USES = 1000
MOST_TOKEN_SECONDS = 30 * 86400.0
MOST_FACTS = 16_384
KEPT_SECONDS = 30 * 86400.0
"""Seconds for which rows of removed nodes are kept: until then their machines hear why they are refused."""


@dataclass(frozen=True)
class NodeAccount:
    """A node that has joined, without its secret.

    Args:
        id: opaque; another one after the machine has joined again.
        name: for people, unique.
        state: `active`, `cordoned`, `draining` or `removed`.
        labels: for placement.
        facts: as the machine said them last; its own claims.
        created, joined, seen: seconds since the epoch: of the name, of the credentials, and of its last word.
    """

    id: str
    name: str
    state: str
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0
    joined: float = 0.0
    seen: float | None = None

    @property
    def takes_calls(self) -> bool:
        """True if new calls may be placed there."""
        return self.state == ACTIVE


_COLUMNS = [column for column in nodes.c if column.name != "digest"]


def _account(row: Row[Any]) -> NodeAccount:
    values = {column.name: getattr(row, column.name) for column in _COLUMNS}
    return NodeAccount(**{**values, "labels": json.loads(row.labels), "facts": json.loads(row.facts)})


# --- tokens -----------------------------------------------------------------------------------------------------------


def add_token(
    connection: Connection, pepper: Pepper, *, uses: int, seconds: float, labels: Mapping[str, str], maker: str
) -> tuple[str, float]:
    """Add a token; return it, which is kept nowhere, and the moment at which it expires.

    Raises:
        CallerError: a bound is passed, or a label is none.
    """
    if not 1 <= uses <= MOST_USES:
        raise errors.CallerError(f"a token has 1 to {MOST_USES} uses", hint="make several tokens for more nodes")
    if seconds <= 0:
        raise errors.CallerError("a token is valid for more than 0 hours", hint="give some: `--hours 1`")
    if not seconds <= MOST_TOKEN_SECONDS:
        raise errors.CallerError("a token expires after at most 30 days", hint="give fewer hours: `--hours 24`")
    now = time.time()
    connection.execute(node_tokens.delete().where(node_tokens.c.expires < now - 86400))
    if (connection.execute(select(func.count()).select_from(node_tokens)).scalar() or 0) >= MOST_TOKENS:
        raise errors.CallerError(
            f"there are {MOST_TOKENS} tokens already", hint="revoke them: `atoll nodes token --revoke`"
        )
    token = credentials.new_token()
    connection.execute(
        node_tokens.insert().values(
            digest=credentials.token_digest(pepper, token),
            created=now,
            expires=now + seconds,
            uses=uses,
            labels=json.dumps(names.check_labels(labels)),
            maker=maker,
            revoked=False,
        )
    )
    return token, now + seconds


def revoke_tokens(connection: Connection) -> int:
    """Revoke all tokens; return how many could have been used."""
    valid = (node_tokens.c.expires > time.time()) & (node_tokens.c.uses > 0) & ~node_tokens.c.revoked
    return connection.execute(node_tokens.update().where(valid).values(revoked=True)).rowcount


def _use_token(connection: Connection, pepper: Pepper, token: str) -> Row[Any]:
    """Count a token down, and return its row.

    Raises:
        NotAuthorized: it is none, has expired, or was used as often as it may be.
    """
    digest = credentials.token_digest(pepper, token)
    used = connection.execute(
        node_tokens.update()
        .where(
            node_tokens.c.digest == digest,
            node_tokens.c.uses > 0,
            node_tokens.c.expires > time.time(),
            ~node_tokens.c.revoked,
        )
        .values(uses=node_tokens.c.uses - 1)
    ).rowcount
    row = connection.execute(select(node_tokens).where(node_tokens.c.digest == digest)).first()
    if row is None or not hmac.compare_digest(bytes(row.digest), digest):
        raise credentials.refused("the token to join is not valid")
    if not used:
        expired = row.expires <= time.time()
        reason = "was revoked" if row.revoked else "has expired" if expired else "has been used"
        raise credentials.refused(f"the token to join {reason}")
    return row


# --- nodes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """A node that has just joined, with the secret, which is kept nowhere here.

    Args:
        node: its account.
        secret: the second half of its credentials.
        maker: the id of the user who made the token.
        replaced: the account of the name before; None for a new name.
    """

    node: NodeAccount
    secret: str = field(repr=False)
    maker: str = ""
    replaced: NodeAccount | None = None


def join(
    connection: Connection,
    pepper: Pepper,
    token: str,
    name: str,
    *,
    facts: Mapping[str, Any],
    labels: Mapping[str, str],
    replace: bool = False,
) -> Joined:
    """Add a node by a token.

    Args:
        facts: as the machine says them.
        labels: of its own; the token's count before these.
        replace: a node of this name may be there: its credentials are worth nothing then.

    Raises:
        NotAuthorized: the token is not valid.
        CallerError: the name is none, or another node's; a label is none.
    """
    row = _use_token(connection, pepper, token)
    given = {**names.check_labels(labels), **json.loads(row.labels)}
    joined = admit(connection, pepper, name, facts=facts, labels=given, replace=replace)
    return Joined(joined.node, joined.secret, row.maker, joined.replaced)


def admit(
    connection: Connection,
    pepper: Pepper,
    name: str,
    *,
    facts: Mapping[str, Any],
    labels: Mapping[str, str],
    replace: bool = False,
) -> Joined:
    """Add a node without a token: for `join`, and for a fleet that starts machines itself.

    Raises:
        CallerError: as `join`.
    """
    names.check_name(name)
    text = json.dumps(dict(facts))
    if len(text) > MOST_FACTS:
        raise errors.CallerError("the facts of the node are too long", hint="upgrade the older side")
    now = time.time()
    connection.execute(nodes.delete().where(nodes.c.state == REMOVED, nodes.c.joined < now - KEPT_SECONDS))
    if (connection.execute(select(func.count()).select_from(nodes)).scalar() or 0) >= MOST_NODES:
        raise errors.CallerError(f"a server has at most {MOST_NODES:,} nodes", hint="remove some")
    before = connection.execute(select(*_COLUMNS).where(nodes.c.name == name)).first()
    if before is not None and before.state != REMOVED and not replace:
        raise _taken(name)
    secret = credentials.new_secret()
    given = names.check_labels(labels)
    created, seen = (now, None) if before is None else (before.created, before.seen)
    # It may be the same machine, and its calls may come back with it: until it links they are away, not unknown.
    account = NodeAccount(credentials.new_node_id(pepper), name, ACTIVE, given, dict(facts), created, now, seen)
    values: dict[str, Any] = {**vars(account), "labels": json.dumps(given), "facts": text}
    values["digest"] = credentials.node_digest(pepper, secret)
    if before is not None:
        connection.execute(nodes.delete().where(nodes.c.id == before.id))
    try:
        with connection.begin_nested():
            connection.execute(nodes.insert().values(**values))
    except exc.IntegrityError as error:  # another machine has joined under it at the same time
        raise _taken(name) from error
    Database.raise_mark(connection, MARK)
    return Joined(account, secret, "", None if before is None else _account(before))


def _taken(name: str) -> errors.CallerError:
    return errors.CallerError(
        f"a node is called `{name}` already",
        hint=f"give `--name` another one; if this machine takes its place, `--replace`, or remove it first: "
        f"`atoll nodes remove {name}`",
        status=409,
    )


def add_local(connection: Connection) -> None:
    """Add the server's own node, if it is not there; no credentials open it."""
    if connection.execute(select(nodes.c.id).where(nodes.c.id == LOCAL)).first() is not None:
        return
    now = time.time()
    connection.execute(
        nodes.insert().values(
            id=LOCAL, name=LOCAL, digest=b"", state=ACTIVE, labels="{}", facts="{}", created=now, joined=now, seen=None
        )
    )
    Database.raise_mark(connection, MARK)


def all_nodes(connection: Connection, *, removed: bool = False) -> list[NodeAccount]:
    """Return the nodes: the server's own first, then by name.

    Args:
        removed: those that were removed, too.
    """
    query = select(*_COLUMNS).order_by(nodes.c.name)
    found = [_account(row) for row in connection.execute(query if removed else query.where(nodes.c.state != REMOVED))]
    return sorted(found, key=lambda node: node.name != LOCAL)


def find_node(connection: Connection, name: str) -> NodeAccount:
    """Return a node by name or id.

    Raises:
        CallerError: there is none, or it was removed.
    """
    row = connection.execute(select(*_COLUMNS).where((nodes.c.name == name) | (nodes.c.id == name))).first()
    if row is None or row.state == REMOVED:
        raise errors.CallerError(f"no node is called `{cell(name, 80)}`", hint="see `atoll nodes list`", status=404)
    return _account(row)


def look_up(connection: Connection, node_id: str) -> tuple[bytes, NodeAccount] | None:
    """Return the digest of a node's secret and the node, removed ones too; None where there is none."""
    row = connection.execute(select(nodes).where(nodes.c.id == node_id)).first()
    return None if row is None else (bytes(row.digest), _account(row))


def set_state(connection: Connection, node: NodeAccount, state: str) -> NodeAccount:
    """Change a node's state, and return the node.

    Raises:
        CallerError: the server's own node is to be removed.
    """
    if node.id == LOCAL and state == REMOVED:
        raise errors.CallerError(
            "the server's own machine is always there", hint="`atoll nodes cordon local`, or `atoll server --no-local`"
        )
    connection.execute(nodes.update().where(nodes.c.id == node.id).values(state=state))
    Database.raise_mark(connection, MARK)
    return NodeAccount(**{**vars(node), "state": state})


def note_seen(
    connection: Connection, moments: Mapping[str, float], facts: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write down when nodes were heard of last, and their facts where they said some."""
    for node_id, moment in moments.items():
        connection.execute(nodes.update().where(nodes.c.id == node_id).values(seen=moment))
    for node_id, said in (facts or {}).items():
        text = json.dumps(dict(said))
        if len(text) <= MOST_FACTS:
            connection.execute(nodes.update().where(nodes.c.id == node_id).values(facts=text))
