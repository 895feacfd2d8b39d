"""Bytes beside a message: a file in memory that nobody can change any more, handed over as a descriptor.

Messages on control sockets are small. What is larger, and seldom needed, travels so: the receiver need not read it.
"""

from __future__ import annotations

import os

_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEALS = 0b1111
"""No further seals, no shrinking, no growing, no writing."""


def make(data: bytes) -> int:
    """Return the descriptor of a sealed file with these bytes; the caller owns it."""
    import fcntl

    descriptor = os.memfd_create("atoll-sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", buffering=0, closefd=False) as file:
            file.write(data)
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
    import fcntl

    try:
        sealed = fcntl.fcntl(descriptor, _GET_SEALS) & _SEALS == _SEALS
    except OSError:
        sealed = False
    if not sealed:
        raise ValueError("a descriptor is no sealed file")
    size = os.fstat(descriptor).st_size
    if size > most:
        raise ValueError(f"a sealed file has {size} bytes, more than {most}")
    return os.pread(descriptor, size, 0)
