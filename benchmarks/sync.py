"""How fast a directory gets to `/data`, beside rsync and rclone, and what the sandbox costs a function's own files.

    make bench SUITE=sync                                    all of it; about ten minutes
    make bench SUITE=sync BENCH="--only first same"          some of the rows
    make bench SUITE=sync BENCH="--million"                  also a million empty files; minutes
    make bench SUITE=sync BENCH="--directory /mnt/scratch"   on another disk

One run, one table. The copiers take turns, another one first in each round, and what the last one has left in the page
cache is on disk before the next one starts. Each copies to directories of its own, made anew for what is a first copy,
and nothing of ten thousand files is removed before the end: on ext4 that slows down what comes next. The first round is
not counted. Atoll is called as a library, durable, with a daemon that runs; rsync and rclone are durable where the row
says `--fsync` only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import disk
import trees
from copiers import (
    Atoll,
    AtollCommand,
    Copier,
    Rclone,
    Rsync,
    RsyncServer,
    RsyncToServer,
    find_tool,
    measured,
    versions,
)
from million import measure_million
from peers import stop_daemon
from snapshotting import measure_snapshots
from table import Comparison, Figure, Row, Samples, command_line, finish, say

ROWS = ("first", "same", "changed", "command", "large", "inserted", "snapshots", "disk")
MIB = 1 << 20
SETTLING_SECONDS = 0.05
"""After this a file's time stamps tell it from what it may become, for each of the copiers."""

Times = dict[str, Samples]


class Benchmark:
    """What is compared, and where.

    Args:
        place: an empty directory on the disk that is measured.
        rounds: how often everything is measured, after a round that does not count; 0 counts that one.
        tiny: as little as shows that it runs.
    """

    def __init__(self, place: Path, rounds: int, *, tiny: bool) -> None:
        self.place = place
        self.rounds = rounds
        self.tiny = tiny
        self.atoll = Atoll(place / "home")
        self.command = AtollCommand(place / "home")
        self._servers: list[RsyncServer] = []
        self.others: list[Copier] = []
        self.durable: list[Copier] = []
        """Those that wait until the disk has it; only where something is written."""
        if find_tool("rsync"):
            self._servers = [RsyncServer(place / "rsync-server"), RsyncServer(place / "rsync-prompt", prompt=True)]
            usual, prompt = self._servers
            self.others += [
                RsyncToServer(place / "rsync-server", usual),
                RsyncToServer(place / "rsync-prompt", prompt),
                Rsync(place / "rsync"),
            ]
            self.durable = [
                RsyncToServer(place / "rsync-server", usual, fsync=True),
                Rsync(place / "rsync-durable", fsync=True),
            ]
        if find_tool("rclone"):
            self.others.append(Rclone(place / "rclone"))

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def times(self, what: str, copiers: list[Copier]) -> Times:
        """Return samples for each copier, by its name; Atoll's are called after what is measured."""
        return {copier.name: Samples(what if copier is self.atoll else copier.name) for copier in copiers}

    def race(self, times: Times, copiers: list[Copier], turn: int, source: Path, target: str) -> None:
        """Let each copier copy once, another one first in each turn; round 0 does not count."""
        first = turn % len(copiers)
        for copier in copiers[first:] + copiers[:first]:
            with measured(times[copier.name], copier):
                copier.copy(source, target)
            if turn == 0 and self.rounds:
                times[copier.name].clear()

    def rows(self, times: Times, aims: dict[str, float]) -> list[Row]:
        """Compare Atoll with each of the others."""
        ours = times[self.atoll.name]
        peers = [samples for samples in times.values() if samples is not ours]
        if not peers:
            return [Comparison(ours)]
        return [Comparison(ours, samples, aim=aims.get(samples.name)) for samples in peers]

    # --- small files ------------------------------------------------------------------------------------------------

    def small(self, only: set[str]) -> list[Row]:
        """Ten thousand small files: the first time, again, with a hundred of them changed, and from the shell."""
        count = 100 if self.tiny else trees.SMALL_FILES
        source = self.place / "source" / "small"
        paths = trees.make_small_files(source, count)
        every, writing = [self.atoll, *self.others], [self.atoll, *self.others, *self.durable]
        first = self.times(f"{count:,} files of 1 to 20 KB, first", writing)
        same = self.times("the same, nothing changed", every)
        changed = self.times("the same, 1 per cent changed", writing)
        started: Times = {self.command.name: Samples("nothing changed, `atoll data sync`"), **self.times("", every)}
        for number in range(self.rounds + 1):
            say(f"small files: round {number} of {self.rounds}" if number else "small files: warm-up")
            target = f"small-{number}" if "first" in only else "small"
            self.race(first, writing, number, source, target)
            for again in range(1 if self.tiny else 3):
                if "same" in only:
                    self.race(same, every, number and 3 * number + again, source, target)
            if "command" in only:
                self.race(started, [self.command, *self.others], number, source, target)
            if "changed" in only:
                trees.change_small_files(paths, 0.01, number)
                time.sleep(SETTLING_SECONDS)
                self.race(changed, writing, number, source, target)
        rows: list[Row] = []
        if "first" in only:
            rows += self.rows(first, {"rsync to a daemon": 0.7, "rsync --fsync to a daemon": 0.25})
        if "same" in only:
            rows += self.rows(same, {"rsync to a daemon": 0.35, "rsync": 0.6})
        if "changed" in only:
            rows += self.rows(changed, {"rsync to a daemon": 1.0})
        if "command" in only:
            ours = started.pop(self.command.name)
            del started[self.atoll.name]
            rows += [Comparison(ours, samples) for samples in started.values()] or [Comparison(ours)]
        return rows

    # --- one large file ---------------------------------------------------------------------------------------------

    def large(self, only: set[str]) -> list[Row]:
        """A gigabyte: the first time, and with a megabyte inserted in its middle."""
        size = 4 * MIB if self.tiny else 1 << 30
        what = f"{size >> 20} MiB" if self.tiny else "1 GiB"
        source = self.place / "source" / "large"
        file = source / "large.bin"
        trees.make_large_file(file, size)
        copiers = [self.atoll, *self.others, *self.durable]
        first = self.times(f"{what}, first", copiers)
        inserted = self.times(f"{what}, 1 MiB inserted in its middle", copiers)
        sent: dict[str, int] = {}
        time.sleep(SETTLING_SECONDS)
        if "large" in only:
            for number in range(self.rounds + 1):
                say(f"{what}: round {number} of {self.rounds}" if number else f"{what}: warm-up")
                self.race(first, copiers, number, source, f"large-{number}")
                self.remove(f"large-{number}")
        if "inserted" in only:
            self.race(inserted, copiers, 0, source, "inserted")
            for number in range(1, max(1, self.rounds) + 1):
                say(f"{what}, 1 MiB inserted: round {number} of {self.rounds}")
                trees.insert(file, MIB, number)
                time.sleep(SETTLING_SECONDS)
                self.race(inserted, copiers, number, source, "inserted")
                for copier in self.others:
                    if isinstance(copier, Rsync):
                        sent[copier.name] = copier.sent_bytes
        rows: list[Row] = []
        if "large" in only:
            rows += self.rows(first, {"rsync to a daemon": 0.9})
        if "inserted" in only:
            rows += self.rows(inserted, {"rsync to a daemon": 0.5})
            rows += self.sent(file, sent)
        return rows

    def sent(self, file: Path, sent: dict[str, int]) -> list[Row]:
        """Insert once more, and count what travels."""
        trees.insert(file, MIB, 0)
        time.sleep(SETTLING_SECONDS)
        ours = self.atoll.copy_and_count(file.parent, "inserted") / MIB
        peers = [(name, bytes_sent / MIB) for name, bytes_sent in sent.items() if name == "rsync to a daemon"]
        return [Figure("the same, bytes sent", ours, "MiB", peers[0] if peers else None, aim=2.5)]

    def remove(self, target: str) -> None:
        """Remove copies of one large file, which costs what comes next nothing."""
        for path in [*self.place.glob(f"r*/*{target}/*"), *self.place.glob(f"home/volumes/*/data/sync/{target}/*")]:
            path.unlink()


