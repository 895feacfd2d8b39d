"""Reflinks: files that share blocks until one of them is written (FICLONE). XFS, btrfs, bcachefs and overlays of them.

A clone takes no space and no time that depends on its size, and is a moment in time of its source: the file system
holds off writers while it is made. Linux only; elsewhere, and where a file system cannot, the answer is no.
"""

from __future__ import annotations

import errno
import os
import secrets

from atoll import linux

_UNABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY, errno.EISDIR}
)


def clone(source_fd: int, target_fd: int) -> bool:
    """Make an open file a clone of another, whole; False when that cannot be done here, and nothing has changed.

    Args:
        source_fd: open for reading.
        target_fd: open for writing, on the same file system; what it held is replaced.

    Raises:
        OSError: the disk or quota is full, or the device failed.
    """
    try:
        linux.clone(source_fd, target_fd)
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True


def can_clone(directory_fd: int) -> bool:
    """Say whether the file system of an open directory can clone, by trying it on two files without names.

    Raises:
        OSError: nothing can be written there.
    """
    opened = list[int]()
    try:
        for _ in range(2):
            opened.append(_nameless(directory_fd))
        os.write(opened[0], bytes(4096))
        return clone(*opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _nameless(directory_fd: int) -> int:
    """Make a file that is gone when it is closed."""
    try:
        return os.open(".", getattr(os, "O_TMPFILE", -1) | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    name = f"trash-{secrets.token_hex(8)}"  # what is called so in staging, the next peer removes
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    os.unlink(name, dir_fd=directory_fd)
    return descriptor
