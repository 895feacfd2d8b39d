"""Disk use of one build: files in the directories that it can write, and those that it holds open without a name."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence

LOOK_SECONDS = 5.0
"""Seconds after which files are counted even if the disk's free space tells nothing."""

REST_FACTOR = 20.0
"""How many times longer the pauses are than the counting."""

NAME_BYTES = 512
"""The least that a name costs: inodes and directories take room besides contents."""

FREE_SHARE = 0.75
"""The default limit: the share of the disk's free space when the build starts."""


class BuildDisk:
    """Watches over the disk use of one build.

    Counting files is slow, so the free space of the disk is looked at first.

    Args:
        directories: those that the build can write; at least one.
        limit_bytes: the most that it may use; 0 for `FREE_SHARE`.
    """

    def __init__(self, directories: Sequence[str], limit_bytes: int) -> None:
        self._directories = directories
        self._free = self._free_bytes()
        self.limit_bytes = limit_bytes or int(self._free * FREE_SHARE)
        self._started_ns = time.time_ns()
        self._next = time.monotonic() + LOOK_SECONDS
        self._stopped = False

    def _free_bytes(self) -> int:
        found = os.statvfs(self._directories[0])
        return found.f_bavail * found.f_frsize

    def is_due(self) -> bool:
        """Return whether `used_bytes` should be asked: the free space has shrunk much, or it was long ago."""
        now = time.monotonic()
        shrunk = self._free - self._free_bytes() > self.limit_bytes // 2 and now >= self._next - LOOK_SECONDS
        return shrunk or now >= self._next

    def used_bytes(self, pids: Iterable[int]) -> int:
        """Return the bytes of files and directories that are new or changed since the start, and of their names.

        To be called from another thread. Where a directory cannot be listed, the loss of free space counts instead.

        Args:
            pids: the build's processes, which may hold files that have no name any more.
        """
        begun = time.monotonic()
        count = _Count(self._started_ns)
        for directory in self._directories:
            count.add_tree(directory, lambda: self._stopped)
        for pid in pids:
            count.add_nameless(pid)
        if count.hidden:
            count.total = max(count.total, self._free - self._free_bytes())
        now = time.monotonic()
        self._next = now + max(LOOK_SECONDS, REST_FACTOR * (now - begun))
        return count.total

    def stop(self) -> None:
        """Have a count that another thread is at return soon."""
        self._stopped = True


class _Count:
    """A sum of sizes; `hidden` if the build has directories that cannot be listed, or whose paths are too long."""

    def __init__(self, started_ns: int) -> None:
        self.total = 0
        self.hidden = False
        self._started_ns = started_ns
        self._devices: set[int] = set()
        self._linked: set[tuple[int, int]] = set()  # of inodes with several names: a build may have millions of others

    def add_tree(self, directory: str, stopped: Callable[[], bool]) -> None:
        waiting = [directory]
        while waiting and not stopped():
            try:
                self._add_directory(waiting)
            except FileNotFoundError:
                continue
            except OSError:
                self.hidden = True

    def _add_directory(self, waiting: list[str]) -> None:
        path = waiting.pop()
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._devices.add(os.fstat(opened).st_dev)
            with os.scandir(opened) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        self._add(found)
                        if stat.S_ISDIR(found.st_mode):
                            waiting.append(f"{path}/{entry.name}")
        finally:
            os.close(opened)

    def add_nameless(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    if found.st_nlink == 0 and found.st_dev in self._devices and self._is_first(found):
                        self.total += found.st_blocks * 512

    def _add(self, found: os.stat_result) -> None:
        if found.st_ctime_ns >= self._started_ns:
            several = found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode)
            first = not several or self._is_first(found)
            self.total += max(found.st_blocks * 512, NAME_BYTES) if first else NAME_BYTES

    def _is_first(self, found: os.stat_result) -> bool:
        inode = found.st_dev, found.st_ino
        known = inode in self._linked
        self._linked.add(inode)
        return not known
