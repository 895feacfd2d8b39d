"""Use of a directory by a walk: bounded in time and number of names, on descriptors, past no symlink."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from atoll.storage.files.directory_cursor import DirectoryCursor

MOST_NAMES = 5_000_000


class Measured(NamedTuple):
    """The space that a directory takes.

    Args:
        bytes: on the disk; a file with several names counts once.
        files: files, directories, and other names.
        complete: False where the walk was cut off: then there is more.
        seconds: that the walk took.
    """

    bytes: int
    files: int
    complete: bool
    seconds: float


def measure(directory: str | os.PathLike[str], seconds: float) -> Measured:
    """Add up a directory with everything below it, for at most so many seconds.

    Raises:
        OSError: it cannot be opened.
    """
    begun = time.monotonic()
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(directory, flags)
    seen: set[tuple[int, int]] = set()
    size, count, complete = os.stat(top).st_blocks * 512, 1, True
    pending = [""]
    try:
        with DirectoryCursor(top, flags) as cursor:
            while pending and complete:
                path, below = pending.pop(), []
                for name, found in _entries(cursor, path):
                    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    size += found.st_blocks * 512
                    count += 1
                    if stat.S_ISDIR(found.st_mode):
                        below.append(f"{path}/{name}" if path else name)
                    if count >= MOST_NAMES or (count % 256 == 0 and time.monotonic() - begun > seconds):
                        complete = False
                        break
                complete = complete and (not pending or time.monotonic() - begun <= seconds)
                pending += below
    finally:
        os.close(top)
    return Measured(size, count, complete, time.monotonic() - begun)


def _entries(cursor: DirectoryCursor, path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the names in a directory with their status; those that vanish meanwhile are left out."""
    with contextlib.suppress(OSError), os.scandir(cursor.open(path)) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield entry.name, entry.stat(follow_symlinks=False)
