"""What a host promises to the SDK.

A host moves calls and answers as bytes: it neither pickles nor unpickles. Implementations are safe to use from
several threads at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from atoll.errors import CallCancelled
from atoll.model.specs import Call, LeaseSpec
from atoll.wire.channel import Channel
from atoll.wire.frames import Message


class Output(Protocol):
    """Takes what a call prints, as it comes; called from the thread that waits for the call."""

    def stdout(self, data: bytes) -> None: ...

    def stderr(self, data: bytes) -> None: ...

    def notice(self, line: str) -> None:
        """Take a line that the caller should know."""

    def progress(self, line: str) -> None:
        """Take a line that says what the caller waits for."""

    def waits(self, kind: str, detail: str) -> int | None:
        """Hear that the call still waits, for what `sdk.live_line.KINDS` says; from the thread that waits.

        Returns after how many milliseconds to say so again, None for never.
        """

    def proceeds(self) -> None:
        """Hear that the wait is over, where `waits` was called."""

    def tail(self) -> str:
        """Return the end of what was printed."""


class Bundle(Protocol):
    """The project's modules that travel with a call."""

    @property
    def digest(self) -> str: ...

    def message(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and buffers of the `sources` message."""


class Ticket:
    """Lets another thread stop a call, before or after it has started.

    Args:
        begin: is called once, when the call is about to be sent; returns False when it is not wanted any more.
        call_id: the id that the call gets; empty for a new one.
        made_at: when the call was made, in seconds since the epoch; 0 for now.
    """

    def __init__(self, begin: Callable[[], bool] | None = None, *, call_id: str = "", made_at: float = 0.0) -> None:
        self.call_id = call_id
        self.made_at = made_at
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._begin = begin
        self.cancelled = False

    def cancel(self) -> None:
        """Stop the call; without effect once it has been answered."""
        with self._lock:
            self.cancelled = True
            if self._stop is not None:
                self._stop()

    def start(self) -> None:
        """Say that the call is about to be sent.

        Raises:
            CallCancelled: it is not wanted any more.
        """
        begin, self._begin = self._begin, None
        if begin is not None and not begin():
            self.cancelled = True
            raise CallCancelled("the call was cancelled before it started", hint="nothing to do: it was asked for")

    def arm(self, stop: Callable[[], None] | None) -> None:
        """Say how to stop from now on.

        Raises:
            CallCancelled: `cancel` was called already.
        """
        with self._lock:
            self._stop = stop
            if self.cancelled and stop is not None:
                raise CallCancelled("the call was cancelled", hint="nothing to do: it was asked for")

    def disarm(self) -> None:
        """Say that what was armed is over; the next `arm` says what is."""
        with self._lock:
            self._stop = None


class Host(Protocol):
    """A place that runs functions."""

    @property
    def name(self) -> str: ...

    def run(
        self,
        spec: LeaseSpec,
        call: Call,
        bundle: Bundle | None,
        output: Output,
        ticket: Ticket | None = None,
    ) -> Message:
        """Run a call to its answer: a `result` or an `error` message, which the caller unpickles.

        The call is delivered at most once. When the waiting thread is interrupted, the call is killed.

        Raises:
            EnvironmentBuildError: the environment cannot be built.
            WorkerDied: the worker ended before it answered.
            CallCancelled: the ticket was cancelled.
            OperatorError: the host cannot run anything now.
        """

    def stream(
        self,
        spec: LeaseSpec,
        call: Call,
        bundle: Bundle | None,
        output: Output,
        ticket: Ticket | None = None,
    ) -> Iterator[Message]:
        """Run a generator's call: give a `yield` message for each item as it is made, then `result` or `error`.

        The call starts with the first `next`. Closing the iterator closes the generator; one that does not end soon
        has its worker killed. Raises as `run`.
        """

    def open_storage(self) -> Channel:
        """Return a channel to a storage peer that serves the caller's volume until the channel is closed."""

    def keep_storage(self, channel: Channel) -> None:
        """Take back a channel that `open_storage` gave and on which nothing is under way, for who asks next."""

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Have the host do something that is not a call; its answer is JSON-compatible data."""
