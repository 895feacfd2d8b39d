"""What a call prints, passed on to the caller's own streams as it comes."""

from __future__ import annotations

import codecs
import contextlib
import sys
import threading
from typing import Any

TAIL_BYTES = 4096
_writing = threading.Lock()


class CallerStreams:
    """Writes to `sys.stdout` and `sys.stderr` as they are at that moment, so that notebooks and captures work."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._decoders: dict[str, Any] = {}

    def stdout(self, data: bytes) -> None:
        self._remember(data)
        self._write("stdout", data)

    def stderr(self, data: bytes) -> None:
        self._remember(data)
        self._write("stderr", data)

    def notice(self, line: str) -> None:
        """Say on stderr what the call waits for."""
        with _writing, contextlib.suppress(Exception):
            print(f"atoll: {line}", file=sys.stderr, flush=True)

    def tail(self) -> str:
        """Return the last few thousand bytes that were printed, as text."""
        return self._tail.decode("utf-8", "replace")

    def _remember(self, data: bytes) -> None:
        self._tail += data[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]

    def _write(self, name: str, data: bytes) -> None:
        stream = getattr(sys, name)
        if stream is None:
            return
        with _writing:
            buffer = getattr(stream, "buffer", None)
            if buffer is not None:
                stream.flush()
                buffer.write(data)
                buffer.flush()
            else:
                decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
                stream.write(decoder.decode(data))
                stream.flush()
