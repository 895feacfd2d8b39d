"""The ledger: shares of a machine and their holders, and the fit of further requests. Pure.

Theory of operation. Four things are shared out:

- *Computing time.* A leased worker takes its call's share. Nested calls of a waiting call use its
  own: a chain takes as much as the largest of its links, and calls beside one another as much as their sum. So the
  end of a nested call never makes the machine too full.
- *Memory and GPUs.* They belong to a worker from its fork until its process is gone, leased or idle, and are never
  lent. An idle worker is ended when another request needs what it reserves.
- *Places.* The bounds of workers and sandboxes; idle ones give way.
- *Concurrency.* Leases of one function, where it has a bound, and those of one user, likewise.

The machine may be allowed to functions in part only (`allow`). What is in use beyond that is left alone, and nothing
new begins until it is within. A request that fits the whole machine waits for the allowance to grow.

A deadlock is found by simulation: calls that wait for nothing end, their shares are free, requests that then fit are
served and end, and so on. A request that is never served in it never will be.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from atoll.engine.actions import Request
from atoll.model.resources import Allowance, Bounds, Needs
from atoll.model.specs import SandboxKey, WorkerKey


class Lack(Enum):
    """The resource that a request waits for."""

    CONCURRENCY = "concurrency"
    SHARE = "share"
    CPU = "cpu"
    MEMORY = "memory"
    GPUS = "gpus"
    WORKERS = "workers"
    SANDBOXES = "sandboxes"


REASONS = {
    Lack.CONCURRENCY: (
        "its `max_concurrency` is taken by calls that wait for it",
        "give the function a larger `max_concurrency`, or do not call it from itself",
    ),
    Lack.SHARE: (
        "its user has as many calls at a time as they may",
        "wait for earlier calls, or ask the server's operator for more",
    ),
    Lack.CPU: (
        "the calls that wait for it hold the cores that it needs",
        "give the nested function a smaller `machine_type`",
    ),
    Lack.MEMORY: (
        "the calls that wait for it hold the memory that it needs",
        "give the functions of the chain smaller machine types",
    ),
    Lack.GPUS: (
        "the calls that wait for it hold the GPUs that it needs",
        "let one function of a chain have the GPU",
    ),
    Lack.WORKERS: (
        "every worker waits for a nested call",
        "make the chain of nested calls shorter, or raise `pool.max_workers`",
    ),
    Lack.SANDBOXES: (
        "every sandbox waits for a nested call",
        "make the chain of nested calls shorter, or raise `pool.max_sandboxes`",
    ),
}
"""Reasons and hints for requests that lack a resource for ever."""


@dataclass
class Worker:
    """A worker as the schedule knows it."""

    id: str
    sandbox: str
    key: WorkerKey
    needs: Needs = field(default_factory=Needs)
    gpus: tuple[str, ...] = ()
    request: Request | None = None
    epoch: int = 0
    reclaiming: bool = False
    leaving: bool = False
    """The lease is over for the schedule, and the worker has not said yet that it is idle."""
    spent: bool = False
    """It gets no further lease."""
    children: int = 0
    """Nested leases that this worker's call holds."""
    paused: bool = False
    """Its generator waits for who takes the items."""
    idle_since: float = 0.0


@dataclass
class SandboxState:
    id: str
    key: SandboxKey
    workers: set[str] = field(default_factory=set)
    expires: float | None = None
    keep_alive_seconds: float = 0.0
    worn: bool = False


