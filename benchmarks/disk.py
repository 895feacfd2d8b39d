"""`/data` inside a function beside the same directory outside: what the sandbox costs a program's files.

Measured by fio, in the function's sandbox and on the machine, in turn; by a few lines of Python where there is no fio.
Both are timed where they run, so that the call does not count. Each round has directories of its own, since files that
are removed slow down the next ones on ext4.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copiers import find_tool
from table import Comparison, Samples, say

AIM = 0.98
MOUNTED = "/tools"
SEEN = ("/usr/", "/bin/")
"""Where a function sees the machine's own programs; one from elsewhere is mounted with the directory above its own."""


@dataclass(frozen=True)
class Work:
    """Something that programs do with files.

    Args:
        kind: `write` or `read` one large file in pieces of 1 MiB, `create` files of 4 KB, or `fsync` after each 4 KB.
        count: how many MiB, files or writes.
    """

    name: str
    kind: str
    count: int
    unit: str

    def fio(self, directory: str) -> list[str]:
        """Return what fio is told; the file that is read is the one that has been written there."""
        size, large = f"--size={self.count}m", f"--filename={directory}/large"
        how = {
            "write": ["--rw=write", "--bs=1m", size, large, "--end_fsync=1"],
            "read": ["--rw=read", "--bs=1m", size, large, "--invalidate=1"],
            "create": [
                "--rw=write", "--bs=4k", "--filesize=4k", f"--nrfiles={self.count}", f"--directory={directory}",
                "--create_on_open=1", "--openfiles=1", "--file_service_type=sequential", "--fallocate=none",
            ],
            "fsync": ["--rw=write", "--bs=4k", f"--size={4 * self.count}k", f"--filename={directory}/log", "--fsync=1"],
        }  # fmt: skip
        return ["--name=work", "--ioengine=psync", "--thread", "--output-format=json", *how[self.kind]]


def fio(program: str, directory: str, arguments: list[str]) -> float:
    """Run fio; return the seconds that its job took."""
    import json
    import os
    import subprocess

    os.makedirs(directory, exist_ok=True)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, cwd=directory)
    if done.returncode != 0:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return float(max(1, job["read"]["runtime"] + job["write"]["runtime"])) / 1000


def stand_in(kind: str, directory: str, count: int) -> float:
    """Do the same in Python; return the seconds that it took."""
    import os
    import time

    os.makedirs(directory, exist_ok=True)
    piece, block = os.urandom(1 << 20), os.urandom(4096)
    large = os.path.join(directory, "large")
    if kind == "read":
        descriptor = os.open(large, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    began = time.perf_counter()
    if kind == "write":
        descriptor = os.open(large, os.O_WRONLY | os.O_CREAT, 0o600)
        for _ in range(count):
            os.write(descriptor, piece)
        os.fsync(descriptor)
        os.close(descriptor)
    elif kind == "read":
        descriptor = os.open(large, os.O_RDONLY)
        while os.read(descriptor, 1 << 20):
            pass
        os.close(descriptor)
    elif kind == "create":
        for number in range(count):
            descriptor = os.open(os.path.join(directory, f"small-{number}"), os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(descriptor, block)
            os.close(descriptor)
    else:
        descriptor = os.open(os.path.join(directory, "log"), os.O_WRONLY | os.O_CREAT, 0o600)
        for _ in range(count):
            os.write(descriptor, block)
            os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - began


def work(tiny: bool) -> list[Work]:
    """Return what is measured; what is written comes before what is read."""
    megabytes, files, writes = (8, 50, 20) if tiny else (1024, 20_000, 5000)
    return [
        Work("/data: large sequential write, fsync at its end", "write", megabytes, "MiB/s"),
        Work("/data: large sequential read", "read", megabytes, "MiB/s"),
        Work("/data: small files created", "create", files, "files/s"),
        Work("/data: 4 KB appended, each with fsync", "fsync", writes, "fsync/s"),
    ]


def measure(home: Path, rounds: int, tiny: bool) -> tuple[list[Comparison], str]:
    """Measure inside and outside in turn; return the rows, and what measured.

    Args:
        home: `ATOLL_HOME`, whose volume it is.
    """
    from atoll import isolated

    outside = home / "volumes" / "local" / "data"
    program = find_tool("fio")
    within, mounts = program, {}
    if program is not None and not program.startswith(SEEN):
        place = Path(program)
        within, mounts = f"{MOUNTED}/{place.parent.name}/{place.name}", {MOUNTED: str(place.parents[1])}
    run: Callable[..., float] = stand_in if program is None else fio
    function: Any = isolated(keep_alive=600, mounts=mounts)(run)

    def seconds(item: Work, directory: str, called: Any, tool: str | None) -> float:
        os.sync()
        if tool is None:
            return float(called(item.kind, directory, item.count))
        return float(called(tool, directory, item.fio(directory)))

    items = work(tiny)
    ours = [Samples(item.name) for item in items]
    peers = [Samples("the bare disk") for _ in items]
    ratios: list[list[float]] = [[] for _ in items]
    for number in range(rounds + 1):
        say(f"/data: round {number} of {rounds}" if number else "/data: warm-up")
        for item, here, there, ratio in zip(items, ours, peers, ratios, strict=True):
            pair = {}
            for side in ("inside", "outside") if number % 2 else ("outside", "inside"):
                if side == "inside":
                    pair[side] = seconds(item, f"/data/inside-{number}", function, within)
                else:
                    pair[side] = seconds(item, str(outside / f"outside-{number}"), run, program)
            if number or not rounds:
                here.seconds.append(pair["inside"])
                there.seconds.append(pair["outside"])
                ratio.append(pair["outside"] / pair["inside"])
        for path in (outside / f"inside-{number}", outside / f"outside-{number}"):
            (path / "large").unlink(missing_ok=True)
    rows = [
        Comparison(here, there, aim=AIM, amount=item.count, unit=item.unit)
        for item, here, there in zip(items, ours, peers, strict=True)
    ]
    pairs = ", ".join(f"{statistics.median(ratio):.3f}" for ratio in ratios)
    what = "fio" if program else "Python, since there is no fio here"
    return rows, f"/data: measured by {what}, inside and outside in turn; medians of the rounds' own ratios: {pairs}."
