"""Where on the disk new trees go: away from what has just been removed.

For one to five minutes after files were removed, ext4 steps over each of their inodes again whenever it makes a file in
the same block group (`recently_deleted` in its `ialloc.c`): ten thousand creations then take 1 to 2 s instead of 0.2 s.
And it makes files in their directory's group, and directories in their parent's. So a volume in which trees are replaced
would run into its own past. A directory with the flag TOPDIR is one whose subdirectories have nothing to do with each
other: each that is made in it starts in a group of its own, one with room, drawn from its name. So the name has to be a
new one (`VolumeRoot.make_apart`), and how long it takes to make a file there is tried before the place is used.

Linux only; file systems without the flag place things by other rules and refuse it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time

_GET_FLAGS = 0x80086601  # <linux/fs.h>: FS_IOC_GETFLAGS, on 64-bit machines
_SET_FLAGS = 0x40086602
_TOPDIR = 0x00020000  # FS_TOPDIR_FL
QUICK_SECONDS = 60e-6
"""In which a file is made where nothing is in the way."""
_FLAGS = struct.Struct("=I4x")  # declared as a long, read and written as an int


def spread(directory: int) -> bool:
    """Have each directory that is made in an open directory start in a place of its own; return whether it will."""
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


def seconds_for_a_file(parent: int, name: str) -> float:
    """Try how long it takes to make a file in a directory below this one; 0 where that cannot be tried."""
    below = f"{name}/probe"
    try:
        os.mkdir(below, 0o700, dir_fd=parent)
        try:
            before = time.perf_counter()
            os.close(os.open(below, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=parent))
            return time.perf_counter() - before
        finally:
            os.rmdir(below, dir_fd=parent)
    except OSError:
        return 0.0
