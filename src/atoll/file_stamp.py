"""Stamps of files: size, times and inode, by which the call path, sync, snapshots and downloads see changes.

Any change of a file's content moves its stamp, with one exception. The kernel takes a file's times from a clock that
ticks, so two changes within one tick look like one. A stamp proves equal content only when its change time lay more
than one tick back as it was taken (`settled`); a younger one proves nothing, and the content is read again.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

FINE_CLOCK_NS = 20_000_000
"""Two ticks of the slowest kernel clock (100 Hz), by which file systems stamp changes."""
COARSE_CLOCK_NS = 2_000_000_000
"""The step of file systems that keep no fractions of a second (FAT has the widest)."""
YOUNG_SECONDS = 2.0
"""Age below which the call path trusts no stamp: the coarse step, for any file system."""

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of the last change of content and of the inode in nanoseconds, inode.

A plain tuple, because the call path takes several for each call.
"""

GONE: Stamp = (0, 0, 0, 0)


def stamp_of(found: os.stat_result) -> Stamp:
    """Return the stamp of a file that `stat` found."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def take(path: str) -> Stamp:
    """Return the stamp of the file at `path`; `GONE` when nothing can be found there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return GONE
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_young(stamp: Stamp) -> bool:
    """Tell if a stamp that is taken now may miss a change that is still to come."""
    return time.time_ns() - max(stamp[1], stamp[2]) < YOUNG_SECONDS * 1e9


def clock_step_ns(ctime_ns: int) -> int:
    """Return the step of the clock that gave a change time, as far as the time itself shows."""
    return FINE_CLOCK_NS if ctime_ns % 1_000_000_000 else COARSE_CLOCK_NS


def settled(ctime_ns: int, now_ns: int) -> bool:
    """Tell if a change after `now_ns` is certain to get another change time than `ctime_ns`."""
    return now_ns - ctime_ns > (FINE_CLOCK_NS if ctime_ns % 1_000_000_000 else COARSE_CLOCK_NS)


def source_of(function: Any) -> tuple[str, Stamp] | None:
    """Return the file of the function's module with its stamp; None for `__main__` and modules without a file.

    A stamp taken while the module is imported tells later if the file was edited since.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module is sys.modules.get("__main__"):
        return None
    return file, take(file)
