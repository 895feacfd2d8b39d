"""Log entries of the clients: the output of a call, and its waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from atoll.controller.messages import BRIDGE, BUILDER, INFO, STDERR, STDOUT, USER, messages
from atoll.terminal_text import printable

MOST_LINE = 64 << 10
"""Bytes of one entry: a longer line is several."""
MOST_TAIL = 4096


def entry(text: str, source: int, level: int, at: float = 0.0) -> Any:
    """Return a log entry, by default of now."""
    return messages.Log(message=text, source=source, level=level, timestamp=moment(at or time.time()))


def moment(seconds: float) -> Any:
    """Return a moment, in seconds since the epoch, as messages have it."""
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


class Lines:
    """Makes lines of pieces of output."""

    def __init__(self) -> None:
        self._left = b""

    def take(self, data: bytes) -> list[str]:
        """Return the lines that are whole."""
        *whole, self._left = (self._left + data).split(b"\n")
        found = []
        for line in whole:
            found += [line[at : at + MOST_LINE] for at in range(0, len(line), MOST_LINE)] or [b""]
        while len(self._left) > MOST_LINE:
            found.append(self._left[:MOST_LINE])
            self._left = self._left[MOST_LINE:]
        return [line.decode("utf-8", "replace") for line in found]

    def rest(self) -> list[str]:
        """Return the last line, where it has no end."""
        left, self._left = self._left, b""
        return [left.decode("utf-8", "replace")] if left else []


class CallLogs:
    """The output of one call, for a thread that waits for it: see `host.contract.Output`.

    Args:
        tell: takes entries; it may wait, which keeps the function from printing faster than its caller reads.
    """

    def __init__(self, tell: Callable[[list[Any]], None]) -> None:
        self._tell = tell
        self._lines = {STDOUT: Lines(), STDERR: Lines()}
        self._tail = b""
        self._lock = threading.Lock()

    def stdout(self, data: bytes) -> None:
        """Take output."""
        self._print(STDOUT, data)

    def stderr(self, data: bytes) -> None:
        """Take output."""
        self._print(STDERR, data)

    def notice(self, line: str) -> None:
        """Take a line of Atoll's own."""
        self._tell([entry(printable(line), BRIDGE, INFO)])

    def progress(self, line: str) -> None:
        """Take a line about a build."""
        self._tell([entry(printable(line), BUILDER, INFO)])

    def waits(self, _kind: str, _detail: str) -> int | None:
        """Show no waits: the clients have no place for them."""
        return None

    def proceeds(self) -> None:
        """End the display of a wait."""

    def tail(self) -> str:
        """Return the end of the output."""
        return self._tail.decode("utf-8", "replace")

    def end(self) -> None:
        """Tell what has no end of a line."""
        with self._lock:
            for level, lines in self._lines.items():
                if found := lines.rest():
                    self._tell([entry(line, USER, level) for line in found])

    def _print(self, level: int, data: bytes) -> None:
        with self._lock:
            self._tail = (self._tail + data)[-MOST_TAIL:]
            if found := self._lines[level].take(data):
                self._tell([entry(line, USER, level) for line in found])
