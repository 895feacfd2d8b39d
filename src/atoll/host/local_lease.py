"""A lease from the client's side: calls to one worker, without the daemon.

The daemon hands over a data socket to the worker and its two output pipes. A worker says `revoked` when it gives the
lease up; a call that had been sent by then has not started. The end of the data socket without that word means that
the worker died, and the daemon says why on the connection that carries the lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from atoll import errors
from atoll.host.contract import Bundle, Output
from atoll.model.specs import Call
from atoll.wire import nested
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import UNMEASURED_BYTES, FrameError, FrameTooLarge, Header, Message
from atoll.wire.output_tape import TapeWriter
from atoll.wire.payload_channel import PayloadChannel, free_bytes

ENDED_SECONDS = 10.0
READ_BYTES = 1 << 16
MOST_NEEDS = 4
"""How often a worker may ask for what belongs to one call: once for each kind, and once more."""
SMALL_BYTES = 32 << 10
"""What an idle worker's socket takes without being read."""
CLOSED_SECONDS = 3.0
"""How long a worker may live on after the end of its channel before it is killed."""
OVERDUE_SECONDS = 5.0
"""How long after its timeout a call is given up here, when the agent has not ended it."""
STOP_SECONDS = 1.0
"""How long a generator that is closed may take for what its `finally` does; then its worker is killed."""
PATIENCE_MILLISECONDS = 500
"""How long a wait is before the caller is told of it."""

_quoted = json.JSONEncoder(separators=(",", ":")).encode


class Revoked(Exception):
    """The worker gave the lease up before it started the call."""


