"""Calls from asyncio, for `IsolatedFunction.aio`: the threads of `futures` wait, the event loop stays free."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from atoll.host.contract import Ticket
from atoll.sdk.futures import hide_frames

Y = TypeVar("Y")

_END = object()


class Callee(Protocol):
    """The part of an `IsolatedFunction` that a call from asyncio uses."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]: ...

    def cancel(self, future: Future[Any]) -> bool: ...

    def _iterate(self, args: Any, kwargs: Any, ticket: Ticket | None) -> Generator[Any, None, Any]: ...


async def result(function: Callee, args: Any, kwargs: Any) -> Any:
    """Run one call; when the task is cancelled, so is the call."""
    future = function.submit(*args, **kwargs)
    try:
        return await asyncio.wrap_future(future)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            function.cancel(future)
        hide_frames(error)
        raise


class Items(Generic[Y]):
    """The items of one call of a generator function: `async for item in items`, or `await items` for the list of them."""

    def __init__(self, source: AsyncGenerator[Y, None]) -> None:
        self._source = source

    def __aiter__(self) -> AsyncIterator[Y]:
        return self._source

    def __anext__(self) -> Coroutine[Any, Any, Y]:
        return self._source.__anext__()

    def __await__(self) -> Generator[Any, None, list[Y]]:
        return self._all().__await__()

    async def _all(self) -> list[Y]:
        return [item async for item in self._source]

    async def aclose(self) -> None:
        """Close the generator in its worker."""
        await self._source.aclose()


async def items(function: Callee, args: Any, kwargs: Any) -> AsyncGenerator[Any, None]:
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
    except GeneratorExit:
        raise
    except BaseException as error:
        hide_frames(error)
        raise
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
