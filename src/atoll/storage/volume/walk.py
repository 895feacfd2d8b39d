"""Walk a directory of a volume while functions change it. Linux only.

Depth first, by a directory cursor: a directory that is swapped for a symlink meanwhile leads nowhere.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple, Self

from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.volume.locate import OPEN_DIRECTORY

MAX_PATH = 1 << 15
"""Characters of a path; a tree that is deeper is refused, since the sum of its paths grows with the square."""


class Step(NamedTuple):
    """One directory of a walk.

    Args:
        path: relative to the start; empty for the start itself.
        depth: 0 for the start.
        descriptor: the directory, open until the next step.
        names: its entries, sorted.
    """

    path: str
    depth: int
    descriptor: int
    names: list[str]


class Walk:
    """Yield each directory below an open one; the names that the consumer puts into `below` are walked next.

    Args:
        top: the open directory; it stays the caller's.

    Attributes:
        below: names in the last step's directory that are directories to walk; filled by the consumer.
    """

    def __init__(self, top: int) -> None:
        self._cursor = DirectoryCursor(top, OPEN_DIRECTORY)
        self.below: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cursor.close()

    def steps(self) -> Iterator[Step]:
        """Yield the directories, each before its entries; those that vanish meanwhile are left out.

        Raises:
            OSError: the start cannot be read, or paths become longer than `MAX_PATH`.
        """
        pending = [""]
        while pending:
            path = pending.pop()
            try:
                descriptor = self._cursor.open(path)
                names = sorted(os.listdir(descriptor))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                if not path:
                    raise
                continue
            except OSError as error:
                if not path or error.errno != errno.ELOOP:  # a symlink stands there now
                    raise
                continue
            self.below = []
            if len(path) > MAX_PATH:
                raise OSError(errno.ENAMETOOLONG, "directories are nested too deeply")
            yield Step(path, path.count("/") + bool(path), descriptor, names)
            pending.extend(f"{path}/{name}" if path else name for name in reversed(self.below))
