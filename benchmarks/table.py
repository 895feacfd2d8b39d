"""Measurements and the one table that they become."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Samples:
    """The times of one thing, in seconds."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Measure what happens inside."""
        began = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - began)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """The time that 95 of 100 stay below; the longest where there are fewer than 20."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


@dataclass(frozen=True)
class Comparison:
    """A line of the table: how Atoll does beside something else.

    Args:
        ours: Atoll's samples.
        peer: what it is compared with; None for a figure that stands alone.
        aim: the most that the ratio, or without a peer the median in milliseconds, should be; None where none is set.
        difference: compare by difference, in milliseconds, instead of by ratio.
        amount: how much one sample is of, where rates are compared: then a ratio is ours by the peer's, and the aim the
            least that it should be.
        unit: of a rate, such as `calls/s`.
    """

    ours: Samples
    peer: Samples | None = None
    aim: float | None = None
    difference: bool = False
    amount: float = 0.0
    unit: str = ""

    @property
    def value(self) -> float | None:
        if self.peer is None:
            return self.ours.median * 1000 if self.aim is not None else None
        if self.difference:
            return (self.ours.median - self.peer.median) * 1000
        if self.amount:
            return self.peer.median / self.ours.median
        return self.ours.median / self.peer.median

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        if self.aim is None or self.value is None:
            return None
        return self.value >= self.aim if self.amount else self.value <= self.aim

    def cells(self) -> tuple[str, ...]:
        in_milliseconds = self.peer is None or self.difference
        unit = " ms" if in_milliseconds else ""
        value, aim = "", ""
        if self.value is not None:
            sign = "+" if self.difference else ""
            value = f"{sign}{self.value:.{2 if self.value >= 0.01 else 4}f}{unit}"
        if self.aim is not None:
            bound = "at least" if self.amount else "at most"
            aim = f"{bound} {self.aim:g}{unit}: {'met' if self.met else 'MISSED'}"
        peer = (self.peer.name, self._shown(self.peer.median)) if self.peer is not None else ("", "")
        return (self.ours.name, self._shown(self.ours.median), self._shown(self.ours.p95), *peer, value, aim)

    def _shown(self, seconds: float) -> str:
        return f"{self.amount / seconds:,.0f} {self.unit}" if self.amount else _milliseconds(seconds)


HEADINGS = ("Atoll", "median", "p95", "beside", "median", "ratio", "aim")


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def show(rows: list[Comparison], notes: list[str], write: Callable[[str], Any] = print) -> None:
    """Print the rows as one table, with the machine above and the notes below."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    write(machine())
    write("")
    for number, line in enumerate(cells):
        aligned = [
            text.rjust(width) if column in (1, 2, 4, 5) else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        write("  ".join(aligned).rstrip())
        if number == 0:
            write("  ".join("-" * width for width in widths))
    write("")
    for note in notes:
        write(note)


def machine() -> str:
    """Describe what this runs on."""
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    who = "root" if os.geteuid() == 0 else "a plain user"
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, as {who}, load {os.getloadavg()[0]:.1f}"
    )


def to_json(rows: list[Comparison]) -> str:
    """Return the rows as JSON; times in seconds."""

    def data(samples: Samples | None) -> dict[str, Any] | None:
        if samples is None:
            return None
        return {"name": samples.name, "median": samples.median, "p95": samples.p95, "samples": samples.seconds}

    found = [
        {"atoll": data(row.ours), "peer": data(row.peer), "value": row.value, "aim": row.aim, "met": row.met}
        for row in rows
    ]
    return json.dumps({"machine": machine(), "python": sys.version, "rows": found}, indent=2)
