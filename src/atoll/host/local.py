"""The local host: leases from the daemon, calls straight to the worker.

Theory of operation. A connection to the daemon carries one lease and lives as long as it. The daemon hands over a
data socket to the worker and its two output pipes; calls then go without the daemon. Between calls a lease rests in
a pool, keyed by what was asked for, until the next call takes it or the worker gives it up. A worker says `revoked`
when it gives a lease up; a call that had been sent by then has not started and is sent again under a new lease. The
end of the data socket without that word means that the worker died, and the daemon says why.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections.abc import Callable
from typing import Any

from atoll import errors, settings
from atoll.agent import nested
from atoll.host import start
from atoll.host.contract import Bundle, Output, Ticket
from atoll.model.specs import Call, LeaseSpec
from atoll.settings import Settings
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError, Message

ENDED_SECONDS = 10.0
READ_BYTES = 1 << 16


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
        self._data = Channel(socket.socket(fileno=descriptors[0]))
        self._out, self._err = descriptors[1:]
        self._fresh = fresh
        self._poll = select.poll()
        self._poll.register(self._data, select.POLLIN)
        for descriptor in (self._out, self._err):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._open_pipes = {self._out, self._err}
        self._close = weakref.finalize(self, _close, self._data, control, self._out, self._err)
        self._close.atexit = False  # the end of the process closes them

    @property
    def usable(self) -> bool:
        """Whether the worker still holds the lease, as far as it has said."""
        number = self._data.fileno()
        return self._close.alive and not any(descriptor == number for descriptor, _ in self._poll.poll(0))

    def run(self, call: Call, keep_alive_seconds: float, bundle: Bundle | None, output: Output) -> Message:
        """Run one call.

        Raises:
            Revoked: it has not started; the lease is of no more use.
            WorkerDied, OutOfMemory, SandboxUnavailable, HostUnreachable: it was lost; so is the lease.
        """
        header = {
            "type": "call",
            "call": call.id,
            "epoch": self._epoch,
            "serializer": call.serializer,
            "reusable": call.reusable,
            "sources": call.sources,
            "keep_alive_seconds": keep_alive_seconds,
        }
        buffers = [call.function, call.arguments, *call.buffers]
        try:
            if bundle is not None and self._fresh:
                self._data.send(*bundle.message())
            self._fresh = False
            self._data.send(header, buffers)
        except ChannelClosed:
            pass  # what the worker said before it closed is still to be read
        while True:
            message = self._wait(output)
            kind = message.type
            if kind in ("result", "error"):
                self._drain(output)
                return message
            if kind == "need" and bundle is not None:
                with contextlib.suppress(ChannelClosed):
                    self._data.send(*bundle.message())
                    self._data.send(header, buffers)
            elif kind == "revoked":
                raise Revoked
            elif kind == "exiting":
                self._drain(output)
                status = message.header.get("status")
                raise errors.WorkerDied(
                    f"the function ended its worker with `sys.exit({status})`",
                    hint="return a value or raise an exception instead",
                    exit_status=status,
                    last_output=output.tail(),
                )

    def _wait(self, output: Output) -> Message:
        """Wait for the worker's next message, passing on what it prints."""
        data = self._data
        number = data.fileno()
        while not data.pending:
            for descriptor, _ in self._poll.poll():
                if descriptor == number:
                    try:
                        data.fill()
                    except (ChannelClosed, FrameError):
                        raise self._lost(output) from None
                else:
                    self._read(descriptor, output)
        return data.receive()

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
        (output.stdout if descriptor == self._out else output.stderr)(data)
        return True

    def _drain(self, output: Output) -> None:
        """Pass on what was printed before the answer."""
        number = self._data.fileno()
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll(0) if descriptor != number]
            if not ready:
                return
            for descriptor in ready:
                self._read(descriptor, output)

    def _lost(self, output: Output) -> errors.AtollError:
        """Say why the worker went away without an answer."""
        self._drain(output)
        try:
            while select.select([self._control], [], [], ENDED_SECONDS)[0]:
                if not self._control.fill():
                    continue
                header = self._control.receive().header
                if header.get("type") == "ended":
                    if header.get("error") is None:
                        raise Revoked
                    error = errors.from_data(header["error"])
                    if isinstance(error, errors.WorkerDied):
                        error.details["last_output"] = output.tail()
                    return error
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


