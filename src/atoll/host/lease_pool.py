"""Idle leases of this process, and the calls that wait for one.

Theory of operation. A call takes an idle lease of its kind, or waits for one. Of the calls that wait for the same kind,
one at a time asks the daemon for another lease. A grant, or the lease of a call that ends, goes to the call that has
waited longest. So a thousand calls of a process cost the daemon one request at a time, and a lease that ends a call is
used for the next without a message. The daemon takes part: it does not reclaim leases on behalf of the process that
holds them itself (`engine.schedule`).

The call that came last is the one that asks: it is the last to be served otherwise, so that few requests are withdrawn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.errors import CallCancelled, HostUnreachable
from atoll.host.contract import Ticket
from atoll.host.lease import WorkerLease

ATTEMPTS = 5
"""Requests for a lease while daemons end: no call has started, so another daemon may serve it."""


class DaemonEnded(HostUnreachable):
    """The daemon, or the connection to a server, ended before a lease was granted."""


class Waiter:
    """One call that waits; `lease` is set when one was granted."""

    def __init__(self) -> None:
        self.lease: WorkerLease | None = None
        self._lock = threading.Lock()
        self._stirred = threading.Event()
        self._stop: Callable[[], None] | None = None
        self._stopped = False

    def stir(self) -> None:
        """Wake the waiting thread; from any thread."""
        self._stirred.set()
        with self._lock:
            if self._stop is not None:
                self._stop()
                self._stopped = True

    def wait(self) -> None:
        self._stirred.wait()
        self._stirred.clear()

    def begin_to_ask(self, stop: Callable[[], None]) -> None:
        """Set the function that withdraws the request of this thread; it is called at once where a lease is here."""
        with self._lock:
            self._stop, self._stopped = stop, self.lease is not None
            if self._stopped:
                stop()

    def end_to_ask(self) -> bool:
        """Clear that function; return whether it was not called."""
        with self._lock:
            self._stop = None
            return not self._stopped


class Leases:
    """Idle leases and waiting calls by kind; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Any, list[WorkerLease]] = {}
        self._waiting: dict[Any, deque[Waiter]] = {}
        self._asking: dict[Any, Waiter] = {}

    def take(self, kind: Any) -> WorkerLease | None:
        """Return an idle lease of this kind that its worker has not given up."""
        while True:
            with self._lock:
                idle = self._idle.get(kind)
                lease = idle.pop() if idle else None
                if idle is not None and not idle:
                    del self._idle[kind]
            if lease is None or lease.usable:
                return lease
            lease.close()

    def rest(self, kind: Any, lease: WorkerLease) -> None:
        """Give a lease to the call that has waited longest for its kind, or keep it."""
        with self._lock:
            for waiter in self._waiting.get(kind, ()):
                if waiter.lease is None:
                    waiter.lease = lease
                    waiter.stir()
                    return
            self._idle.setdefault(kind, []).append(lease)

    def line_up(self, kind: Any) -> Waiter:
        """Begin to wait for a lease; `leave` ends the wait. A lease that became idle meanwhile is granted at once."""
        waiter = Waiter()
        with self._lock:
            idle = self._idle.get(kind)
            if idle:
                waiter.lease = idle.pop()
                if not idle:
                    del self._idle[kind]
            self._waiting.setdefault(kind, deque()).append(waiter)
        return waiter

    def asks(self, kind: Any, waiter: Waiter) -> bool:
        """Return whether this call has to ask the daemon, because no other of its kind does."""
        with self._lock:
            return self._asking.setdefault(kind, waiter) is waiter

    def asked(self, kind: Any, waiter: Waiter) -> None:
        """End the asking of this call; the last that waits without a lease asks next."""
        with self._lock:
            if self._asking.get(kind) is not waiter:
                return
            del self._asking[kind]
            self._have_one_ask(kind, waiter)

    def _have_one_ask(self, kind: Any, but: Waiter) -> None:
        for other in reversed(self._waiting.get(kind, ())):
            if other is not but and other.lease is None:
                other.stir()
                return

    def leave(self, kind: Any, waiter: Waiter, *, taken: bool) -> None:
        """End a wait; a lease that was granted and not taken goes to the next call."""
        with self._lock:
            waiting = self._waiting[kind]
            waiting.remove(waiter)
            if not waiting:
                del self._waiting[kind]
            if self._asking.get(kind) is waiter:
                del self._asking[kind]
            if kind not in self._asking:  # this call may have been the next to ask
                self._have_one_ask(kind, waiter)
        if not taken and waiter.lease is not None:
            self.rest(kind, waiter.lease)

    def drop_spent(self) -> None:
        """Close idle leases that their workers have given up."""
        with self._lock:
            for kind, idle in list(self._idle.items()):
                for lease in [one for one in idle if one.spent]:
                    idle.remove(lease)
                    lease.close()
                if not idle:
                    del self._idle[kind]

    def close(self) -> None:
        """Close the idle leases."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for lease in (lease for leases in idle.values() for lease in leases):
            lease.close()

    def wait(self, kind: Any, ask: Callable[[Waiter], WorkerLease | None], ticket: Ticket | None) -> WorkerLease:
        """Wait for a lease of this kind.

        Args:
            ask: asks the daemon; returns None when the request was withdrawn for another lease.

        Raises:
            CallCancelled: the ticket was cancelled.
            DaemonEnded: the daemon ended, and so did those after it.
        """
        waiter = self.line_up(kind)
        attempts = ATTEMPTS
        taken = False
        try:
            while True:
                if waiter.lease is not None:
                    lease, waiter.lease = waiter.lease, None
                    if lease.unused or lease.usable:  # the call of an unused one gets the reason of its end
                        taken = True
                        return lease
                    lease.close()
                elif self.asks(kind, waiter):
                    try:
                        granted = ask(waiter)
                    except DaemonEnded:
                        attempts -= 1
                        if attempts == 0:
                            raise
                        continue
                    self.asked(kind, waiter)
                    if granted is not None:
                        self.rest(kind, granted)  # to this call, unless another has waited longer
                else:
                    if ticket is not None:
                        ticket.arm(waiter.stir)
                    waiter.wait()
                    if ticket is not None:
                        ticket.arm(None)
                        if ticket.cancelled:
                            raise cancelled_before()
        finally:
            self.leave(kind, waiter, taken=taken)


def cancelled_before() -> CallCancelled:
    """Return the error of a call that was cancelled before it was sent."""
    return CallCancelled("the call was cancelled before it started", hint="nothing to do: it was asked for")
