"""Copies of files inside a volume: clones (FICLONE), and copies of the written parts. Linux only.

A clone shares its source's blocks until one of the two is written (XFS, btrfs, bcachefs and overlays of them). It
takes no space and no time that depends on its size, and it shows one moment of its source, because the file system
holds off writers while it is made. Other file systems refuse. A copy is made inside the kernel where that works, and
holes stay holes.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable

from atoll import linux

_UNABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY, errno.EISDIR}
)
_PIECE_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20
_NO_OFFLOAD = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY})


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


def copy_content(source: int, target: int, size: int, copied: Callable[[int], None] | None = None) -> int:
    """Copy the first `size` bytes of one open file to another, which is empty and gets the size by its caller.

    Args:
        copied: is told how many bytes more have been copied.

    Returns:
        how much of the file was there: less than `size` where it was cut short meanwhile.

    Raises:
        OSError: it cannot be read or written.
    """
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                break
            start, end = offset, size
        while start < end:
            count = _copy_piece(source, target, start, min(end - start, _PIECE_BYTES))
            if not count:
                return start
            start += count
            if copied is not None:
                copied(count)
        offset = end
    return size


def _copy_piece(source: int, target: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, offset, offset)
    except OSError as error:
        if error.errno not in _NO_OFFLOAD:
            raise
    content = os.pread(source, min(length, _BUFFER_BYTES), offset)
    os.lseek(target, offset, os.SEEK_SET)
    linux.write_all(target, content)
    return len(content)
