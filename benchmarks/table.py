"""Measurements, the one table that they become, and what every benchmark's command line has."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def say(line: str) -> None:
    """Tell who waits what is measured now."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Samples:
    """The times of one thing, in seconds.

    Args:
        cpu_seconds: what processors worked for it meanwhile, in all its processes, where that is measured.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Measure what happens inside."""
        began = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - began)

    def clear(self) -> None:
        """Forget a round that does not count."""
        self.seconds.clear()
        self.cpu_seconds.clear()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> str:
        """The median of the processor time, for people; empty where it was not measured."""
        return _milliseconds(statistics.median(self.cpu_seconds)) if self.cpu_seconds else ""

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
        ours = (self.ours.name, self._shown(self.ours.median), self._shown(self.ours.p95), self.ours.cpu)
        peer = ("", "", "")
        if self.peer is not None:
            peer = (self.peer.name, self._shown(self.peer.median), self.peer.cpu)
        return (*ours, *peer, value, aim)

    def data(self) -> dict[str, Any]:
        """Return the line for JSON; times in seconds."""
        found = {"atoll": _data(self.ours), "peer": _data(self.peer), "value": self.value}
        return {**found, "aim": self.aim, "met": self.met}

    def _shown(self, seconds: float) -> str:
        return f"{self.amount / seconds:,.0f} {self.unit}" if self.amount else _milliseconds(seconds)


@dataclass(frozen=True)
class Figure:
    """A line of the table that is no time: bytes that travelled, memory that was used.

    Args:
        name: what it is.
        value: Atoll's.
        unit: of the value, such as `MiB`.
        peer: the name and the value of something else.
        aim: the most that the value should be.
    """

    name: str
    value: float
    unit: str
    peer: tuple[str, float] | None = None
    aim: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        return None if self.aim is None else self.value <= self.aim

    def cells(self) -> tuple[str, ...]:
        aim = "" if self.aim is None else f"at most {self.aim:g} {self.unit}: {'met' if self.met else 'MISSED'}"
        name, shown, ratio = "", "", ""
        if self.peer is not None:
            name, shown = self.peer[0], f"{self.peer[1]:,.2f} {self.unit}"
            ratio = f"{self.value / self.peer[1]:.2f}" if self.peer[1] else ""
        return (self.name, f"{self.value:,.2f} {self.unit}", "", "", name, shown, "", ratio, aim)

    def data(self) -> dict[str, Any]:
        """Return the line for JSON."""
        found = {"name": self.name, "value": self.value, "unit": self.unit, "peer": self.peer}
        return {**found, "aim": self.aim, "met": self.met}


Row = Comparison | Figure
HEADINGS = ("Atoll", "median", "p95", "CPU", "beside", "median", "CPU", "ratio", "aim")
_LEFT = ("Atoll", "beside", "aim")


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def show(rows: Sequence[Row], notes: list[str], write: Callable[[str], Any] = print) -> None:
    """Print the rows as one table, with the machine above and the notes below; a column that is empty is left out."""
    lines = [row.cells() for row in rows]
    columns = [
        number for number, heading in enumerate(HEADINGS) if heading != "CPU" or any(line[number] for line in lines)
    ]
    cells = [[line[number] for number in columns] for line in (HEADINGS, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    write(machine())
    write("")
    for number, line in enumerate(cells):
        aligned = [
            text.ljust(width) if HEADINGS[column] in _LEFT else text.rjust(width)
            for column, text, width in zip(columns, line, widths, strict=True)
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


def to_json(rows: Sequence[Row]) -> str:
    """Return the rows as JSON; times in seconds."""
    found = [row.data() for row in rows]
    return json.dumps({"machine": machine(), "python": sys.version, "rows": found}, indent=2)


def _data(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    found: dict[str, Any] = {"name": samples.name, "median": samples.median, "p95": samples.p95}
    return {**found, "samples": samples.seconds, "cpu": samples.cpu_seconds}


def command_line(what: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has.

    Args:
        what: the benchmark's purpose, a sentence.
        rounds: how often it measures where nothing else is said.
    """
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"how often everything is measured (default {rounds})"
    )
    parser.add_argument("--tiny", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write every sample to a file")
    return parser


def finish(rows: Sequence[Row], notes: list[str], options: argparse.Namespace) -> int:
    """Show the table, write what `--json` asks for, and return the exit status."""
    show(rows, notes)
    if options.json:
        Path(options.json).write_text(to_json(rows) + "\n", encoding="utf-8")
    return 0
