"""Disk use of one build: files in the directories that it can write, and those that it holds without a name.

A file without a name is held by a descriptor, by a mapping, or by a message in a socket that nobody has received yet.
Each thread may have descriptors of its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence

from atoll.sandbox.limits.memory_watchdog import started_at

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

        To be called from another thread. Where files cannot be counted, the loss of free space counts instead.

        Args:
            pids: the build's processes, which may hold files that have no name any more.
        """
        begun = time.monotonic()
        count = _Count(self._started_ns)
        for directory in self._directories:
            count.add_tree(directory, lambda: self._stopped)
        for pid in pids:
            if not self._stopped:
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
    """A sum of sizes; `hidden` if the build may have files that cannot be counted.

    Such are those in directories that cannot be listed or whose paths are too long, those in messages that wait in
    sockets, and for a plain user those that are only mapped.
    """

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
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                self._add_descriptors(f"/proc/{pid}/task/{thread}")
            self._add_mapped(pid)
        except PermissionError:
            self.hidden = self.hidden or started_at(pid) != 0  # a process can refuse others a look at it
        except OSError:  # it has ended
            return

    def _add_descriptors(self, thread: str) -> None:
        for name in os.listdir(f"{thread}/fd"):
            with contextlib.suppress(OSError):
                found = os.stat(f"{thread}/fd/{name}")
                if stat.S_ISSOCK(found.st_mode):
                    self.hidden = self.hidden or _has_waiting_files(f"{thread}/fdinfo/{name}")
                else:
                    self._add_unnamed(found)

    def _add_mapped(self, pid: int) -> None:
        with open(f"/proc/{pid}/maps", "rb") as file:
            mapped = [line.split(maxsplit=5) for line in file if line.endswith(b" (deleted)\n")]
        for span, _, _, device, _, _ in mapped:
            try:
                self._add_unnamed(os.stat(f"/proc/{pid}/map_files/{_entry(span)}"))
            except PermissionError:  # only root may look through a mapping
                self.hidden = self.hidden or device in {
                    b"%02x:%02x" % (os.major(one), os.minor(one)) for one in self._devices
                }
            except FileNotFoundError:
                continue

    def _add_unnamed(self, found: os.stat_result) -> None:
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


def _entry(span: bytes) -> str:
    """Return the name in `map_files` of a mapping, whose addresses `maps` pads with zeros."""
    return "-".join(f"{int(address, 16):x}" for address in span.split(b"-"))


def _has_waiting_files(info: str) -> bool:
    """Return whether messages with descriptors wait in a socket, by its file in `fdinfo`; Linux 5.6 tells."""
    with open(info, "rb") as file:
        return any(line.startswith(b"scm_fds:") and int(line.split()[1]) > 0 for line in file)
