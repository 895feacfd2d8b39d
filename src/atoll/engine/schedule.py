"""Which call gets which worker, when: a pure state machine without clock or I/O.

Theory of operation. Events (`ask`, `withdraw`, `worker_idle`, ...) change the state and return the actions that
follow from it, in order; the pool performs them. Time is an argument.

- *Slots* bound how many calls compute at once. A leased worker holds one, unless it has nested leases: then its slot
  is lent to them, since it only waits. A worker's first nested lease therefore always has a slot, and a chain of
  nested calls needs a single one. An idle worker that nobody leases holds none.
- Requests are served in the order in which they came; the one at the head is never overtaken by one that would fit
  sooner. While anyone waits, every lease is asked back: its worker gives it up as soon as it is between two calls.
- A warm worker with the request's key is taken before a new one is forked, a live sandbox before a new one is
  started. At the bounds of workers and sandboxes, the one that has idled longest goes first.
- When every worker waits for a nested call that cannot be placed, nothing can ever move: the request at the head is
  refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from atoll.model.specs import SandboxKey, WorkerKey


@dataclass(frozen=True)
class Bounds:
    """How much there may be at a time; all at least 1."""

    slots: int
    workers: int
    sandboxes: int


@dataclass(frozen=True)
class Request:
    """A wish for a lease; `parent` is the worker whose call makes it, for a nested call."""

    id: str
    key: WorkerKey
    keep_alive_seconds: float
    parent: str | None = None


@dataclass(frozen=True)
class StartSandbox:
    sandbox: str
    key: SandboxKey


@dataclass(frozen=True)
class EndSandbox:
    sandbox: str


@dataclass(frozen=True)
class ForkWorker:
    """Fork a worker; the `Grant` of its first lease follows at once."""

    worker: str
    sandbox: str
    key: WorkerKey


@dataclass(frozen=True)
class EndWorker:
    worker: str


@dataclass(frozen=True)
class Grant:
    request: str
    worker: str
    epoch: int
    fresh: bool


@dataclass(frozen=True)
class Reclaim:
    worker: str
    epoch: int


@dataclass(frozen=True)
class Release:
    """The lease's client is gone: the worker is killed if it is busy for this epoch."""

    worker: str
    epoch: int


@dataclass(frozen=True)
class Refuse:
    request: str
    reason: str


Action = StartSandbox | EndSandbox | ForkWorker | EndWorker | Grant | Reclaim | Release | Refuse


@dataclass
class _Worker:
    id: str
    sandbox: str
    key: WorkerKey
    request: Request | None = None
    epoch: int = 0
    reclaiming: bool = False
    leaving: bool = False
    """The lease is over for the schedule, and the worker has not said yet that it is idle."""
    children: int = 0
    """Nested leases that this worker's call holds."""
    idle_since: float = 0.0


@dataclass
class _Sandbox:
    id: str
    key: SandboxKey
    workers: set[str] = field(default_factory=set)
    expires: float | None = None
    keep_alive_seconds: float = 0.0


