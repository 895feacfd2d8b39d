"""Many calls of one function at once: each lease has a thread of its own, and short calls are sent ahead.

A worker that has to wait for its next call costs a change of process in each direction, many times what a tiny call
takes. So while calls are short, a few are sent before the first is answered; the worker takes them in order. Whatever
ends a lease, at most the first of them has started: the others are given to another lease.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from atoll import errors
from atoll.host.contract import Bundle, Output, Ticket
from atoll.host.local_lease import LocalLease, Revoked
from atoll.model.specs import Call, LeaseSpec
from atoll.wire.frames import Message

if TYPE_CHECKING:
    from atoll.host.local import LocalHost

MOST_AHEAD = 16
"""Calls that a worker may have beside the one that it runs."""
AHEAD_SECONDS = 0.002
"""How long the calls that are sent ahead may take together, going by the last ones."""
AHEAD_BYTES = 4096
"""Calls with more than this travel when their turn has come: a worker that runs does not read."""


class Job(NamedTuple):
    """One call, with what belongs to it and a number for who gets the answer."""

    number: int
    spec: LeaseSpec
    call: Call
    bundle: Bundle | None
    output: Output

    @property
    def small(self) -> bool:
        call = self.call
        return not call.buffers and len(call.function) + len(call.arguments) <= AHEAD_BYTES


class Jobs(Protocol):
    """Where the calls come from and the answers go to; used by several threads."""

    def take(self, *, wait: bool) -> Job | None:
        """Return the next call; None when there is none now, or with `wait` when there will be none."""

    def put_back(self, jobs: list[Job]) -> None:
        """Take calls that have not started, to be given out again before all others."""

    def deliver(self, job: Job, answer: Message | BaseException) -> None:
        """Take the answer of a call, or why it has none."""


class Silent:
    """An output for leases that nobody waits for."""

    def stdout(self, data: bytes) -> None:
        """Nothing is printed before a call."""

    stderr = stdout

    def notice(self, line: str) -> None:
        """What is said has been said to the first."""

    progress = notice

    def waits(self, kind: str, detail: str) -> int | None:
        """The first one waits too."""

    def proceeds(self) -> None:
        """There is nothing to take back."""

    def tail(self) -> str:
        return ""


class Lanes:
    """Runs what `jobs` has, on as many leases as the host grants.

    Args:
        host: grants the leases.
        jobs: see `Jobs`.
        most: leases at a time.
    """

    def __init__(self, host: LocalHost, jobs: Jobs, most: int) -> None:
        self._host = host
        self._jobs = jobs
        self._most = most
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._serving: set[Ticket] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin with one lane; each lane that has a lease starts the next while there is work."""
        self._spawn(self._first)

    def stop(self, *, kill: bool = True) -> None:
        """Give up what waits for a lease, and kill what runs; from any thread.

        Args:
            kill: False where nothing runs whose answer has not come.
        """
        with self._lock:
            self._stopped = True
            tickets = [ticket for ticket in self._tickets if kill or ticket not in self._serving]
        for ticket in tickets:
            ticket.cancel()

    def _spawn(self, work: Callable[[Ticket], None]) -> None:
        ticket = Ticket()
        with self._lock:
            if self._stopped or len(self._tickets) >= self._most:
                return
            self._tickets.add(ticket)

        def run() -> None:
            try:
                work(ticket)
            finally:
                with self._lock:
                    self._tickets.discard(ticket)
                    last = not self._tickets
                if last:  # what was put back while the others were ending
                    job = None if self._stopped else self._jobs.take(wait=False)
                    if job is not None:
                        self._jobs.put_back([job])
                        self._spawn(self._first)

        threading.Thread(target=run, name="atoll-lane", daemon=True).start()

    def _first(self, ticket: Ticket) -> None:
        """Serve until there is no work: this lane tells why there is no lease, to one call after the other."""
        while not self._stopped:
            job = self._jobs.take(wait=True)
            if job is None:
                return
            self._jobs.put_back([job])
            try:
                lease = self._host.acquire(job.spec, job.output, ticket, job.call)
            except BaseException as error:
                failed = self._jobs.take(wait=False)
                if failed is not None:
                    self._jobs.deliver(failed, error)
                continue
            self._serve(lease, job.spec, ticket)

    def _further(self, spec: LeaseSpec, ticket: Ticket) -> None:
        try:
            lease = self._host.acquire(spec, Silent(), ticket)
        except BaseException:  # the first lane meets it too, and tells
            return
        self._serve(lease, spec, ticket)

    def _serve(self, lease: LocalLease, spec: LeaseSpec, ticket: Ticket) -> None:
        """Run calls on a lease until there are none that it can serve, or until it ends."""
        kind = self._host.kind(spec)
        pending: deque[Job] = deque()
        done = False
        with self._lock:
            self._serving.add(ticket)
        try:
            ticket.arm(lease.kill)
            _Lane(self._jobs, lease, kind, self._host.kind, pending, lambda: self._more(spec)).run()
            done = True
        except Revoked:
            pass
        except BaseException as error:
            reason: BaseException = error
            if ticket.cancelled:
                reason = errors.CallCancelled("the call was cancelled", hint="nothing to do: it was asked for")
            if pending:
                self._jobs.deliver(pending.popleft(), reason)
        finally:
            with self._lock:
                self._serving.discard(ticket)
            self._jobs.put_back(list(pending))
            self._host.settle(lease, spec, ticket, done=done)

    def _more(self, spec: LeaseSpec) -> None:
        self._spawn(lambda ticket: self._further(spec, ticket))


