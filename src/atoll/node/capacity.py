"""The capacity of the daemon's machine for functions, and the share of each worker."""

from __future__ import annotations

import os
from collections.abc import Callable

from atoll.model.resources import Allotment, Bounds, Capacity, allot
from atoll.model.specs import NO_NUMBERS, Numbers
from atoll.sandbox import gpus
from atoll.sandbox.limits.limits import Limits, machine_memory_bytes
from atoll.settings import PoolSettings

MEMORY_OF_A_WORKER = 96 << 20
"""Bytes counted for a live worker when memory bounds the number of workers."""

WALL_FACTOR = 4

WATCHED = "memory limits are kept by a watchdog here, not by the kernel: see `atoll doctor`"


class Machine:
    """The machine's share for functions, found once.

    Args:
        options: the owner's bounds on that share.
        limits: keeps workers within their memory, CPU and processes.
    """

    def __init__(self, options: PoolSettings, limits: Limits) -> None:
        self._options = options
        self._limits = limits
        self._noticed: set[str] = set()
        self.gpus = gpus.find(options.gpus)
        memory = machine_memory_bytes() // 10 * 9
        self.capacity = Capacity(
            millicores=1000 * (options.slots or len(os.sched_getaffinity(0))),
            memory_bytes=options.memory_bytes or memory,
            worker_memory_bytes=options.worker_memory_bytes or memory,
            worker_processes=options.worker_processes,
            gpus=len(self.gpus.names),
            cards=self.gpus.products,
        )

    def bounds(self) -> Bounds:
        """Return how much there may be at a time."""
        options, capacity = self._options, self.capacity
        workers = options.max_workers or max(32, capacity.memory_bytes // MEMORY_OF_A_WORKER)
        return Bounds(
            slots=capacity.millicores // 1000,
            workers=workers,
            sandboxes=options.max_sandboxes or max(16, workers // 2),
            memory_bytes=capacity.memory_bytes,
            gpus=self.gpus.names,
        )

    def allot(
        self, machine_type: str, numbers: Numbers = NO_NUMBERS, notice: Callable[[str], None] | None = None
    ) -> Allotment:
        """Return the resources of a worker of a machine type; the empty name is the default.

        Args:
            numbers: stronger than the type's.
            notice: called once for each type that the machine cannot fully give, and once where limits are kept by a
                watchdog.

        Raises:
            ResourcesUnavailable: this machine has nothing of the kind.
        """
        found = allot(machine_type, self.capacity, numbers)
        if notice is not None:
            watched = self._limits.kind == "watchdog"
            for line in (found.shortfall, WATCHED if watched else ""):
                if line and line not in self._noticed:
                    self._noticed.add(line)
                    notice(line)
        return found

    def process_wall(self, allotment: Allotment) -> int:
        """Return how many processes the sandboxes of a user may have in all before a worker can start no more.

        It is the only limit where the kernel gives no groups, and else holds until a worker is in its group.
        """
        return allotment.processes * (WALL_FACTOR if "pids" in self._limits.controllers else 1)
