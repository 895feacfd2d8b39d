"""Memory that an agent shares with one of its workers: what each of both wants to know of the other at once.

Each worker has a piece of its own, a file in memory that only the agent, a preloader above the worker and the worker
itself have open: a worker cannot write what another one reports. The file is sealed, so it cannot shrink under the
agent's hands.
"""

from __future__ import annotations

import mmap
import os

from atoll.agent.usage import SHEET_BYTES

WORDS = 5
"""Unsigned words of each worker: the epoch that it is busy for, the calls it has served, when its call must have ended
(`time.monotonic_ns`; 0 for never), the nanoseconds of its lease's grace, and 1 from when the agent asks it to end."""

BUSY, SERVED, DEADLINE, GRACE, ENDING = range(WORDS)

_WORDS_BYTES = 40
_BYTES = _WORDS_BYTES + SHEET_BYTES
_F_ADD_SEALS, _SEALS = 1033, 1 | 2 | 4  # <linux/fcntl.h>: F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


def make() -> int:
    """Return the descriptor of a new piece, all zeros.

    Raises:
        OSError: there are too many descriptors.
    """
    import fcntl  # not on every platform, on which this module is imported

    descriptor = os.memfd_create("atoll", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, _BYTES)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SharedMemory:
    """A piece as this process sees it; the descriptor stays the caller's.

    The attribute `words` has `WORDS` unsigned numbers, `sheet` the records of calls (see `agent.usage`).
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _BYTES)
        self._view = memoryview(self._map)
        self.words = self._view[: WORDS * 8].cast("Q")
        self.sheet = self._view[_WORDS_BYTES:]

    def close(self) -> None:
        """Give it back; both views are of no use any more."""
        self.words.release()
        self.sheet.release()
        self._view.release()
        self._map.close()
