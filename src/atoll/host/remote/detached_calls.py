"""Requests about detached calls to a server, with a spool on the way there or a file on the way back."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import IO, Any

from atoll import errors
from atoll.host.remote.line_client import LineClient
from atoll.host.remote.server import Server
from atoll.wire.channel import ChannelClosed


def ask(
    server: Server,
    message: dict[str, Any],
    pieces: Callable[[], Iterable[Any]] | None,
    deadline: float | None,
) -> tuple[dict[str, Any], int | None]:
    """Make a request; return the value of the answer, and the descriptor of its file, which the caller owns.

    Args:
        pieces: returns the spool.
        deadline: on the monotonic clock.

    Raises:
        TimeoutError: the answer was not here in time.
        ChannelClosed: the line was lost; the request may be made again.
        AtollError: as the server answers.
    """
    parts = [] if pieces is None else [memoryview(piece).cast("B") for piece in pieces()]
    size = sum(part.nbytes for part in parts)
    received = _Received()
    line = LineClient(server, {**message, "bytes": size} if size else message, received.take)
    try:
        line.send(parts)
        while True:
            left = None if deadline is None else 1000 * (deadline - time.monotonic())
            header = None if left is not None and left <= 0 else line.header(left)
            if header is None:
                if left is None:
                    continue
                raise TimeoutError
            match header.get("type"):
                case "answer":
                    return header["value"], received.wait(line, header.get("bytes"))
                case "failed":
                    raise errors.from_data(header.get("error") or {})
    finally:
        line.close()
        received.close()


class _Received:
    """The file of an answer, as its bytes come."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def take(self, piece: Any) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)
        self._file.write(piece)
        self._size += len(piece)

    def wait(self, line: LineClient, size: object) -> int | None:
        """Return a descriptor of the whole file; None where the answer has none."""
        if type(size) is not int:
            return None
        while self._size < size:
            if line.over:
                raise ChannelClosed("the line ended in the middle of an answer", line.reason)
            line.pump(None)
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)
        self._file.seek(0)
        return os.dup(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
