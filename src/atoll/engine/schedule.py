"""The schedule, which assigns workers to calls: a pure state machine without clock or I/O.

Theory of operation. Events (`ask`, `withdraw`, `worker_idle`, ...) change the state and return the actions that
follow from it, in order; the pool performs them. Time is an argument. The `ledger` knows the shares and the fit.

- Users take turns by the cores that they have for their weight (`fairness.waiting_line`). Requests of one user's programs
  are served in the order in which they came. One that lacks cores, or a place for a worker, is overtaken by nobody. One that
  lacks memory or GPUs is overtaken only by those that take no memory, or none of the GPUs that will do for it: every request
  needs cores, so a large call that has its memory is next in line for them. One that waits for its own `max_concurrency`
  holds nobody up but later calls of the same function.
- One that does not fit beside its own side's calls, of its family, program or user, holds nobody up but that side, and one
  that waits for calls of another side holds that up by turns: for a while, and then not for as long (`waits`).
- The cores of a generator that waits for its consumer serve others. It has them again as soon as it goes on: for that long
  more may compute than there are cores.
- A worker's first nested request overtakes the others, since a running call waits for it; it uses that call's cores.
- Its further ones take turns with the others: each comes behind as many requests of programs, and of every other worker, as
  its worker holds nested leases. So a call that asks for many leases keeps no others waiting.
- While a request waits, every lease that holds the lacking resource is asked back: its worker gives it up between two calls.
  A lease stays if all waiting requests come from its own client, for the same use.
- A warm worker with the request's key is taken before a new one is forked, a live sandbox before a new one is started. At
  the bounds of workers and sandboxes, the one that has idled longest goes first. Memory and GPUs of an idle worker are free
  when its process has ended.
- A nested request that can never be served, because its waiting callers hold the resources, is refused, as it comes.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.engine.actions import (
    Action,
    EndSandbox,
    EndWorker,
    ForkWorker,
    Grant,
    Reclaim,
    Refuse,
    Release,
    Request,
    StartSandbox,
)
from atoll.engine.fairness.turns import BothTurns
from atoll.engine.fairness.waiting_line import WaitingLine
from atoll.engine.ledger import REASONS, Lack, Ledger, SandboxState, Worker
from atoll.engine.waits import Queue, Wait, explain, first_in_turn
from atoll.model.resources import Allowance, Bounds
from atoll.model.specs import WorkerKey


class Schedule:
    """The state of one engine; see the module's theory of operation."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.ledger = Ledger(bounds)
        self._queue = WaitingLine(self.ledger.workers)
        self._workers = self.ledger.workers
        self._sandboxes = self.ledger.sandboxes
        self._held: dict[str, str] = {}  # request -> worker
        self._positions: dict[str, int] | None = None  # of the queue, until it changes
        self._first: dict[str, str] = {}  # of each user, until the queue changes
        self._count = 0
        self._epoch = 0
        self._now = 0.0
        self._since: dict[str, float] = {}  # when each that waits has asked
        self._turns = BothTurns()
        self.wanted: set[str] = set()
        """The workers that hold what somebody waits for."""

    # --- queries --------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is alive and nothing waits."""
        return not (self._queue or self._workers or self._sandboxes)

    def position(self, request: str) -> int:
        """Return how many of its user's wait before this one, or -1 when it does not wait."""
        if self._positions is None:
            self._positions = self._queue.positions()
        return self._positions.get(request, -1)

    def wait_of(self, request: str) -> Wait | None:
        """Return what a request waits for; None when it does not wait."""
        before = self.position(request)
        if before < 0:
            return None
        user = self._queue[request].key.sandbox.user
        if user not in self._first:
            self._first[user] = first_in_turn(self._queue.line(user), self.ledger)
        return explain(self._queue[request], before, self._first[user], self.ledger)

    @property
    def waiting(self) -> list[Request]:
        """The requests that wait, in the order of their turns."""
        return list(self._queue.in_turn())

    def waiting_of(self, user: str | None) -> int:
        """Return how many requests wait, of one user or of all."""
        return self._queue.count(user)

    def leased(self) -> list[str]:
        """Return the workers that serve leases."""
        return sorted(one.id for one in self._workers.values() if one.request is not None)

    def state_of(self, worker: str) -> str:
        """Return `leased`, `lending` or `idle`."""
        known = self._workers[worker]
        if known.request is None:
            return "idle"
        return "lending" if known.children else "leased"

    def is_leaving(self, worker: str, epoch: int) -> bool:
        """Return whether the lease of this epoch was withdrawn and its worker has not yet reported that it is idle."""
        known = self._workers.get(worker)
        return known is not None and known.leaving and known.epoch == epoch

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        times = [sandbox.expires for sandbox in self._sandboxes.values() if sandbox.expires is not None]
        return min([*times, *self._turns.ends()], default=None)

    # --- events ---------------------------------------------------------------------------------------------------

    def ask(self, request: Request, now: float = 0.0) -> list[Action]:
        """A client wants a lease."""
        self._now = max(self._now, now)
        if self.ledger.depth(request.parent) >= self._bounds.workers:
            hint = REASONS[Lack.WORKERS][1]
            return [Refuse(request.id, f"{self._bounds.workers} workers wait for one another", hint)]
        lack = self.ledger.fits_never(request)
        if lack is not None:
            return [Refuse(request.id, f"this machine has not got the {lack.value} that it needs", "ask for less")]
        self._queue.add(request)
        self._since[request.id] = self._now
        actions = self._place()
        while request.parent is not None and self._queue:
            lost = self.ledger.never_served(self._queue.values())
            if not lost:
                break
            victim, lack = lost[0]
            self._queue.remove(victim.id)
            del self._since[victim.id]
            actions.append(Refuse(victim.id, *REASONS[lack]))
            actions += self._place()
        return actions

    def withdraw(self, request: str) -> list[Action]:
        """A client no longer wants its lease, or is gone: waiting or holding."""
        if self._queue.remove(request):
            del self._since[request]
            return self._place()
        name = self._held.pop(request, None)
        if name is None:
            return []
        worker = self._workers[name]
        worker.leaving = True  # the slot stays with it until it reports that it is idle
        return [Release(name, worker.epoch)]

    def worker_idle(self, now: float, worker: str, epoch: int, *, ends: bool = False) -> list[Action]:
        """A worker has given up the lease of this epoch."""
        known = self._workers.get(worker)
        if known is None or known.epoch != epoch:
            return []
        if known.request is not None:
            self._drop_lease(known)
        known.leaving = known.reclaiming = False
        known.idle_since = now
        if known.spent and not ends:
            self._forget_worker(known)
            return [EndWorker(worker), *self._place()]
        return self._end_excess() + self._place()

    def worker_paused(self, worker: str, epoch: int, *, paused: bool) -> list[Action]:
        """A worker's generator waits for who takes its items, or goes on: then it has its core again at once."""
        known = self._workers.get(worker)
        if known is None or known.epoch != epoch or known.request is None or known.paused == paused:
            return []
        known.paused = paused
        return self._place() if paused else []

    def worker_spent(self, worker: str) -> list[Action]:
        """A worker is to serve no further lease: it ends as soon as it is between two calls.

        One whose call waits for a nested one gives its lease up only when it is asked again.
        """
        known = self._workers.get(worker)
        if known is None:
            return []
        known.spent = True
        if known.request is None:
            self._forget_worker(known)
            return [EndWorker(worker), *self._place()]
        return self._reclaim([known])

    def worker_expired(self, now: float, worker: str, epoch: int) -> list[Action]:
        """A worker ends, its keep-alive has passed: its cores serve others, what else it holds is its own until then."""
        known = self._workers.get(worker)
        if known is None or known.epoch != epoch or known.request is None or known.request.max_concurrency:
            return []
        known.spent = True
        return [] if known.children else self.worker_idle(now, worker, epoch, ends=True)

    def others_wait(self) -> list[Action]:
        """Another machine's scheduler has somebody waiting for this one: each lease ends with its present call."""
        return self._reclaim(list(self._workers.values()))

    def allow(self, now: float, allowance: Allowance | None) -> list[Action]:
        """Another part of the machine may be used: what is idle beyond it ends, and what is busy with its call."""
        self.ledger.allow(allowance)
        actions = self._end_excess()
        for sandbox in self.ledger.outside():
            actions += self.sandbox_worn(now, sandbox.id)
        return actions + self.tick(now) + self._place()

    def worker_ended(self, now: float, worker: str, *, expired: bool = False) -> list[Action]:
        """A worker's process is gone; `expired` when its keep-alive had passed."""
        known = self._workers.pop(worker, None)
        if known is None:
            return self._place() if self.ledger.dying.pop(worker, None) is not None else []
        if known.request is not None:
            self._drop_lease(known)
        actions: list[Action] = []
        sandbox = self._sandboxes.get(known.sandbox)
        if sandbox is not None:
            sandbox.workers.discard(worker)
            if not sandbox.workers:
                sandbox.expires = now if expired or sandbox.worn else now + sandbox.keep_alive_seconds
        actions += self._place()
        return actions + self.tick(now)

    def sandbox_worn(self, now: float, sandbox: str) -> list[Action]:
        """A sandbox is to get no further worker, and ends with its last call."""
        known = self._sandboxes.get(sandbox)
        if known is None or known.worn:
            return []
        known.worn = True
        actions = [action for worker in sorted(known.workers) for action in self.worker_spent(worker)]
        if not known.workers:
            known.expires = now
        return actions + self.tick(now)

    def sandbox_ended(self, sandbox: str) -> list[Action]:
        """A sandbox is gone and everything in it."""
        for worker in [one for one in self.ledger.dying.values() if one.sandbox == sandbox]:
            del self.ledger.dying[worker.id]
        known = self._sandboxes.pop(sandbox, None)
        for name in known.workers if known is not None else ():
            worker = self._workers.pop(name)
            if worker.request is not None:
                self._drop_lease(worker)
        return self._place()

    def tick(self, now: float) -> list[Action]:
        """Time has passed: sandboxes without workers whose time is up end, and turns to hold up others change."""
        self._now = max(self._now, now)
        actions: list[Action] = []
        for sandbox in list(self._sandboxes.values()):
            if not sandbox.workers and sandbox.expires is not None and sandbox.expires <= now:
                del self._sandboxes[sandbox.id]
                actions.append(EndSandbox(sandbox.id))
        return actions + (self._place() if self._turns.pass_time(now) or actions else [])

    def _drop_lease(self, worker: Worker) -> None:
        assert worker.request is not None
        self._held.pop(worker.request.id, None)
        parent = self._workers.get(worker.request.parent or "")
        if parent is not None:
            parent.children -= 1
        worker.request = None
        worker.paused = False

    # --- placing --------------------------------------------------------------------------------------------------

    def _place(self) -> list[Action]:
        actions: list[Action] = []
        self._positions = None
        self._first.clear()
        self.wanted = set()
        if not self._queue:
            self._turns.ask(self._now, {})
            return actions
        queue = Queue(self.ledger, self._now, self._turns)
        for request in [one for one in self._queue.nested() if self._rides(one)]:
            since = self._since[request.id]
            queue.wait(request, self._try(request, actions), since)
        for request in self._queue.in_turn():
            if queue.full:
                break
            if queue.is_closed(request):
                continue
            if request.id not in self._queue or self._rides(request) or queue.is_bound(request):
                continue
            if queue.is_shut_out(request):
                continue
            since = self._since[request.id]
            lacks = self.ledger.lacks(request) if queue.comes_later(request) else self._try(request, actions)
            queue.wait(request, lacks, since)
        queue.close()
        only = self._queue.only
        found = [one for one in self._workers.values() if one.request is not None and queue.wants(one)]
        self.wanted = {one.id for one in found}
        return actions + self._reclaim([one for one in found if not _passes_on(one, only)])

    def _rides(self, request: Request) -> bool:
        """Return whether the request can use the share of its own parent, which only waits for it."""
        parent = self._workers.get(request.parent or "")
        return parent is not None and parent.request is not None and parent.children == 0

    def _reclaim(self, workers: list[Worker]) -> list[Action]:
        actions: list[Action] = []
        for worker in workers:
            if worker.request is not None and not (worker.reclaiming or worker.leaving or worker.children):
                worker.reclaiming = True
                actions.append(Reclaim(worker.id, worker.epoch))
        return actions

    def _try(self, request: Request, actions: list[Action]) -> set[Lack]:
        """Give the request a worker if the bounds allow one; return the lacking resource."""
        lacks = self.ledger.lacks(request)
        if lacks:
            if lacks <= {Lack.MEMORY, Lack.GPUS}:
                self._make_room(request, lacks, actions)
            return lacks
        worker = self.ledger.warm(request.key)
        fresh = worker is None
        if worker is None:
            worker = self._fork(request, actions)
        sandbox = self._sandboxes[worker.sandbox]
        sandbox.keep_alive_seconds = request.keep_alive_seconds
        self._epoch += 1
        worker.request, worker.epoch, worker.reclaiming = request, self._epoch, False
        self._held[request.id] = worker.id
        parent = self._workers.get(request.parent or "")
        if parent is not None:
            parent.children += 1
        self._queue.serve(request.id)
        del self._since[request.id]
        actions.append(Grant(request.id, worker.id, worker.epoch, fresh))
        return lacks

    def _make_room(self, request: Request, lacks: set[Lack], actions: list[Action]) -> None:
        """End idle workers whose memory or GPUs the request needs, where that is all that it lacks."""
        for lack in sorted(lacks, key=lambda one: one.value):
            for worker in self.ledger.surplus(request, lack):
                self._forget_worker(worker)
                actions.append(EndWorker(worker.id))

    def _end_excess(self) -> list[Action]:
        excess = self.ledger.excess()
        for worker in excess:
            self._forget_worker(worker)
        return [EndWorker(worker.id) for worker in excess]

    def _fork(self, request: Request, actions: list[Action]) -> Worker:
        if len(self._workers) >= self._bounds.workers:
            oldest = self.ledger.idle_workers()[0]
            self._forget_worker(oldest)
            actions.append(EndWorker(oldest.id))
        sandbox = self.ledger.sandbox_for(request)
        if sandbox is None:
            if len(self._sandboxes) >= self._bounds.sandboxes:
                self._evict_sandbox(actions)
            self._count += 1
            gpus = tuple(self.ledger.free_gpus(request.needs.cards)[: request.needs.gpus])
            sandbox = SandboxState(f"s{self._count}", replace(request.key.sandbox, gpus=gpus))
            self._sandboxes[sandbox.id] = sandbox
            actions.append(StartSandbox(sandbox.id, sandbox.key))
        self._count += 1
        worker = Worker(f"w{self._count}", sandbox.id, request.key, request.needs, sandbox.key.gpus)
        self._workers[worker.id] = worker
        sandbox.workers.add(worker.id)
        sandbox.expires = None
        actions.append(ForkWorker(worker.id, sandbox.id, replace(request.key, sandbox=sandbox.key)))
        return worker

    def _evict_sandbox(self, actions: list[Action]) -> None:
        found = [sandbox for sandbox in self._sandboxes.values() if self.ledger.unused(sandbox)]
        oldest = min(found, key=lambda one: max((self._workers[w].idle_since for w in one.workers), default=0.0))
        for worker in list(oldest.workers):
            self._forget_worker(self._workers[worker])
        del self._sandboxes[oldest.id]
        actions.append(EndSandbox(oldest.id))

    def _forget_worker(self, worker: Worker) -> None:
        del self._workers[worker.id]
        if worker.needs.memory_bytes or worker.gpus:
            self.ledger.dying[worker.id] = worker
        sandbox = self._sandboxes[worker.sandbox]
        sandbox.workers.discard(worker.id)
        if not sandbox.workers and sandbox.expires is None:
            sandbox.expires = worker.idle_since


def _passes_on(worker: Worker, only: tuple[str, WorkerKey] | None) -> bool:
    """Return whether the worker's own client is the only one that waits, for the same use: it passes its leases on."""
    held = worker.request
    return held is not None and bool(held.client) and only == (held.client, held.key)
