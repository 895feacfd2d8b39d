"""Submitted calls: their ids and futures, and the threads that wait for them.

The threads are daemon threads, so that Ctrl-C ends the program at once. At its end a program waits for the calls that
it has submitted, as with a process pool; after an interrupt the calls are cancelled instead, and it waits for their graces.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from atoll.errors import call_id, set_call_id
from atoll.host.contract import Ticket
from atoll.host.remote import farewells

R = TypeVar("R")

THREADS = max(32, min(128, 4 * (os.cpu_count() or 1)))
"""Submitted calls that a process waits for at a time; further ones queue."""

ENDED_SECONDS = 1.0
"""Seconds after their grace in which cancelled calls have ended."""

_STRIDE = 0x9E3779B1
"""Odd, so that 2**32 calls of a process differ in the 8 characters that people see and type; large, so that two in a row
have little in common."""

_token = os.urandom(6).hex()
_counter = itertools.count(int.from_bytes(os.urandom(4), "big"), _STRIDE)


def new_id() -> str:
    """Return an id that no other call of any process has: 8 characters of the call's own, then the process's token."""
    number = next(_counter)
    if number < 1 << 63:
        return "%08x-%s" % (number & 0xFFFFFFFF, _token)  # noqa: UP031 - each call makes one: this is the fastest
    return f"{number & 0xFFFFFFFF:08x}{number >> 63}-{_token}"


def new_secret_id() -> str:
    """Return an id that nobody can tell from those of other calls: ids of detached calls are one space for all users."""
    return f"{new_id().partition('-')[0]}-{os.urandom(6).hex()}"


def stopped(error: StopIteration) -> RuntimeError:
    """Return what a generator raises in place of a function's StopIteration, as an error of the same call."""
    raised = RuntimeError("the function raised StopIteration")
    set_call_id(raised, call_id(error))
    return raised


def hide_frames(error: BaseException, *, is_report: bool = False) -> None:
    """Remove Atoll's own frames from a traceback, unless `ATOLL_DEBUG=1`: before the bare `raise` of an `except`.

    An error of a module that has the name of one of Python's gets a note that tells it. With `is_report` also an
    ordinary exception that Atoll raises for a mistake of the user loses them all.
    """
    if isinstance(error, (AttributeError, ImportError)):
        from atoll import shadows  # only then

        shadows.explain(error)
    from atoll import settings  # for errors alone
    from atoll.payload import tracebacks  # as above

    if not settings.debugs():
        tracebacks.hide(error, is_report=is_report)


def new_ticket() -> Ticket:
    """Return the id and time that the attempts of one call share."""
    return Ticket(call_id=new_id(), made_at=time.time(), direct=True)


class CallFuture(Future[R]):
    """The future of a submitted call: pending until the call is sent to a worker, running from then on."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self.ticket: Ticket = Ticket(self._start, call_id=new_id(), made_at=time.time())
        self._frames: TracebackType | None = None
        """The traceback of the call's exception, to which each `raise` of the exception would add."""

    def set_exception(self, exception: BaseException | None) -> None:
        """Set the exception of the call, with the traceback that it has now."""
        self._frames = exception.__traceback__ if exception is not None else None
        super().set_exception(exception)

    def result(self, timeout: float | None = None) -> R:
        """Return the result of the call, or raise its exception; see `concurrent.futures.Future.result`."""
        try:
            return super().result(timeout)
        except BaseException as error:
            from atoll import settings  # for errors alone

            if not settings.debugs():
                is_of_call = self.done() and not self.cancelled() and self.exception() is error
                BaseException.with_traceback(error, self._frames if is_of_call else None)
            raise

    @property
    def call_id(self) -> str:
        """The call's id in `atoll calls show` and `atoll logs`."""
        return self.ticket.call_id

    def _start(self) -> bool:
        started = self.set_running_or_notify_cancel()
        self._told = not started
        return started

    def cancel(self) -> bool:
        """Cancel the call if it has not been sent yet; return whether it is cancelled."""
        cancelled = super().cancel()
        if cancelled:
            self.ticket.cancel()
        return cancelled

    def tell_cancelled(self) -> None:
        """Tell those who wait for several futures that this one was cancelled."""
        if self.cancelled() and not self._told:
            self._told = True
            self.set_running_or_notify_cancel()


