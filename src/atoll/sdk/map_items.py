"""The items of one `map` on their way to be calls, and the answers on their way to the thread that takes them.

An input that is not one of Python's own sequences may block, so that a thread of its own draws from it: results come
as they are ready, whatever the input does. Nobody gets more than `AHEAD` items ahead of the results that have been
taken.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Protocol

from atoll.errors import AtollError, set_call_id
from atoll.host.pipelining import Job
from atoll.sdk.display.map_streams import MapStreams
from atoll.sdk.futures import THREADS, CallFuture
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from typing import Self  # functions may run on Python 3.10

    from atoll.host.contract import Host
    from atoll.sdk.call import Request
    from atoll.sdk.display.map_bar import Counts, MapBar
    from atoll.sdk.options import Options
    from atoll.wire.frames import Message

AHEAD = 8 * THREADS
"""Items taken from the input before the oldest has been answered and taken."""
SAME_SECONDS = 0.001
"""Seconds for which one `map` takes the function and the project's modules as unchanged."""


class MappedFunction(Protocol):
    """The function that `map` calls; see `IsolatedFunction`."""

    __wrapped__: Any

    @property
    def options(self) -> Options: ...
    @property
    def plain_calls(self) -> bool: ...
    @property
    def host(self) -> Host: ...
    def request(self, args: tuple[Any, ...], like: Request | None = None) -> Request: ...
    def on(self, *, on_done: None) -> Self: ...
    def submit(self, /, *args: Any) -> Future[Any]: ...
    def cancel(self, future: Future[Any]) -> bool: ...


