"""Queued requests as the database keeps them: questions and changes, each in the caller's transaction.

States: `waiting`; `claimed` for a request that is not to be repeated and has been sent; `over`. That others run is known to
the process alone: after its end they wait again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select

from atoll.server.database.tables import users
from atoll.server.queue.heads import Head
from atoll.server.queue.tables import queued
from atoll.server.webhooks import rows as webhooks

WAITING, CLAIMED, OVER = "waiting", "claimed", "over"
_BARE = (queued.c.id, queued.c.owner, queued.c.alias, queued.c.caller, queued.c.priority, queued.c.submitted)
_OPEN = (*_BARE, queued.c.deadline, queued.c.no_retry, queued.c.state, queued.c.cancelled, users.c.name)


@dataclass(frozen=True)
class Outcome:
    """How a request has ended.

    Args:
        status: of the answer.
        headers: of the answer, without those of the connection.
        answer: a small body; None for one that is a file.
        size: bytes of the body.
        error, error_type: why there is no answer of the function's, or not a good one; empty for a good one.
        seconds: that the function took.
        logs: what it has printed meanwhile.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()
    answer: bytes | None = b""
    size: int = 0
    error: str = ""
    error_type: str = ""
    seconds: float = 0.0
    logs: Sequence[dict[str, str]] = ()


@dataclass(frozen=True)
class Known:
    """A request as the database has it: all but head and bodies."""

    id: str
    owner: str
    owner_name: str
    alias: str
    caller: str
    state: str
    attempt: str
    status: int
    answer_bytes: int
    error: str
    error_type: str
    seconds: float
    logs: str
    headers: str


@dataclass(frozen=True)
class Listed:
    """A request as a list shows it; `finished` is 0 before its end."""

    id: str
    alias: str
    caller: str
    priority: int
    submitted: float
    state: str
    finished: float
    status: int
    error: str
    error_type: str
    seconds: float


def newest(
    connection: Connection, owner: str, limit: int, offset: int = 0, *, alias: str = "", state: str = ""
) -> list[Listed]:
    """Return requests to the endpoints of an owner, the newest first.

    Args:
        alias: of the only endpoint that is meant; empty for all.
        state: `open`, `over`, or `failed` for those that are over and have no good answer; empty for all.
    """
    query = select(*(queued.c[name] for name in Listed.__dataclass_fields__)).where(queued.c.owner == owner)
    if alias:
        query = query.where(queued.c.alias == alias)
    if state:
        query = query.where(queued.c.state != OVER if state == "open" else queued.c.state == OVER)
    if state == "failed":
        query = query.where(queued.c.error != "")
    query = query.order_by(queued.c.submitted.desc()).limit(limit).offset(offset)
    return [Listed(**{**row._mapping, "finished": row.finished or 0.0}) for row in connection.execute(query)]


def of_owner(connection: Connection, owner: str, request: str) -> Listed | None:
    """Return a request to an endpoint of an owner; None for none."""
    query = select(*(queued.c[name] for name in Listed.__dataclass_fields__))
    row = connection.execute(query.where(queued.c.owner == owner, queued.c.id == request)).first()
    return None if row is None else Listed(**{**row._mapping, "finished": row.finished or 0.0})


def add(connection: Connection, values: dict[str, Any]) -> tuple[str, str]:
    """Add a request; return its id, and the digest of its body. One with the same idempotency key is returned instead."""
    key = values["idempotency"]
    if key is not None:
        known = connection.execute(select(queued.c.id, queued.c.digest).where(queued.c.idempotency == key)).first()
        if known is not None:
            return known[0], known[1]
    connection.execute(queued.insert().values(**_FRESH, **values))
    return values["id"], values["digest"]


_FRESH = {
    "state": WAITING,
    "cancelled": False,
    "attempt": "",
    "status": 0,
    "headers": "",
    "answer_bytes": 0,
    "error": "",
    "error_type": "",
    "seconds": 0.0,
    "logs": "",
}


def open_ones(connection: Connection) -> list[Any]:
    """Return all requests that are not over, as they came."""
    query = select(*_OPEN).join(users, users.c.id == queued.c.owner).where(queued.c.state != OVER)
    return list(connection.execute(query.order_by(queued.c.submitted, queued.c.id)))


def content(connection: Connection, request: str) -> tuple[Head, bytes | None, int] | None:
    """Return head and body of a request that is not over; no body for one that is a file. None for no such request."""
    row = connection.execute(
        select(queued.c.head, queued.c.body, queued.c.body_bytes).where(queued.c.id == request, queued.c.state != OVER)
    ).first()
    return None if row is None else (msgspec.json.decode(row[0], type=Head), row[1], row[2])


def claim(connection: Connection, request: str, attempt: str) -> bool:
    """Note that a request is sent which must not be repeated; return whether it still waits."""
    where = (queued.c.id == request) & (queued.c.state == WAITING)
    return bool(connection.execute(queued.update().where(where).values(state=CLAIMED, attempt=attempt)).rowcount)


