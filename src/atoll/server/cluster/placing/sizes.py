"""Sizes of workers for placement: those of machine types, and sizes of functions with numbers of their own. Pure.

A size is not cut down to a machine here: each node does that for itself, as a single machine does (`model.resources`).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from atoll.model import machine_types
from atoll.model.specs import NO_NUMBERS, Numbers


class Size(NamedTuple):
    """A worker's share: thousandths of a core, bytes of memory, GPUs."""

    millicores: int
    memory_bytes: int
    gpus: int

    def __str__(self) -> str:
        gpus = f"{self.gpus or 'no'} GPU{'' if self.gpus == 1 else 's'}"
        return f"{self.millicores / 1000:g} cores, {self.memory_bytes / (1 << 30):.3g} GiB of memory and {gpus}"


DEFAULT = Size(1000, 0, 0)
"""A worker of a function that names no type: one core, and no memory that is reserved."""

TYPES = {
    "": DEFAULT,
    **{
        one.name: Size(round(one.cpu * 1000), one.memory_bytes, one.gpus)
        for one in machine_types.MACHINE_TYPES.values()
    },
}

_STEPS = tuple(sorted({round(2 ** (step / 4)) for step in range(4 * 48)}))
"""Four steps from each size to its double."""


def size_of(name: str, numbers: Numbers = NO_NUMBERS) -> Size:
    """Return the size of a worker with this machine type (empty for none) and these numbers.

    Raises:
        ValueError: there is no such type.
    """
    size = DEFAULT if not name else TYPES[machine_types.find(name).name]
    return Size(
        numbers.millicores or size.millicores,
        numbers.memory_bytes or size.memory_bytes,
        numbers.gpus if numbers.gpus >= 0 else size.gpus,
    )


@lru_cache(4096)
def rounded(size: Size) -> Size:
    """Return a size at least as large, of few that there are: functions with nearly the same numbers share it."""
    return Size(_up(size.millicores), _up(size.memory_bytes), size.gpus)


def _up(number: int) -> int:
    return _STEPS[min(bisect_left(_STEPS, number), len(_STEPS) - 1)] if number > 0 else 0
