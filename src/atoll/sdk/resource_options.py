"""The options for a function's share of the machine, read when one is given."""

from __future__ import annotations

from typing import Any

from atoll.model import amounts, machine_types
from atoll.model.specs import Numbers


def check(name: str, value: Any) -> Any:
    """Return the value to keep of an option.

    Raises:
        TypeError, ValueError: it cannot be read; names a spelling that is right.
    """
    match name:
        case "machine_type":
            return machine_types.find(value).name
        case "cpu":
            return amounts.read_cores(name, value)
        case "gpu":
            return amounts.read_gpus(name, value)
        case _:
            return amounts.read_bytes(name, value)


def numbers(cpu: float | None, memory: int | None, gpu: tuple[int, str] | None, disk: int | None) -> Numbers:
    """Return the numbers of a function's options."""
    gpus, card = (-1, "") if gpu is None else gpu
    return Numbers(round((cpu or 0) * 1000), memory or 0, gpus, card, disk or 0)
