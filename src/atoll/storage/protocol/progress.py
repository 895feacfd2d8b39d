"""Progress bar of a transfer on a terminal; without a terminal, only messages are shown.

uploading [========>           ]  42%  4,210/10,000 files  41.3/98.0 MiB  118.2 MiB/s  0:01 left
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from atoll.terminal_text import printable

_INTERVAL_SECONDS = 0.1
_BAR = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SETTLED_SECONDS = 1.0
"""The age of a transfer from which its remaining time can be estimated."""


class ProgressLine:
    """Count files and bytes, and show them on `stream` while it is a terminal.

    Args:
        verb: names the work: `uploading`.
        stream: standard error by default.
        clock: seconds that only grow.
    """

    def __init__(self, verb: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._verb = verb
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream is not None and self._stream.isatty()
        self._clock = clock
        self._files = self._bytes = 0
        self._total_files = self._total_bytes = 0
        self._started = clock()
        self._shown_at: float | None = None

    def start(self, files: int, size: int) -> None:
        """Set the number of files and bytes in all."""
        self._total_files, self._total_bytes = files, size
        self._started = self._clock()

    def advance(self, files: int, size: int) -> None:
        """Count finished files and bytes."""
        self._files += files
        self._bytes += size
        if not self._terminal:
            return
        now = self._clock()
        if self._shown_at is None or now - self._shown_at >= _INTERVAL_SECONDS:
            self._shown_at = now
            columns = shutil.get_terminal_size().columns
            self._write(self._text(now)[: columns - 1])  # a line that wraps could not be erased

    def reach(self, files: int, size: int) -> None:
        """Count up to a number of files and bytes in all."""
        self.advance(files - self._files, size - self._bytes)

    def say(self, line: str) -> None:
        """Print a message, on a terminal or not."""
        if self._stream is not None:
            self.close()
            self._stream.write(f"atoll: {printable(line)}\n")
            self._stream.flush()

    def close(self) -> None:
        """Erase the bar."""
        if self._shown_at is not None:
            self._shown_at = None
            self._write("")

    def _text(self, now: float) -> str:
        seconds = now - self._started
        rate = self._bytes / max(seconds, 1e-3)
        files = f"{self._files:,}/{self._total_files:,} files" if self._total_files else f"{self._files:,} files"
        if not self._total_bytes:  # the total is unknown
            return f"{self._verb}  {files}  {size_text(self._bytes)}  {size_text(rate)}/s"
        done = min(self._bytes / self._total_bytes, 1.0)
        filled = int(done * _BAR)
        bar = ("=" * filled + ">" * (filled < _BAR)).ljust(_BAR)
        text = f"{self._verb} [{bar}] {done:4.0%}  {files}  {_of(self._bytes, self._total_bytes)}  {size_text(rate)}/s"
        if seconds >= _SETTLED_SECONDS and self._bytes and done < 1:
            text += f"  {_duration((self._total_bytes - self._bytes) / rate)} left"
        return text

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()


def size_text(size: float) -> str:
    """Return a size for people: `1.5 MiB`."""
    return _in_unit(size, _unit(size))


def _unit(size: float) -> int:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return unit


def _in_unit(size: float, unit: int) -> str:
    return f"{size:.0f} B" if not unit else f"{size / 1024**unit:.1f} {_UNITS[unit]}"


def _of(size: int, total: int) -> str:
    """Return both in the unit of the larger: `0.3/1.5 MiB`."""
    unit = _unit(total)
    return f"{_in_unit(min(size, total), unit).split(' ')[0]}/{_in_unit(total, unit)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
