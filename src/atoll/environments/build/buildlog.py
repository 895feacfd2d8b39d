"""What a builder prints, bounded: a build that prints without end fills neither the disk nor its listeners."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

MAX_CHARACTERS = 10 << 20
MAX_LINES = 20_000


class Bounded:
    """Passes lines on until there were too many of them, which it says once.

    Args:
        to: takes the lines.
    """

    def __init__(self, to: Callable[[str], None]) -> None:
        self._to = to
        self._characters = 0
        self._lines = 0

    def __call__(self, line: str) -> None:
        if self._lines > MAX_LINES or self._characters > MAX_CHARACTERS:
            return
        self._lines += 1
        self._characters += len(line)
        if self._lines > MAX_LINES or self._characters > MAX_CHARACTERS:
            self._lines = MAX_LINES + 1
            self._to("The builder prints more than is kept; the rest is left out")
        else:
            self._to(line)


def open_log(path: Path) -> IO[str]:
    """Open a build's log anew, private to the owner."""
    return open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))
