"""The end of a request that runs and is not wanted any more."""

from __future__ import annotations

import asyncio
import contextlib

from atoll import errors
from atoll.server.endpoints.passing import passed
from atoll.server.queue.order import Entry
from atoll.server.queue.rows import Outcome

ASK_SECONDS = 5.0
"""Seconds for the function to answer that it has heard of it."""
GRACE_SECONDS = 10.0
"""Seconds for the function to end the request by itself, where it has heard of it."""
OUTCOME = Outcome(499, (), None, 0, "the request was cancelled", "client_cancelled")


async def stop(entry: Entry) -> None:
    """Tell the function of a request's cancellation, and end its attempt: at once where the function does not listen."""
    place, job, head = entry.place, entry.job, entry.head
    if place is None or job is None:
        return
    with contextlib.suppress(errors.AtollError, OSError, TimeoutError):
        if head is not None:
            async with asyncio.timeout(ASK_SECONDS):
                asked = head.cancellation(entry.id, entry.caller)
                async with passed(*place, asked, b"") as answer:
                    answer.exchange.reusable = False
                    heard = answer.status // 100 == 2
            if heard:
                await asyncio.wait([job], timeout=GRACE_SECONDS)
    job.cancel()