class LocalLease:
    """A hold on one worker; used by one thread at a time.

    Args:
        control: the connection to the daemon that carries the lease.
        epoch: what each call names.
        descriptors: data socket, stdout and stderr of the worker; owned from here on.
        fresh: the worker has been forked for this lease.
    """

    def __init__(self, control: Channel, epoch: int, descriptors: list[int], fresh: bool) -> None:
        import socket

        self._control = control
        self._epoch = epoch
        self._data = PayloadChannel(socket.socket(fileno=descriptors[0]), free_bytes=free_bytes)
        self._out, self._err = descriptors[1:]
        self._fresh = fresh
        self._unused = True
        self._needs = 0
        self._overdue_at = 0.0
        self._poll = select.poll()
        self._poll.register(self._data, select.POLLIN)
        for descriptor in (self._out, self._err):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._open_pipes = {self._out, self._err}
        self._tape: TapeWriter | None = None
        self._can_keep = True
        self._alike: tuple[Any, ...] = ()
        self._words = ""
        self._close = weakref.finalize(self, _close, self._data, control, self._out, self._err)
        self._close.atexit = False  # the end of the process closes them

    @property
    def unused(self) -> bool:
        """Whether no call has been sent under this lease."""
        return self._unused

    @property
    def usable(self) -> bool:
        """Whether the worker still holds the lease, as far as it has said."""
        number = self._data.fileno()
        return self._close.alive and not any(descriptor == number for descriptor, _ in self._poll.poll(0))

    def run(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None, output: Output) -> Message:
        """Run one call to its answer.

        Raises:
            Revoked: it has not started; the lease is of no more use.
            CallTimeout, WorkerDied, OutOfMemory, SandboxUnavailable, HostUnreachable: it was lost; so is the lease.
        """
        self.start(call, keep_alive_seconds, bundle)
        return self.next(output)

    def start(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None) -> None:
        """Send a call; `next` gives what the worker answers."""
        self._unused = False
        self._header = self._header_of(call, keep_alive_seconds)
        if call.timeout_seconds:
            self._overdue_at = time.monotonic() + call.timeout_seconds + OVERDUE_SECONDS
        if call.buffers:
            _check_room(call)
        self._call, self._bundle = call, bundle
        self._needs = 0
        small = not call.buffers and len(call.function) + len(call.arguments) <= SMALL_BYTES
        with contextlib.suppress(ChannelClosed):  # what it said before it closed is still to be read
            if self._fresh:
                with self._limited():
                    self._send_sources()
                    self._send_setup()
                    self._fresh = False
                    self._send_call()
            elif small:  # fits into the socket
                self._send_call()
            else:
                with self._limited():
                    self._send_call()

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Keep the call's timeout while it is sent, to a worker that may not read."""
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

    def start_more(self, calls: Sequence[Call], keep_alive_seconds: float) -> None:
        """Send further calls behind one that has been sent: small ones, which need nothing that it did not bring."""
        frames = [(self._header_of(call, keep_alive_seconds), [call.function, call.arguments]) for call in calls]
        with contextlib.suppress(ChannelClosed):
            self._data.send_many(frames)
        self._call = calls[-1]

    def attend(self, call: Call) -> None:
        """Say which of the calls that were sent is to be answered next."""
        self._call = call

    def _header_of(self, call: Call, keep_alive_seconds: float) -> Header:
        """Return the header of a call; what stays from call to call is put into words once."""
        alike = (
            call.serializer,
            call.reusable,
            call.sources,
            keep_alive_seconds,
            call.name,
            nested.call,
            call.timeout_seconds,
            call.setup_digest,
            call.stream,
            call.results,
        )
        if alike != self._alike:
            self._alike, self._words = alike, self._words_of(call, keep_alive_seconds)
        return f'{self._words},"call":{_quoted(call.id)},"at":{call.at!r}}}'.encode()

    def _words_of(self, call: Call, keep_alive_seconds: float) -> str:
        header: dict[str, Any] = {
            "type": "call",
            "epoch": self._epoch,
            "serializer": call.serializer,
            "reusable": call.reusable,
            "sources": call.sources,
            "keep_alive_seconds": keep_alive_seconds,
            "name": call.name,
        }
        if nested.call:
            header["parent"] = nested.call
        if call.timeout_seconds:
            header["timeout_seconds"] = call.timeout_seconds
        if call.setup_digest:
            header["setup"] = call.setup_digest
        if call.stream:
            header["stream"] = True
        if call.results != "pickle":
            header["results"] = call.results
        return _quoted(header)[:-1]

    def _send_call(self) -> None:
        call = self._call
        self._data.send(self._header, [call.function, call.arguments, *call.buffers])

    def _send_sources(self) -> None:
        if self._bundle is not None:
            self._data.send(*self._bundle.message())

    def _send_setup(self) -> None:
        if self._call.setup_digest:
            self._data.send({"type": "setup", "digest": self._call.setup_digest}, [self._call.setup])

    def next(self, output: Output) -> Message:
        """Wait for what the worker answers next: `yield`, `result` or `error`; what was printed before is passed on.

        Raises:
            As `run`; `Revoked` only for the first answer.
        """
        name = self._call.name
        while True:
            message = self._wait(output, name)
            kind = message.type
            if kind in ("result", "error", "yield"):
                self._drain(output)
                if kind != "yield":
                    self._overdue_at = 0.0
                return message
            if kind == "need":
                self._needs += 1
                if self._needs > MOST_NEEDS:
                    self.kill()
                    raise errors.ProtocolMismatch(
                        f"the worker of `{name}` asks for the same again and again",
                        hint="code in the worker has disturbed its channel",
                    )
                with contextlib.suppress(ChannelClosed), self._limited():
                    if message.header.get("setup"):
                        self._send_setup()
                    else:
                        self._send_sources()
                    self._send_call()
            elif kind == "revoked":
                raise Revoked
            elif kind == "exiting":
                self._drain(output)
                status = message.header.get("status")
                raise errors.WorkerDied(
                    f"`{name}` ended its worker with `sys.exit({status})`",
                    hint="return a value or raise an exception instead",
                    exit_status=status,
                    last_output=output.tail(),
                )

    def stop(self, output: Output) -> bool:
        """Have a generator closed that is not wanted any more; return whether it has ended within `STOP_SECONDS`."""
        self._overdue_at = time.monotonic() + STOP_SECONDS
        try:
            self._data.send({"type": "stop", "call": self._call.id})
            while self.next(output).type == "yield":
                pass
        except (Revoked, errors.AtollError, ChannelClosed, OSError):  # closed already, where the program ends
            return False
        return True

    def _wait(self, output: Output, name: str) -> Message:
        """Wait for the worker's next message, passing on what it prints."""
        patience: int | None = PATIENCE_MILLISECONDS
        told = False
        try:
            while not self._data.pending:
                left = self._milliseconds(name)
                self._look(
                    output, name, left if patience is None else patience if left is None else min(left, patience)
                )
                if patience is not None and not self._data.pending:
                    patience, told = output.waits("running", name), True
        finally:
            if told:
                output.proceeds()
        return self._data.receive()

    def _look(self, output: Output, name: str, patience: float | None) -> None:
        """Take what comes from the worker next, or nothing when nothing comes for `patience` milliseconds."""
        for descriptor, _ in self._poll.poll(patience):
            if descriptor == self._data.fileno():
                try:
                    self._data.fill()
                except ChannelClosed:
                    raise self._lost(output, name) from None
                except FrameTooLarge as error:
                    raise errors.SerializationError(
                        f"what `{name}` sends has {_megabytes(error.size_bytes)}, and of this machine's memory "
                        f"{_megabytes(error.most_bytes)} are free",
                        hint="return it in parts, or write it to `/data` and return the path",
                    ) from None
                except FrameError as error:
                    raise errors.ProtocolMismatch(
                        f"what the worker of `{name}` sends cannot be read: {error}",
                        hint="code in the worker has disturbed its channel",
                    ) from None
            else:
                self._read(descriptor, output)

    def _milliseconds(self, name: str) -> float | None:
        """How long to wait for the worker; the agent keeps the timeout, and this only where that has failed."""
        if not self._overdue_at:
            return None
        left = self._overdue_at - time.monotonic()
        if left <= 0:
            self.kill()
            raise _timed_out(name, self._call.timeout_seconds)
        return left * 1000 + 1

    def _read(self, descriptor: int, output: Output) -> bool:
        """Pass on what one pipe holds now; return whether there was anything."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._poll.unregister(descriptor)
            self._open_pipes.discard(descriptor)
            return False
        self._keep(data)
        (output.stdout if descriptor == self._out else output.stderr)(data)
        return True

    def _keep(self, data: bytes) -> None:
        """Keep the end of what the call prints where the daemon finds it, for `atoll logs CALL`."""
        if self._tape is None and self._can_keep:
            self._can_keep = False
            with contextlib.suppress(OSError, AttributeError, ChannelClosed):
                tape = TapeWriter()
                try:
                    self._control.send({"type": "tape"}, descriptors=[tape.descriptor])
                    self._tape = tape
                finally:
                    tape.close()
        if self._tape is not None:
            self._tape.write(self._call.id, data)

    def end_call(self) -> None:
        """Say that nothing of the call comes any more."""
        if self._tape is not None:
            self._tape.end()

    def _drain(self, output: Output) -> None:
        """Pass on what was printed before the answer."""
        number = self._data.fileno()
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll(0) if descriptor != number]
            if not ready:
                return
            for descriptor in ready:
                self._read(descriptor, output)

    def _lost(self, output: Output, name: str) -> errors.AtollError:
        """Say why the worker went away without an answer."""
        self._drain(output)
        try:
            closed = False
            heard = select.poll()  # `select` cannot take descriptors above 1023
            heard.register(self._control, select.POLLIN)
            while True:
                if not heard.poll(1000 * (ENDED_SECONDS if closed else CLOSED_SECONDS)):
                    if closed:
                        break
                    closed = True  # the worker is there, or has just ended: then the daemon says why, after all
                    self.kill()
                    continue
                if not self._control.fill():
                    continue
                header = self._control.receive().header
                if header.get("type") == "ended":
                    if header.get("error") is None:
                        raise Revoked
                    error = errors.from_data(header["error"])
                    if isinstance(error, errors.CallTimeout):
                        return _timed_out(name, self._call.timeout_seconds)
                    if closed and isinstance(error, errors.WorkerDied) and error.signal == 9:
                        return _closed(name, output)
                    if isinstance(error, errors.WorkerDied):
                        message = error.message.replace("the worker", f"the worker of `{name}`", 1)
                        details = {**error.details, "last_output": output.tail()}
                        error = type(error)(message, hint=error.hint, **details)
                    return error
            return _closed(name, output)
        except (ChannelClosed, FrameError):
            pass
        return errors.HostUnreachable(
            "the daemon ended while the call was running", hint="call again: a new daemon is started"
        )

    def kill(self) -> None:
        """Have the worker killed; from any thread."""
        with contextlib.suppress(ChannelClosed, OSError):
            self._control.send({"type": "kill"})

    def close(self) -> None:
        """Give the lease back: an idle worker stays warm, a busy one is killed."""
        self._close()


def receive(control: Channel, output: Output, kind: str, detail: str) -> Message:
    """Wait for the daemon's next word, telling the caller of the wait.

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


def _closed(name: str, output: Output) -> errors.WorkerDied:
    return errors.WorkerDied(
        f"the worker of `{name}` closed its channel to the caller, and was ended",
        hint="the function, or a library it uses, closes descriptors that it has not opened: let it keep them",
        last_output=output.tail(),
    )


def _timed_out(name: str, seconds: float) -> errors.CallTimeout:
    return errors.CallTimeout(
        f"`{name}` took longer than its timeout of {seconds:g} s, and was ended",
        hint="raise `timeout`, or leave it out for calls without an end",
        timeout_seconds=seconds,
    )


def _close(data: Channel, control: Channel, *pipes: int) -> None:
    data.close()
    control.close()
    for descriptor in pipes:
        with contextlib.suppress(OSError):
            os.close(descriptor)
