"""Resources: a machine's capacity, and a function's share of it. Pure.

A type asks for at most what the machine has. Without a type a call takes one core while it computes, reserves no
memory, and may use most of the machine's. Plain numbers are stronger than the type, and never taken down: a machine
that is too small for them refuses the function.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.errors import ResourcesUnavailable
from atoll.model import amounts, machine_types
from atoll.model.machine_types import MachineType
from atoll.model.specs import NO_NUMBERS, Numbers


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
class Allowance:
    """The part of a machine that functions may use at present, where another scheduler owns the machine.

    Args:
        millicores, memory_bytes: of all functions together.
        gpus: names of the GPUs that workers may have.
    """

    millicores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """A worker's share of the machine.

    Args:
        millicores: thousandths of a core while its call computes; nested calls use those of the waiting call.
        memory_bytes: reserved as long as the worker lives, idle too; 0 for a worker that reserves none.
        gpus: how many are its own as long as it lives.
        cards: names of the GPUs that will do; empty for all.
    """

    millicores: int = 1000
    memory_bytes: int = 0
    gpus: int = 0
    cards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """A machine's capacity for functions.

    Args:
        millicores: thousandths of a core, over all calls that compute at a time.
        memory_bytes: for all workers that reserve memory.
        worker_memory_bytes: the most that one worker of the default type may use.
        worker_processes: processes and threads of one worker.
        gpus: how many.
        cards: names of the GPUs with their products' names; an empty product is not known.
    """

    millicores: int
    memory_bytes: int
    worker_memory_bytes: int
    worker_processes: int
    gpus: int = 0
    cards: tuple[tuple[str, str], ...] = ()


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
        limited: the function names its share, by a type or by numbers: its limits hold before its first call begins.
        next_memory: more memory, as the option `memory` takes it; empty unless the function has that option.
    """

    needs: Needs
    memory_bytes: int
    millicores: int
    processes: int
    machine_type: str = ""
    next_type: str = ""
    shortfall: str = ""
    limited: bool = False
    next_memory: str = ""


def allot(name: str, capacity: Capacity, numbers: Numbers = NO_NUMBERS) -> Allotment:
    """Return the allotment of a function on this machine.

    Args:
        name: its machine type; empty for the default.
        numbers: its own numbers.

    Raises:
        ResourcesUnavailable: the machine has fewer GPUs than it asks for, or less than its numbers.
    """
    wanted = machine_types.find(name) if name else None
    if numbers != NO_NUMBERS:
        _refuse_more_than(capacity, numbers)
    gpus = numbers.gpus if numbers.gpus >= 0 else wanted.gpus if wanted is not None else 0
    if gpus > capacity.gpus:
        raise ResourcesUnavailable(
            f"machine type `{name}` has {_gpus(gpus)}, and this machine has {_gpus(capacity.gpus)}",
            hint="choose a type without GPUs, or run `atoll doctor` to see why none is found",
        )
    shortfall = ""
    if wanted is None:
        millicores, reserved, memory, most = min(1000, capacity.millicores), 0, capacity.worker_memory_bytes, 0
    else:
        millicores = most = numbers.millicores or min(round(wanted.cpu * 1000), capacity.millicores)
        reserved = memory = numbers.memory_bytes or min(wanted.memory_bytes, capacity.memory_bytes)
        shortfall = _shortfall(wanted, numbers, millicores, memory)
    if numbers.millicores:
        millicores = most = numbers.millicores
    if numbers.memory_bytes:
        reserved = memory = numbers.memory_bytes
    return Allotment(
        Needs(millicores, reserved, gpus, _cards(capacity, numbers.card)),
        memory,
        most,
        capacity.worker_processes,
        machine_type=name,
        next_type=machine_types.next_larger(memory, gpus)
        if memory < capacity.memory_bytes and not numbers.memory_bytes
        else "",
        shortfall=shortfall,
        limited=bool(name) or numbers.limits,
        next_memory=_more(memory, capacity) if numbers.memory_bytes else "",
    )


def _cards(capacity: Capacity, card: str) -> tuple[str, ...]:
    """Return the names of the GPUs whose product has the words of a wish; none for no wish."""
    return tuple(name for name, product in capacity.cards if amounts.names_card(card, product)) if card else ()


def _more(memory: int, capacity: Capacity) -> str:
    return amounts.shown(min(2 * memory, capacity.memory_bytes)) if memory < capacity.memory_bytes // 10 * 9 else ""


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'' if count == 1 else 's'}"


def _shortfall(wanted: MachineType, numbers: Numbers, millicores: int, memory: int) -> str:
    parts = []
    if not numbers.millicores and millicores < round(wanted.cpu * 1000):
        parts.append(f"{millicores / 1000:g} of {wanted.cpu:g} CPUs")
    if not numbers.memory_bytes and memory < wanted.memory_bytes:
        parts.append(f"{memory / (1 << 30):.1f} of {wanted.memory_bytes >> 30} GiB of memory")
    if not parts:
        return ""
    return f"this machine serves machine type `{wanted.name}` with what it has: {' and '.join(parts)}"


# --- numbers that are too large -------------------------------------------------------------------------------------


def _refuse_more_than(capacity: Capacity, numbers: Numbers) -> None:
    """Refuse numbers that the machine never has, with the nearest that it has."""
    if numbers.millicores > capacity.millicores or numbers.memory_bytes > capacity.memory_bytes:
        asked, nearest = [], []
        if numbers.millicores:
            asked.append(f"`cpu={numbers.millicores / 1000:g}`")
            nearest.append(f"`cpu={min(numbers.millicores, capacity.millicores) / 1000:g}`")
        if numbers.memory_bytes:
            asked.append(f'`memory="{amounts.shown(numbers.memory_bytes)}"`')
            nearest.append(f'`memory="{amounts.shown(min(numbers.memory_bytes, capacity.memory_bytes))}"`')
        largest = largest_type(capacity, numbers.gpus > 0)
        fits = f"the largest type that fits is `{largest}`; " if largest else ""
        raise ResourcesUnavailable(
            f"the function asks for {' and '.join(asked)}, and this machine has {capacity.millicores / 1000:g} CPUs and "
            f"{capacity.memory_bytes / (1 << 30):.1f} GiB of memory for functions",
            hint=f"{fits}nearest: {', '.join(nearest)}",
        )
    found = len(_cards(capacity, numbers.card)) if numbers.card else capacity.gpus
    if numbers.gpus > found:
        asked_for = f'"{numbers.card}:{numbers.gpus}"' if numbers.card else numbers.gpus
        there = ", ".join(f"`{product or 'a card without a name'}`" for _, product in capacity.cards)
        has = f"{found or 'none'} of them" if numbers.card and there else _gpus(capacity.gpus)
        nearest_card = f'`gpu="{numbers.card}:{found}"`' if numbers.card and found else f"`gpu={capacity.gpus}`"
        raise ResourcesUnavailable(
            f"the function asks for `gpu={asked_for}`, and this machine has {has}",
            hint=f"its cards are {there}; nearest: {nearest_card}"
            if there
            else "leave `gpu` out, or run `atoll doctor` to see why none is found",
        )


def largest_type(capacity: Capacity, with_gpus: bool = False) -> str:
    """Return the largest machine type that the machine serves in full; empty when there is none."""
    fitting = [
        one.name
        for one in machine_types.MACHINE_TYPES.values()
        if one.cpu * 1000 <= capacity.millicores
        and one.memory_bytes <= capacity.memory_bytes
        and one.gpus <= capacity.gpus
        and bool(one.gpus) == with_gpus
    ]
    return fitting[-1] if fitting else ""
