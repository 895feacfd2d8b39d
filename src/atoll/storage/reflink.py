"""Reflinks: files that share blocks until one of them is written (FICLONE). XFS, btrfs, bcachefs and overlays of them.

A clone takes no space and no time that depends on its size, and is a moment in time of its source: the file system
holds off writers while it is made. Linux only; elsewhere, and where a file system cannot, the answer is no.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets

_FICLONE = 0x40049409  # <linux/fs.h>: _IOW(0x94, 9, int)
_UNABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY, errno.EISDIR}
)


_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)


def clone(source_fd: int, target_fd: int) -> bool:
    """Make an open file a clone of another, whole; False when that cannot be done here, and nothing has changed.

    Args:
        source_fd: open for reading.
        target_fd: open for writing, on the same file system; what it held is replaced.

    Raises:
        OSError: the disk or quota is full, or the device failed.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True


def can_clone(directory_fd: int) -> bool:
    """Say whether the file system of an open directory can clone, by trying it on two files that are removed again.

    Raises:
        OSError: nothing can be written there.
    """
    names = [f"probe-{secrets.token_hex(8)}" for _ in range(2)]
    opened = list[int]()
    try:
        for name in names:
            opened.append(os.open(name, _NEW, 0o600, dir_fd=directory_fd))
        os.write(opened[0], bytes(4096))
        return clone(*opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory_fd)
