"""Workers under their limits: the time of the move, and the consequences of reaching a limit.

A sandbox is under its own limit from its first process on. It grows with each worker before the worker is started.

A worker of the default type comes under its limit at the first look after its start: the kernel holds up every fork
on the machine for some 10 ms when a process changes its group, which a short call should not pay for. A worker whose
function names a machine type, `cpu` or `memory` is small on purpose, so it waits for its limit before its first call begins. What the
other has started by then, and what hides from it as a child of nobody, comes under its limit with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from atoll.engine.pool_state import PoolSandbox, PoolWorker
from atoll.sandbox.held_process import HeldProcess, Member, hold
from atoll.sandbox.limits.limits import Limit, Limits
from atoll.sandbox.limits.sandbox_limit import SandboxLimit

LOOK_SECONDS = 0.1
END_ROUNDS = 20


class Limiting:
    """Puts workers under their limits.

    Args:
        limits: makes them.
        workers, sandboxes: those that live now; looked at, never changed.
        on_worn: is told of a sandbox whose ended workers have left so much that another might meet its limit.
        on_spent: is told of a worker that was refused a process, or whose processes multiply faster than they can be
            moved under its limit: its children may never end by themselves.
    """

    def __init__(
        self,
        limits: Limits,
        workers: Mapping[str, PoolWorker],
        sandboxes: Mapping[str, PoolSandbox],
        on_spent: Callable[[PoolWorker], None],
        on_worn: Callable[[str], None],
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._sandboxes = sandboxes
        self._on_worn = on_worn
        self._lightened: set[str] = set()
        self._settling: asyncio.Task[None] | None = None
        self._on_spent = on_spent
        self._beginning: set[asyncio.Task[None]] = set()
        self._littered: dict[str, tuple[HeldProcess, int]] = {}

    def admit(self, worker: PoolWorker) -> None:
        """Let a worker's sandbox take as much more as the worker may; before it is started."""
        terms = worker.allotment
        self._sandboxes[worker.sandbox].node.limit.admit(worker.id, terms.memory_bytes, terms.processes)

    async def begin(self, worker: PoolWorker) -> None:
        """Put a worker that has just started under its limit."""
        if worker.limit is not None or worker.process is None or not worker.process.lives():
            return
        terms = worker.allotment
        worker.limit = self._limits.open(
            f"{worker.id}-{worker.pid}",
            terms.memory_bytes,
            millicores=terms.millicores,
            processes=terms.processes,
            sandbox=self._sandboxes[worker.sandbox].node.limit,
        )
        process = worker.process.copy()  # the thread's own: the worker may end meanwhile
        try:
            done = await asyncio.to_thread(_put_under, worker.limit, process)
        finally:
            process.close()
        if not done and worker.id in self._workers:
            self._on_spent(worker)

    def ended(self, worker: PoolWorker) -> None:
        """End what a worker has left that is under no limit: what it started before it came under its own, and what
        of that multiplied faster than it could be brought under it."""
        sandbox = self._sandboxes.get(worker.sandbox)
        if sandbox is None:
            return
        sandbox.node.limit.dismiss(worker.id)
        self._lightened.add(worker.sandbox)
        if sandbox.init is not None and worker.process is not None:
            self._littered[worker.sandbox] = sandbox.init, worker.agent
            self._tidy(worker.sandbox)

    def _tidy(self, sandbox: str) -> None:
        """End the strays of a sandbox, unless another worker of it is under no limit: they may be that one's. What
        still multiplies is ended at the next looks."""
        if any(one.limit is None and one.sandbox == sandbox for one in self._workers.values()):
            return
        first, agent = self._littered[sandbox]
        for _ in range(END_ROUNDS):
            strays = self._limits.strays(first.pid, agent)
            if not strays or not first.lives():  # with the first process, all others of the sandbox end
                del self._littered[sandbox]
                break
            for pid in strays:
                stray = hold(pid, first.pid)
                if stray is not None and first.lives():
                    stray.kill()
                if stray is not None:
                    stray.close()

    async def watch(self) -> None:
        """Look at every worker about ten times a second; runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for worker in list(self._workers.values()):
                if worker.process is not None and worker.limit is None:
                    # Not waited for: with processes that multiply it takes long, and they are to be noticed meanwhile.
                    beginning = asyncio.create_task(self.begin(worker))
                    self._beginning.add(beginning)
                    beginning.add_done_callback(self._beginning.discard)
            self._limits.poll()
            if self._limits.unsettled and (self._settling is None or self._settling.done()):
                # Not waited for: the kernel may have to reclaim much memory.
                self._settling = asyncio.create_task(asyncio.to_thread(self._limits.settle))
            for sandbox in list(self._lightened):
                await self._weigh(sandbox)
            for sandbox in list(self._littered):
                self._tidy(sandbox)
            for worker in list(self._workers.values()):
                if worker.limit is not None and worker.limit.refused():
                    self._on_spent(worker)

    async def _weigh(self, name: str) -> None:
        """Look at the rest that ended workers have left, once all others are under their own limits."""
        workers = [one for one in self._workers.values() if one.sandbox == name]
        sandbox = self._sandboxes.get(name)
        # The memory of a default worker's first moments counts as rest. Beside its limit the sandbox's is far away.
        if sandbox is None or any(not one.allotment.limited for one in workers):
            self._lightened.discard(name)
        elif all(one.limit is not None for one in workers):
            self._lightened.discard(name)
            limits = [one.limit for one in workers if one.limit is not None]
            if await asyncio.to_thread(_is_worn, sandbox.node.limit, limits) and name in self._sandboxes:
                self._on_worn(name)


def _is_worn(sandbox: SandboxLimit, limits: Sequence[Limit]) -> bool:
    return sandbox.worn(sum(limit.memory_bytes() for limit in limits))


def _put_under(limit: Limit, process: Member) -> bool:
    """Return whether all processes of the worker are under its limit: others may multiply."""
    with contextlib.suppress(OSError):  # one that has ended meanwhile needs no limit
        if process.lives():  # else its number may be another process's by now
            limit.add(process.pid)
        if process.lives():
            return limit.adopt(process.init, process.agent)
    return True
