"""The quota of a volume and its use, as a value and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from atoll.errors import QuotaExceeded

WARN_PER_CENT = (95, 80)
"""Shares of a quota from which its user is told."""


@dataclass(frozen=True)
class Quota:
    """A user's quota and its use.

    Args:
        bytes, files: the limits; 0 for none.
        used_bytes, used_files: the use.
        kind: `user` or `project` where the kernel enforces it, `juicefs` where JuiceFS does, `measured` where Atoll
            looks, `none` without limits.
        complete: False where the volume was too large to measure all of it: then it holds more.
        measured_at: when the use was taken, in seconds since the epoch; 0 for never.
    """

    bytes: int = 0
    files: int = 0
    used_bytes: int = 0
    used_files: int = 0
    kind: str = "none"
    complete: bool = True
    measured_at: float = 0.0

    @property
    def per_cent(self) -> int:
        """The larger share that is used, in whole per cent, rounded down; 0 without limits."""
        shares = [100 * used // most for used, most in self._pairs if most]
        return max(shares, default=0)

    @property
    def _pairs(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.used_bytes, self.bytes), (self.used_files, self.files)

    @property
    def exceeded(self) -> bool:
        """True if nothing more fits."""
        return any(most and used >= most for used, most in self._pairs)

    def text(self) -> str:
        """Return the use for people: `4.2 GiB of 5.0 GiB, 120 of 1,000 files`."""
        parts = []
        if self.bytes:
            parts.append(f"{_size(self.used_bytes)} of {_size(self.bytes)}")
        if self.files:
            parts.append(f"{self.used_files:,} of {self.files:,} files")
        return ", ".join(parts) or f"{_size(self.used_bytes)}, {self.used_files:,} files, no quota"

    def error(self, action: str = "") -> QuotaExceeded:
        """Return the error for a volume that has no room."""
        before = f"{action}: " if action else ""
        return QuotaExceeded(
            f"{before}the volume's quota is used up: {self.text()}",
            hint="remove something: `atoll data du -d 1` shows where it is, `atoll data rm` always works",
            **self.to_data(),
        )

    def to_data(self) -> dict[str, Any]:
        """Return the quota as JSON-compatible data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Quota:
        """Return the quota that `to_data` was given; fields of a newer version are left out."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
