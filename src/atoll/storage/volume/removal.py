"""Remove trees that nobody needs any more: later and slowly.

ext4 does not give out an inode again for half a minute after it was freed, and each time that it makes a file it looks
at those that it passes over: after 10,000 files were removed, making one takes many times as long. So a tree is only
moved out of the way when it is replaced (`old-` in staging), and removed later by `collect`, so slowly that there are
never many such inodes. Only a file's last link frees its inode: most of a replaced tree are other links to files that
live on, and those are quick to remove. Where the disk is nearly full, room is more important than pace.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Callable

from atoll.storage.crash_points import reached
from atoll.storage.sync.late_writes import Origin, note_name
from atoll.storage.volume import locate
from atoll.storage.volume.locate import VolumeRoot

OLD = re.compile(r"old-(\d+)-[0-9a-f]+")
_FULL_PER_CENT = 10


def old_name() -> str:
    """Return a new name in staging for a tree that is replaced now."""
    return f"old-{time.time_ns()}-{secrets.token_hex(4)}"


def retire(volume: VolumeRoot, name: str, origin: Origin | None = None, record: str = "") -> None:
    """Turn a leftover of `staging` that may be an old tree into one; what is not there is left alone.

    Args:
        origin: where it was, for what functions will still write into it.
        record: a file of `staging` that can stand for it where the disk has no room for another one.

    Raises:
        OSError: the note of its origin cannot be kept; the tree stays where it is.
    """
    old, staging = old_name(), volume.staging
    if origin is not None:
        try:
            origin.note(volume, old)
        except OSError:
            _link_note(volume, record, old)
        reached("noted")
    try:
        os.rename(name, old, src_dir_fd=staging, dst_dir_fd=staging)
    except FileNotFoundError:
        if origin is not None:
            os.unlink(note_name(old), dir_fd=staging)
    else:
        reached("retired")


def _link_note(volume: VolumeRoot, record: str, old: str) -> None:
    os.link(record, note_name(old), src_dir_fd=volume.staging, dst_dir_fd=volume.staging)


def nearly_full(room: os.statvfs_result) -> bool:
    """Whether a file system is so full that room is more important than pace."""
    return room.f_bavail * 100 <= room.f_blocks * _FULL_PER_CENT


class Pace:
    """How slowly files are removed.

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


class Slowly(locate.Removing):
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
