"""The contract between the SDK and a host: values, and the Protocols that a host implements.

A host moves calls and answers as bytes: it neither pickles nor unpickles. Implementations are safe to use from
several threads at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from atoll.errors import CallCancelled
from atoll.model.specs import Call, LeaseSpec
from atoll.wire.channel import Channel
from atoll.wire.frames import Message

if TYPE_CHECKING:
    import socket


class Output(Protocol):
    """A caller's streams; used by the thread that waits for the call."""

    def stdout(self, data: bytes) -> None: ...

    def stderr(self, data: bytes) -> None: ...

    def notice(self, line: str) -> None:
        """Take a line for the caller."""

    def progress(self, line: str) -> None:
        """Take a line about the build or start that the caller waits for."""

    def waits(self, kind: str, detail: str) -> int | None:
        """Take note that the call still waits, for one of `sdk.display.live_line.KINDS`; from the thread that waits.

        Returns after how many milliseconds to call this again, None for never.
        """

    def proceeds(self) -> None:
        """Take note that the wait is over, where `waits` was called."""

    def tail(self) -> str:
        """Return the end of the call's output."""


class Bundle(Protocol):
    """The project's modules that travel with a call."""

    @property
    def digest(self) -> str: ...

    def message(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and buffers of the `sources` message."""


class Ticket:
    """Lets another thread stop a call, before or after it has started.

    Args:
        begin: called once, when the call is about to be sent; returns False for a call that was cancelled.
        call_id: the call's id; empty for a new one.
        made_at: the time of the call, in seconds since the epoch; 0 for now.
        direct: the program waits for this call alone.
    """

    def __init__(
        self,
        begin: Callable[[], bool] | None = None,
        *,
        call_id: str = "",
        made_at: float = 0.0,
        direct: bool = False,
    ) -> None:
        self.direct = direct
        self.call_id = call_id
        self.made_at = made_at
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._kill: Callable[[], None] | None = None
        self._begin = begin
        self.cancelled = False

    def cancel(self) -> None:
        """Stop the call; without effect once it has been answered."""
        with self._lock:
            self.cancelled = True
            if self._stop is not None:
                self._stop()

    def kill(self) -> None:
        """End a call at once that was cancelled and has its grace."""
        with self._lock:
            if self._kill is not None:
                self._kill()

    def start(self) -> None:
        """Mark that the call is about to be sent.

        Raises:
            CallCancelled: it was cancelled before.
        """
        begin, self._begin = self._begin, None
        if begin is not None and not begin():
            self.cancelled = True
            raise CallCancelled("the call was cancelled before it started", hint="nothing to do: it was asked for")

    def arm(self, stop: Callable[[], None] | None, kill: Callable[[], None] | None = None) -> None:
        """Set the functions that stop the call from now on, with its grace and at once.

        Raises:
            CallCancelled: `cancel` was called already.
        """
        with self._lock:
            self._stop, self._kill = stop, kill
            if self.cancelled and stop is not None:
                raise CallCancelled("the call was cancelled", hint="nothing to do: it was asked for")

    def disarm(self) -> None:
        """Clear the function that stops the call, whether the ticket was cancelled or not."""
        with self._lock:
            self._stop = self._kill = None


class Lease(Protocol):
    """A hold on one worker; used by one thread at a time."""

    @property
    def kind(self) -> Any:
        """Equal for leases that can serve the same calls; as `Leasing.kind` of their spec."""

    def run(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None, output: Output) -> Message:
        """Run one call to its answer.

        Raises:
            wire.call_protocol.Revoked: the call has not started; the lease is over.
            CallTimeout, WorkerDied, OutOfMemory, SandboxUnavailable, HostUnreachable: it was lost; so is the lease.
        """

    def start(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None) -> None:
        """Send a call; `next` returns the worker's answers."""

    def start_more(self, calls: Sequence[Call]) -> None:
        """Send further small calls behind one that was sent, whose sources and setup serve them too."""

    def attend(self, call: Call) -> None:
        """Set the one of the calls sent that is answered next."""

    def next(self, output: Output) -> Message:
        """Wait for the next `yield`, `result` or `error`; raises as `run`."""

    def stop(self, output: Output) -> bool:
        """Close a generator; return whether it has ended soon."""

    def cancel(self) -> None:
        """Have the worker asked to end, and killed after the grace; from any thread."""

    def kill(self) -> None:
        """Have the worker killed at once; from any thread."""


class Leasing(Protocol):
    """The part of a host that grants leases; `map` uses many at once."""

    def kind(self, spec: LeaseSpec) -> Any:
        """Return a value that is equal for calls that can share a lease."""

    def acquire(self, spec: LeaseSpec, output: Output, ticket: Ticket | None, call: Call | None = None) -> Lease:
        """Return an idle lease, or wait for one.

        Args:
            call: the call that waits for the lease, where there is one.

        Raises:
            CallCancelled, EnvironmentBuildError, OperatorError: as `Host.run`.
        """

    def settle(self, lease: Any, spec: LeaseSpec, ticket: Ticket | None, *, done: bool) -> None:
        """Keep a lease for the next call; give it back where `done` is False, and end its worker's call."""


class Host(Leasing, Protocol):
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

        The call is delivered at most once. When the waiting thread is interrupted, the call is asked to end, and the
        interrupt goes on when it has ended.

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
        """Run a generator's call: yield a `yield` message for each item as it is made, then `result` or `error`.

        The call starts with the first `next`. Closing the iterator closes the generator; one that does not end soon
        is interrupted. Raises as `run`.
        """

    def open_storage(self) -> Channel:
        """Return a channel to a storage peer that serves the caller's volume until the channel is closed."""

    def keep_storage(self, channel: Channel) -> None:
        """Take back an idle channel of `open_storage`, for its next use."""

    def run_shell(
        self,
        spec: LeaseSpec,
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_progress: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> int:
        """Run a shell in a function's sandbox on these descriptors; return its exit status.

        Args:
            descriptors: stdin, stdout and stderr, which a host of this machine gives to the shell; those of the caller
                for a server, which reads and writes them.
            terminal: they are a terminal; of a server's caller the first one is.
        """

    def run_command(
        self,
        call: str,
        command: Sequence[str],
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_start: Callable[[], None],
    ) -> int:
        """Run a command, or a shell if it has no words, in the sandbox of a running call; return its exit status.

        Args:
            call: its id, or the beginning.
            descriptors, terminal: as for `run_shell`.
            on_start: called when it begins.

        Raises:
            ResourcesUnavailable: no such call of this user runs, or its sandbox has ended.
        """

    def dial(self, worker: str, port: int) -> socket.socket:
        """Return a socket that leads to `port` of 127.0.0.1 inside the sandbox of a worker; the caller owns it.

        Args:
            worker: it serves a lease of this user; the id is that of `atoll status`.

        Raises:
            ValueError: port or worker cannot be one.
            PortUnreachable: nothing listens there.
            WorkerDied: the worker has ended, or serves no lease of this user.
        """

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Send a request that is not a call; return its answer, which is JSON-compatible data."""
