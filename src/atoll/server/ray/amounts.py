"""Amounts of a machine's resources, as Atoll counts them and as Ray does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.server.cluster.contract import Wish


@dataclass(frozen=True)
class Amount:
    """Thousandths of cores, bytes of memory, whole GPUs."""

    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.millicores + other.millicores, self.memory_bytes + other.memory_bytes, self.gpus + other.gpus
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.millicores - other.millicores, self.memory_bytes - other.memory_bytes, self.gpus - other.gpus
        )

    def covers(self, other: Amount) -> bool:
        """Return whether `other` fits in this."""
        return (
            self.millicores >= other.millicores and self.memory_bytes >= other.memory_bytes and self.gpus >= other.gpus
        )

    def least(self, other: Amount) -> Amount:
        """Return the smaller of each."""
        return Amount(
            min(self.millicores, other.millicores),
            min(self.memory_bytes, other.memory_bytes),
            min(self.gpus, other.gpus),
        )

    def resources(self) -> dict[str, float]:
        """Return the same in Ray's names and units; nothing for what is 0."""
        found = {"CPU": self.millicores / 1000, "memory": float(self.memory_bytes), "GPU": float(self.gpus)}
        return {name: value for name, value in found.items() if value}

    def __str__(self) -> str:
        parts = [f"{self.millicores / 1000:g} CPUs"]
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / (1 << 30):.1f} GiB of memory")
        if self.gpus:
            parts.append(f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}")
        return ", ".join(parts)


NOTHING = Amount()


def of_wish(wish: Wish) -> Amount:
    """Return the amount that a worker for a wish takes."""
    return Amount(wish.millicores, wish.memory_bytes, wish.gpus)


def of_resources(resources: Mapping[str, Any]) -> Amount:
    """Return the amount that Ray's names and units say; other resources are left out."""
    return Amount(
        int(float(resources.get("CPU", 0)) * 1000 + 0.5),
        int(float(resources.get("memory", 0))),
        int(float(resources.get("GPU", 0))),
    )


def of_data(data: Mapping[str, Any]) -> Amount:
    """Return the amount of a message."""
    return Amount(int(data["millicores"]), int(data["memory_bytes"]), int(data["gpus"]))


def to_data(amount: Amount) -> dict[str, int]:
    """Return an amount for a message."""
    return {"millicores": amount.millicores, "memory_bytes": amount.memory_bytes, "gpus": amount.gpus}


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    return sum(amounts, NOTHING)
