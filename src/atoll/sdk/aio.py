"""Calls from asyncio: the waiting is done by the threads of `submitting`, the event loop stays free."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from atoll.host.contract import Ticket

if TYPE_CHECKING:
    from atoll.sdk.function import IsolatedFunction

_END = object()


async def result(function: IsolatedFunction[..., Any], args: Any, kwargs: Any) -> Any:
    """Run one call; when the task is cancelled, so is the call."""
    future = function.submit(*args, **kwargs)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        function.cancel(future)
        raise


async def items(function: IsolatedFunction[..., Any], args: Any, kwargs: Any) -> AsyncIterator[Any]:
    """Run a generator's call and give its items; the next one is asked for when this one has been taken."""
    ticket = Ticket()
    source = function._iterate(args, kwargs, ticket)
    try:
        while True:
            waiting = asyncio.ensure_future(asyncio.to_thread(_next, source))
            try:
                item = await asyncio.shield(waiting)
            except asyncio.CancelledError:
                ticket.cancel()
                with contextlib.suppress(BaseException):
                    await waiting
                raise
            if item is _END:
                return
            yield item
    finally:
        if _has_loop():
            await asyncio.to_thread(_close, source)
        else:  # collected after its loop has ended
            ticket.cancel()
            with contextlib.suppress(BaseException):
                source.close()


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _next(source: Iterator[Any]) -> Any:
    return next(source, _END)


def _close(source: Any) -> None:
    source.close()
