"""Resources: a machine's capacity, and a machine type's share of it. Pure.

A type asks for at most what the machine has. Without a type a call takes one core while it computes, reserves no
memory, and may use most of the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.errors import ResourcesUnavailable
from atoll.model import machine_types
from atoll.model.machine_types import MachineType


@dataclass(frozen=True)
class Bounds:
    """Upper bounds at a time.

    Args:
        slots: cores' worth of calls that compute at a time; at least 1.
        workers, sandboxes: that live; at least 1.
        memory_bytes: total of all workers that reserve memory; 0 for no bound.
        gpus: names of the GPUs; each belongs to one worker at a time.
    """

    slots: int
    workers: int
    sandboxes: int
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """A worker's share of the machine.

    Args:
        millicores: thousandths of a core while its call computes; nested calls use those of the waiting call.
        memory_bytes: reserved as long as the worker lives, idle too; 0 for a worker that reserves none.
        gpus: how many are its own as long as it lives.
    """

    millicores: int = 1000
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True)
class Capacity:
    """A machine's capacity for functions.

    Args:
        millicores: thousandths of a core, over all calls that compute at a time.
        memory_bytes: for all workers that reserve memory.
        worker_memory_bytes: the most that one worker of the default type may use.
        worker_processes: processes and threads of one worker.
        gpus: how many.
    """

    millicores: int
    memory_bytes: int
    worker_memory_bytes: int
    worker_processes: int
    gpus: int = 0


@dataclass(frozen=True)
class Allotment:
    """Share and limits of one worker.

    Args:
        needs: its share of the machine.
        memory_bytes: the most that its processes may use together.
        millicores: the most that they may compute; 0 for no limit of their own.
        processes: the most that there may be of them, threads included.
        machine_type: whose limits these are; empty for the default.
        next_type: the next larger type, with more memory; empty when this machine has no more.
        shortfall: a notice about a machine smaller than the type; else empty.
    """

    needs: Needs
    memory_bytes: int
    millicores: int
    processes: int
    machine_type: str = ""
    next_type: str = ""
    shortfall: str = ""


def allot(name: str, capacity: Capacity) -> Allotment:
    """Return the allotment of a machine type on this machine; the empty name is the default.

    Raises:
        ResourcesUnavailable: the type has GPUs and the machine has not as many.
    """
    if not name:
        needs = Needs(min(1000, capacity.millicores))
        memory = capacity.worker_memory_bytes
        return Allotment(needs, memory, 0, capacity.worker_processes, next_type=_next(memory, 0, capacity))
    wanted = machine_types.find(name)
    if wanted.gpus > capacity.gpus:
        raise ResourcesUnavailable(
            f"machine type `{name}` has {_gpus(wanted.gpus)}, and this machine has {_gpus(capacity.gpus)}",
            hint="choose a type without GPUs, or run `atoll doctor` to see why none is found",
        )
    millicores = min(round(wanted.cpu * 1000), capacity.millicores)
    memory = min(wanted.memory_bytes, capacity.memory_bytes)
    return Allotment(
        Needs(millicores, memory, wanted.gpus),
        memory,
        millicores,
        capacity.worker_processes,
        machine_type=name,
        next_type=_next(memory, wanted.gpus, capacity),
        shortfall=_shortfall(wanted, millicores, memory),
    )


def _next(memory: int, gpus: int, capacity: Capacity) -> str:
    return machine_types.next_larger(memory, gpus) if memory < capacity.memory_bytes else ""


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'' if count == 1 else 's'}"


def _shortfall(wanted: MachineType, millicores: int, memory: int) -> str:
    parts = []
    if millicores < round(wanted.cpu * 1000):
        parts.append(f"{millicores / 1000:g} of {wanted.cpu:g} CPUs")
    if memory < wanted.memory_bytes:
        parts.append(f"{memory / (1 << 30):.1f} of {wanted.memory_bytes >> 30} GB of memory")
    if not parts:
        return ""
    return f"this machine serves machine type `{wanted.name}` with what it has: {' and '.join(parts)}"
