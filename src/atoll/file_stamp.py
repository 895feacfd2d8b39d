"""Whether a file is as it was: its stamp, which any change of its content moves.

The kernel takes a file's times from a clock that ticks, so two changes within a tick look like one: a stamp that is
younger than `YOUNG_SECONDS` when it is taken does not prove anything, and the content is read again. The margin
covers file systems that keep whole seconds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

YOUNG_SECONDS = 2.0

Stamp = tuple[int, int, int, int]
"""Times of the last change of content and of the inode in nanoseconds, size in bytes, inode."""

GONE: Stamp = (0, 0, 0, 0)


def stamp_of(found: os.stat_result) -> Stamp:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def take(path: str) -> Stamp:
    """Return the stamp of what is at `path`; `GONE` when nothing can be found there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return GONE
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def is_young(stamp: Stamp) -> bool:
    """Whether a stamp that is taken now may miss a change that is still to come."""
    return time.time_ns() - max(stamp[0], stamp[1]) < YOUNG_SECONDS * 1e9


def source_of(function: Any) -> tuple[str, Stamp] | None:
    """Return the file of the function's module with its stamp; None for `__main__` and what has no file.

    Taken while the module is imported, it tells later whether the file was edited since.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or module is sys.modules.get("__main__"):
        return None
    return file, take(file)
