"""The answer of a call until it is committed: frames, of a long generator in a file rather than in the keeper's memory."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from atoll import errors
from atoll.model.spool import CRC
from atoll.wire.frames import Message, encode

MEMORY_BYTES = 16 << 20
"""Frames of items that stay in memory."""


class Answer:
    """The frames of a call's answer; `close` gives what they take back.

    Args:
        directory: for a file that has no name.
        most_bytes: of all frames of a generator.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self._directory = directory
        self._most = most_bytes
        self._pieces: list[Any] = []
        self._file: Any = None
        self._crc = 0
        self.size_bytes = 0

    def add(self, message: Message) -> None:
        """Take a message.

        Raises:
            DetachedFull: there is no room for another one.
            DiskFull: the disk does not take it.
        """
        pieces = list(encode(message.header, message.buffers))
        size = sum(memoryview(piece).nbytes for piece in pieces)
        if self.size_bytes and self.size_bytes + size > self._most:
            raise errors.DetachedFull(
                f"the generator gave more than {self._most / 1e6:,.1f} MB, the most that one detached call may have",
                hint="write large values below `/data`, or raise `detached.call_bytes` in the settings",
            )
        self.size_bytes += size
        for piece in pieces:
            self._crc = zlib.crc32(piece, self._crc)
        self._pieces += pieces
        if message.type == "yield" and (self._file is not None or self.size_bytes > MEMORY_BYTES):
            self._spill()

    def _spill(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)
            self._file.writelines(self._pieces)
        except OSError as error:
            raise errors.DiskFull(
                f"the items of the generator do not fit below `{self._directory}`: {error}", hint="free some space"
            ) from error
        self._pieces.clear()

    def fill(self, file: BinaryIO) -> None:
        """Write all frames, and their CRC."""
        if self._file is not None:
            self._file.seek(0)
            shutil.copyfileobj(self._file, file, 1 << 20)
            self._file.seek(0, 2)
        file.writelines(self._pieces)
        file.write(CRC.pack(self._crc))

    def close(self) -> None:
        """Forget the frames."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
