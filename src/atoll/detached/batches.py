"""Batches of detached calls in few numbers, and the end of many of their calls at once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll import errors
from atoll.detached.bundles import Bundles
from atoll.detached.database import SELECT, Database, changed
from atoll.detached.needed_spools import freed
from atoll.detached.rows import Row

LIVE = ("waiting", "running")
RELEASED = "bundle = CASE WHEN batch = '' OR ? = 'ok' THEN '' ELSE bundle END"
"""The change of a call's end: only one of a batch that failed may be made again, and needs its modules."""
MOST_AT_ONCE = 500
"""Calls that one transaction ends or removes: those of all users wait for it."""
MOST_VALUES = 500
"""Values of one statement: SQLite takes a thousand at least."""
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


def cancel_all(store: Bundles, calls: Sequence[str]) -> list[Row]:
    """End those of some calls that were not sent, and mark those that run, at once; return the rows of the former."""
    with store.transaction() as connection:
        ended, _, unneeded = _cancel(connection, calls)
    return _released(store, ended, unneeded)


def cancel_some(
    store: Bundles, user: str, batch: str, below: int, most: int = MOST_AT_ONCE
) -> tuple[list[Row], list[Row], int]:
    """Cancel the last calls of a batch without an outcome, at most so many, in one short transaction.

    From the end: the keeper makes calls in their order, and would begin others in place of the first ones.

    Args:
        below: the number that all of them are below.

    Returns:
        Those that were not sent and have ended, those that run, and `below` for the next ones; 0 when none are left.
    """
    test = "WHERE user = ? AND batch = ? AND number < ? AND state != 'finished' ORDER BY number DESC LIMIT ?"
    with store.transaction() as connection:
        values = (user, batch, below, most)
        found = connection.execute(f"SELECT call, number FROM calls {test}", values).fetchall()  # noqa: S608 - own words
        ended, running, unneeded = _cancel(connection, [call for call, _ in found])
    return _released(store, ended, unneeded), running, int(found[-1][1]) if len(found) == most else 0


def _cancel(connection: sqlite3.Connection, calls: Sequence[str]) -> tuple[list[tuple[Row, str]], list[Row], set[str]]:
    """Cancel calls in a transaction.

    Returns:
        Those that were not sent, each with the bundle that it had; those that run; spools that nobody needs any more.
    """
    before = _rows(connection, calls, "AND state != 'finished'")
    (ended,) = connection.execute("SELECT coalesce(max(ended), 0) FROM calls").fetchone()
    changes = f"state = 'finished', outcome = 'cancelled', error = ?, ended_at = ?, ended = ?, {RELEASED}"
    error, now = json.dumps(CANCELLED.to_data()), time.time()
    for row in before:
        if row.state == "waiting":
            ended += 1
            changed(connection, changes, "call = ?", (error, now, ended, "cancelled", row.call))
        else:
            changed(connection, "unwanted = 1", "call = ? AND unwanted = 0", (row.call,))
    after = _rows(connection, [row.call for row in before])
    over = [(row, then.bundle) for row, then in zip(after, before, strict=True) if row.state == "finished"]
    return over, [row for row in after if row.state == "running"], freed(connection, {row.spool for row, _ in over})


def _released(store: Bundles, ended: list[tuple[Row, str]], unneeded: Iterable[str]) -> list[Row]:
    """Remove files that cancelled calls needed, past the transaction; return the rows."""
    store.files.remove("spools", *unneeded)
    store.release({bundle for _, bundle in ended})
    return [row for row, _ in ended]


def _rows(connection: sqlite3.Connection, calls: Sequence[str], test: str = "") -> list[Row]:
    """Return the rows of calls, in this order."""
    found = dict[str, Row]()
    for at in range(0, len(calls), MOST_VALUES):
        some = calls[at : at + MOST_VALUES]
        rest = f"WHERE call IN ({', '.join('?' * len(some))}) {test}"
        found.update((row[0], Row(*row)) for row in connection.execute(f"{SELECT} {rest}", some))
    return [found[call] for call in calls if call in found]


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


def finished(store: Database, user: str, batch: str, after: int, most: int = MOST_AT_ONCE) -> list[Row]:
    """Return the finished calls of a batch behind a number, at most so many."""
    test = "WHERE user = ? AND batch = ? AND number > ? AND state = 'finished' ORDER BY number LIMIT ?"
    return store.rows(test, (user, batch, after, most))


def cancel_queue(store: Bundles, user: str, deployed: str, most: int = MOST_AT_ONCE) -> list[Row]:
    """End the last calls of a deployed function that wait, at most so many, in one short transaction; return the rows."""
    test = "WHERE user = ? AND deployed = ? AND deployed != '' AND state = 'waiting' ORDER BY id DESC LIMIT ?"
    with store.transaction() as connection:
        found = connection.execute(f"SELECT call FROM calls {test}", (user, deployed, most)).fetchall()  # noqa: S608 - own words
        ended, _, unneeded = _cancel(connection, [call for (call,) in found])
    return _released(store, ended, unneeded)


def queues(store: Database, user: str) -> dict[str, dict[str, int]]:
    """Return how many calls of each deployed function of a user wait and run."""
    found: dict[str, dict[str, int]] = {}
    with store.lock, store.translated():
        rows = store.connection.execute(
            "SELECT deployed, state, count(*) FROM calls "
            "WHERE user = ? AND deployed != '' AND state != 'finished' GROUP BY 1, 2",
            (user,),
        ).fetchall()
    for deployed, state, count in rows:
        found.setdefault(deployed, {})[state] = count
    return found


def position_of(store: Database, row: Row) -> int:
    """Return how many calls of the same deployed function wait before one."""
    with store.lock, store.translated():
        found = store.connection.execute(
            "SELECT count(*) FROM calls WHERE user = ? AND deployed = ? AND state = 'waiting' "
            "AND id < (SELECT id FROM calls WHERE call = ?)",
            (row.user, row.deployed, row.call),
        )
        return int(found.fetchone()[0])


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