def main() -> int:
    parser = command_line("Measure how fast directories get to /data.", 7)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--million", action="store_true", help="also a million empty files")
    parser.add_argument("--directory", help="where to work (default: TMPDIR, or /var/tmp)")
    options = parser.parse_args()
    rounds, only = 0 if options.tiny else max(1, options.rounds), set(options.only)
    where = options.directory or os.environ.get("TMPDIR") or "/var/tmp"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir=where, ignore_cleanup_errors=True) as name:
        place = Path(name)
        os.environ["ATOLL_HOME"] = str(place / "home")
        notes = [
            f"{rounds} rounds after one that is not counted, on {trees.file_system(place)}; {versions()}.",
            "CPU: of all processes that worked for it, the kernel's writing to disk not included.",
            "sync_dir and `--fsync` are durable; rsync and rclone without it leave what they wrote to the page cache.",
        ]
        benchmark = Benchmark(place, rounds, tiny=options.tiny)
        try:
            rows += _parts(benchmark, only, options, notes)
        finally:
            stop_daemon()
            benchmark.close()
    return finish(rows, notes, options)


def _parts(benchmark: Benchmark, only: set[str], options: argparse.Namespace, notes: list[str]) -> list[Row]:
    parts: list[Callable[[], list[Row]]] = []
    if only & {"first", "same", "changed", "command"}:
        parts.append(lambda: benchmark.small(only))
    if only & {"large", "inserted"}:
        parts.append(lambda: benchmark.large(only))
    if "snapshots" in only:
        rounds = benchmark.rounds
        parts.append(lambda: measure_snapshots(benchmark.atoll, benchmark.place, rounds, tiny=options.tiny))
    rows = [row for part in parts for row in part()]
    if options.million or options.tiny:
        counts = (100, 1000) if options.tiny else (100_000, 1_000_000)
        rows += measure_million(benchmark.atoll, benchmark.place, *counts)
    if "disk" in only:
        found, note = disk.measure(benchmark.place / "home", 2 * benchmark.rounds, options.tiny)
        rows += found
        notes.append(note)
    return rows


if __name__ == "__main__":
    sys.exit(main())
