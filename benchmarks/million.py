"""A million empty files: whether the time grows with their number and no faster, and what memory both sides need.

The client is a process of its own for each sync, so that its peak is that of one sync. Linear means that ten times the
files take ten times the time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trees
from table import Comparison, Figure, Row, Samples, say

if TYPE_CHECKING:
    from copiers import Atoll

PROGRAM = """
import json, sys, time
from atoll import sync_dir
began = time.perf_counter()
sync_dir(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - began
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps([seconds, int(peak) / 1024]))
"""
LOOK_SECONDS = 0.1


class PeerMemory:
    """Looks again and again for the largest resident set that a storage peer has had, of those that come from now on."""

    def __init__(self, atoll: Atoll) -> None:
        self.peak_mib = 0.0
        self._atoll = atoll
        self._others = set(atoll.storage_peers())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            for pid in self._atoll.storage_peers():
                if pid not in self._others:
                    self._look(pid)

    def _look(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
            self.peak_mib = max([self.peak_mib, *peaks])


def measure_million(atoll: Atoll, place: Path, fewer: int, more: int) -> list[Row]:
    """Sync two numbers of empty files, a first time and again, from fresh processes."""
    times: dict[tuple[int, str], Samples] = {}
    memory: dict[tuple[int, str], tuple[float, float]] = {}
    for count in (fewer, more):
        say(f"making {count:,} empty files")
        source = place / "source" / f"empty-{count}"
        trees.make_empty_files(source, count)
        for what in ("first", "nothing changed"):
            say(f"{count:,} empty files: {what}")
            os.sync()
            samples = times[count, what] = Samples(f"{count:,} empty files, {what}")
            with PeerMemory(atoll) as peer:
                command = [sys.executable, "-c", PROGRAM, str(source), f"empty-{count}"]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, peak = json.loads(said)
            samples.seconds.append(seconds)
            memory[count, what] = peak, peer.peak_mib
    rows: list[Row] = [Comparison(times[more, what], times[fewer, what]) for what in ("first", "nothing changed")]
    for what in ("first", "nothing changed"):
        for side, name in enumerate(("client", "peer")):
            beside = (f"{fewer:,}", memory[fewer, what][side])
            rows.append(Figure(f"… {what}, peak memory of the {name}", memory[more, what][side], "MiB", beside))
    return rows
