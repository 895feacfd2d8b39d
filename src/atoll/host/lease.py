"""A lease on a worker: its calls, one after the other, over a link of whatever host.

`wire.call_protocol` knows the messages of calls; this module sends and receives them, and bounds the waits. The end of
the link's data without `revoked` means that the worker died; who granted it gives the reason.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.host.contract import Bundle, Output
from atoll.model.specs import Call
from atoll.wire import call_protocol, nested
from atoll.wire.call_protocol import CallProtocol, Frame, Revoked
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import UNMEASURED_BYTES, FrameError, FrameTooLarge, Message
from atoll.wire.payload_channel import free_bytes

if TYPE_CHECKING:
    from atoll.host.link import Link

ENDED_SECONDS = 10.0
SMALL_BYTES = 32 << 10
"""Bytes that an idle worker's socket takes without being read."""
CLOSED_SECONDS = 3.0
"""Seconds that a worker may live on after the end of its channel before it is killed."""
OVERDUE_SECONDS = 5.0
"""Seconds after its timeout and its grace until a call is given up here, if the agent has not ended it."""
STOP_SECONDS = 1.0
"""Seconds that a closed generator may take to its next item; then it is interrupted."""
MOST_MILLISECONDS = 1 << 30
"""The longest wait at a time: the kernel takes less than 25 days."""
PATIENCE_MILLISECONDS = 500
"""Milliseconds of waiting before the caller is told."""
TOLD_SECONDS = 0.5
"""Seconds of waiting for an interrupted call before the caller is told."""


