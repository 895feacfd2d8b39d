"""A lease on a worker of this machine: calls over the worker's own descriptors, past the daemon.

The daemon hands over a data socket to the worker and its two output pipes. `wire.call_protocol` knows the messages;
this module sends and receives them. The end of the data socket without `revoked` means that the worker died, and the
daemon gives the reason on the connection that carries the lease.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from atoll import errors
from atoll.host.contract import Bundle, Output
from atoll.host.worker_output import WorkerOutput
from atoll.model.specs import Call
from atoll.wire import call_protocol, nested
from atoll.wire.call_protocol import CallProtocol, Frame, Revoked
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import UNMEASURED_BYTES, FrameError, FrameTooLarge, Message
from atoll.wire.payload_channel import PayloadChannel, free_bytes

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


class LocalLease:
    """A hold on one worker; used by one thread at a time.

    Args:
        control: the connection to the daemon that carries the lease.
        epoch: the lease's number, part of each call.
        descriptors: data socket, stdout and stderr of the worker; owned from here on.
        fresh: the worker has been forked for this lease.
        kind: equal for leases that can serve the same calls.
        worker: the worker's id, by which `LocalHost.dial` finds its sandbox.
        grace_seconds: how long a call may go on after it was asked to end.
    """

    def __init__(
        self,
        control: Channel,
        epoch: int,
        descriptors: list[int],
        fresh: bool,
        kind: Any = None,
        worker: str = "",
        grace_seconds: float = 0.0,
    ) -> None:
        import socket

        self.worker = worker
        self.kind = kind
        self._control = control
        self._protocol = CallProtocol(epoch, fresh=fresh)
        self._data = PayloadChannel(socket.socket(fileno=descriptors[0]), free_bytes=free_bytes)
        self._number = self._data.fileno()
        self._unused = True
        self._slow_start = fresh
        self._overdue_at = 0.0
        self._grace_seconds = grace_seconds
        self._poll = select.poll()
        self._poll.register(self._data, select.POLLIN)  # first: see `_look`
        outputs = descriptors[1:]
        self._output = WorkerOutput(self._poll, control, outputs)
        self._pipes_empty = False
        self._close = weakref.finalize(self, _close, self._data, control, outputs)
        self._close.atexit = False  # the end of the process closes them

    @property
    def unused(self) -> bool:
        """True until a call has been sent under this lease."""
        return self._unused

    @property
    def usable(self) -> bool:
        """True while the worker holds the lease, as far as its messages show."""
        if not self._close.alive:
            return False
        ready = self._poll.poll(0)
        return not ready or all(descriptor != self._number for descriptor, _ in ready)

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
            self._output.show(call.terminal, self._data)
        slow = self._slow_start or call.buffers or len(call.function) + len(call.arguments) > SMALL_BYTES
        self._slow_start = False
        frames = self._protocol.start(call, keep_alive_seconds, bundle, nested.call)
        if slow or len(frames) > 1:
            self._send_limited(frames)
            return
        try:
            for header, buffers in frames:  # they fit into the socket
                self._data.send(header, buffers)
        except ChannelClosed:  # messages that the worker sent before are still to be read
            pass

    def start_more(self, calls: Sequence[Call]) -> None:
        """Send further small calls behind one that was sent, whose sources and setup serve them too."""
        with contextlib.suppress(ChannelClosed):
            self._data.send_many(self._protocol.start_more(calls))

    def attend(self, call: Call) -> None:
        """Set the one of the calls sent that is answered next."""
        self._protocol.attend(call)

    def _send_limited(self, frames: Sequence[Frame]) -> None:
        """Send frames to a worker that may not read, within the call's timeout."""
        with contextlib.suppress(ChannelClosed), self._limited():
            for header, buffers in frames:
                self._data.send(header, buffers)

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
                if not self._pipes_empty:
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
            self._data.send(*self._protocol.stop())
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
        data = self._data
        if data.pending:
            self._pipes_empty = False  # the message came with another one, and its output after that one's poll
            return data.receive()
        patience: int | None = PATIENCE_MILLISECONDS
        told = False
        try:
            while True:
                self._look(output, self._milliseconds(patience) if self._overdue_at else patience)
                if data.pending:
                    return data.receive()
                if patience is not None:
                    patience, told = output.waits("running", self._protocol.call.name), True
        finally:
            if told:
                output.proceeds()

    def _look(self, output: Output, patience: float | None) -> None:
        """Take the worker's next bytes, or nothing when nothing comes for `patience` milliseconds."""
        ready = self._poll.poll(patience)
        # The kernel looks at the descriptors in their order of registration: pipes that it finds empty after it found
        # the answer hold nothing that was printed before the answer.
        self._pipes_empty = len(ready) == 1
        for descriptor, _ in ready:
            if descriptor != self._number:
                self._pipes_empty = False
                self._output.read(descriptor, output, self._protocol.call.id)
                continue
            name = self._protocol.call.name
            try:
                self._data.fill()
            except ChannelClosed:
                raise self._lost(output) from None
            except FrameTooLarge as error:
                raise errors.SerializationError(
                    f"the answer of `{name}` has {_megabytes(error.size_bytes)}, and of this machine's memory "
                    f"{_megabytes(error.most_bytes)} are free",
                    hint="return it in parts, or write it to `/data` and return the path",
                ) from None
            except FrameError as error:
                raise errors.ProtocolMismatch(
                    f"the answer of the worker of `{name}` cannot be read: {error}",
                    hint="code in the worker has disturbed its channel",
                ) from None

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
        self._output.end_call()

    def _drain(self, output: Output) -> None:
        """Pass on the output before the answer."""
        self._output.drain(output, self._protocol.call.id)

    def _lost(self, output: Output) -> errors.AtollError:
        """Return the error of a call whose worker closed the channel without an answer."""
        self._drain(output)
        call = self._protocol.call
        try:
            killed = False
            heard = select.poll()  # `select` cannot take descriptors above 1023
            heard.register(self._control, select.POLLIN)
            while True:
                if not heard.poll(1000 * (ENDED_SECONDS if killed else CLOSED_SECONDS)):
                    if killed:
                        return call_protocol.channel_closed(call, output.tail())
                    killed = True  # the worker lives, or has just ended and the daemon says so yet
                    self.kill()
                elif self._control.fill():
                    header = self._control.receive().header
                    if header.get("type") == "ended":
                        return call_protocol.ended(call, header.get("error"), output.tail(), killed_here=killed)
        except (ChannelClosed, FrameError):
            return errors.HostUnreachable(
                "the daemon ended while the call was running", hint="call again: a new daemon is started"
            )

    def cancel(self) -> None:
        """Have the worker asked to end, and killed after the grace; from any thread."""
        with contextlib.suppress(ChannelClosed, OSError):
            self._control.send({"type": "cancel"})

    def kill(self) -> None:
        """Have the worker killed at once; from any thread."""
        with contextlib.suppress(ChannelClosed, OSError):
            self._control.send({"type": "kill"})

    def close(self) -> None:
        """Give the lease back: an idle worker stays warm, a busy one is asked to end."""
        self._close()


def receive(control: Channel, output: Output, kind: str, detail: str) -> Message:
    """Wait for the daemon's next message; tell the caller of the wait.

    Raises:
        ChannelClosed, FrameError: as `Channel.receive`.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    patience: int | None = PATIENCE_MILLISECONDS
    while not control.pending:
        if poll.poll(patience):
            control.fill()
        elif patience is not None:
            patience = output.waits(kind, detail)
    return control.receive()


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


def _close(data: Channel, control: Channel, outputs: list[int]) -> None:
    data.close()
    control.close()
    for descriptor in outputs:
        with contextlib.suppress(OSError):
            os.close(descriptor)
