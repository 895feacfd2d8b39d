"""Administrative acts on nodes, each with its line of the audit, in the caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from atoll.server.accounts.audit import audit
from atoll.server.accounts.tokens import Pepper
from atoll.server.nodes import bodies, rows
from atoll.server.principal import Principal


def made_token(connection: Connection, pepper: Pepper, actor: Principal, asked: bodies.NewToken) -> bodies.MadeToken:
    """Make a token in a transaction."""
    token, expires = rows.add_token(
        connection, pepper, uses=asked.uses, seconds=asked.seconds, labels=asked.labels, maker=actor.user
    )
    details = {"uses": asked.uses, "seconds": asked.seconds, "labels": asked.labels}
    audit(connection, actor, "node.token", "", details)
    return bodies.MadeToken(token, expires, asked.uses)


def revoked_tokens(connection: Connection, actor: Principal) -> bodies.RevokedTokens:
    """Revoke all tokens in a transaction."""
    count = rows.revoke_tokens(connection)
    audit(connection, actor, "node.revoke_tokens", "", {"revoked": count})
    return bodies.RevokedTokens(count)


def changed(connection: Connection, actor: Principal, name: str, state: str, act: str) -> bodies.NodeRow:
    """Change a node's state in a transaction."""
    node = rows.set_state(connection, rows.find_node(connection, name), state)
    audit(connection, actor, act, node.id, {"name": node.name})
    return bodies.plain_row(node)