class Schedule:
    """The state of one engine; see the module's theory of operation."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._queue: OrderedDict[str, Request] = OrderedDict()
        self._workers: dict[str, _Worker] = {}
        self._sandboxes: dict[str, _Sandbox] = {}
        self._held: dict[str, str] = {}  # request -> worker
        self._count = 0
        self._epoch = 0

    # --- what can be asked of the state ---------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is alive and nothing waits."""
        return not (self._queue or self._workers or self._sandboxes)

    def position(self, request: str) -> int:
        """Return how many wait before this one, or -1 when it does not wait."""
        return list(self._queue).index(request) if request in self._queue else -1

    @property
    def waiting(self) -> list[str]:
        return list(self._queue)

    def slots_used(self) -> int:
        return sum(1 for worker in self._workers.values() if self._holds_slot(worker))

    def state_of(self, worker: str) -> str:
        """Return `leased`, `lending` or `idle`."""
        known = self._workers[worker]
        if known.request is None:
            return "idle"
        return "lending" if known.children else "leased"

    def is_leaving(self, worker: str, epoch: int) -> bool:
        """Whether the lease of this epoch was withdrawn and its worker has not said yet that it is idle."""
        known = self._workers.get(worker)
        return known is not None and known.leaving and known.epoch == epoch

    def depth(self, worker: str | None) -> int:
        """Return how many calls, from the root down to this worker's, wait for one another."""
        depth = 0
        while worker is not None and worker in self._workers:
            depth += 1
            request = self._workers[worker].request
            worker = request.parent if request is not None else None
        return depth

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        times = [sandbox.expires for sandbox in self._sandboxes.values() if sandbox.expires is not None]
        return min(times, default=None)

    @staticmethod
    def _holds_slot(worker: _Worker) -> bool:
        return worker.request is not None and worker.children == 0

    # --- events ---------------------------------------------------------------------------------------------------

    def ask(self, request: Request) -> list[Action]:
        """A client wants a lease."""
        if self.depth(request.parent) >= self._bounds.workers:
            return [Refuse(request.id, f"{self._bounds.workers} workers wait for one another")]
        self._queue[request.id] = request
        return self._place()

    def withdraw(self, request: str) -> list[Action]:
        """A client no longer wants its lease, or is gone: waiting or holding."""
        if self._queue.pop(request, None) is not None:
            return self._place()
        name = self._held.pop(request, None)
        if name is None:
            return []
        worker = self._workers[name]
        worker.leaving = True  # the slot stays with it, and lent to it, until it says that it is idle
        return [Release(name, worker.epoch)]

    def worker_idle(self, now: float, worker: str, epoch: int) -> list[Action]:
        """A worker has given up the lease of this epoch."""
        known = self._workers.get(worker)
        if known is None or known.epoch != epoch:
            return []
        if known.request is not None:
            self._drop_lease(known)
        known.leaving = False
        known.reclaiming = False
        known.idle_since = now
        return self._place()

    def worker_ended(self, now: float, worker: str, *, expired: bool = False) -> list[Action]:
        """A worker's process is gone; `expired` when its keep-alive had passed."""
        known = self._workers.pop(worker, None)
        if known is None:
            return []
        if known.request is not None:
            self._drop_lease(known)
        actions: list[Action] = []
        sandbox = self._sandboxes.get(known.sandbox)
        if sandbox is not None:
            sandbox.workers.discard(worker)
            if not sandbox.workers:
                sandbox.expires = now if expired else now + sandbox.keep_alive_seconds
        actions += self._place()
        return actions + self.tick(now)

    def sandbox_ended(self, now: float, sandbox: str) -> list[Action]:
        """A sandbox is gone and everything in it."""
        known = self._sandboxes.pop(sandbox, None)
        if known is None:
            return []
        actions: list[Action] = []
        for worker in sorted(known.workers):
            actions += self.worker_ended(now, worker)
        return actions + self._place()

    def tick(self, now: float) -> list[Action]:
        """Time has passed: sandboxes without workers whose time is up end."""
        actions: list[Action] = []
        for sandbox in list(self._sandboxes.values()):
            if not sandbox.workers and sandbox.expires is not None and sandbox.expires <= now:
                del self._sandboxes[sandbox.id]
                actions.append(EndSandbox(sandbox.id))
        return actions + (self._place() if actions else [])

    def _drop_lease(self, worker: _Worker) -> None:
        assert worker.request is not None
        self._held.pop(worker.request.id, None)
        parent = self._workers.get(worker.request.parent or "")
        if parent is not None:
            parent.children -= 1
        worker.request = None

    # --- placing --------------------------------------------------------------------------------------------------

    def _place(self) -> list[Action]:
        actions: list[Action] = []
        for request in list(self._queue.values()):
            if self._rides(request) and not self._try(request, actions):
                break
        while self._queue:
            request = next(iter(self._queue.values()))
            if self.slots_used() >= self._bounds.slots and not self._rides(request):
                break
            if not self._try(request, actions):
                break
        if self._queue:
            actions += self._reclaim_all()
            if self._stuck():
                request = next(iter(self._queue.values()))
                del self._queue[request.id]
                actions.append(Refuse(request.id, "every worker waits for a nested call"))
                actions += self._place()
        return actions

    def _rides(self, request: Request) -> bool:
        """Whether the request can use the slot of its own parent, which only waits for it."""
        parent = self._workers.get(request.parent or "")
        return parent is not None and parent.request is not None and parent.children == 0

    def _reclaim_all(self) -> list[Action]:
        actions: list[Action] = []
        for worker in self._workers.values():
            if worker.request is not None and not (worker.reclaiming or worker.leaving or worker.children):
                worker.reclaiming = True
                actions.append(Reclaim(worker.id, worker.epoch))
        return actions

    def _stuck(self) -> bool:
        waiting_parents = {request.parent for request in self._queue.values()}
        leased = [worker for worker in self._workers.values() if worker.request is not None]
        return all(worker.children > 0 or worker.id in waiting_parents for worker in leased)

    def _try(self, request: Request, actions: list[Action]) -> bool:
        """Give the request a worker if the bounds allow one."""
        worker = self._warm(request.key)
        fresh = worker is None
        if worker is None:
            sandbox = next((one for one in self._sandboxes.values() if one.key == request.key.sandbox), None)
            if len(self._workers) >= self._bounds.workers and not self._evict_worker(actions):
                return False
            if sandbox is None:
                if len(self._sandboxes) >= self._bounds.sandboxes and not self._evict_sandbox(actions):
                    return False
                self._count += 1
                sandbox = _Sandbox(f"s{self._count}", request.key.sandbox)
                self._sandboxes[sandbox.id] = sandbox
                actions.append(StartSandbox(sandbox.id, sandbox.key))
            self._count += 1
            worker = _Worker(f"w{self._count}", sandbox.id, request.key)
            self._workers[worker.id] = worker
            sandbox.workers.add(worker.id)
            sandbox.expires = None
            actions.append(ForkWorker(worker.id, sandbox.id, request.key))
        sandbox = self._sandboxes[worker.sandbox]
        sandbox.keep_alive_seconds = request.keep_alive_seconds
        self._epoch += 1
        worker.request, worker.epoch, worker.reclaiming = request, self._epoch, False
        self._held[request.id] = worker.id
        parent = self._workers.get(request.parent or "")
        if parent is not None:
            parent.children += 1
        del self._queue[request.id]
        actions.append(Grant(request.id, worker.id, worker.epoch, fresh))
        return True

    def _idle_workers(self) -> list[_Worker]:
        free = [one for one in self._workers.values() if one.request is None]
        return sorted(free, key=lambda one: one.idle_since)

    def _warm(self, key: WorkerKey) -> _Worker | None:
        return next((one for one in reversed(self._idle_workers()) if one.key == key), None)

    def _evict_worker(self, actions: list[Action]) -> bool:
        idle = self._idle_workers()
        if not idle:
            return False
        self._forget_worker(idle[0])
        actions.append(EndWorker(idle[0].id))
        return True

    def _evict_sandbox(self, actions: list[Action]) -> bool:
        def unused(sandbox: _Sandbox) -> bool:
            members = [self._workers[worker] for worker in sandbox.workers]
            return all(worker.request is None for worker in members)

        found = [sandbox for sandbox in self._sandboxes.values() if unused(sandbox)]
        if not found:
            return False
        oldest = min(found, key=lambda one: max((self._workers[w].idle_since for w in one.workers), default=0.0))
        for worker in list(oldest.workers):
            self._forget_worker(self._workers[worker])
        del self._sandboxes[oldest.id]
        actions.append(EndSandbox(oldest.id))
        return True

    def _forget_worker(self, worker: _Worker) -> None:
        del self._workers[worker.id]
        sandbox = self._sandboxes[worker.sandbox]
        sandbox.workers.discard(worker.id)
        if not sandbox.workers and sandbox.expires is None:
            sandbox.expires = worker.idle_since
