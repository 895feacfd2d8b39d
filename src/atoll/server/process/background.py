"""Work in the background of a server: looks that come again, beside the requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

AGAIN_SECONDS = 5.0
"""Seconds after which work that failed begins again: a server that no longer looks for revoked keys serves them on."""

_log = logging.getLogger("atoll.server")


@contextlib.asynccontextmanager
async def in_background(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do work while the context is open; an error that it did not expect is logged, and it begins again."""
    task = asyncio.create_task(_do(work))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _do(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await work()
        except Exception:
            _log.exception("background.failed")
            await asyncio.sleep(AGAIN_SECONDS)
