"""The local host: leases from the daemon, calls straight to the worker.

Theory of operation. A connection to the daemon carries one lease and lives as long as it. The daemon hands over a
data socket to the worker and its two output pipes; calls then go without the daemon (`lease`). Between calls a lease
rests in a pool, keyed by what was asked for, until the next call takes it or the worker gives it up. A call that
crossed that word on its way has not started, and is sent again under a new lease.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atoll import errors, settings
from atoll.host import daemon_start
from atoll.host.contract import Bundle, Output, Ticket
from atoll.host.lease_pool import DaemonEnded, Leases, Waiter, cancelled_before
from atoll.host.local_lease import LocalLease, receive
from atoll.model.specs import Call, LeaseSpec
from atoll.settings import Settings
from atoll.wire import nested
from atoll.wire.call_protocol import Revoked
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

if TYPE_CHECKING:
    import socket

    from atoll.host.storage_channels import WarmStorage

MOST_REVOKED = 25
"""Leases under which a call is tried. No worker gives a new lease up before its first call, so more than
two are the work of code in the workers."""


class LocalHost:
    """Runs functions on this machine; inside a sandbox, on the machine that the sandbox is on.

    Args:
        home: the state directory; by default `ATOLL_HOME` or the platform's user data directory.
    """

    name = "local"

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self._home = os.fspath(home) if home is not None else None
        self._leases = Leases()
        self._token = os.urandom(8).hex()
        self._latest = ""  # the id of a call of this process
        self._settings: Settings | None = None
        self._all: weakref.WeakSet[LocalLease] = weakref.WeakSet()
        self._warm: WarmStorage | None = None
        _hosts[id(self)] = self

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
        """The settings of this host's state directory, read once; the defaults where the file has a mistake."""
        from pathlib import Path

        home = Path(os.path.abspath(self._home)) if self._home is not None else settings.default_home()
        if self._settings is None or self._settings.home != home or self._settings.mistake:
            if nested.inside():
                return Settings(Path("/nonexistent"))
            self._settings = settings.usable(home)
        return self._settings

    def run(
        self, spec: LeaseSpec, call: Call, bundle: Bundle | None, output: Output, ticket: Ticket | None = None
    ) -> Message:
        """See `contract.Host.run`."""
        for _ in range(MOST_REVOKED):
            lease = self.acquire(spec, output, ticket, call)
            done = False
            try:
                self._begin(lease, ticket)
                message = lease.run(call, spec.keep_alive_seconds, bundle, output)
                done = True
                return message
            except Revoked:
                if ticket is not None and ticket.cancelled:
                    raise cancelled_before() from None
                continue
            except errors.WorkerDied as error:
                raise _cancelled_or(error, ticket) from None
            except KeyboardInterrupt:
                lease.interrupt(output)
                raise
            finally:
                self.settle(lease, spec, ticket, done=done)
        raise given_back(call)

    def stream(
        self, spec: LeaseSpec, call: Call, bundle: Bundle | None, output: Output, ticket: Ticket | None = None
    ) -> Iterator[Message]:
        """See `contract.Host.stream`."""
        answered = False
        for _ in range(MOST_REVOKED):
            lease = self.acquire(spec, output, ticket, call)
            done = False
            try:
                self._begin(lease, ticket)
                lease.start(call, spec.keep_alive_seconds, bundle)
                while not done:
                    message = lease.next(output)
                    answered = True
                    done = message.type != "yield"
                    yield message
                return
            except Revoked:
                if answered:
                    raise given_back(call) from None
                continue
            except errors.WorkerDied as error:
                raise _cancelled_or(error, ticket) from None
            except GeneratorExit:
                done = done or lease.stop(output)
                raise
            except KeyboardInterrupt:
                lease.interrupt(output)
                raise
            finally:
                self.settle(lease, spec, ticket, done=done)
        raise given_back(call)

    def acquire(self, spec: LeaseSpec, output: Output, ticket: Ticket | None, call: Call | None = None) -> LocalLease:
        """See `contract.Leasing.acquire`."""
        kind = self.kind(spec)
        lease = self._leases.take(kind)
        if lease is not None:
            return lease
        return self._leases.wait(kind, lambda waiter: self._ask(kind, spec, output, ticket, waiter, call), ticket)

    def kind(self, spec: LeaseSpec) -> Any:
        """See `contract.Leasing.kind`."""
        return self._home or settings.home_variables(), spec.terms

    @staticmethod
    def _begin(lease: LocalLease, ticket: Ticket | None) -> None:
        if ticket is not None:
            ticket.start()
            ticket.arm(lease.cancel, lease.kill)

    def settle(self, lease: LocalLease, spec: LeaseSpec, ticket: Ticket | None, *, done: bool) -> None:
        """See `contract.Leasing.settle`."""
        lease.end_call()
        if ticket is not None:
            ticket.arm(None)
            done = done and not ticket.cancelled  # a kill may be on its way to the worker
        if done and spec.keep_alive_seconds > 0:
            self._leases.rest(lease.kind, lease)
        else:
            lease.close()

    def _claim(self, call: Call | None) -> dict[str, Any]:
        """Return the call that a lease is for; for further leases the latest call of this process."""
        if call is None:
            return {"after": self._latest}
        self._latest = call.id
        return {"for": {"call": call.id, "at": call.at, "parent": nested.call}}

    def _ask(
        self, kind: Any, spec: LeaseSpec, output: Output, ticket: Ticket | None, waiter: Waiter, call: Call | None
    ) -> LocalLease | None:
        """Ask the daemon for a lease; return None when the waiter got another one meanwhile."""
        self._leases.drop_spent()
        client = f"{self._token}-{hash(kind) & 0xFFFFFFFFFFFF:x}"  # who uses its leases again for such calls
        message = {"type": "lease", "spec": spec.to_data(), "client": client, **self._claim(call)}
        control = self._open(message, spec.environment.index)

        def stop() -> None:
            with contextlib.suppress(OSError, ChannelClosed):
                if waiter.lease is not None:
                    control.send({"type": "withdrawn"})
                control.socket.shutdown(2)

        try:
            if ticket is not None:
                ticket.arm(stop)
            waiter.begin_to_ask(stop)
            wait, detail = "starting", ""
            while True:
                header = receive(control, output, wait, detail).header
                match header.get("type"):
                    case "granted":
                        if not waiter.end_to_ask():
                            raise ChannelClosed("given up for another lease")
                        descriptors, worker = control.take_descriptors(3), str(header.get("worker", ""))
                        lease = LocalLease(
                            control,
                            int(header["epoch"]),
                            descriptors,
                            bool(header["fresh"]),
                            kind,
                            worker,
                            spec.grace_seconds,
                        )
                        self._all.add(lease)
                        return lease
                    case "progress":
                        from atoll.model import build_progress  # for builds alone

                        output.progress(line := build_progress.line_of(header))
                        detail = build_progress.shown(line)
                        wait = "building" if detail else "starting"
                    case "waiting":
                        wait, detail = "waiting", str(header.get("reason") or header.get("position", ""))
                    case "notice":
                        output.notice(str(header.get("line", "")))
                    case "failed":
                        raise errors.from_data(header.get("error") or {})
        except ChannelClosed:
            control.close()
            if ticket is not None and ticket.cancelled:
                raise cancelled_before() from None
            if waiter.lease is not None:
                return None
            raise DaemonEnded("the daemon ended while the call waited", hint="call again") from None
        except BaseException:
            control.close()
            raise
        finally:
            waiter.end_to_ask()
            if ticket is not None:
                ticket.disarm()

    def _open(
        self, message: dict[str, Any], index: Iterable[tuple[str, str]], descriptors: Sequence[int] = ()
    ) -> Channel:
        """Open a connection with a message, and with the certificates that its index settings name."""
        digest = dict(index).get("certificates")
        if not digest:
            return daemon_start.open_connection(self.settings, message, descriptors)
        from atoll.host import index_settings  # for few callers
        from atoll.wire import sealed_file  # as above

        sealed = sealed_file.make(index_settings.certificates(digest).encode())
        try:
            announced = {**message, "certificates": digest}
            return daemon_start.open_connection(self.settings, announced, [sealed, *descriptors])
        finally:
            os.close(sealed)

    def dial(self, worker: str, port: int) -> socket.socket:
        """Connect to a port inside the sandbox of a worker that serves a lease; see `host.dial`."""
        from atoll.host.dial import dial

        return dial(self.settings, worker, port)

    def open_storage(self) -> Channel:
        """See `contract.Host.open_storage`."""
        import socket

        from atoll.host.storage_channels import StorageChannel, WarmStorage

        if self._warm is None:
            self._warm = WarmStorage()
        warm = self._warm.take(str(self.settings.home))
        if warm is not None:
            return warm
        control = daemon_start.open_connection(self.settings, {"type": "storage"})
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
        return StorageChannel(socket.socket(fileno=descriptor), control)

    def keep_storage(self, channel: Channel) -> None:
        """See `contract.Host.keep_storage`."""
        if self._warm is None:
            channel.close()
        else:
            self._warm.keep(str(self.settings.home), channel)

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
        control = self._open(message, spec.environment.index, descriptors)
        answer = _answers(control, on_progress, on_start)
        return int(answer["status"])

    def request(
        self, name: str, arguments: dict[str, Any], on_progress: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """See `contract.Host.request`."""
        message = {"type": "request", "name": name, "arguments": arguments}
        asked = arguments.get("environment")
        index = tuple(asked["index"].items()) if isinstance(asked, dict) else ()
        return _answers(self._open(message, index), on_progress)

    def request_running(
        self, name: str, arguments: dict[str, Any], *, greeting_seconds: float = daemon_start.GREETING_SECONDS
    ) -> dict[str, Any] | None:
        """Ask a daemon that is running already; None when there is none."""
        message = {"type": "request", "name": name, "arguments": arguments}
        channel = daemon_start.control_connection(self.settings, message, greeting_seconds)
        return None if channel is None else _answers(channel, None)

    def close(self) -> None:
        """Give the idle leases and storage channels back; later calls ask for new ones."""
        self._leases.close()
        if self._warm is not None:
            self._warm.close()

    def forget(self) -> None:
        """In a forked child: drop the parent's leases, which stay the parent's."""
        self._leases = Leases()
        self._token = os.urandom(8).hex()
        if self._warm is not None:
            self._warm.forget()
        for lease in list(self._all):
            with contextlib.suppress(OSError):
                lease.close()


def _cancelled_or(error: errors.WorkerDied, ticket: Ticket | None) -> errors.AtollError:
    """Return the error for a lost worker, which may have been killed on request."""
    if ticket is None or not ticket.cancelled:
        return error
    return errors.CallCancelled("the call was cancelled while it ran", hint="nothing to do: it was asked for")


def given_back(call: Call) -> errors.WorkerDied:
    """Return the error for a call that no worker keeps."""
    return errors.WorkerDied(
        f"the workers of `{call.name}` gave the call back again and again, or in the middle of it",
        hint="code in the worker has disturbed its channel",
    )


def _answers(
    channel: Channel, on_progress: Callable[[str], None] | None, on_granted: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Wait for the answer on this channel, then close the channel."""
    try:
        while True:
            header = channel.receive().header
            match header.get("type"):
                case "answer":
                    value = header.get("value")
                    return value if isinstance(value, dict) else {}
                case "progress" | "notice" if on_progress is not None:
                    from atoll.model.build_progress import line_of  # for few requests

                    on_progress(line_of(header))
                case "granted" if on_granted is not None:
                    on_granted()
                case "failed":
                    raise errors.from_data(header.get("error") or {})
    except ChannelClosed as error:
        raise errors.HostUnreachable("the daemon ended before it answered", hint="try again") from error
    finally:
        channel.close()


_hosts: weakref.WeakValueDictionary[int, LocalHost] = weakref.WeakValueDictionary()  # equal ones are several


def _forget_all() -> None:
    for host in list(_hosts.values()):
        host.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)

local = LocalHost()
"""The host of this machine, with the default state directory."""
