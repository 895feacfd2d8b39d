"""The leases of one process that no call uses, and the calls that wait for one.

Theory of operation. A call takes a resting lease of its kind, or has to wait for one. Of those that wait for the same
kind, one at a time asks the daemon for another lease; whatever comes first, a grant or a call that ends, goes to the
one that has waited longest. So a thousand calls of a process cost the daemon one request at a time, and a lease that
ends a call is used for the next without a word to anyone. The daemon takes part: it does not ask leases back on
behalf of the process that holds them itself (`engine.schedule`).

Whoever asks is the one that came last: it is the last to be served otherwise, so that requests are seldom given up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.host.local_lease import LocalLease


class Waiter:
    """One call that waits; `lease` is set when it has been given one."""

    def __init__(self) -> None:
        self.lease: LocalLease | None = None
        self._lock = threading.Lock()
        self._stirred = threading.Event()
        self._stop: Callable[[], None] | None = None
        self._stopped = False

    def stir(self) -> None:
        """Have the waiting thread look again, whatever it waits for; from any thread."""
        self._stirred.set()
        with self._lock:
            if self._stop is not None:
                self._stop()
                self._stopped = True

    def wait(self) -> None:
        self._stirred.wait()
        self._stirred.clear()

    def begin_to_ask(self, stop: Callable[[], None]) -> None:
        """Say what ends the request that this thread is about to wait for; it is ended at once with a lease here."""
        with self._lock:
            self._stop, self._stopped = stop, self.lease is not None
            if self._stopped:
                stop()

    def end_to_ask(self) -> bool:
        """Let nothing end the request from now on; return whether nothing has."""
        with self._lock:
            self._stop = None
            return not self._stopped


class Leases:
    """What rests and who waits, by kind; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting: dict[Any, list[LocalLease]] = {}
        self._waiting: dict[Any, deque[Waiter]] = {}
        self._asking: dict[Any, Waiter] = {}

    def take(self, kind: Any) -> LocalLease | None:
        """Return a resting lease of this kind that its worker has not given up."""
        while True:
            with self._lock:
                resting = self._resting.get(kind)
                lease = resting.pop() if resting else None
                if resting is not None and not resting:
                    del self._resting[kind]
            if lease is None or lease.usable:
                return lease
            lease.close()

    def rest(self, kind: Any, lease: LocalLease) -> None:
        """Give a lease to the call that has waited longest for its kind, or let it rest."""
        with self._lock:
            for waiter in self._waiting.get(kind, ()):
                if waiter.lease is None:
                    waiter.lease = lease
                    waiter.stir()
                    return
            self._resting.setdefault(kind, []).append(lease)

    def line_up(self, kind: Any) -> Waiter:
        """Begin to wait for a lease; `leave` ends it. One that has come to rest meanwhile is given at once."""
        waiter = Waiter()
        with self._lock:
            resting = self._resting.get(kind)
            if resting:
                waiter.lease = resting.pop()
                if not resting:
                    del self._resting[kind]
            self._waiting.setdefault(kind, deque()).append(waiter)
        return waiter

    def asks(self, kind: Any, waiter: Waiter) -> bool:
        """Whether this one has to ask the daemon, as nobody else of its kind does."""
        with self._lock:
            return self._asking.setdefault(kind, waiter) is waiter

    def asked(self, kind: Any, waiter: Waiter) -> None:
        """This one does not ask any more: the last that waits and has nothing is to ask."""
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
        """End a wait; a lease that was given and not taken goes to the next."""
        with self._lock:
            waiting = self._waiting[kind]
            waiting.remove(waiter)
            if not waiting:
                del self._waiting[kind]
            if self._asking.get(kind) is waiter:
                del self._asking[kind]
            if kind not in self._asking:  # also where this one was told to ask, and leaves instead
                self._have_one_ask(kind, waiter)
        if not taken and waiter.lease is not None:
            self.rest(kind, waiter.lease)

    def drop_spent(self) -> None:
        """Close resting leases that their workers have given up."""
        with self._lock:
            for kind, resting in list(self._resting.items()):
                for lease in [one for one in resting if not one.usable]:
                    resting.remove(lease)
                    lease.close()
                if not resting:
                    del self._resting[kind]
