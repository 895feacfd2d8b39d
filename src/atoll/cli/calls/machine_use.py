"""The machine at one moment, as `atoll top` and its snapshot show it: use, free shares, calls."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.cli import hosts
from atoll.cli.tables import size

MOST_BAR = 10
"""Cells, so that a line of the heading fits into 80 columns."""
GPU_SECONDS = 2.0


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
        use: of this machine; nothing of a server.
        server: the address of the server that has answered.
    """

    at: float
    status: dict[str, Any] | None
    use: Use = field(default_factory=Use)
    server: str = ""


def look() -> Snapshot:
    """Return what is to be shown now."""
    host = hosts.chosen()
    server, status = hosts.server_of(host), hosts.ask_running("status", {}, host)
    if server is not None:
        return Snapshot(time.time(), status, server=server.url)
    return Snapshot(time.time(), status, use())


def use() -> Use:
    """Return the use of this machine; nothing where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(memory[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
        return Use(sum(ticks) - ticks[3] - ticks[4], sum(ticks), total - available, total)
    return Use()


async def gpu_lines() -> list[str]:
    """Return a line for each NVIDIA GPU: its load and memory, from `nvidia-smi`; none where it is not there."""
    from atoll import process

    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=index,utilization.gpu,memory.used,memory.total"
    try:
        done = await process.run([program, query, "--format=csv,noheader,nounits"], env={}, timeout_seconds=GPU_SECONDS)
    except (OSError, TimeoutError):
        return []
    lines = []
    for line in done.output.splitlines():
        with contextlib.suppress(ValueError):  # `[N/A]`, or a message
            number, load, used, total = (float(one) for one in line.split(","))
            memory = f"{size(int(used) << 20)} of {size(int(total) << 20)}"
            lines.append(f"GPU{number:<2.0f}{bar(load / 100)} {load:3.0f}%   {memory}")
    return lines


def heading(now: Snapshot, before: Snapshot | None = None) -> list[str]:
    """Return the lines above the table."""
    if now.status is None:
        return ["no daemon is running; the first call starts one"]
    capacity = now.status["capacity"]
    free, has = capacity["free"], capacity["machine"]
    if now.server:
        lines = [
            f"on {now.server}",
            f"CPU  {free['cpus']:g} of {has['cpus']:g} cores free",
            f"mem  {size(free['memory_bytes'])} of {size(has['memory_bytes'])} free",
        ]
    else:
        lines = _use_lines(now, before, capacity)
    if has["gpus"]:
        shown = ", ".join(f"{one['name']} {'free' if one['free'] else 'taken'}" for one in has["gpus"])
        lines.append(f"GPU  {free['gpus']} of {len(has['gpus'])} free: {shown}")
    types = [f"{one['name']} {one['fits_now']}" for one in capacity["types"] if one["full"] or one["largest"]]
    lines.append(f"fit  {'  '.join(types)}")
    return lines


def _use_lines(now: Snapshot, before: Snapshot | None, capacity: dict[str, Any]) -> list[str]:
    """Return the lines about cores and memory of this machine."""
    free, has, use = capacity["free"], capacity["machine"], now.use
    cores = os.cpu_count() or 1
    busy = use.share(before.use) if before is not None else None
    first = "CPU  " + (f"{bar(busy)} {busy:4.0%} of {cores} cores" if busy is not None else f"{cores} cores")
    second = "mem  "
    if use.memory_bytes:
        share = use.used_bytes / use.memory_bytes
        second += f"{bar(share)} {share:4.0%} of {size(use.memory_bytes)}"
    return [
        f"{first}  for functions: {free['cpus']:g} of {has['cpus']:g} free",
        f"{second}  for functions: {size(free['memory_bytes'])} of {size(has['memory_bytes'])} free",
    ]


def bar(share: float) -> str:
    """Return a bar of a share from 0 to 1."""
    full = round(min(max(share, 0.0), 1.0) * MOST_BAR)
    return "\u2588" * full + "\u2591" * (MOST_BAR - full)


def calls_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the rows of the calls that are not over."""
    found: list[dict[str, Any]] = (snapshot.status or {}).get("calls", [])
    return found
