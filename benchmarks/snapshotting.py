"""Snapshots of ten thousand small files, and the way back, beside a copy made with `cp -a`.

How a snapshot is made depends on the file system: on ext4 it is a copy that shares unchanged files with the one before.
Each round has a directory of its own, so that a first snapshot is one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import trees
from copiers import find_tool, measured
from table import Comparison, Row, Samples, say

if TYPE_CHECKING:
    from copiers import Atoll


class _Copy:
    """`cp -a`, durable, in the volume's own directory."""

    name = "cp -a, sync -f"

    def copy(self, source: Path, target: str) -> None:
        for program, *arguments in (("cp", "-a", str(source), target), ("sync", "-f", target)):
            found = find_tool(program)
            assert found is not None
            subprocess.run([found, *arguments], check=True)

    def servers(self) -> list[int]:
        return []


def measure_snapshots(atoll: Atoll, place: Path, rounds: int, *, tiny: bool) -> list[Row]:
    """Measure a first snapshot, one of what has not changed, and a restore."""
    from atoll import Volume

    count = 100 if tiny else trees.SMALL_FILES
    source = place / "source" / "kept"
    trees.make_small_files(source, count, seed=6)
    copy, copied = _Copy(), Samples(_Copy.name)
    first, again = Samples(f"snapshot of {count:,} small files"), Samples("the same, nothing changed")
    restored = Samples("the same, restored")
    (place / "copies").mkdir()
    with Volume() as volume:
        for number in range(rounds + 1):
            say(f"snapshots: round {number} of {rounds}" if number else "snapshots: warm-up")
            atoll.copy(source, f"kept-{number}")
            path = f"/data/sync/kept-{number}"
            with measured(first, atoll):
                volume.snapshot(f"first-{number}", path)
            with measured(again, atoll):
                volume.snapshot(f"again-{number}", path)
            with measured(restored, atoll):
                volume.restore(f"again-{number}", wait=True)
            with measured(copied, copy):
                copy.copy(source, os.fspath(place / "copies" / str(number)))
            if number == 0 and rounds:
                for samples in (first, again, restored, copied):
                    samples.clear()
    return [Comparison(samples, copied) for samples in (first, again, restored)]
