"""The body of a request for an endpoint, and the client's end behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request

from atoll import errors

WATCHED_SECONDS = 0.1
"""Seconds after which it is looked whether the client of an answer is still there."""


class Body:
    """The rest of a request's body, and the client's end behind it."""

    def __init__(self, request: Request, more: bool) -> None:
        self.request, self.more = request, more
        self._gone = False
        self._read = asyncio.Event()
        if not more:
            self._read.set()

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield the pieces that are still to come."""
        more = True
        while more:
            message = await self.request.receive()
            if message["type"] == "http.disconnect":
                raise _gone()
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._read.set()

    @contextlib.contextmanager
    def ending(self, task: asyncio.Task[Any] | None) -> Iterator[None]:
        """End a task when the client goes, while the context is open: nobody reads the rest of an answer.

        Raises:
            CallerError: the client has gone.
        """
        watch: asyncio.Task[None] | None = None
        assert task is not None

        def look() -> None:  # most answers are there before, and cost no further task
            nonlocal watch
            watch = asyncio.ensure_future(self._end(task))

        timer = asyncio.get_running_loop().call_later(WATCHED_SECONDS, look)
        try:
            yield
        except asyncio.CancelledError:
            if self._gone and not task.uncancel():
                raise _gone() from None
            raise
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()

    async def _end(self, task: asyncio.Task[Any]) -> None:
        await self._read.wait()
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        task.cancel()


async def beginning_of(request: Request) -> tuple[bytes, bool]:
    """Return the first part of the body, and whether there is more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise _gone()
    return message.get("body", b""), message.get("more_body", False)


def _gone() -> errors.CallerError:
    return errors.CallerError("the client has gone", hint="nothing to do", status=499)
