"""Walk a directory of a volume while functions change it. Linux only.

Depth first, one open directory for each level, opened relative to the one above without following symlinks, so that
a directory that is swapped meanwhile leads nowhere. Of a tree deeper than `_KEPT` only the lowest levels stay open;
those above are opened again, from the top, when the walk comes back to them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple, Self

from atoll.storage.volume.locate import OPEN_DIRECTORY

MAX_PATH = 1 << 15
"""Characters of a path; a tree that is deeper is refused, since the sum of its paths grows with the square."""
_KEPT = 64


class Step(NamedTuple):
    """One directory of a walk.

    Args:
        path: relative to the start; empty for the start itself.
        depth: 0 for the start.
        descriptor: the directory, open until the next step.
        names: what it holds, sorted.
    """

    path: str
    depth: int
    descriptor: int
    names: list[str]


class Walk:
    """Give each directory below one that is open; what the consumer puts into `below` is walked next.

    Args:
        top: the open directory; it stays the caller's.

    Attributes:
        below: names in the last step's directory that are directories to walk; filled by the consumer.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._way: list[tuple[str, int]] = []
        self.below: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._back(0)

    def steps(self) -> Iterator[Step]:
        """Yield the directories, each before what it holds; what vanishes meanwhile is left out.

        Raises:
            OSError: the start cannot be read, or paths become longer than `MAX_PATH`.
        """
        pending: list[tuple[str, ...]] = [()]
        while pending:
            parts = pending.pop()
            try:
                descriptor = self._enter(parts)
                names = sorted(os.listdir(descriptor))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                if not parts:
                    raise
                continue
            except OSError as error:
                if not parts or error.errno != errno.ELOOP:  # a symlink stands there now
                    raise
                continue
            self.below = []
            path = "/".join(parts)
            if len(path) > MAX_PATH:
                raise OSError(errno.ENAMETOOLONG, "directories are nested too deeply")
            yield Step(path, len(parts), descriptor, names)
            pending.extend((*parts, name) for name in reversed(self.below))

    def _enter(self, parts: tuple[str, ...]) -> int:
        common = 0
        while common < min(len(parts), len(self._way)) and self._way[common][0] == parts[common]:
            common += 1
        self._back(common)
        if common and self._way[-1][1] < 0:
            self._back(0)
        for name in parts[len(self._way) :]:
            above = self._way[-1][1] if self._way else self._top
            self._way.append((name, os.open(name, OPEN_DIRECTORY, dir_fd=above)))
            if len(self._way) > _KEPT:
                high, old = self._way[-1 - _KEPT]
                if old >= 0:
                    os.close(old)
                    self._way[-1 - _KEPT] = (high, -1)
        return self._way[-1][1] if self._way else self._top

    def _back(self, depth: int) -> None:
        while len(self._way) > depth:
            descriptor = self._way.pop()[1]
            if descriptor >= 0:
                os.close(descriptor)
