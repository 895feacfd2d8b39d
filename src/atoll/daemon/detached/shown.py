"""Rows of detached calls for clients."""

from __future__ import annotations

import time
from typing import Any

from atoll.daemon.detached.calls import Detached
from atoll.detached.batches import position_of
from atoll.detached.rows import Row

EARLIER_RUNS = "runs under the daemon before this one, which ends with its calls"
EARLIER_WAITS = "waits until the calls of the daemon before this one have ended"


def shown(detached: Detached, row: Row) -> dict[str, Any]:
    """Return a row for a client, with the state and the line that the keeper has told."""
    state, line = detached.waits.get(row.call, ("", ""))
    shown = row.to_data()
    if row.state == "waiting" and state == "building":
        shown["state"] = state
    if row.state == "waiting" and not state and row.due_at <= time.time():
        line = detached.full
    if detached.blocked and not line:
        line = EARLIER_RUNS if row.state == "running" else EARLIER_WAITS if row.state == "waiting" else ""
    return {**shown, "detail": line, "detached": True}


async def placed(detached: Detached, row: Row) -> dict[str, Any]:
    """Return a row as `shown`, with `position`: of a deployed function's call that waits, the calls that are before it."""
    if row.state != "waiting" or not row.deployed:
        return {**shown(detached, row), "position": 0}
    return {**shown(detached, row), "position": await detached.ask(lambda store: position_of(store, row), row.user)}