def _close(data: Channel, control: Channel, *pipes: int) -> None:
    data.close()
    control.close()
    for descriptor in pipes:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class LocalHost:
    """Runs functions on this machine; inside a sandbox, on the machine that the sandbox is on.

    Args:
        home: the state directory; by default `ATOLL_HOME` or the platform's user data directory.
    """

    name = "local"

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._home = os.fspath(home) if home is not None else None
        self._lock = threading.Lock()
        self._idle: dict[Any, list[LocalLease]] = {}
        self._settings: Settings | None = None
        self._all: weakref.WeakSet[LocalLease] = weakref.WeakSet()
        _hosts.add(self)

    def __repr__(self) -> str:
        return "local" if self._home is None else f"LocalHost({self._home!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalHost, (self._home,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalHost) and other._home == self._home

    def __hash__(self) -> int:
        return hash(("local", self._home))

    @property
    def settings(self) -> Settings:
        """The settings of this host's state directory, read once."""
        from pathlib import Path

        home = Path(os.path.abspath(self._home)) if self._home is not None else settings.default_home()
        if self._settings is None or self._settings.home != home:
            if nested.inside():
                return Settings(Path("/nonexistent"))
            self._settings = settings.load(home)
        return self._settings

    def run(
        self, spec: LeaseSpec, call: Call, bundle: Bundle | None, output: Output, ticket: Ticket | None = None
    ) -> Message:
        """See `contract.Host.run`."""
        key = (self._home or settings.home_variables(), spec.environment, spec.env, spec.sources, spec.mounts)
        while True:
            lease = self._take(key)
            if lease is None:
                lease = self._lease(spec, output, ticket)
            done = False
            try:
                if ticket is not None:
                    ticket.arm(lease.kill)
                message = lease.run(call, spec.keep_alive_seconds, bundle, output)
                done = True
                return message
            except Revoked:
                continue
            except errors.WorkerDied:
                if ticket is not None and ticket.cancelled:
                    raise errors.CallCancelled(
                        "the call was cancelled while it ran", hint="nothing to do: it was asked for"
                    ) from None
                raise
            finally:
                if ticket is not None:
                    ticket.arm(None)
                if done and spec.keep_alive_seconds > 0:
                    with self._lock:
                        self._idle.setdefault(key, []).append(lease)
                else:
                    lease.close()

    def _take(self, key: Any) -> LocalLease | None:
        while True:
            with self._lock:
                resting = self._idle.get(key)
                lease = resting.pop() if resting else None
                if resting is not None and not resting:
                    del self._idle[key]
            if lease is None or lease.usable:
                return lease
            lease.close()

    def _drop_spent(self) -> None:
        """Close resting leases that their workers have given up."""
        with self._lock:
            for key, resting in list(self._idle.items()):
                for lease in [one for one in resting if not one.usable]:
                    resting.remove(lease)
                    lease.close()
                if not resting:
                    del self._idle[key]

    def _lease(self, spec: LeaseSpec, output: Output, ticket: Ticket | None) -> LocalLease:
        self._drop_spent()
        control = start.open_connection(self.settings, {"type": "lease", "spec": spec.to_data()})
        try:
            if ticket is not None:
                ticket.arm(lambda: control.socket.shutdown(2))
            while True:
                header = control.receive().header
                match header.get("type"):
                    case "granted":
                        lease = LocalLease(
                            control, int(header["epoch"]), control.take_descriptors(3), bool(header["fresh"])
                        )
                        self._all.add(lease)
                        return lease
                    case "progress":
                        output.notice(str(header.get("line", "")))
                    case "failed":
                        raise errors.from_data(header.get("error") or {})
        except ChannelClosed:
            control.close()
            if ticket is not None and ticket.cancelled:
                raise errors.CallCancelled(
                    "the call was cancelled before it started", hint="nothing to do: it was asked for"
                ) from None
            raise errors.HostUnreachable("the daemon ended while the call waited", hint="call again") from None
        except BaseException:
            control.close()
            raise

    def open_storage(self) -> Channel:
        """See `contract.Host.open_storage`."""
        import socket

        control = start.open_connection(self.settings, {"type": "storage"})
        try:
            header = control.receive().header
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            (descriptor,) = control.take_descriptors(1)
        except ChannelClosed as error:
            control.close()
            raise errors.HostUnreachable("the daemon ended", hint="try again") from error
        except BaseException:
            control.close()
            raise
        return _StorageChannel(socket.socket(fileno=descriptor), control)

    def run_shell(
        self,
        spec: LeaseSpec,
        descriptors: tuple[int, int, int],
        *,
        terminal: bool,
        on_progress: Callable[[str], None],
        on_start: Callable[[], None],
    ) -> int:
        """Run a shell in the function's sandbox on these descriptors; return its exit status."""
        message = {"type": "shell", "spec": spec.to_data(), "terminal": terminal}
        control = start.open_connection(self.settings, message, descriptors)
        answer = _answers(control, on_progress, on_start)
        return int(answer["status"])

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """See `contract.Host.request`."""
        message = {"type": "request", "name": name, "arguments": arguments}
        return _answers(start.open_connection(self.settings, message), on_progress)

    def request_running(self, name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Ask a daemon that is running already; None when there is none."""
        message = {"type": "request", "name": name, "arguments": arguments}
        channel = start.control_connection(self.settings, message)
        return None if channel is None else _answers(channel, None)

    def forget(self) -> None:
        """In a forked child: drop the parent's leases, which stay the parent's."""
        self._lock = threading.Lock()
        self._idle = {}
        for lease in list(self._all):
            with contextlib.suppress(OSError):
                lease.close()


class _StorageChannel(Channel):
    """A channel to a storage peer, which lives as long as the connection that asked for it."""

    def __init__(self, sock: Any, control: Channel) -> None:
        super().__init__(sock)
        self._lease = control

    def close(self) -> None:
        super().close()
        self._lease.close()


def _answers(
    channel: Channel, on_progress: Callable[[str], None] | None, on_granted: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Wait for the answer to what has been asked on this channel, which is closed then."""
    try:
        while True:
            header = channel.receive().header
            match header.get("type"):
                case "answer":
                    value = header.get("value")
                    return value if isinstance(value, dict) else {}
                case "progress" if on_progress is not None:
                    on_progress(str(header.get("line", "")))
                case "granted" if on_granted is not None:
                    on_granted()
                case "failed":
                    raise errors.from_data(header.get("error") or {})
    except ChannelClosed as error:
        raise errors.HostUnreachable("the daemon ended before it answered", hint="try again") from error
    finally:
        channel.close()


_hosts: weakref.WeakSet[LocalHost] = weakref.WeakSet()


def _forget_all() -> None:
    for host in list(_hosts):
        host.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

local = LocalHost()
"""The host of this machine, with the default state directory."""
