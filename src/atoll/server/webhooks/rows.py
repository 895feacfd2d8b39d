"""Webhooks as the database keeps them: questions and changes, each in the caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, delete, select

from atoll.server.webhooks.tables import webhooks


@dataclass(frozen=True)
class Webhook:
    """A delivery that is still to be made; see `tables`."""

    id: str
    user: str
    url: str
    attempts: int
    next: float


def add(connection: Connection, name: str, user: str, url: str) -> None:
    """Add a delivery that is due now.

    Args:
        name: the id of what is told.
        user: who asked for it.
    """
    connection.execute(webhooks.insert().values(id=name, user=user, url=url, attempts=0, next=time.time(), error=""))


def due(connection: Connection, without: Sequence[str], users: Sequence[str], most: int) -> list[Webhook]:
    """Return deliveries, the next one first.

    Args:
        without: ids that are not wanted.
        users: whose deliveries are not wanted.
    """
    columns = (webhooks.c[name] for name in Webhook.__dataclass_fields__)
    query = select(*columns).where(
        webhooks.c.next.is_not(None), webhooks.c.id.not_in(without), webhooks.c.user.not_in(users)
    )
    return [Webhook(**row._mapping) for row in connection.execute(query.order_by(webhooks.c.next).limit(most))]


def note(connection: Connection, name: str, attempts: int, error: str, again: float | None) -> None:
    """Note an attempt.

    Args:
        error: why it has failed; empty for one that has not.
        again: when the next one is; None for none.
    """
    delivered = None if error else time.time()
    values = {"attempts": attempts, "error": error, "next": again, "delivered": delivered}
    connection.execute(webhooks.update().where(webhooks.c.id == name).values(**values))


def open_ids() -> Select[tuple[str]]:
    """Return the query for the ids of deliveries that are still to be made."""
    return select(webhooks.c.id).where(webhooks.c.next.is_not(None))


def remove(connection: Connection, names: Sequence[str]) -> None:
    """Remove deliveries."""
    connection.execute(delete(webhooks).where(webhooks.c.id.in_(names)))
