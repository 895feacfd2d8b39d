"""The states of a request as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from atoll.server.queue.answers import state
from atoll.server.queue.links import Links
from atoll.server.queue.order import WAITING, Entry
from atoll.server.queue.queue import Queue
from atoll.server.queue.rows import OVER, Known

QUIET_SECONDS = 15.0
"""A comment tells so often that the connection lives."""
LOOK_SECONDS = 1.0
"""Between two looks at the position of a request that waits, or the logs of one that runs."""


async def events(queue: Queue, found: Entry | Known, links: Links, *, logs: bool) -> AsyncIterator[bytes]:
    """Yield the states of a request as they change, until it is over."""
    changed = asyncio.Event()
    entry = found if isinstance(found, Entry) else None
    if entry is not None:
        entry.watchers.add(changed)
    last, quiet = b"", 0.0
    try:
        while True:
            now = await queue.find(found.id)
            if now is None:
                return
            _, data = await state(queue, now, links, logs=logs)
            event = b"data: " + json.dumps(data).encode() + b"\n\n"
            if event != last:
                yield event
                last, quiet = event, 0.0
            if (isinstance(now, Known) and now.state == OVER) or queue.is_closed:
                return
            looks = logs or (isinstance(now, Entry) and now.state == WAITING)
            seconds = min(LOOK_SECONDS, QUIET_SECONDS - quiet) if looks or entry is None else QUIET_SECONDS - quiet
            try:
                async with asyncio.timeout(seconds):
                    await changed.wait()
            except TimeoutError:
                quiet += seconds
            changed.clear()
            if quiet >= QUIET_SECONDS:
                yield b": \n\n"
                quiet = 0.0
    finally:
        if entry is not None:
            entry.watchers.discard(changed)
