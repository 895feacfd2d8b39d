"""Figures of usage: the daemon's sums, added up by the keys that are asked for. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEYS = ("function", "day", "outcome", "environment", "user")
MOST_DAYS = 400


@dataclass
class Figures:
    """Sums over some calls.

    Args:
        key: the value that the calls share.
        failed: calls that have another outcome than `ok`.
        wall_seconds, cpu_seconds, queue_seconds, gpu_seconds: in workers; computing; waiting; time of GPUs held.
        peak_bytes: the most that one call had in use.
        moved_bytes: arguments and results.
    """

    key: str
    calls: int = 0
    failed: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    queue_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_bytes: int = 0
    moved_bytes: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a group of calls."""
        self.calls += row["calls"]
        self.failed += row["calls"] if row["outcome"] != "ok" else 0
        self.wall_seconds += row["wall_seconds"]
        self.cpu_seconds += row["cpu_seconds"]
        self.queue_seconds += row["queue_seconds"]
        self.gpu_seconds += row["gpu_seconds"]
        self.peak_bytes = max(self.peak_bytes, row["peak_bytes"])
        self.moved_bytes += row["moved_bytes"]

    def to_data(self) -> dict[str, Any]:
        """Return the figures as JSON-compatible data."""
        return asdict(self)


def grouped(rows: Iterable[Mapping[str, Any]], by: str, user: str = "") -> list[Figures]:
    """Return the figures by one of `KEYS`: days in their order, others with the most time first."""
    found: dict[str, Figures] = {}
    for row in rows:
        key = user if by == "user" else str(row[by])
        found.setdefault(key, Figures(key)).add(row)
    if by == "day":
        return sorted(found.values(), key=lambda one: one.key)
    return sorted(found.values(), key=lambda one: (-one.wall_seconds, one.key))


def total(rows: Iterable[Mapping[str, Any]]) -> Figures:
    """Return the figures of all calls."""
    found = Figures("all")
    for row in rows:
        found.add(row)
    return found


def daily(rows: Iterable[Mapping[str, Any]], today: str) -> list[Figures]:
    """Return the figures of each day from the first with calls to today, those without calls too.

    Days that no calendar has, as a wrong clock makes them, are left out.
    """
    found = {one.key: one for one in grouped(rows, "day")}
    days = sorted(day for day in found if day <= today and _is_day(day))
    if not days:
        return []
    last = dt.date.fromisoformat(today)
    first = max(dt.date.fromisoformat(days[0]), last - dt.timedelta(days=MOST_DAYS))
    names = [(first + dt.timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]
    return [found.get(name, Figures(name)) for name in names]


def _is_day(text: str) -> bool:
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """Return a duration for people: `0.42 s`, `42 s`, `3.5 min`, `2.1 h`, `1.4 d`."""
    if not seconds:
        return "0 s"
    for most, unit, size in ((10, "s", 1), (120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.{2 if most == 10 else 0 if size == 1 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"
