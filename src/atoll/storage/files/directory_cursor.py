"""Open the directories of a tree that hostile code may be changing: one component at a time, following no symlink."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

OPEN_PLACE = 0
for _flag in ("O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"):
    OPEN_PLACE |= getattr(os, _flag, 0)
_KEPT = 64
"""How many directories of the way are kept open; those that are deeper are walked to again."""


class Way:
    """The directories below one. Paths that share their beginning with the one before cost only what differs.

    Args:
        root: the directory, open; it is not closed here.
        flags: with which the others are opened.
    """

    def __init__(self, root: int, flags: int = OPEN_PLACE) -> None:
        self._root = root
        self._flags = flags
        self._parts: list[str] = []
        self._opened: list[int] = []
        self._deep = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def enter(self, path: str) -> int:
        """Return a directory, open until the next call.

        Raises:
            FileNotFoundError: there is nothing.
            NotADirectoryError: it, or something on the way, is not a directory (or a symlink).
        """
        parts = path.split("/") if path else []
        if parts == self._parts:
            return self._here
        self._leave_deep()
        kept = 0
        while kept < min(len(parts), len(self._opened)) and parts[kept] == self._parts[kept]:
            kept += 1
        while len(self._opened) > kept:
            os.close(self._opened.pop())
        try:
            for part in parts[kept:_KEPT]:
                self._opened.append(os.open(part, self._flags, dir_fd=self._here))
            for part in parts[_KEPT:]:
                below = os.open(part, self._flags, dir_fd=self._here)
                self._leave_deep()
                self._deep = below
        except BaseException:
            self.close()
            raise
        self._parts = parts
        return self._here

    @property
    def _here(self) -> int:
        if self._deep >= 0:
            return self._deep
        return self._opened[-1] if self._opened else self._root

    def close(self) -> None:
        """Close what is open; it may be called twice."""
        self._leave_deep()
        while self._opened:
            os.close(self._opened.pop())
        self._parts = []

    def _leave_deep(self) -> None:
        if self._deep >= 0:
            os.close(self._deep)
            self._deep = -1
