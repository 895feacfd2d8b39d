"""The load of a node that has joined a server: told once, or again after every change.

A connection with the opening message `{"type": "watch_load"}` gets `{"type": "load", "load": {...}}` at once and after
each change, at most one in `PAUSE_SECONDS`; it ends with either side. The request `load` gives the object alone:

    fits: {machine type: how many workers of it fit now}    millicores, memory_bytes, gpus: free now
    running: leases that workers serve                      waiting: leases that wait
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from atoll.engine.contract import Engine
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed

PAUSE_SECONDS = 0.05


async def watch(engine: Engine, channel: AsyncChannel) -> None:
    """Tell a client the load until it leaves."""
    gone = asyncio.ensure_future(channel.receive())
    told: dict[str, Any] = {}
    try:
        with engine.changes() as changed:
            while not gone.done():
                changed.clear()
                load = engine.load()
                if load != told:
                    await channel.send({"type": "load", "load": load})
                    told = load
                await asyncio.wait({gone}, timeout=PAUSE_SECONDS)
                if not changed.is_set():
                    await _either(gone, changed)
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError, ChannelClosed):
            await gone


async def _either(gone: asyncio.Future[Any], changed: asyncio.Event) -> None:
    waits = asyncio.ensure_future(changed.wait())
    try:
        await asyncio.wait({gone, waits}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waits.cancel()
