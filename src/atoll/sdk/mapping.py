"""`map`: many calls of one function, results in order, with bounded work in flight.

An input that is a sequence is drawn by the thread that takes the results. Any other may block, so that a thread of
its own draws from it: results come as they are ready, whatever the input does. That thread stays at most `AHEAD`
items ahead of the results.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from atoll.sdk.submitting import THREADS

if TYPE_CHECKING:
    from atoll.sdk.function import IsolatedFunction

AHEAD = 2 * THREADS
"""How many items are taken from the input before the oldest has been answered."""


def results(
    function: IsolatedFunction[..., Any], iterable: Iterable[Iterable[Any]], *, return_exceptions: bool
) -> Iterator[Any]:
    """Give the result of each call in the order of the input; see `IsolatedFunction.map`."""
    source = _Sequence(function, iterable) if isinstance(iterable, Sequence) else _Feeder(function, iterable)
    return _in_order(function, source, return_exceptions)


def _in_order(
    function: IsolatedFunction[..., Any], source: _Sequence | _Feeder, return_exceptions: bool
) -> Iterator[Any]:
    try:
        while True:
            future = source.oldest()
            if future is None:
                return
            try:
                value: Any = future.result()
            except Exception as error:
                if not return_exceptions:
                    raise
                value = error
            source.taken()
            yield value
    finally:
        for future in source.close():
            function.cancel(future)


class _Sequence:
    """Submits the items of a sequence, a bounded number ahead."""

    def __init__(self, function: IsolatedFunction[..., Any], items: Sequence[Iterable[Any]]) -> None:
        self._function = function
        self._items = iter(items)
        self._pending: deque[Future[Any]] = deque()

    def oldest(self) -> Future[Any] | None:
        while len(self._pending) < AHEAD:
            arguments = next(self._items, None)
            if arguments is None:
                break
            self._pending.append(self._function.submit(*arguments))
        return self._pending[0] if self._pending else None

    def taken(self) -> None:
        self._pending.popleft()

    def close(self) -> list[Future[Any]]:
        return list(self._pending)


class _Feeder:
    """Submits what an iterator gives, from a thread of its own."""

    def __init__(self, function: IsolatedFunction[..., Any], items: Iterable[Iterable[Any]]) -> None:
        self._function = function
        self._items = iter(items)
        self._pending: deque[Future[Any]] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = self._started = False
        self._failure: BaseException | None = None

    def oldest(self) -> Future[Any] | None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._feed, name="atoll-map", daemon=True).start()
        with self._changed:
            while not self._pending and not self._ended:
                self._changed.wait()
            if self._pending:
                return self._pending[0]
        if self._failure is not None:
            raise self._failure
        return None

    def taken(self) -> None:
        with self._changed:
            self._pending.popleft()
            self._changed.notify_all()

    def close(self) -> list[Future[Any]]:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return list(self._pending)

    def _feed(self) -> None:
        try:
            for arguments in self._items:
                with self._changed:
                    while len(self._pending) >= AHEAD and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    self._pending.append(self._function.submit(*arguments))
                    self._changed.notify_all()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