class WorkerLease:
    """A hold on one worker; used by one thread at a time.

    Args:
        link: the way to the worker; owned from here on.
        epoch: the lease's number, part of each call.
        fresh: the worker has been forked for this lease.
        kind: equal for leases that can serve the same calls.
        worker: the worker's id, by which `LocalHost.dial` finds its sandbox.
        grace_seconds: how long a call may go on after it was asked to end.
    """

    def __init__(
        self,
        link: Link,
        epoch: int,
        fresh: bool,
        kind: Any = None,
        worker: str = "",
        grace_seconds: float = 0.0,
    ) -> None:
        self.worker = worker
        self.kind = kind
        self._link = link
        self._messages = link.messages
        self._protocol = CallProtocol(epoch, fresh=fresh)
        self._unused = True
        self._slow_start = fresh
        self._overdue_at = 0.0
        self._grace_seconds = grace_seconds

    @property
    def unused(self) -> bool:
        """True until a call has been sent under this lease."""
        return self._unused

    @property
    def usable(self) -> bool:
        """True while the worker holds the lease, as far as its messages show."""
        return self._link.usable

    @property
    def spent(self) -> bool:
        """True if the worker is known to have given the lease up; does not wait."""
        return self._link.spent

    def run(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None, output: Output) -> Message:
        """Run one call to its answer.

        Raises:
            Revoked: the call has not started; the lease is over.
            CallTimeout, WorkerDied, OutOfMemory, SandboxUnavailable, HostUnreachable: it was lost; so is the lease.
        """
        self.start(call, keep_alive_seconds, bundle)
        return self.next(output)

    def start(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None) -> None:
        """Send a call; `next` returns the worker's answers."""
        self._unused = False
        if call.timeout_seconds:
            self._overdue_at = time.monotonic() + call.timeout_seconds + self._grace_seconds + OVERDUE_SECONDS
        if call.buffers:
            _check_room(call)
        if call.terminal is not None:
            self._link.show(call.terminal)
        slow = self._slow_start or call.buffers or len(call.function) + len(call.arguments) > SMALL_BYTES
        self._slow_start = False
        frames = self._protocol.start(call, keep_alive_seconds, bundle, nested.call)
        if slow or len(frames) > 1:
            self._send_limited(frames)
            return
        try:
            for header, buffers in frames:  # they fit into the socket
                self._link.send(header, buffers)
        except ChannelClosed:  # messages that the worker sent before are still to be read
            pass

    def start_more(self, calls: Sequence[Call]) -> None:
        """Send further small calls behind one that was sent, whose sources and setup serve them too."""
        with contextlib.suppress(ChannelClosed):
            self._link.send_many(self._protocol.start_more(calls))

    def attend(self, call: Call) -> None:
        """Set the one of the calls sent that is answered next."""
        self._protocol.attend(call)

    def _send_limited(self, frames: Sequence[Frame]) -> None:
        """Send frames to a worker that may not read, within the call's timeout."""
        with contextlib.suppress(ChannelClosed), self._limited():
            for header, buffers in frames:
                self._link.send(header, buffers)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        if not self._overdue_at:
            yield
            return
        timer = threading.Timer(max(self._overdue_at - time.monotonic(), 0.0), self.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def next(self, output: Output) -> Message:
        """Wait for the worker's next `yield`, `result` or `error`; earlier output is passed on first.

        Raises:
            As `run`; `Revoked` only for the first answer.
        """
        protocol = self._protocol
        while True:
            message = self._wait(output)
            step, frames = protocol.receive(message)
            if step in {"answer", "item"}:
                if not self._link.drained:
                    self._drain(output)
                if step == "answer":
                    self._overdue_at = 0.0
                return message
            if step == "send":
                self._send_limited(frames)
            elif step == "revoked":
                raise Revoked
            elif step == "exited":
                self._drain(output)
                raise call_protocol.exited(protocol.call, message, output.tail())
            elif step == "broken":
                self.kill()
                raise call_protocol.broken(protocol.call)

    def stop(self, output: Output) -> bool:
        """Close a generator; return whether it has ended by itself within `STOP_SECONDS`."""
        interrupt = threading.Timer(STOP_SECONDS, self.cancel)
        interrupt.daemon = True
        self._overdue_at = time.monotonic() + STOP_SECONDS + self._grace_seconds + OVERDUE_SECONDS
        try:
            self._link.send(*self._protocol.stop())
            interrupt.start()
            self._pass_over(output)
        except (Revoked, errors.AtollError, ChannelClosed, OSError, RuntimeError):  # closed, where the program ends
            return False
        finally:
            interrupt.cancel()
        return True

    def interrupt(self, output: Output) -> None:
        """End the running call for a Ctrl-C, and pass its output on until it has ended; a second one ends it at once."""
        line = f"`{self._protocol.call.name}` has {self._grace_seconds:g} s to end; Ctrl-C again ends it now"
        tell = threading.Timer(TOLD_SECONDS, output.notice, (line,))
        tell.daemon = True
        try:
            self._overdue_at = time.monotonic() + self._grace_seconds + OVERDUE_SECONDS
            self.cancel()
            tell.start()
            self._pass_over(output)
        except KeyboardInterrupt:
            self.kill()
        except (Revoked, errors.AtollError, ChannelClosed, OSError, RuntimeError):
            pass
        finally:
            tell.cancel()

    def _pass_over(self, output: Output) -> None:
        """Wait for the answer; drop the items before it."""
        while self.next(output).type == "yield":
            pass

    def _wait(self, output: Output) -> Message:
        """Wait for the worker's next message; pass its output on."""
        messages = self._messages
        if messages:
            self._link.drained = False  # it came with another one, and its output after that one's poll
            return messages.pop(0)
        link = self._link
        call = self._protocol.call.id
        patience: int | None = PATIENCE_MILLISECONDS
        told = False
        try:
            while True:
                link.look(self._milliseconds(patience) if self._overdue_at else patience, output, call)
                if messages:
                    return messages.pop(0)
                if patience is not None:
                    patience, told = output.waits("running", self._protocol.call.name), True
        except ChannelClosed:
            raise self._lost(output) from None
        except FrameTooLarge as error:
            raise errors.SerializationError(
                f"the answer of `{self._protocol.call.name}` has {_megabytes(error.size_bytes)}, and of this machine's "
                f"memory {_megabytes(error.most_bytes)} are free",
                hint="return it in parts, or write it to `/data` and return the path",
            ) from None
        except FrameError as error:
            raise errors.ProtocolMismatch(
                f"the answer of the worker of `{self._protocol.call.name}` cannot be read: {error}",
                hint="code in the worker has disturbed its channel",
            ) from None
        finally:
            if told:
                output.proceeds()

    def _milliseconds(self, patience: float | None) -> float:
        """Return how long to wait at most; the agent enforces the timeout, and this only where that has failed."""
        left = self._overdue_at - time.monotonic()
        if left <= 0:
            self.kill()
            raise call_protocol.timed_out(self._protocol.call)
        milliseconds = min(left * 1000 + 1, MOST_MILLISECONDS)
        return milliseconds if patience is None else min(milliseconds, patience)

    def end_call(self) -> None:
        """Mark the end of the call's output."""
        self._link.end_call()

    def _drain(self, output: Output) -> None:
        """Pass on the output before the answer."""
        self._link.drain(output, self._protocol.call.id)

    def _lost(self, output: Output) -> errors.AtollError:
        """Return the error of a call whose worker closed the channel without an answer."""
        self._drain(output)
        link, call = self._link, self._protocol.call
        try:
            killed = False
            while True:
                header = link.hear(ENDED_SECONDS if killed else CLOSED_SECONDS)
                if header is None:
                    if killed:
                        return call_protocol.channel_closed(call, output.tail())
                    killed = True  # the worker lives, or has just ended and the daemon says so yet
                    self.kill()
                elif header.get("type") == "ended":
                    self._drain(output)
                    if header.get("error") is None and not link.whole:  # else who lacks the answer would call again
                        return link.lost()
                    return call_protocol.ended(call, header.get("error"), output.tail(), killed_here=killed)
        except (ChannelClosed, FrameError):
            return link.lost()

    def cancel(self) -> None:
        """Have the worker asked to end, and killed after the grace; from any thread."""
        with contextlib.suppress(ChannelClosed, OSError):
            self._link.tell({"type": "cancel"})

    def kill(self) -> None:
        """Have the worker killed at once; from any thread."""
        with contextlib.suppress(ChannelClosed, OSError):
            self._link.tell({"type": "kill"})

    def close(self) -> None:
        """Give the lease back: an idle worker stays warm, a busy one is asked to end."""
        self._link.close()

    def forget(self) -> None:
        """In a forked child: drop the parent's lease."""
        self._link.forget()


def _check_room(call: Call) -> None:
    """Refuse arguments that this machine's memory cannot hold a second time."""
    size = sum(memoryview(buffer).nbytes for buffer in call.buffers)
    if size > UNMEASURED_BYTES and size > (most := free_bytes()):
        raise errors.SerializationError(
            f"the arguments of `{call.name}` have {_megabytes(size)}, and of this machine's memory "
            f"{_megabytes(most)} are free",
            hint="pass them in parts, or put them below `/data` and pass the path",
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
