"""Revisions and aliases as the database keeps them: questions and changes, each in the caller's transaction."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, func, select

from atoll import errors
from atoll.server.database.tables import users
from atoll.server.endpoints.bodies import Options
from atoll.server.endpoints.tables import aliases, revisions
from atoll.terminal_text import cell

_ALIAS = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MOST_ASKED = 500  # values of one statement
MOST_REVISIONS, MOST_REVISIONS_BYTES = 10_000, 16 << 30
"""Revisions of one user, and all of their files."""


@dataclass(frozen=True)
class Revision:
    """A revision; see `tables`."""

    id: str
    user: str
    owner: str
    function: str
    port: int
    options: Options
    auth: str
    created: float
    alias: str = ""


def check_alias(alias: str, what: str = "an alias") -> None:
    """Check that a name can be an alias: it is a part of host names.

    Args:
        what: is named so.

    Raises:
        CallerError: it cannot.
    """
    if not _ALIAS.fullmatch(alias):
        raise errors.CallerError(
            f"`{cell(alias, 70)}` cannot be {what}",
            hint=f"{what} has 1 to 63 lower-case letters, digits and hyphens, such as `my-model`",
        )


def _revision(row: Row[Any]) -> Revision:
    fields = dict(row._mapping)
    options = msgspec.json.decode(fields.pop("options"), type=Options)
    fields.pop("size_bytes")
    return Revision(options=options, **{**fields, "alias": fields.get("alias") or ""})


_COLUMNS = [*revisions.c, users.c.name.label("owner"), aliases.c.alias]
_FROM = revisions.join(users, users.c.id == revisions.c.user).outerjoin(
    aliases, and_(aliases.c.revision == revisions.c.id, aliases.c.user == revisions.c.user)
)


def add(connection: Connection, user: str, found: dict[str, Any], alias: str) -> str:
    """Add a revision; an alias points to it from here on. Return the revision before; empty for none.

    Raises:
        QuotaExceeded: the user has as many as one may.
    """
    _check_room(connection, user, found["size_bytes"])
    connection.execute(revisions.insert().values(user=user, created=time.time(), **found))
    return point(connection, user, alias, found["id"]) if alias else ""


def _check_room(connection: Connection, user: str, size_bytes: int) -> None:
    query = select(func.count(), func.coalesce(func.sum(revisions.c.size_bytes), 0)).where(revisions.c.user == user)
    count, held = connection.execute(query).one()
    if count >= MOST_REVISIONS or held + size_bytes > MOST_REVISIONS_BYTES:
        raise errors.QuotaExceeded(
            f"your {count:,} functions at this server have {int(held) >> 20:,} MiB: a user has at most {MOST_REVISIONS:,} "
            f"with {MOST_REVISIONS_BYTES >> 30} GiB",
            hint="remove what nothing needs: `atoll function delete --unused`",
        )


def plain(name: str, function: str, size_bytes: int) -> dict[str, Any]:
    """Return the fields of a revision of a function that is no server."""
    options = msgspec.json.encode(Options()).decode()
    found = {"id": name, "function": function[:400], "port": 0, "options": options, "auth": "private"}
    return {**found, "size_bytes": size_bytes}


def lock(connection: Connection, user: str) -> None:
    """Let no other transaction change a user's aliases and apps before this one is over; SQLite has one writer anyway."""
    connection.execute(select(users.c.id).where(users.c.id == user).with_for_update(key_share=True))


def point(connection: Connection, user: str, alias: str, revision: str) -> str:
    """Let an alias point to a revision; return the one before, empty for none."""
    lock(connection, user)
    where = (aliases.c.user == user) & (aliases.c.alias == alias)
    before = connection.execute(select(aliases.c.revision).where(where)).scalar()
    values = {"revision": revision, "previous": before or "", "changed": time.time()}
    if before is None:
        connection.execute(aliases.insert().values(user=user, alias=alias, **values))
    elif before != revision:
        connection.execute(aliases.update().where(where).values(**values))
    return before or ""


def find(connection: Connection, owner: str, name: str) -> Revision | None:
    """Return the revision that an owner's alias points to, or that has this id; None for none.

    Args:
        owner: name or id of a user.
    """
    query = select(*_COLUMNS).select_from(_FROM).where((users.c.name == owner) | (users.c.id == owner))
    row = connection.execute(query.where((aliases.c.alias == name) | (revisions.c.id == name)).limit(1)).first()
    return None if row is None else _revision(row)


def by_id(connection: Connection, name: str) -> Revision | None:
    """Return the revision of an id; None for none."""
    row = connection.execute(select(*_COLUMNS).select_from(_FROM).where(revisions.c.id == name).limit(1)).first()
    return None if row is None else _revision(row)


def known(connection: Connection, names: Sequence[str]) -> set[str]:
    """Return those of some ids that revisions have."""
    found: set[str] = set()
    for first in range(0, len(names), _MOST_ASKED):
        part = names[first : first + _MOST_ASKED]
        found |= set(connection.execute(select(revisions.c.id).where(revisions.c.id.in_(part))).scalars())
    return found


def forget(connection: Connection, names: Sequence[str]) -> None:
    """Remove revisions by their ids."""
    for first in range(0, len(names), _MOST_ASKED):
        connection.execute(revisions.delete().where(revisions.c.id.in_(names[first : first + _MOST_ASKED])))


def everything(connection: Connection) -> list[Revision]:
    """Return the revisions of all users."""
    return [_revision(row) for row in connection.execute(select(*_COLUMNS).select_from(_FROM))]


def all_of(connection: Connection, user: str) -> list[Revision]:
    """Return a user's revisions, the newest first."""
    query = select(*_COLUMNS).select_from(_FROM).where(revisions.c.user == user).order_by(revisions.c.created.desc())
    return [_revision(row) for row in connection.execute(query)]


def aliases_of(connection: Connection, user: str) -> list[tuple[str, str, float]]:
    """Return a user's aliases by name: alias, previous revision, and when it was changed."""
    query = select(aliases.c.alias, aliases.c.previous, aliases.c.changed).where(aliases.c.user == user)
    return [(row[0], row[1], row[2]) for row in connection.execute(query.order_by(aliases.c.alias))]


def previous(connection: Connection, user: str, alias: str) -> str:
    """Return the revision that an alias has pointed to before; empty for none.

    Raises:
        CallerError: there is no such alias.
    """
    where = (aliases.c.user == user) & (aliases.c.alias == alias)
    found = connection.execute(select(aliases.c.previous).where(where)).scalar()
    if found is None:
        raise no_alias(alias)
    return str(found)


def delete_alias(connection: Connection, user: str, alias: str) -> str:
    """Delete an alias; return the revision that it has pointed to.

    Raises:
        CallerError: there is no such alias.
    """
    lock(connection, user)
    where = (aliases.c.user == user) & (aliases.c.alias == alias)
    found = connection.execute(select(aliases.c.revision).where(where)).scalar()
    if found is None:
        raise no_alias(alias)
    connection.execute(aliases.delete().where(where))
    return str(found)


def no_alias(alias: str) -> errors.CallerError:
    """Return the error for an alias that there is not."""
    return errors.CallerError(f"there is no alias `{cell(alias, 70)}`", hint="see `atoll function list`", status=404)