class Ledger:
    """Sandboxes and workers of the machine; changed by the schedule only."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.workers: dict[str, Worker] = {}
        self.sandboxes: dict[str, SandboxState] = {}
        self.dying: dict[str, Worker] = {}
        """Workers that were ended and whose processes may still hold memory and GPUs."""
        self._most_memory_bytes = bounds.memory_bytes or sys.maxsize
        self.allow(None)

    def allow(self, allowance: Allowance | None) -> None:
        """Bound what is in use at a time to a part of the machine; None for all of it."""
        bounds = self.bounds
        whole = Allowance(bounds.slots * 1000, self._most_memory_bytes, bounds.gpus)
        asked = allowance or whole
        self.allowed = Allowance(
            min(asked.millicores, whole.millicores),
            min(asked.memory_bytes, whole.memory_bytes),
            tuple(gpu for gpu in bounds.gpus if gpu in asked.gpus),
        )

    @property
    def within_allowance(self) -> bool:
        """True if no more is in use than `allow` has named: what a larger allowance let begin has ended."""
        used = {gpu for one in (*self.workers.values(), *self.dying.values()) for gpu in one.gpus}
        allowed = self.allowed
        return (
            self.millicores() <= allowed.millicores
            and self.reserved_bytes() <= allowed.memory_bytes
            and used <= set(allowed.gpus)
        )

    # --- computing time -------------------------------------------------------------------------------------------

    def millicores(self, more: Request | None = None, among: Collection[str] | None = None) -> int:
        """Return the share of the leased workers, with one more request beside them.

        Args:
            among: the workers to count; all of them by default.
        """
        own: dict[str, int] = {}
        children: dict[str, list[str]] = {}
        for worker in self.workers.values():
            if worker.request is not None and (among is None or worker.id in among):
                own[worker.id] = 0 if worker.paused else worker.needs.millicores
                children.setdefault(worker.request.parent or "", []).append(worker.id)
        if more is not None:
            own[more.id] = more.needs.millicores
            children.setdefault(more.parent or "", []).append(more.id)
        roots = [name for parent, names in children.items() if parent not in own for name in names]
        taken: dict[str, int] = {}
        waiting = [(name, False) for name in roots]
        while waiting:
            name, summed = waiting.pop()
            inner = children.get(name, [])
            if summed or not inner:
                taken[name] = max(own[name], sum(taken[child] for child in inner))
            else:
                waiting.append((name, True))
                waiting += [(child, False) for child in inner]
        return sum(taken[name] for name in roots)

    # --- memory, GPUs, places -------------------------------------------------------------------------------------

    def reserved_bytes(self) -> int:
        """Return the reservations of living and dying workers."""
        return sum(one.needs.memory_bytes for one in (*self.workers.values(), *self.dying.values()))

    def free_gpus(self, cards: Collection[str] = ()) -> list[str]:
        """Return the GPUs that belong to no process, of `cards` or of all."""
        taken = {gpu for one in (*self.workers.values(), *self.dying.values()) for gpu in one.gpus}
        return [gpu for gpu in cards or self.allowed.gpus if gpu in self.allowed.gpus and gpu not in taken]

    def outside(self) -> list[SandboxState]:
        """Return the sandboxes with GPUs that are not allowed."""
        return [one for one in self.sandboxes.values() if not set(one.key.gpus) <= set(self.allowed.gpus)]

    def excess(self) -> list[Worker]:
        """Return the idle workers to end so that no more memory is reserved than allowed, or as little as may be."""
        chosen: list[Worker] = []
        over = sum(one.needs.memory_bytes for one in self.workers.values()) - self.allowed.memory_bytes
        for one in self.idle_workers() if over > 0 else ():
            if over > 0 and one.needs.memory_bytes:
                over -= one.needs.memory_bytes
                chosen.append(one)
        return chosen

    def gpus_for(self, request: Request) -> tuple[str, ...]:
        """Return the GPUs that will do for a request; none if it needs none."""
        fitting = request.needs.cards or self.bounds.gpus
        return tuple(gpu for gpu in fitting if gpu in self.allowed.gpus) if request.needs.gpus else ()

    def holders(self, identity: str) -> list[Worker]:
        """Return the workers with a lease of a function."""
        return [one for one in self.workers.values() if one.request is not None and one.request.identity == identity]

    def is_bound(self, request: Request) -> bool:
        """Return whether as many leases of the request's function are held as it allows."""
        return bool(request.max_concurrency) and len(self.holders(request.identity)) >= request.max_concurrency

    def leases_of(self, user: str) -> list[Worker]:
        """Return the workers that serve a user's leases."""
        return [one for one in self.workers.values() if one.request is not None and one.key.sandbox.user == user]

    def is_capped(self, request: Request) -> bool:
        """Return whether the request's user holds as many leases as they may.

        The first nested request of a call always has a place: that call waits for it, and would keep its own for ever.
        """
        if not request.share.workers:
            return False
        parent = self.workers.get(request.parent or "")
        if parent is not None and parent.request is not None and not parent.children:
            return False
        return len(self.leases_of(request.key.sandbox.user)) >= request.share.workers

    def idle_workers(self) -> list[Worker]:
        """Return the workers without a lease, the one that has idled longest first."""
        free = [one for one in self.workers.values() if one.request is None]
        return sorted(free, key=lambda one: one.idle_since)

    def unused(self, sandbox: SandboxState) -> bool:
        return all(self.workers[worker].request is None for worker in sandbox.workers)

    def warm(self, key: WorkerKey) -> Worker | None:
        """Return the worker of this key that has idled for the shortest time."""
        return next((one for one in reversed(self.idle_workers()) if one.key == key and not one.spent), None)

    def sandbox_for(self, request: Request) -> SandboxState | None:
        """Return the live sandbox in which a worker for the request can be forked, on GPUs that are free."""
        free = set(self.free_gpus(request.needs.cards))
        for one in self.sandboxes.values():
            alike = _without_gpus(one.key) == request.key.sandbox and len(one.key.gpus) == request.needs.gpus
            if alike and not one.worn and free.issuperset(one.key.gpus):
                return one
        return None

    def fits_never(self, request: Request) -> Lack | None:
        """Return the resource that an empty machine lacks for the request."""
        if request.needs.gpus > len(request.needs.cards or self.bounds.gpus):
            return Lack.GPUS
        if request.needs.memory_bytes > self._most_memory_bytes:
            return Lack.MEMORY
        return Lack.CPU if request.needs.millicores > self.bounds.slots * 1000 else None

    def lacks(self, request: Request) -> set[Lack]:
        """Return the resource that the request waits for; empty if it can be granted, perhaps by ending idle workers."""
        found = set()
        if self.is_bound(request):
            found.add(Lack.CONCURRENCY)
        if self.is_capped(request):
            found.add(Lack.SHARE)
        if self.millicores(request) > self.allowed.millicores:
            found.add(Lack.CPU)
        if self.warm(request.key) is not None:
            return found
        needs, bounds = request.needs, self.bounds
        if needs.memory_bytes and self.reserved_bytes() + needs.memory_bytes > self.allowed.memory_bytes:
            found.add(Lack.MEMORY)
        if needs.gpus and len(self.free_gpus(needs.cards)) < needs.gpus:
            found.add(Lack.GPUS)
        if len(self.workers) >= bounds.workers and not self.idle_workers():
            found.add(Lack.WORKERS)
        full = len(self.sandboxes) >= bounds.sandboxes and self.sandbox_for(request) is None
        if full and not any(self.unused(one) for one in self.sandboxes.values()):
            found.add(Lack.SANDBOXES)
        return found

    def surplus(self, request: Request, lack: Lack) -> list[Worker]:
        """Return the idle workers to end so that the request fits; none if that is not enough, or
        when those that are dying will do."""
        idle, dying = self.idle_workers(), list(self.dying.values())
        if lack is Lack.MEMORY:
            missing = self.reserved_bytes() + request.needs.memory_bytes - self.allowed.memory_bytes
            sizes = {one.id: one.needs.memory_bytes for one in (*idle, *dying)}
        else:
            missing = request.needs.gpus - len(self.free_gpus(request.needs.cards))
            fitting = self.gpus_for(request)
            sizes = {one.id: sum(gpu in fitting for gpu in one.gpus) for one in (*idle, *dying)}
        missing -= sum(sizes[one.id] for one in dying)
        chosen: list[Worker] = []
        for one in idle:
            if missing > 0 and sizes[one.id]:
                missing -= sizes[one.id]
                chosen.append(one)
        return chosen if missing <= 0 else []

    # --- the future -----------------------------------------------------------------------------------------------

    def depth(self, worker: str | None) -> int:
        """Return how many calls, from the root down to this worker's, wait for one another."""
        depth = 0
        while worker is not None and worker in self.workers:
            depth += 1
            request = self.workers[worker].request
            worker = request.parent if request is not None else None
        return depth

    def never_served(self, queue: Iterable[Request]) -> list[tuple[Request, Lack]]:
        """Return the requests that no end of other calls will ever let in, with their lacking resources, in order."""
        unfinished = {one.id for one in self.workers.values() if one.request is not None}
        left = {request.id: request for request in queue}
        moved = True
        while moved and left:
            moved = False
            waited_for = {request.parent for request in left.values()}
            waited_for |= {parent for name in unfinished if (parent := self._parent(name)) is not None}
            ended = {name for name in unfinished if name not in waited_for or self.workers[name].leaving}
            if ended:
                unfinished -= ended
                moved = True
            for request in list(left.values()):
                if self.lacks_beside(request, unfinished) is None:
                    del left[request.id]
                    moved = True
        return [(request, lack) for request in left.values() if (lack := self.lacks_beside(request, unfinished))]

    def _parent(self, worker: str) -> str | None:
        request = self.workers[worker].request
        return request.parent if request is not None else None

    def lacks_beside(self, request: Request, unfinished: Collection[str]) -> Lack | None:
        """Return the resource that the request lacks if only these workers hold anything."""
        holders = [self.workers[name] for name in unfinished]
        bounds, needs = self.bounds, request.needs
        if request.max_concurrency:
            same = [one for one in holders if one.request is not None and one.request.identity == request.identity]
            if len(same) >= request.max_concurrency:
                return Lack.CONCURRENCY
        reserved = sum(one.needs.memory_bytes for one in holders)
        if needs.memory_bytes and reserved + needs.memory_bytes > self._most_memory_bytes:
            return Lack.MEMORY
        fitting = needs.cards or bounds.gpus
        held = sum(gpu in fitting for one in holders for gpu in one.gpus)
        if needs.gpus and held + needs.gpus > len(fitting):
            return Lack.GPUS
        if len(holders) >= bounds.workers:
            return Lack.WORKERS
        sandboxes = {self.sandboxes[one.sandbox].key for one in holders}
        if len(sandboxes) >= bounds.sandboxes and (needs.gpus or request.key.sandbox not in sandboxes):
            return Lack.SANDBOXES
        if self.millicores(request, unfinished) > bounds.slots * 1000:
            return Lack.CPU
        return None


def _without_gpus(key: SandboxKey) -> SandboxKey:
    return replace(key, gpus=()) if key.gpus else key
