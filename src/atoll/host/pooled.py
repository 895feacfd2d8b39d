"""The part that all hosts share: calls on leases that pass from call to call, and the requests for new ones.

Theory of operation. A connection asks for one lease and carries it as long as the connection lives. Between calls a lease
rests in a pool, keyed by what was asked for, until the next call takes it or the worker gives it up. A call that crossed
that word on its way has not started, and is sent again under a new lease.
"""

from __future__ import annotations

import abc
import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from atoll import errors
from atoll.host.contract import Bundle, Output, Ticket
from atoll.host.lease import PATIENCE_MILLISECONDS, WorkerLease
from atoll.host.lease_pool import DaemonEnded, Leases, Waiter, cancelled_before
from atoll.model.specs import Call, LeaseSpec
from atoll.wire import nested
from atoll.wire.call_protocol import Revoked
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import Message

if TYPE_CHECKING:
    from atoll.host.link import Asking
    from atoll.host.storage_channels import WarmStorage

MOST_REVOKED = 25
"""Leases under which a call is tried. No worker gives a new lease up before its first call, so more than
two are the work of code in the workers."""


class PooledHost(abc.ABC):
    """A host whose leases rest between calls; it says by `_ask_for` how one is asked for."""

    def __init__(self) -> None:
        self._leases = Leases()
        self._token = os.urandom(8).hex()
        self._latest = ""  # the id of a call of this process
        self._all: weakref.WeakSet[WorkerLease] = weakref.WeakSet()
        self._warm: WarmStorage | None = None
        _hosts[id(self)] = self

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

    def acquire(self, spec: LeaseSpec, output: Output, ticket: Ticket | None, call: Call | None = None) -> WorkerLease:
        """See `contract.Leasing.acquire`."""
        kind = self.kind(spec)
        lease = self._leases.take(kind)
        if lease is not None:
            return lease
        return self._leases.wait(kind, lambda waiter: self._ask(kind, spec, output, ticket, waiter, call), ticket)

    @abc.abstractmethod
    def kind(self, spec: LeaseSpec) -> Any:
        """See `contract.Leasing.kind`."""

    @abc.abstractmethod
    def _ask_for(self, message: dict[str, Any], index: Iterable[tuple[str, str]]) -> Asking:
        """Open a connection with a message, and with the certificates that its index settings name."""

    def travelling(self, spec: LeaseSpec) -> LeaseSpec:
        """Return a spec as this host's place understands it; raises `AtollError` where it cannot."""
        return spec

    @staticmethod
    def _begin(lease: WorkerLease, ticket: Ticket | None) -> None:
        if ticket is not None:
            ticket.start()
            ticket.arm(lease.cancel, lease.kill)

    def settle(self, lease: WorkerLease, spec: LeaseSpec, ticket: Ticket | None, *, done: bool) -> None:
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
    ) -> WorkerLease | None:
        """Ask the daemon for a lease; return None when the waiter got another one meanwhile."""
        self._leases.drop_spent()
        client = f"{self._token}-{hash(kind) & 0xFFFFFFFFFFFF:x}"  # who uses its leases again for such calls
        message = {"type": "lease", "spec": self.travelling(spec).to_data(), "client": client, **self._claim(call)}
        asking = self._ask_for(message, spec.environment.index)

        def stop() -> None:
            with contextlib.suppress(OSError, ChannelClosed):
                asking.withdraw(for_another=waiter.lease is not None)

        try:
            if ticket is not None:
                ticket.arm(stop)
            waiter.begin_to_ask(stop)
            wait, detail = "starting", ""
            while True:
                header = _receive(asking, output, wait, detail)
                match header.get("type"):
                    case "granted":
                        if not waiter.end_to_ask():
                            raise ChannelClosed("given up for another lease")
                        lease = WorkerLease(
                            asking.grant(),
                            int(header["epoch"]),
                            bool(header["fresh"]),
                            kind,
                            str(header.get("worker", "")),
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
            asking.close()
            if ticket is not None and ticket.cancelled:
                raise cancelled_before() from None
            if waiter.lease is not None:
                return None
            raise self._ended_while_waiting() from None
        except BaseException:
            asking.close()
            raise
        finally:
            waiter.end_to_ask()
            if ticket is not None:
                ticket.disarm()

    def _ended_while_waiting(self) -> DaemonEnded:
        """Return the error of a call that waited for a lease when the connection ended."""
        return DaemonEnded("the daemon ended while the call waited", hint="call again")

    @property
    @abc.abstractmethod
    def _storage_of(self) -> str:
        """Whose `/data` this is, by a name that says the place as well: idle channels serve no other."""

    def _rested_storage(self) -> Any:
        """Return a storage channel that waits for its next client; None where there is none."""
        from atoll.host.storage_channels import WarmStorage  # for `/data` alone

        if self._warm is None:
            self._warm = WarmStorage()
        return self._warm.take(self._storage_of)

    def keep_storage(self, channel: Any) -> None:
        """See `contract.Host.keep_storage`."""
        if self._warm is None:
            channel.close()
        else:
            self._warm.keep(self._storage_of, channel)

    def close(self) -> None:
        """Give the idle leases and storage channels back; later calls ask for new ones."""
        self._leases.close()
        if self._warm is not None:
            self._warm.close()

    def forget(self) -> None:
        """In a forked child: drop the parent's leases and channels, which stay the parent's."""
        if self._warm is not None:
            self._warm.forget()
        self._leases = Leases()
        self._token = os.urandom(8).hex()
        for lease in list(self._all):
            with contextlib.suppress(OSError):
                lease.forget()


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


def _receive(asking: Asking, output: Output, kind: str, detail: str) -> dict[str, Any]:
    """Wait for the next message; tell the caller of the wait.

    Raises:
        ChannelClosed, FrameError: as `Asking.receive`.
    """
    patience: int | None = PATIENCE_MILLISECONDS
    while (header := asking.receive(patience)) is None:
        if patience is not None:
            patience = output.waits(kind, detail)
    return header


def answer_of(
    asking: Asking,
    on_progress: Callable[[str], None] | None = None,
    on_granted: Callable[[], None] | None = None,
    ended: str = "the daemon ended before it answered",
) -> dict[str, Any]:
    """Wait for the answer to a request, then end the connection.

    Args:
        ended: the message of the error where the connection ends first.
    """
    try:
        while True:
            header = asking.receive(None) or {}
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
        raise error.reason or errors.HostUnreachable(ended, hint="try again") from error
    finally:
        asking.close()


_hosts: weakref.WeakValueDictionary[int, PooledHost] = weakref.WeakValueDictionary()  # equal ones are several


def _forget_all() -> None:
    for host in list(_hosts.values()):
        host.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
