"""`atoll top`: calls that run or wait, live, with the machine's use and what is free; one snapshot without a terminal.

This module has what the live view (`top_view`) shows, as text, and the way to it; Textual is loaded for a terminal alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.cli.calls import rows
from atoll.cli.calls.stack import described, read
from atoll.cli.columns import print_fitted
from atoll.cli.tables import size
from atoll.cli.terminal import echo
from atoll.host.local import local

MISSING = "`atoll top` needs the package `textual`: `pip install 'atoll[top]'`; `atoll status` shows the same once"
MOST_BAR = 20


@dataclass(frozen=True)
class Use:
    """What a machine has used since it was started, and uses now.

    Args:
        busy, total: ticks of all cores.
        used_bytes, memory_bytes: of its memory.
    """

    busy: int = 0
    total: int = 0
    used_bytes: int = 0
    memory_bytes: int = 0

    def share(self, before: Use) -> float:
        """Return the share of the cores that was busy since an earlier look."""
        ticks = self.total - before.total
        return min(max((self.busy - before.busy) / ticks, 0.0), 1.0) if ticks > 0 else 0.0


@dataclass(frozen=True)
class Snapshot:
    """What is shown at one moment.

    Args:
        at: seconds since the epoch.
        status: the daemon's answer; None where none runs.
    """

    at: float
    status: dict[str, Any] | None
    use: Use = field(default_factory=Use)


def top() -> int:
    """Show calls that run or wait, live, with CPU and memory of the machine and what is free. Starts nothing.

    Keys: up and down choose a call, Enter or l follows its output, s shows its stacks, c cancels it, q ends. Without a
    terminal it prints one snapshot.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print(look())
        return 0
    try:
        from atoll.cli.calls.top_view import TopView
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "textual":
            raise
        echo(f"error: {MISSING}", error=True)
        return 1
    return TopView(Source()).run() or 0


class Source:
    """The daemon, as the live view asks it; every method blocks."""

    def look(self) -> Snapshot:
        """Return what is to be shown now."""
        return look()

    def cancel(self, call: str) -> str:
        """Cancel a call; return what was done."""
        from atoll.cli.calls.cancel import said

        found = local.request_running("calls.cancel", {"call": call})
        return said(found) if found is not None else "no daemon is running"

    def stacks(self, call: str) -> list[str]:
        """Return the lines of a call's stacks."""
        found = local.request("calls.stacks", {"call": call})
        return described(found, read(found["text"]), time.time())

    def output(self, call: str, seen: int) -> dict[str, Any]:
        """Return the answer about a call's output behind the first bytes."""
        return local.request("calls.output", {"call": call, "seen": seen})


def look() -> Snapshot:
    """Return what is to be shown now."""
    return Snapshot(time.time(), local.request_running("status", {}), use())


def use() -> Use:
    """Return the use of this machine; nothing where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(memory[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
        return Use(sum(ticks) - ticks[3] - ticks[4], sum(ticks), total - available, total)
    return Use()


def heading(now: Snapshot, before: Snapshot | None = None) -> list[str]:
    """Return the lines above the table."""
    if now.status is None:
        return ["no daemon is running; the first call starts one"]
    capacity, use = now.status["capacity"], now.use
    free, has = capacity["free"], capacity["machine"]
    cores = os.cpu_count() or 1
    busy = use.share(before.use) if before is not None else None
    first = "CPU  " + (f"{bar(busy)} {busy:4.0%} of {cores} cores" if busy is not None else f"{cores} cores")
    second = "mem  "
    if use.memory_bytes:
        share = use.used_bytes / use.memory_bytes
        second += f"{bar(share)} {share:4.0%} of {size(use.memory_bytes)}"
    lines = [
        f"{first}   for functions: {free['cpus']:g} of {has['cpus']:g} free",
        f"{second}   for functions: {size(free['memory_bytes'])} of {size(has['memory_bytes'])} free",
    ]
    if has["gpus"]:
        shown = ", ".join(f"{one['name']} {'free' if one['free'] else 'taken'}" for one in has["gpus"])
        lines.append(f"GPU  {free['gpus']} of {len(has['gpus'])} free: {shown}")
    types = [f"{one['name']} {one['fits_now']}" for one in capacity["types"] if one["full"] or one["largest"]]
    lines.append(f"fit  {'  '.join(types)}")
    return lines


def bar(share: float) -> str:
    """Return a bar of a share from 0 to 1."""
    full = round(min(max(share, 0.0), 1.0) * MOST_BAR)
    return "\u2588" * full + "\u2591" * (MOST_BAR - full)


def calls_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the rows of the calls that are not over."""
    found: list[dict[str, Any]] = (snapshot.status or {}).get("calls", [])
    return found


def _print(snapshot: Snapshot) -> None:
    for line in heading(snapshot):
        echo(line)
    if snapshot.status is not None:
        echo()
        if calls := calls_of(snapshot):
            print_fitted(rows.COLUMNS, rows.cells(calls, snapshot.at))
        else:
            echo("no call runs or waits")
