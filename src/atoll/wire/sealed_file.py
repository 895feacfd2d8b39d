"""Bytes beside a message: a file in memory that nobody can change any more, handed over as a descriptor.

Messages on control sockets are small. What is larger, and seldom needed, travels so: the receiver need not read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEALS = 0b1111
"""No further seals, no shrinking, no growing, no writing."""


def make(*pieces: Any) -> int:
    """Return the descriptor of a sealed file with these bytes; the caller owns it."""
    return make_of(pieces)


def make_of(pieces: Iterable[Any]) -> int:
    """Return the descriptor of a sealed file with the bytes of all pieces; the caller owns it."""
    import fcntl

    descriptor = os.memfd_create("atoll-sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(pieces)
        fcntl.fcntl(descriptor, _ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(descriptor: int, most: int) -> bytes:
    """Return the bytes of a sealed file; reading it never waits, whoever made it.

    Raises:
        ValueError: it is no sealed file, or has more than `most` bytes.
    """
    size = size_of(descriptor)
    if size > most:
        raise ValueError(f"a sealed file has {size} bytes, more than {most}")
    return os.pread(descriptor, size, 0)


def size_of(descriptor: int) -> int:
    """Return the size of a sealed file.

    Raises:
        ValueError: it is no sealed file.
    """
    import fcntl

    try:
        sealed = fcntl.fcntl(descriptor, _GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    if not sealed:
        raise ValueError("a descriptor is no sealed file")
    return os.fstat(descriptor).st_size


def copy(descriptor: int, target: int, start: int = 0, end: int | None = None) -> None:
    """Copy a sealed file, or a part of it, to another one, without its bytes in this process's memory.

    Raises:
        OSError: the target takes no more.
    """
    place, stop = start, size_of(descriptor) if end is None else end
    while place < stop:
        place += os.sendfile(target, descriptor, place, min(stop - place, 1 << 30))
