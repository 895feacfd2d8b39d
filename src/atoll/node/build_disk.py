"""Disk use of one build: files in the directories that it can write, and those that it holds open without a name."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Sequence

LOOK_SECONDS = 5.0
"""Seconds after which files are counted even if the disk's free space tells nothing."""

REST_FACTOR = 20.0
"""How many times longer the pauses are than the counting."""

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

    def _free_bytes(self) -> int:
        found = os.statvfs(self._directories[0])
        return found.f_bavail * found.f_frsize

    def is_due(self) -> bool:
        """Return whether `used_bytes` should be asked: the free space has shrunk much, or it was long ago."""
        now = time.monotonic()
        shrunk = self._free - self._free_bytes() > self.limit_bytes // 2 and now >= self._next - LOOK_SECONDS
        return shrunk or now >= self._next

    def used_bytes(self, pids: Iterable[int]) -> int:
        """Return the bytes of files that are new or changed since the start; to be called from another thread.

        Args:
            pids: the build's processes, which may hold files that have no name any more.
        """
        begun = time.monotonic()
        files: dict[tuple[int, int], int] = {}
        devices = set()
        for directory in self._directories:
            with contextlib.suppress(OSError):
                devices.add(os.stat(directory).st_dev)
            self._count(directory, files)
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        found = os.stat(f"/proc/{pid}/fd/{name}")
                        if found.st_nlink == 0 and found.st_dev in devices:
                            files[found.st_dev, found.st_ino] = found.st_blocks * 512
        now = time.monotonic()
        self._next = now + max(LOOK_SECONDS, REST_FACTOR * (now - begun))
        return sum(files.values())

    def _count(self, directory: str, files: dict[tuple[int, int], int]) -> None:
        waiting = [directory]
        while waiting:
            with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(found.st_mode):
                            waiting.append(entry.path)
                        elif found.st_ctime_ns >= self._started_ns:
                            files[found.st_dev, found.st_ino] = found.st_blocks * 512
