"""The open directories of one volume, and the placement of new trees on its disk. Linux only.

For minutes after files were removed, ext4 steps over each of their inodes again whenever it makes a file in the same block
group (`recently_deleted` in its `ialloc.c`): a sync of 10,000 new files then takes 3 s instead of 1 s. Files are made in
the group of their directory, and directories in that of their parent; so a volume in which trees are replaced would run
into its own past. The flag TOPDIR lets each subdirectory of `staging` start in a group with room, drawn from its name
(docs/decisions/0019). File systems without the flag refuse it, and have other rules.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Self

from atoll.errors import StateUnusable
from atoll.storage.volume.locate import OPEN_DIRECTORY, move
from atoll.storage.volume.removal import remove_tree
from atoll.storage.volume.staging import RESTORED, new_name

_GET_FLAGS = 0x80086601  # <linux/fs.h>: FS_IOC_GETFLAGS, on 64-bit machines
_SET_FLAGS = 0x40086602
_TOPDIR = 0x00020000  # FS_TOPDIR_FL
_FLAGS = struct.Struct("=I4x")  # declared as a long, read and written as an int
_PARTS = {"data": 0o755, "staging": 0o700, "staging/locks": 0o700, "snapshots": 0o700, "snapshots/trees": 0o700}


class VolumeRoot:
    """A volume's directories, open.

    Args:
        path: the volume's directory; `data` and `staging` are made where they are missing.

    Raises:
        StateUnusable: they cannot be made or opened, or are on different file systems.
    """

    def __init__(self, path: str) -> None:
        try:
            for name, mode in _PARTS.items():
                if not os.path.isdir(f"{path}/{name}"):  # over its quota JuiceFS makes nothing, not even this
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(f"{path}/{name}", mode)
            self.data = os.open(f"{path}/data", OPEN_DIRECTORY)
            self.staging = os.open(f"{path}/staging", OPEN_DIRECTORY)
            self.locks = os.open(f"{path}/staging/locks", OPEN_DIRECTORY)
            self.snapshots = os.open(f"{path}/snapshots/trees", OPEN_DIRECTORY)
        except OSError as error:
            raise StateUnusable(
                f"the volume cannot be opened: {error.strerror}",
                hint="check that its disk is mounted writable and that the volume belongs to its user",
            ) from error
        self._mark = self._restored()
        if os.fstat(self.data).st_dev != os.fstat(self.staging).st_dev:
            raise StateUnusable("`data` and `staging` of the volume are on different file systems")
        start_in_own_block_group(self.staging)

    def close(self) -> None:
        """Close the directories."""
        for descriptor in (self.data, self.staging, self.locks, self.snapshots):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> bool:
        """Have `data` be the directory that has this name now: a restore may replace it.

        Returns:
            whether anything of the volume has been restored since the last time.
        """
        mark, self._mark = self._mark, self._restored()
        mine, found = os.fstat(self.data), os.stat("../data", dir_fd=self.staging, follow_symlinks=False)
        if (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino):
            return mark != self._mark
        current = os.open("../data", OPEN_DIRECTORY, dir_fd=self.staging)
        try:
            os.dup2(current, self.data, inheritable=False)
        finally:
            os.close(current)
        return True

    def _restored(self) -> int:
        try:
            return os.stat(RESTORED, dir_fd=self.staging, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            return 0

    def mark_restored(self) -> None:
        """Tell all peers that a snapshot has replaced a part of the volume."""
        descriptor = os.open(
            RESTORED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging
        )
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    def make_stage(self, name: str) -> None:
        """Make a directory of `staging` whose files start in a block group of their own.

        Raises:
            OSError: it cannot be made.
        """
        # ext4 draws the group from the name at its making: one that is used again leads to the files removed last.
        drawn = new_name("new")
        os.mkdir(drawn, 0o700, dir_fd=self.staging)
        os.rename(drawn, name, src_dir_fd=self.staging, dst_dir_fd=self.staging)

    def discard(self, parent: int, name: str) -> None:
        """Move the entry `name` to staging in one step, and remove it; a missing one is no error."""
        if (trash := self.take(parent, name)) is not None:
            remove_tree(self.staging, trash)

    def take(self, parent: int, name: str) -> str | None:
        """Move the entry `name` to staging in one step; return its name there, None for a missing one."""
        trash = new_name("trash")
        try:
            move(parent, name, self.staging, trash)
        except FileNotFoundError:
            return None
        return trash


def start_in_own_block_group(directory: int) -> bool:
    """Have each subdirectory of an open directory start in a block group of its own; return whether it will."""
    try:
        import fcntl
    except ImportError:
        return False
    with contextlib.suppress(OSError):
        (flags,) = _FLAGS.unpack(fcntl.ioctl(directory, _GET_FLAGS, bytes(_FLAGS.size)))
        if not flags & _TOPDIR:
            fcntl.ioctl(directory, _SET_FLAGS, _FLAGS.pack(flags | _TOPDIR))
        return True
    return False
