"""Remove trees that are no longer used: later and slowly.

ext4 does not give out an inode again for half a minute after it was freed, and each time that it makes a file it looks
at those that it passes over: after 10,000 files were removed, making one takes many times as long. So a tree is only
moved out of the way when it is replaced (`old-` in staging), and removed later by `collect`, so slowly that there are
never many such inodes. Only a file's last link frees its inode: most of a replaced tree are other links to files that
live on, and those are quick to remove. On a nearly full disk, free space matters more than pace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable

from atoll.storage.crash_points import reached
from atoll.storage.volume.locate import OPEN_DIRECTORY, make_writable
from atoll.storage.volume.staging import new_name

_FULL_PER_CENT = 10
_MAX_DEPTH = 100


class Removing:
    """The removals of `remove_tree`, one name each; a subclass may pause between them."""

    def file(self, parent: int, name: str) -> bool:
        """Remove a file; return False where it is a directory, which is left.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            return False
        return True

    def directory(self, parent: int, name: str) -> None:
        """Remove an empty directory.

        Raises:
            OSError: it cannot be removed.
        """
        os.rmdir(name, dir_fd=parent)


def remove_tree(parent: int, name: str, removing: Removing | None = None) -> None:
    """Remove a file or a whole directory, of any modes and depth; a name that is gone already is no error.

    Args:
        parent: private to peers (`staging`): directories that are nested too deeply are moved up into it.
        removing: takes away each name; as fast as it goes by default.

    Raises:
        OSError: something cannot be removed.
    """
    pending = [name]
    while pending:
        _remove(parent, pending.pop(), parent, pending, 0, removing or Removing())


def _remove(parent: int, name: str, top: int, pending: list[str], depth: int, removing: Removing) -> None:
    with contextlib.suppress(FileNotFoundError):  # another peer may remove the same tree
        if removing.file(parent, name):
            return
        make_writable(parent, name)
        if depth >= _MAX_DEPTH:
            moved = new_name("trash")
            os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=top)
            pending.append(moved)
            return
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            for below in os.listdir(descriptor):
                _remove(descriptor, below, top, pending, depth + 1, removing)
        finally:
            os.close(descriptor)
        removing.directory(parent, name)


def nearly_full(room: os.statvfs_result) -> bool:
    """Return whether a file system is so full that free space matters more than pace."""
    return room.f_bavail * 100 <= room.f_blocks * _FULL_PER_CENT


class Pace:
    """The pace of removals.

    Args:
        portion: how many inodes are freed between two pauses; 0 takes none. The default frees 20 a second, so that
            there are never more than a thousand that ext4 would pass over.
        pause_seconds: how long a pause is.
        links: how many links, which free nothing, count as one inode.
        wait: pauses; for tests.
    """

    def __init__(
        self,
        portion: int = 40,
        pause_seconds: float = 2.0,
        links: int = 50,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._portion = portion * links
        self._pause_seconds = pause_seconds
        self._links = links
        self._wait = wait
        self._done = 0

    def freed(self, parent: int, *, last: bool) -> None:
        """Count a name that was removed from `parent`, the last one of its inode or not, and pause when it is time."""
        self._done += self._links if last else 1
        if self._portion and self._done >= self._portion:
            self._done = 0
            if not nearly_full(os.fstatvfs(parent)):
                self._wait(self._pause_seconds)


class Slowly(Removing):
    """Removes at a pace."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def file(self, parent: int, name: str) -> bool:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            return False
        os.unlink(name, dir_fd=parent)
        reached("unlinked")
        self._pace.freed(parent, last=found.st_nlink == 1)
        return True

    def directory(self, parent: int, name: str) -> None:
        super().directory(parent, name)
        self._pace.freed(parent, last=True)
