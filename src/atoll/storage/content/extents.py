"""Copy what is written of a file, inside the kernel where it can; holes stay holes. Linux only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from atoll import linux

_PIECE_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20
_NO_OFFLOAD = frozenset(
    {
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ETXTBSY,
    }
)


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
