"""Functions of the user in a worker: plain functions, coroutines, and generators of both kinds.

All coroutines of a worker run on one event loop, so that objects that `setup_function` made on it still work at the
next call. Tasks that a call leaves on the loop are cancelled when the call ends.
"""

from __future__ import annotations

import signal
import threading
import time
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
    """Cancel the tasks that a coroutine has left, as `asyncio.run` does."""
    import asyncio

    rest = asyncio.all_tasks(loop)
    if not rest:
        return
    for task in rest:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))


def _iterate(generator: Any) -> Iterator[Any]:
    """Yield the items of an async generator; closing this closes it."""
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


def ignore_interrupts() -> None:
    """Let SIGINT pass without effect in this process, and not in programs that it starts."""
    signal.signal(signal.SIGINT, _go_on)


def hear_interrupts(*, always: bool = False) -> None:
    """Make SIGINT a `KeyboardInterrupt` again, after `ignore_interrupts` or in any case."""
    if always or signal.getsignal(signal.SIGINT) is _go_on:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _go_on(*_: object) -> None:
    """Do nothing."""


PATIENCE_SECONDS = 0.05


class Pacer:
    """Watches the sends of one generator's items: one that is ahead of its consumer does not compute, and its core is
    free for other calls.

    Only a thread sees that a send waits: it tells the daemon after `PATIENCE_SECONDS`, and the end of the send is told
    too. Otherwise a loop over the items that makes calls of its own would deadlock where the generator has the last
    core.

    Args:
        tell: sends a message to the daemon; from any thread.
        epoch: of the lease.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], epoch: int) -> None:
        self._tell = tell
        self._epoch = epoch
        self._lock = threading.Lock()
        self._since = 0.0
        self._is_paused = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="atoll-pacer", daemon=True).start()

    def __enter__(self) -> None:
        """Begin to send an item."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._since = 0.0
            if self._is_paused:
                self._is_paused = False
                self._tell({"type": "resumed", "epoch": self._epoch})

    def close(self) -> None:
        """End the watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(PATIENCE_SECONDS):
            with self._lock:
                if self._since and not self._is_paused and time.monotonic() - self._since >= PATIENCE_SECONDS:
                    self._is_paused = True
                    try:
                        self._tell({"type": "paused", "epoch": self._epoch})
                    except OSError:  # the daemon is gone, and this worker ends soon
                        return
