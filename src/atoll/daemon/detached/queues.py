"""Requests about the calls of deployed functions that wait: how many there are, and the end of all."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from atoll.daemon.detached.calls import Detached
from atoll.detached import batches


async def handle(detached: Detached, user: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Perform a request.

    - `detached.queues`: gives `queues`, by deployed function how many calls are `waiting` and `running`.
    - `detached.flush` (`deployed`): cancels the calls of a deployed function that wait; gives `calls`, how many.

    Raises:
        ValueError: an argument has the wrong type.
        DiskFull, StateUnusable: as the store.
    """
    if verb == "queues":
        return {"queues": await detached.ask(partial(batches.queues, user=user), user)}
    deployed = arguments.get("deployed")
    if not isinstance(deployed, str) or not deployed:
        raise ValueError("`deployed` must be the name of a deployed function")
    return {"calls": await detached.whole(_flush(detached, user, deployed))}


async def _flush(detached: Detached, user: str, deployed: str) -> int:
    count = 0
    while True:
        began = time.monotonic()
        ended = await detached.ask(partial(batches.cancel_queue, user=user, deployed=deployed), user)
        if not ended:
            return count
        for row in ended:
            detached.record(row)
        detached.cancel(ended)
        detached.wake(*(row.call for row in ended), *{row.batch for row in ended})
        count += len(ended)
        await asyncio.sleep(time.monotonic() - began)  # half of the store's time is others'
