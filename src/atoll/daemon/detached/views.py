"""Detached calls among all calls: rows of those that are not over, records of those that are."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from atoll.daemon.detached import requests
from atoll.daemon.detached.calls import Detached
from atoll.daemon.detached.requests import cancel
from atoll.daemon.detached.shown import shown
from atoll.daemon.records.requests import LEAST_CHARACTERS
from atoll.daemon.running_calls import EMPTY
from atoll.detached.batches import batches
from atoll.detached.rows import Row
from atoll.detached.store import Store
from atoll.errors import CallUnknown

MOST_ROWS = 1000
LOOK_SECONDS = 0.1
MOST_OUTPUT = 64 << 10
"""Bytes of the end of an output that are shown with a record."""


async def merged(detached: Detached, user: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of calls that are not over, with those of detached calls that only the store knows."""
    if not detached.busy:
        return rows
    found = await detached.ask(lambda store: store.listed(user, states=("waiting", "running"), limit=MOST_ROWS), user)
    kept = {row.call: row for row in reversed(found)}
    known = {row["call"] for row in rows}
    marked = [{**row, "detached": True} if row["call"] in kept else row for row in rows]
    return [*marked, *(_row(detached, row) for call, row in kept.items() if call not in known)][:MOST_ROWS]


def _row(detached: Detached, row: Row) -> dict[str, Any]:
    told = shown(detached, row)
    return {
        **EMPTY,
        "call": row.call,
        "function": row.function,
        "state": told["state"],
        "since": row.started_at if row.state == "running" else row.queued_at,
        "queued_at": row.queued_at,
        "detail": told["detail"],
        "machine_type": "",
        "parent": "",
        "user": row.user,
        "detached": True,
    }


async def find(detached: Detached, user: str, start: str) -> Row | None:
    """Return the detached call whose id is `start` or begins so; None where there is none, or more than one.

    A beginning has `LEAST_CHARACTERS` or more, as for other calls: a shorter one fits a call that is not meant.
    """
    if not await detached.any():
        return None
    try:
        found = await detached.ask(lambda store: store.find(user, start), user)
    except CallUnknown:
        return None
    return found if len(start) >= LEAST_CHARACTERS or found.call == start else None


async def unfinished(detached: Detached, row: Row) -> dict[str, Any]:
    """Return the answer to `calls.show` and `calls.output` about a call that waits."""
    return {"calls": [], "children": [], "unfinished": [{**_row(detached, row), "printed_bytes": 0, "output": ""}]}


async def over(detached: Detached, row: Row) -> dict[str, Any]:
    """Return the answer to `calls.show` and `calls.output` about a finished call that has no record."""
    size, text = await detached.ask(lambda store: _output(store, row.call), row.user)
    output = {"printed_bytes": size, "output": text.decode("utf-8", "replace")}
    return {"calls": [{**row.record().to_data(), **output}], "children": []}


def _output(store: Store, call: str) -> tuple[int, bytes]:
    descriptor = store.files.open("outputs", call)
    if descriptor is None:
        return 0, b""
    with open(descriptor, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - MOST_OUTPUT, 0))
        return size, file.read(MOST_OUTPUT)


async def cancel_batch(detached: Detached, user: str, start: str) -> dict[str, Any] | None:
    """Cancel the batch whose id is `start` or begins so; return what it was, None where there is none, or more than one."""
    if not await detached.any():
        return None
    found = await detached.ask(lambda store: batches(store, user, start, 3), user)
    found = [one for one in found if one.batch == start] or found
    if len(found) != 1 or len(start) < LEAST_CHARACTERS:
        return None
    (batch,) = found
    count = await requests.cancel_batch(detached, user, batch.batch)
    seconds = max(time.time() - batch.queued_at, 0.0)
    about = {"call": batch.batch, "function": batch.function, "calls": count, "seconds": seconds}
    return {**about, "state": "batch", "grace_seconds": 0.0, "ended": True}


async def ends(detached: Detached, row: Row, seconds: float) -> bool:
    """Wait for the end of a call that runs; return whether it has come in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = await detached.ask(
            lambda store: store.rows("WHERE call = ? AND state = 'running'", (row.call,)), row.user
        )
        if not found:
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)


async def cancelled(detached: Detached, row: Row) -> bool:
    """Cancel a call; return whether it had no outcome."""
    return await cancel(detached, row) > 0