class Job(NamedTuple):
    """Work of a thread.

    Args:
        run: does it.
        cancel: makes it end within its grace, running or not; from any thread.
        kill: makes it end at once after that.
    """

    run: Callable[[], None]
    cancel: Callable[[], object]
    kill: Callable[[], object] = lambda: None
    grace_seconds: float = 0.0


class Threads:
    """Runs jobs in order of submission, on threads that are made as they are needed and kept."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._jobs: deque[Job] = deque()
        self._running: set[Job] = set()
        self._changed = threading.Condition()
        self._idle = 0
        self._count = 0
        self._closed = False

    def submit(self, job: Job) -> None:
        """Run a job on a thread."""
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot submit a call while the program ends")
            self._jobs.append(job)
            self._changed.notify()
            if self._idle >= len(self._jobs):  # one that was told of an earlier job still counts as idle
                return
            if self._count >= self._most:
                return
            self._count += 1
        threading.Thread(target=self._work, name=f"atoll-{self._count}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._jobs:
                    self._changed.wait()
                self._idle -= 1
                job = self._jobs.popleft()
                self._running.add(job)
            try:
                job.run()
            finally:
                with self._changed:
                    self._running.discard(job)
                    if self._closed:
                        self._changed.notify_all()
                del job

    def finish(self) -> None:
        """Wait for all jobs; when the program was interrupted, or is now, cancel them and wait for their graces.

        Another interrupt kills them.
        """
        with self._changed:
            self._closed = True
        try:
            if not _interrupted():
                with self._changed:
                    while self._jobs or self._running:
                        self._changed.wait()
                return
        except KeyboardInterrupt:
            global _interrupted_at_end
            _interrupted_at_end = True
        with self._changed:
            waiting = list(self._jobs)
            self._jobs.clear()
            running = list(self._running)
            deadline = time.monotonic() + max((job.grace_seconds for job in running), default=0.0) + ENDED_SECONDS
        try:
            for job in (*waiting, *running):
                job.cancel()
            with self._changed:
                while self._running and time.monotonic() < deadline:
                    self._changed.wait(deadline - time.monotonic())
        except KeyboardInterrupt:
            for job in running:
                job.kill()


def _interrupted() -> bool:
    """Return whether an interrupt ends this program."""
    kind = getattr(sys, "last_type", None)
    return isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


_interrupted_at_end = False


def _end_as_interrupted() -> None:
    """End the process as an interrupt does, where one came while it waited at its end.

    It runs after the program's own `atexit` functions; an exception there would be printed, and the status be 0.
    """
    if not _interrupted_at_end:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if os.name == "posix":
        with contextlib.suppress(ValueError, OSError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    os._exit(130)


_threads: Threads | None = None
_lock = threading.Lock()


def threads() -> Threads:
    """Return this process's threads."""
    global _threads
    if _threads is None:
        with _lock:
            if _threads is None:
                made = Threads()
                atexit.register(made.finish)
                _threads = made
    return _threads


def _forget() -> None:
    """Start afresh in a forked child: threads and ids are the parent's."""
    global _threads, _lock, _interrupted_at_end, _token
    _token = os.urandom(6).hex()
    if _threads is not None:
        atexit.unregister(_threads.finish)
    _threads, _lock, _interrupted_at_end = None, threading.Lock(), False


def _register() -> Any:
    atexit.register(_end_as_interrupted)  # before the threads' own, and so after it
    farewells.install()  # between the two: what a call prints at the end comes over connections
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)


_register()