class _Lane:
    """The calls of one lease; `pending` are those that have been sent and not been answered."""

    def __init__(
        self,
        jobs: Jobs,
        lease: LocalLease,
        kind: Any,
        kind_of: Callable[[LeaseSpec], Any],
        pending: deque[Job],
        more: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._lease = lease
        self._kind = kind
        self._kind_of = kind_of
        self._spec: LeaseSpec | None = None
        self._pending = pending
        self._more: Callable[[], None] | None = more
        self._seconds = AHEAD_SECONDS
        self._warm = False

    def run(self) -> None:
        while self._send(self._jobs.take(wait=False)):
            while self._pending:
                self._send_ahead()
                self._answer()

    def _send(self, job: Job | None) -> bool:
        """Send a call if the lease serves it; return whether it did."""
        if job is None:
            return False
        if job.spec is not self._spec:
            if self._kind_of(job.spec) != self._kind:
                self._jobs.put_back([job])
                return False
            self._spec = job.spec
        self._pending.append(job)
        self._lease.start(job.call, job.spec.keep_alive_seconds, job.bundle)
        return True

    def _send_ahead(self) -> None:
        if not self._warm:
            return
        ahead = min(MOST_AHEAD, int(AHEAD_SECONDS / max(self._seconds, 1e-6)))
        if len(self._pending) > ahead // 2:
            return
        more: list[Job] = []
        while len(self._pending) + len(more) <= ahead:
            job = self._jobs.take(wait=False)
            if job is None:
                break
            if job.spec is not self._spec or not job.small or job.call.timeout_seconds:
                self._jobs.put_back([job])
                break
            more.append(job)
        if more:
            self._pending.extend(more)
            self._lease.start_more([job.call for job in more], more[0].spec.keep_alive_seconds)

    def _answer(self) -> None:
        began = time.monotonic()
        head = self._pending[0]
        self._lease.attend(head.call)
        message = self._lease.next(head.output)
        self._jobs.deliver(self._pending.popleft(), message)
        self._seconds += 0.2 * (time.monotonic() - began - self._seconds)
        self._warm = True
        if self._more is not None:
            more, self._more = self._more, None
            more()
