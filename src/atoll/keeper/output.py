"""The output of a detached call, in a file of bounded size; readers follow it as it grows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

TAIL_BYTES = 4096
LAST_BYTES = 64 << 10
"""The end of an output that is longer than its file may be."""
LOST = b"\natoll: the disk was full: output is missing here\n"


class KeptOutput:
    """The streams of a call that nobody waits for; see `host.contract.Output`.

    Both streams go to the file in the order in which they come. Of an output that is too long the file has the
    beginning, a line, and the end.

    Args:
        path: the file, which an earlier attempt may have begun.
        most_bytes: of the file.
        tell: takes `building` or `waiting` with a line about it, or empty texts for the end of that.
    """

    def __init__(self, path: Path, most_bytes: int, tell: Callable[[str, str], None]) -> None:
        self._path = path
        self._most_last = min(LAST_BYTES, most_bytes // 2)
        self._most_first = most_bytes - self._most_last
        self._tell = tell
        self._descriptor = -1
        self._size = 0
        self._beyond = 0
        """Bytes of the output that came when the file had its beginning; `_last` has the end of them."""
        self._last = bytearray()
        self._tail = bytearray()

    def stdout(self, data: bytes) -> None:
        self._tail += data[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]
        self._write(data)

    def stderr(self, data: bytes) -> None:
        self.stdout(data)

    def notice(self, line: str) -> None:
        """Drop a line of Atoll's own: the output is the function's."""

    def progress(self, line: str) -> None:
        from atoll.model.build_progress import shown  # for builds alone

        self._tell("building", shown(line))

    def waits(self, kind: str, detail: str) -> int | None:
        if kind != "waiting":
            return None
        self._tell("waiting", detail)
        return 1000

    def proceeds(self) -> None:
        self._tell("", "")

    def tail(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def close(self) -> int:
        """Write the end of the output where its middle was left out; return the file's size."""
        left_out = self._beyond - len(self._last)
        mark = f"\natoll: {left_out} bytes of output are left out here\n".encode() if left_out > 0 else b""
        if self._beyond and self._append(mark + self._last) < len(mark) + len(self._last):
            self._mark_lost()
        if self._descriptor < 0:
            return 0
        with contextlib.suppress(OSError):
            self._size = os.fstat(self._descriptor).st_size
        os.close(self._descriptor)
        self._descriptor = -1
        return self._size

    def _write(self, data: bytes) -> None:
        written = 0 if self._beyond else self._append(data, self._most_first)
        if written < len(data):
            self._beyond += len(data) - written
            self._last += data[written:]
            del self._last[: -self._most_last]

    def _append(self, data: bytes | bytearray, most: int | None = None) -> int:
        """Write data until the file has its most bytes, or the disk is full; return how much. The call goes on."""
        written = 0
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
                self._size = os.fstat(self._descriptor).st_size
            room = len(data) if most is None else min(max(most - self._size, 0), len(data))
            while written < room:
                count = os.write(self._descriptor, memoryview(data)[written:room])
                written += count
                self._size += count
        return written

    def _mark_lost(self) -> None:
        """Say that output is missing, in place of the last bytes: the disk takes no more of them."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, LOST, max(os.fstat(descriptor).st_size - len(LOST), 0))
            finally:
                os.close(descriptor)
