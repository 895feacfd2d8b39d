"""Many calls of one function at once, for `map`: a thread for each lease, and short calls sent ahead.

Theory of operation. A worker that waits for its next call costs a change of process in each direction, many times the
time of a tiny call. So once calls are seen to be short, a few are sent before the first is answered; the worker takes
them in order. A call of unknown or long duration has a lease of its own: each lane that has sent its first call
starts another lane at once while calls are left, so that all free slots fill without waiting for an answer. A call
that arrives later, while all lanes wait for answers, gets a lane of its own if it is still there a moment later
(`Lanes.widen`). At the end of a lease at most the first of its calls has started: the others go to another lease.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from atoll import errors
from atoll.host.contract import Bundle, Lease, Leasing, Output, Ticket
from atoll.model.specs import Call, LeaseSpec
from atoll.wire.call_protocol import Revoked
from atoll.wire.frames import Message

MOST_AHEAD = 16
"""Calls that a worker may have besides the running one."""
AHEAD_SECONDS = 0.002
"""Time that the calls sent ahead may take together, estimated from the last ones."""
AHEAD_BYTES = 4096
"""Calls with more bytes are sent when their turn comes: a worker that runs a call does not read."""


class Job(NamedTuple):
    """One call with its spec, modules and output, and its number and arguments in the input."""

    number: int
    spec: LeaseSpec
    call: Call
    bundle: Bundle | None
    output: Output
    arguments: tuple[Any, ...] = ()

    @property
    def small(self) -> bool:
        call = self.call
        return not call.buffers and len(call.function) + len(call.arguments) <= AHEAD_BYTES


class Jobs(Protocol):
    """The source of the calls and the target of the answers; used by several threads."""

    def take(self, *, wait: bool) -> Job | None:
        """Return the next call; None when there is none now, or with `wait` when there will be none."""

    def more(self) -> bool:
        """Return whether `take` would return a call now."""

    def put_back(self, jobs: list[Job]) -> None:
        """Take back calls that have not started; they are the next ones of `take`."""

    def deliver(self, job: Job, answer: Message | BaseException) -> None:
        """Take the answer of a call, or the error in its place."""


class Silent:
    """An output for leases that no call waits for; the call of the first lane tells its caller of the wait."""

    def stdout(self, data: bytes) -> None:
        """Drop output; there is none before a call."""

    stderr = stdout

    def notice(self, line: str) -> None:
        """Drop a line."""

    progress = notice

    def waits(self, kind: str, detail: str) -> int | None:
        """Ask for no further call."""

    def proceeds(self) -> None:
        """Do nothing."""

    def tail(self) -> str:
        return ""


class Lanes:
    """Runs the calls of `jobs` on as many leases as the host grants.

    Args:
        host: grants the leases.
        jobs: see `Jobs`.
        most: leases at a time.
    """

    def __init__(self, host: Leasing, jobs: Jobs, most: int) -> None:
        self._host = host
        self._jobs = jobs
        self._most = most
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._serving: set[Ticket] = set()
        self._stopped = False
        self._all_ended = threading.Event()
        self._spec: LeaseSpec | None = None
        """The spec of the last lease."""

    @property
    def busy(self) -> int:
        """Leases that serve calls now."""
        return len(self._serving)

    def start(self) -> None:
        """Start the first lane; each lane that has a lease starts the next while calls are left."""
        self._spawn(self._first)

    def widen(self) -> None:
        """Start a lane for a call that has just arrived and that no lane waits for; from any thread.

        A lane with a short call takes it sooner: the new one looks for it after a moment, and ends if it is gone.
        """
        spec = self._spec
        if spec is not None and len(self._tickets) == len(self._serving):  # otherwise one is on its way already
            self._spawn(lambda ticket: self._late(spec, ticket))

    def stop(self, *, kill: bool = True) -> None:
        """Withdraw requests for leases, and cancel running calls; from any thread.

        Args:
            kill: False where all running calls have been answered.
        """
        with self._lock:
            self._stopped = True
            tickets = [ticket for ticket in self._tickets if kill or ticket not in self._serving]
            if not self._tickets:
                self._all_ended.set()
        for ticket in tickets:
            ticket.cancel()

    def wait_ended(self, seconds: float) -> None:
        """After `stop`, wait until the running calls have ended."""
        self._all_ended.wait(seconds)

    def kill(self) -> None:
        """End the running calls at once."""
        with self._lock:
            tickets = list(self._tickets)
        for ticket in tickets:
            ticket.kill()

    def _spawn(self, work: Callable[[Ticket], object]) -> None:
        ticket = Ticket()
        with self._lock:
            if self._stopped or len(self._tickets) >= self._most:
                return
            self._tickets.add(ticket)

        def run() -> None:
            again: object = False
            try:
                again = work(ticket)
            finally:
                with self._lock:
                    self._tickets.discard(ticket)
                    last = not self._tickets
                if again and self._jobs.more():
                    self.widen()
                if last and self._stopped:
                    self._all_ended.set()
                elif last:  # calls that came back while the other lanes ended
                    job = self._jobs.take(wait=False)
                    if job is not None:
                        self._jobs.put_back([job])
                        self._spawn(self._first)

        threading.Thread(target=run, name="atoll-lane", daemon=True).start()

    def _first(self, ticket: Ticket) -> None:
        """Serve until no calls are left; where there is no lease, each call gets the reason as its answer."""
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
        except BaseException:  # the first lane gets the same error, and reports it
            return
        self._serve(lease, spec, ticket)

    def _late(self, spec: LeaseSpec, ticket: Ticket) -> bool:
        """Serve calls that are still there a moment after they came; return whether others may have come meanwhile."""
        time.sleep(AHEAD_SECONDS)
        if self._stopped or not self._jobs.more():
            return True
        self._further(spec, ticket)
        return False

    def _serve(self, lease: Lease, spec: LeaseSpec, ticket: Ticket) -> None:
        """Run calls on a lease until none are left that it can serve, or until it ends."""
        pending: deque[Job] = deque()
        done = False
        with self._lock:
            self._serving.add(ticket)
            self._spec = spec
        try:
            ticket.arm(lease.cancel, lease.kill)
            _Lane(self._jobs, lease, self._host, pending, lambda: self._more(spec)).run()
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
            if pending:
                self.widen()

    def _more(self, spec: LeaseSpec) -> None:
        self._spawn(lambda ticket: self._further(spec, ticket))


class _Lane:
    """The calls of one lease; `pending` are those that were sent and not answered."""

    def __init__(
        self, jobs: Jobs, lease: Lease, host: Leasing, pending: deque[Job], start_another: Callable[[], None]
    ) -> None:
        self._jobs = jobs
        self._lease = lease
        self._host = host
        self._spec: LeaseSpec | None = None
        self._pending = pending
        self._start_another: Callable[[], None] | None = start_another
        self._seconds = AHEAD_SECONDS
        self._warm = False

    def run(self) -> None:
        while self._send(self._jobs.take(wait=False)):
            while self._pending:
                if self._start_another is not None and self._jobs.more():
                    start, self._start_another = self._start_another, None
                    start()
                self._send_ahead()
                self._answer()

    def _send(self, job: Job | None) -> bool:
        """Send a call if the lease serves it; return whether it did."""
        if job is None:
            return False
        if job.spec is not self._spec:
            if self._host.kind(job.spec) != self._lease.kind:
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
            self._lease.start_more([job.call for job in more])

    def _answer(self) -> None:
        began = time.monotonic()
        head = self._pending[0]
        self._lease.attend(head.call)
        message = self._lease.next(head.output)
        self._jobs.deliver(self._pending.popleft(), message)
        self._seconds += 0.2 * (time.monotonic() - began - self._seconds)
        self._warm = True
