"""One line on a terminal that says how far a transfer is, and elsewhere nothing but what must be said."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_INTERVAL_SECONDS = 0.1


class ProgressLine:
    """Count files and bytes, and show them on `stream` while it is a terminal.

    Args:
        verb: what is being done: `uploading`.
        stream: standard error by default.
    """

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        self._verb = verb
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream is not None and self._stream.isatty()
        self._files = self._bytes = 0
        self._total_files = self._total_bytes = 0
        self._started = time.monotonic()
        self._shown_at = 0.0

    def start(self, files: int, size: int) -> None:
        """Announce how much there is in all."""
        self._total_files, self._total_bytes = files, size
        self._started = time.monotonic()

    def advance(self, files: int, size: int) -> None:
        """Count what has been done."""
        self._files += files
        self._bytes += size
        now = time.monotonic()
        if self._terminal and now - self._shown_at >= _INTERVAL_SECONDS:
            self._shown_at = now
            rate = self._bytes / max(now - self._started, 1e-3)
            self._write(
                f"{self._verb} {self._files}/{self._total_files} files, "
                f"{size_text(self._bytes)}/{size_text(self._total_bytes)}, {size_text(rate)}/s"
            )

    def reach(self, files: int, size: int) -> None:
        """Count up to what has been done in all."""
        self.advance(files - self._files, size - self._bytes)

    def say(self, line: str) -> None:
        """Tell something that is not progress, on a terminal or not."""
        if self._stream is not None:
            self._stream.write(f"atoll: {line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown_at:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()


def size_text(size: float) -> str:
    """Return a size for people: `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