class MapItems:
    """Items on their way to be calls, and answers on their way to who asked; see `lanes.Jobs`."""

    def __init__(
        self, function: MappedFunction, items: Iterator[Iterable[Any]], *, direct: bool, ordered: bool = True
    ) -> None:
        self.bar: MapBar | None = None
        self.busy: Callable[[], int] = _none
        """Leases that serve calls of this `map`."""
        self._function = function
        self._items = items
        self._direct = direct
        self._last: tuple[float, Request] | None = None
        """The time of the last look at the function and the modules, and the request made then."""
        self._drawn: deque[Iterable[Any]] = deque()
        self._back: deque[Job] = deque()
        self._changed = threading.Condition()
        self.on_arrival: Callable[[], None] = _ignore
        """Called when an item has come from the input and no lane waits for one."""
        self._waiting = 0
        """Lanes that wait for an item."""
        self._count = 0
        """Items that have been given out."""
        self._taken = 0
        """Results that have been taken, or are being waited for."""
        self._answers: dict[int, Any] = {}
        self._notes: dict[int, str] = {}
        """Item and call of each answer that is an error, for its reader."""
        self._note = ""
        self._futures: dict[int, Future[Any]] = {}
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self._awaited = -1
        self._arrived: deque[int] | None = None if ordered else deque()
        """The numbers of answers that have not been taken, as they came."""
        self._answered = self._failed = 0
        if not self._direct:
            threading.Thread(target=self._feed, name="atoll-map", daemon=True).start()

    # --- the input --------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        try:
            for arguments in self._items:
                with self._changed:
                    while self._count + len(self._drawn) - self._taken >= AHEAD and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    self._drawn.append(arguments)
                    self._changed.notify_all()
                    is_awaited = self._waiting > 0
                if not is_awaited:
                    self.on_arrival()
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _draw(self, *, wait: bool) -> tuple[int, Iterable[Any]] | None:
        """Return the next item and its number; with the lock held."""
        while not self._closed:
            if self._count - self._taken < AHEAD:
                if self._drawn:
                    self._count += 1
                    return self._count - 1, self._drawn.popleft()
                if self._direct and not self._ended:
                    try:
                        item = next(self._items)
                    except BaseException as error:
                        if not isinstance(error, StopIteration):
                            self._failure = error
                        self._ended = True
                        self._changed.notify_all()
                    else:
                        self._count += 1
                        return self._count - 1, item
                if self._ended:
                    return None
            if not wait:
                return None
            self._waiting += 1
            self._changed.wait()
            self._waiting -= 1
        return None

    # --- for the lanes ----------------------------------------------------------------------------------------------

    def take(self, *, wait: bool) -> Job | None:
        """See `lanes.Jobs.take`."""
        while True:
            with self._changed:
                if self._back:
                    return None if self._closed else self._back.popleft()
                drawn = self._draw(wait=wait and not self._back)
            if drawn is None:
                return self._back.popleft() if self._back and not self._closed else None
            number, arguments = drawn
            given: tuple[Any, ...] = ()
            try:
                given = tuple(arguments)
                return self._job(number, given)
            except BaseException as error:
                self._notes[number] = self._describe(number, given)
                self._answer(number, error, failed=True)

    def _job(self, number: int, arguments: tuple[Any, ...]) -> Job:
        last, now = self._last, time.monotonic()
        if last is not None and now < last[0] + SAME_SECONDS:
            request = self._function.request(arguments, last[1])
        else:
            request = self._function.request(arguments)
            self._last = now, request
        call = request.call
        return Job(
            number, request.spec, call, request.bundle, MapStreams(call.id, call.name, self.bar, self.busy), arguments
        )

    def more(self) -> bool:
        """See `pipelining.Jobs.more`."""
        with self._changed:
            if self._closed:
                return False
            if not self._back and not self._drawn and self._direct and not self._ended:
                drawn = self._draw(wait=False)
                if drawn is not None:
                    self._count -= 1
                    self._drawn.append(drawn[1])
            return bool(self._back or (self._drawn and self._count - self._taken < AHEAD))

    def put_back(self, jobs: list[Job]) -> None:
        """See `lanes.Jobs.put_back`."""
        if jobs:
            with self._changed:
                self._back.extendleft(reversed(jobs))
                self._changed.notify_all()

    def deliver(self, job: Job, answer: Message | BaseException) -> None:
        """See `lanes.Jobs.deliver`."""
        if isinstance(job.output, MapStreams):
            job.output.end_lines()
        job.output.proceeds()
        if isinstance(answer, AtollError):
            set_call_id(answer, job.call.id)
        failed = isinstance(answer, BaseException) or answer.type == "error"
        if failed:
            self._notes[job.number] = self._describe(job.number, job.arguments, job.call.id)
        self._answer(job.number, answer if isinstance(answer, BaseException) else (answer, job.call.id), failed=failed)

    def _answer(self, number: int, answer: Any, *, failed: bool = False) -> None:
        with self._changed:
            self._answers[number] = answer
            self._answered += 1
            self._failed += failed
            if self._arrived is not None:
                self._arrived.append(number)
                self._changed.notify_all()
            elif number == self._awaited:
                self._changed.notify_all()

    # --- without lanes ----------------------------------------------------------------------------------------------

    def submit_all(self) -> None:
        """Submit the items from a thread of their own, for functions whose calls are more than one exchange."""
        threading.Thread(target=self._submit, name="atoll-map-submit", daemon=True).start()

    def _submit(self) -> None:
        while True:
            with self._changed:
                drawn = self._draw(wait=True)
            if drawn is None:
                return
            number, arguments = drawn
            given: tuple[Any, ...] = ()
            try:
                given = tuple(arguments)
                future = self._function.submit(*given)
            except BaseException as error:
                self._notes[number] = self._describe(number, given)
                self._answer(number, error, failed=True)
                continue
            with self._changed:
                self._futures[number] = future
                closed = self._closed
            future.add_done_callback(functools.partial(self._finish, number, given))
            if closed:
                self._function.cancel(future)

    def _finish(self, number: int, arguments: tuple[Any, ...], future: Future[Any]) -> None:
        failed = not future.cancelled() and future.exception() is not None
        if failed:
            self._notes[number] = self._describe(number, arguments, getattr(future, "call_id", ""))
        self._answer(number, future, failed=failed)

    def running(self) -> list[Future[Any]]:
        """Return the submitted calls that are on a worker."""
        return [future for future in list(self._futures.values()) if future.running()]

    def counts(self, total: int, busy: int) -> Counts:
        """Return the numbers for the bar; a moment apart from each other."""
        from atoll.sdk.display.map_bar import Counts

        if self._ended and not self._drawn:
            total = self._count
        return Counts(self._answered, self._failed, max(min(busy, self._count - self._answered), 0), total)

    # --- the results ------------------------------------------------------------------------------------------------

    def next_outcome(self) -> Any:
        """Wait for the next result; return a callable that gives or raises it, or None at the end.

        Raises:
            BaseException: raised by the input, after the results before it.
        """
        bar = self.bar
        if bar is not None and not self._taken % 16:
            bar.tick()
        while True:
            with self._changed:
                number = self._next(None if bar is None else bar.seconds)
                if number is not None:
                    if number < 0:
                        if self._failure is not None:
                            raise self._failure
                        return None
                    answer = self._answers.pop(number)
                    self._futures.pop(number, None)
                    self._note = self._notes.pop(number, "")
                    self._taken += 1
                    if self._taken % 16 == 0 or self._count - self._taken < 64:
                        self._changed.notify_all()
                    break
            assert bar is not None
            bar.tick()
        if isinstance(answer, Future):
            return answer.result
        if isinstance(answer, BaseException):
            return _Raise(answer)
        message, call_id = answer
        return _Value(message, call_id, self._function.options.results)

    def _next(self, seconds: float | None) -> int | None:
        """Wait for an answer; return its item's number, -1 at the end, or None after so many seconds without one."""
        arrived = self._arrived
        number = self._awaited = self._taken
        while True:
            if arrived is None:
                if number in self._answers:
                    return number
            elif arrived:
                return arrived.popleft()
            if self._ended and not self._drawn and self._taken >= self._count:
                return -1
            if not self._changed.wait(seconds):
                return None

    def add_note(self, error: BaseException) -> None:
        """Have the error of the last result name its item and call."""
        if self._note:
            from atoll.payload.exception_text import add_note  # for errors alone

            add_note(error, self._note)

    def _describe(self, number: int, arguments: tuple[Any, ...], call: str = "") -> str:
        from atoll.sdk.call import name_of  # for errors alone

        name = name_of(self._function.__wrapped__)
        return f"atoll: item {number}: {name}({short(arguments)})" + (f", call {call}" if call else "")

    def close(self) -> None:
        """Take nothing more from the input, and cancel the submitted calls."""
        with self._changed:
            self._closed = True
            futures = list(self._futures.values())
            self._changed.notify_all()
        for future in futures:
            self._function.cancel(future)

    def wait_ended(self, seconds: float) -> None:
        """After `close`, wait until the submitted calls have ended."""
        wait(list(self._futures.values()), seconds)

    def kill(self) -> None:
        """End the submitted calls at once."""
        for future in self._futures.values():
            if isinstance(future, CallFuture):
                future.ticket.kill()


def _none() -> int:
    """Return 0."""
    return 0


def _ignore() -> None:
    """Do nothing."""


MOST_SHOWN = 200
"""Characters of an item's arguments in a note."""


def short(arguments: tuple[Any, ...]) -> str:
    """Return the arguments as a program has them, cut to a line, whatever their own `repr` does."""
    import reprlib  # for errors alone

    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = 60
    shown = []
    for one in arguments:
        try:
            shown.append(printable(" ".join(writer.repr(one).split())))
        except BaseException:
            shown.append(f"<{type(one).__qualname__} object>")
    text = ", ".join(shown)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


class _Raise:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> Any:
        raise self._error


class _Value:
    def __init__(self, message: Message, call_id: str, results: str) -> None:
        self._message, self._call_id, self._results = message, call_id, results

    def __call__(self) -> Any:
        from atoll.sdk.call import value_of

        return value_of(self._message, self._results, self._call_id)