def mark_cancelled(connection: Connection, request: str) -> bool:
    """Note that a request is not wanted any more; return whether it was not over."""
    where = (queued.c.id == request) & (queued.c.state != OVER)
    return bool(connection.execute(queued.update().where(where).values(cancelled=True)).rowcount)


def finish(connection: Connection, request: str, attempt: str, outcome: Outcome) -> bool:
    """End a request that is not over, and ask for the delivery to its webhook; return whether it was so."""
    found = connection.execute(
        select(queued.c.url, queued.c.caller, queued.c.owner).where(queued.c.id == request, queued.c.state != OVER)
    ).first()
    if found is None:
        return False
    values = {
        "state": OVER,
        "finished": time.time(),
        "attempt": attempt or request,
        "status": outcome.status,
        "headers": msgspec.json.encode(outcome.headers).decode(),
        "answer": outcome.answer,
        "answer_bytes": outcome.size,
        "error": outcome.error,
        "error_type": outcome.error_type,
        "seconds": outcome.seconds,
        "logs": msgspec.json.encode(outcome.logs).decode() if outcome.logs else "",
        "head": "",  # what the function was asked may be a secret, and nobody needs it any more
        "body": None,
        "body_bytes": 0,
    }
    connection.execute(queued.update().where(queued.c.id == request).values(**values))
    if found[0]:
        webhooks.add(connection, request, found[1] or found[2], found[0])
    return True


def set_logs(connection: Connection, request: str, attempt: str, logs: Sequence[dict[str, str]]) -> None:
    """Keep what was printed, of the attempt that was the last one."""
    where = (queued.c.id == request) & (queued.c.attempt == attempt)
    connection.execute(queued.update().where(where).values(logs=msgspec.json.encode(logs).decode()))


def find(connection: Connection, request: str) -> Known | None:
    """Return a request; None for none."""
    names = (queued.c[name] for name in Known.__dataclass_fields__ if name != "owner_name")
    row = connection.execute(
        select(*names, users.c.name.label("owner_name"))
        .join(users, users.c.id == queued.c.owner)
        .where(queued.c.id == request)
    ).first()
    return None if row is None else Known(**row._mapping)


def known(request: str, about: tuple[str, str, str, str], attempt: str, outcome: Outcome) -> Known:
    """Return what is known of a request that has just ended.

    Args:
        about: owner's id and name, alias, caller.
    """
    return Known(
        request,
        *about,
        OVER,
        attempt or request,
        outcome.status,
        outcome.size,
        outcome.error,
        outcome.error_type,
        outcome.seconds,
        msgspec.json.encode(outcome.logs).decode() if outcome.logs else "",
        msgspec.json.encode(outcome.headers).decode(),
    )


def answer(connection: Connection, request: str) -> bytes | None:
    """Return the body of an answer; None for one that is a file."""
    found: bytes | None = connection.execute(select(queued.c.answer).where(queued.c.id == request)).scalar()
    return found


def stored(connection: Connection) -> dict[str, int]:
    """Return the bytes of all requests and answers, by the endpoints' owners."""
    size = func.sum(queued.c.body_bytes + queued.c.answer_bytes)
    return {
        owner: int(found) for owner, found in connection.execute(select(queued.c.owner, size).group_by(queued.c.owner))
    }


def expire(
    connection: Connection, before: float, excess: int, owner: str = "", most: int = 500
) -> list[tuple[str, str, int]]:
    """Remove requests that are over since before a moment, and further ones until so many bytes are free.

    Those whose webhook is still to be told stay. At most `most` are removed at a time.

    Args:
        owner: whose endpoints' requests; empty for all.

    Returns:
        their ids, the endpoints' owners, and the bytes of their answers.
    """
    query = (
        select(queued.c.id, queued.c.owner, queued.c.answer_bytes, queued.c.finished)
        .where(queued.c.state == OVER, queued.c.id.not_in(webhooks.open_ids()))
        .order_by(queued.c.finished)
        .limit(most)
    )
    gone: list[tuple[str, str, int]] = []
    free = 0
    for row in connection.execute(query.where(queued.c.owner == owner) if owner else query):
        if row.finished >= before and free >= excess:
            break
        gone.append((row.id, row.owner, row.answer_bytes))
        free += row.answer_bytes
    if gone:
        ids = [one for one, _, _ in gone]
        connection.execute(delete(queued).where(queued.c.id.in_(ids)))
        webhooks.remove(connection, ids)
    return gone


def known_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those of some ids that there are."""
    found: set[str] = set()
    for first in range(0, len(ids), 500):
        found |= set(connection.execute(select(queued.c.id).where(queued.c.id.in_(ids[first : first + 500]))).scalars())
    return found
