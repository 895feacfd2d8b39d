"""The sizes of worker that a function may ask for by name.

The table is the one that programs written for hosted function clouds name; a host serves what it has of it
(`model.resources`). Sizes are binary (GiB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MachineType:
    """The largest share of one worker of this type.

    Args:
        name: the value of the option `machine_type`.
        cpu: cores' worth of computing time; 0.25 is a quarter of one core.
        memory_bytes: limit of its processes together.
        gpus: whole GPUs that are its own while it lives.
    """

    name: str
    cpu: float
    memory_bytes: int
    gpus: int = 0


_GIB = 1 << 30

MACHINE_TYPES: Mapping[str, MachineType] = {
    one.name: one
    for one in (
        MachineType("XS", 0.25, _GIB // 4),
        MachineType("S", 0.5, _GIB),
        MachineType("M", 2.0, 8 * _GIB),
        MachineType("L", 4.0, 32 * _GIB),
        MachineType("XL", 8.0, 128 * _GIB),
        MachineType("GPU-T4", 4.0, 26 * _GIB, 1),
        MachineType("GPU", 8.0, 64 * _GIB, 1),
    )
}
"""From small to large, those without GPUs first."""


def find(name: str) -> MachineType:
    """Return the type of this name.

    Raises:
        ValueError: there is none; says which is near.
    """
    known = MACHINE_TYPES.get(name)
    if known is not None:
        return known
    import difflib

    near = difflib.get_close_matches(name.strip().upper(), MACHINE_TYPES, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"the types are {', '.join(MACHINE_TYPES)}"
    raise ValueError(f"unknown machine type `{name}`; {hint}")


def next_larger(memory_bytes: int, gpus: int = 0) -> str:
    """Return the smallest type with more memory than this; with GPUs, at least as many, where `gpus` is not 0, else
    with none. Empty when there is none."""
    larger = [
        one
        for one in MACHINE_TYPES.values()
        if one.memory_bytes > memory_bytes and one.gpus >= gpus and bool(one.gpus) == bool(gpus)
    ]
    return min(larger, key=lambda one: one.memory_bytes).name if larger else ""
