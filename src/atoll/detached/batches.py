"""Batches of detached calls in few numbers, and the end of many of their calls at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atoll import errors
from atoll.detached.database import Database

LIVE = ("waiting", "running")
CANCELLED = errors.CallCancelled("the call was cancelled before it started", hint="nothing to do: it was asked for")
CANCELLED_AND_LOST = errors.CallCancelled(
    "the call was cancelled, and the daemon ended before the call did", hint="nothing to do: it was asked for"
)


@dataclass
class Batch:
    """A batch at one moment.

    Args:
        counts: how many calls have each state and, for finished ones, each outcome.
        queued_at, ended_at: of its first and last, in seconds since the epoch.
    """

    batch: str
    function: str = ""
    queued_at: float = 0.0
    ended_at: float = 0.0
    latest: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def unfinished(self) -> int:
        """How many calls have no outcome."""
        return sum(self.counts.get(state, 0) for state in LIVE)

    def to_data(self) -> dict[str, Any]:
        """Return the batch for a client."""
        return {
            "batch": self.batch,
            "function": self.function,
            "queued_at": self.queued_at,
            "ended_at": 0.0 if self.unfinished else self.ended_at,
            "calls": sum(self.counts.values()),
            "counts": self.counts,
        }


def unwanted(store: Database) -> list[str]:
    """Return the calls that were cancelled while they run."""
    return [row.call for row in store.rows("WHERE state = 'running' AND unwanted = 1")]


def batches(store: Database, user: str, start: str = "", limit: int = 100) -> list[Batch]:
    """Return a user's batches whose ids begin so, newest first."""
    found: dict[str, Batch] = {}
    with store.lock, store.translated():
        rows = store.connection.execute(
            "SELECT batch, CASE state WHEN 'finished' THEN outcome ELSE state END, count(*), max(function), "
            "min(queued_at), max(ended_at), max(id) FROM calls "
            "WHERE user = ? AND batch != '' AND batch >= ? AND batch < ? GROUP BY 1, 2",
            (user, start, start + "\U0010ffff"),
        ).fetchall()
    for name, state, count, function, queued, ended, latest in rows:
        batch = found.setdefault(name, Batch(name, queued_at=queued))
        batch.counts[state] = count
        batch.function = max(batch.function, function)
        batch.queued_at, batch.ended_at = min(batch.queued_at, queued), max(batch.ended_at, ended)
        batch.latest = max(batch.latest, latest)
    return sorted(found.values(), key=lambda one: -one.latest)[:limit]


def held_by(store: Database, user: str) -> tuple[int, int]:
    """Return how many calls of a user have no outcome, and the bytes that all of the user's take on the disk."""
    with store.lock, store.translated():
        found = store.connection.execute(
            "SELECT coalesce(sum(state != 'finished'), 0), "
            "coalesce(sum(spool_bytes + result_bytes + output_bytes), 0) FROM calls WHERE user = ?",
            (user,),
        ).fetchone()
        (templates,) = store.connection.execute(
            "SELECT total(size) FROM (SELECT max(template_bytes) AS size FROM calls "
            "WHERE user = ? AND template != '' GROUP BY template)",
            (user,),
        ).fetchone()
        return int(found[0]), int(found[1] + templates)


def used_by_all(store: Database) -> int:
    """Return how much the calls of all users take on the disk."""
    with store.lock, store.translated():
        (used,) = store.connection.execute(
            "SELECT total(spool_bytes) + total(result_bytes) + total(output_bytes) FROM calls"
        ).fetchone()
        for shared in ("bundle", "template"):  # one file of many calls
            (size,) = store.connection.execute(
                f"SELECT total(size) FROM (SELECT max({shared}_bytes) AS size FROM calls WHERE {shared} != '' GROUP BY {shared})"  # noqa: S608 - own words
            ).fetchone()
            used += size
    return int(used)
