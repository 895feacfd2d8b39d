"""Free shares of the machine, and how many workers of each machine type fit into them now. Pure.

An idle worker counts as free: it is ended when a request needs its memory or its GPUs.
"""

from __future__ import annotations

import sys
from typing import Any

from atoll.engine.ledger import Ledger
from atoll.errors import ResourcesUnavailable
from atoll.model.machine_types import MACHINE_TYPES
from atoll.model.resources import Capacity, allot, largest_type


def free_shares(capacity: Capacity, ledger: Ledger) -> dict[str, Any]:
    """Return totals, free shares and a row for each machine type, as JSON-compatible data.

    A type's row has its name, `cpus`, `memory_bytes` and `gpus` as the table of types has them; `fits_now`, how many
    workers of it fit now; `full`, whether the machine ever serves it in full; and `largest`, whether it is the largest
    such type, of those with GPUs or of those without.
    """
    busy = [one for one in ledger.workers.values() if one.request is not None] + list(ledger.dying.values())
    taken = {gpu for one in busy for gpu in one.gpus}
    products = dict(capacity.cards)
    gpus = [{"name": products.get(name, "") or name, "free": name not in taken} for name in ledger.allowed.gpus]
    millicores = max(0, ledger.allowed.millicores - ledger.millicores())
    allowed_bytes = min(capacity.memory_bytes, ledger.allowed.memory_bytes)
    memory = max(0, allowed_bytes - sum(one.needs.memory_bytes for one in busy))
    workers = max(0, ledger.bounds.workers - len(busy))
    free_gpus = sum(gpu["free"] is True for gpu in gpus)
    largest = {largest_type(capacity), largest_type(capacity, with_gpus=True)}
    types = []
    for one in MACHINE_TYPES.values():
        fits, full = 0, False
        try:
            needs = (found := allot(one.name, capacity)).needs
        except ResourcesUnavailable:  # a type with GPUs
            pass
        else:
            full = not found.shortfall
            fits = min(
                workers,
                millicores // needs.millicores,
                memory // needs.memory_bytes,
                free_gpus // needs.gpus if needs.gpus else sys.maxsize,
            )
        types.append(
            {
                "name": one.name,
                "cpus": one.cpu,
                "memory_bytes": one.memory_bytes,
                "gpus": one.gpus,
                "fits_now": fits,
                "full": full,
                "largest": one.name in largest,
            }
        )
    return {
        "machine": {"cpus": capacity.millicores / 1000, "memory_bytes": capacity.memory_bytes, "gpus": gpus},
        "free": {"cpus": millicores / 1000, "memory_bytes": memory, "gpus": free_gpus},
        "types": types,
    }


def load(capacity: Capacity, ledger: Ledger, waiting: int) -> dict[str, Any]:
    """Return a node's load as its server takes it: `fits` by machine type, what is free, `running` and `waiting`."""
    shares = free_shares(capacity, ledger)
    free = shares["free"]
    return {
        "fits": {row["name"]: row["fits_now"] for row in shares["types"]},
        "millicores": round(free["cpus"] * 1000),
        "memory_bytes": free["memory_bytes"],
        "gpus": free["gpus"],
        "running": sum(one.request is not None for one in ledger.workers.values()),
        "waiting": waiting,
    }
