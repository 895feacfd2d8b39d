"""A cursor over the directories of a tree that hostile code may be changing at the same time.

Every directory is opened relative to the one above and no symlink is followed, so a directory that is swapped for a
symlink leads nowhere. Of a path deeper than `_KEPT` only the lowest directories stay open. Those above are opened
again, from the top, when the cursor comes back to them.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

OPEN_PLACE = 0
for _flag in ("O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"):
    OPEN_PLACE |= getattr(os, _flag, 0)
_KEPT = 64
"""Directories of the current path that stay open: a process may have 1,024 descriptors."""
_CLOSED = -1


class DirectoryCursor:
    """Open one directory below a root at a time; a path costs only the components that differ from the last one.

    Args:
        root: the directory, open; the caller closes it.
        flags: flags with which the others are opened.
    """

    def __init__(self, root: int, flags: int = OPEN_PLACE) -> None:
        self._root = root
        self._flags = flags
        self._opened: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, path: str) -> int:
        """Return a directory's descriptor, open until the next call; the root's for the empty path.

        Raises:
            FileNotFoundError: nothing is there.
            NotADirectoryError: a component is no directory, or is a symlink.
        """
        parts = path.split("/") if path else []
        common = 0
        while common < min(len(parts), len(self._opened)) and self._opened[common][0] == parts[common]:
            common += 1
        self._close_below(common)
        if common and self._opened[-1][1] == _CLOSED:
            self.close()
        try:
            for name in parts[len(self._opened) :]:
                self._enter(name)
        except BaseException:
            self.close()
            raise
        return self._opened[-1][1] if self._opened else self._root

    def _enter(self, name: str) -> None:
        above = self._opened[-1][1] if self._opened else self._root
        self._opened.append((name, os.open(name, self._flags, dir_fd=above)))
        if len(self._opened) > _KEPT:
            high, descriptor = self._opened[-1 - _KEPT]
            if descriptor != _CLOSED:
                os.close(descriptor)
                self._opened[-1 - _KEPT] = (high, _CLOSED)

    def close(self) -> None:
        """Close all open directories but the root; it may be called twice."""
        self._close_below(0)

    def _close_below(self, depth: int) -> None:
        while len(self._opened) > depth:
            descriptor = self._opened.pop()[1]
            if descriptor != _CLOSED:
                os.close(descriptor)
