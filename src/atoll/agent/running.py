"""How a worker runs what it was given: plain functions, coroutines, and generators of both kinds.

All coroutines of a worker run on one event loop, so that what `setup_function` made on it still works at the next
call; what a call leaves on the loop is cancelled when the call ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

_loop: Any = None


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function; one that is async is run to its end."""
    value = function(*args, **kwargs)
    return complete(value) if type(value) is CoroutineType else value


def items(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Return the iterator of a generator function, async or not."""
    value = call(function, args, kwargs)
    if hasattr(type(value), "__anext__"):
        return _iterate(value)
    return iter(value)


def complete(coroutine: Any) -> Any:
    """Run a coroutine on the worker's event loop."""
    loop = _event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        _cancel_rest(loop)


def _event_loop() -> Any:
    global _loop
    if _loop is None or _loop.is_closed():
        import asyncio

        _loop = asyncio.new_event_loop()
    return _loop


def _cancel_rest(loop: Any) -> None:
    """Cancel what a coroutine has left running, as `asyncio.run` does."""
    import asyncio

    rest = asyncio.all_tasks(loop)
    if not rest:
        return
    for task in rest:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))


def _iterate(generator: Any) -> Iterator[Any]:
    """Give the items of an async generator; closing this closes that."""
    loop = _event_loop()
    try:
        while True:
            try:
                item = loop.run_until_complete(generator.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(generator, "aclose", None)
        if close is not None:
            loop.run_until_complete(close())
        _cancel_rest(loop)
