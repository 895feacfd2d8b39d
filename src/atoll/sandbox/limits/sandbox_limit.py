"""The limit of everything in one sandbox: its workers' limits together, and an allowance for the rest.

The rest is the agent, packages that are imported ahead, and files in memory that ended workers have left. Code that has
got into the agent, or out of its worker's group, is held by this limit, and a worker that keeps to its own never meets
it: the limit grows before a worker starts and shrinks after one has ended.
"""

from __future__ import annotations

import threading
from typing import Protocol

from atoll.process import Process, Start
from atoll.sandbox.limits.cgroups import Place
from atoll.sandbox.limits.freezing import Freezer
from atoll.sandbox.limits.memory_watchdog import SandboxWatchdog
from atoll.sandbox.limits.sandbox_group import SandboxGroup

SLACK_BYTES = 16 << 20
"""Bytes above the use to which a limit may shrink: in version 2 the kernel kills at once for a limit below the use."""

WORN_SHARE = 0.75
"""The share of the allowance that may be in use when a sandbox gets another worker."""


class Killed(Protocol):
    """The groups of one worker, as far as they tell why its processes were killed."""

    def killed(self) -> bool: ...

    def met(self) -> int: ...

    def memory_bytes(self) -> int: ...


class SandboxLimit:
    """The limit of one sandbox; made by `Limits.sandbox`. A `process.Group` for the sandbox's first process.

    Its methods may be called from several threads.

    Args:
        enforcer: the kernel's groups, or a watchdog.
        memory_bytes, processes: the allowance.
        most_bytes: the machine's memory, above which a limit has no effect.
    """

    def __init__(
        self, enforcer: SandboxGroup | SandboxWatchdog, memory_bytes: int, processes: int, most_bytes: int
    ) -> None:
        self._enforcer = enforcer
        self._allowance = memory_bytes, processes
        self._most_bytes = most_bytes
        self._shares: dict[str, tuple[int, int]] = {}
        self._now = memory_bytes, processes
        self._record: tuple[int, int] | None = None
        self._shrinks = False
        self._lock = threading.Lock()

    @property
    def watched(self) -> bool:
        """Return whether a watchdog keeps the limit, and not the kernel."""
        return isinstance(self._enforcer, SandboxWatchdog)

    def start(self, start: Start) -> Process:
        if isinstance(self._enforcer, SandboxGroup):
            return self._enforcer.start(start)
        process = start.popen()
        self._enforcer.add(process.pid)
        return process

    def places_of(self, worker: str) -> list[Place]:
        """Return where a worker's groups are made; empty under a watchdog."""
        return self._enforcer.places_of(worker) if isinstance(self._enforcer, SandboxGroup) else []

    def admit(self, worker: str, memory_bytes: int, processes: int) -> None:
        """Let the sandbox take as much more as a worker may; before it starts."""
        with self._lock:
            self._shares[worker] = memory_bytes, processes
            memory, count = self._wanted()
            if memory > self._now[0] or count > self._now[1]:
                self._resize(max(memory, self._now[0]), max(count, self._now[1]))

    def dismiss(self, worker: str) -> None:
        """Take a worker's part back; the limit shrinks with the next `settle`."""
        with self._lock:
            self._shrinks = self._shares.pop(worker, None) is not None or self._shrinks

    @property
    def unsettled(self) -> bool:
        """Return whether `settle` has something to do."""
        return self._shrinks

    def settle(self) -> None:
        """Shrink the limit after workers have ended; may take long where memory must be reclaimed."""
        with self._lock:
            shrinks, self._shrinks = self._shrinks, False
            memory, processes = self._wanted()
        if not shrinks:
            return
        in_use = self._enforcer.memory_bytes() + SLACK_BYTES
        self._resize(min(self._now[0], max(memory, in_use)), processes)  # without the lock, for which `admit` waits
        with self._lock:
            memory, processes = self._wanted()
            if memory > self._now[0] or processes > self._now[1]:  # a worker was admitted meanwhile
                self._resize(max(memory, self._now[0]), processes)

    def _wanted(self) -> tuple[int, int]:
        shares = [self._allowance, *self._shares.values()]
        return min(self._most_bytes, sum(one for one, _ in shares)), sum(count for _, count in shares)

    def _resize(self, memory_bytes: int, processes: int) -> None:
        try:
            self._enforcer.resize(memory_bytes, processes)
        except OSError:  # busy: the old limit holds
            return
        self._now = memory_bytes, processes

    def worn(self, workers: int) -> bool:
        """Return whether so much of the allowance is in use that another worker might meet the sandbox's limit.

        Args:
            workers: bytes that the living workers use.
        """
        return self._enforcer.memory_bytes() - workers > self._allowance[0] * WORN_SHARE

    def exceeded(self, worker: Killed | None = None) -> tuple[int, int] | None:
        """Return limit and peak when processes were killed for the limit of the sandbox, else None; also after `close`.

        Args:
            worker: is looked at besides: the kernel may have chosen a process of it.
        """
        if self._record is None:
            self._record = self._enforcer.exceeded()
        if self._record is None and worker is not None and worker.killed() and not worker.met():
            peak = self._enforcer.met()
            self._record = (self._enforcer.limit_bytes, peak) if peak else None
        return self._record

    def refused(self) -> bool:
        """Return whether the sandbox was refused a process."""
        return self._enforcer.refused()

    def pids(self) -> list[int]:
        """Return the processes that belong to no worker."""
        return self._enforcer.pids()

    def freezer(self) -> Freezer:
        """Return the pause of every process of the sandbox, not begun."""
        return self._enforcer.freezer()

    def poll(self) -> None:
        """Measure where the kernel does not, and end a sandbox that has exceeded its limit."""
        if isinstance(self._enforcer, SandboxWatchdog):
            self._enforcer.poll()
        elif self.exceeded():
            self._enforcer.kill()

    def remove(self) -> bool:
        """End the remaining processes and remove the groups; return False while there is one."""
        self.exceeded()
        return self._enforcer.remove()
