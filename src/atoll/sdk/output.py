"""What a call prints, passed on to the caller's own streams as it comes."""

from __future__ import annotations

import codecs
import contextlib
import sys
import time
from typing import Any

from atoll.sdk import terminal

TAIL_BYTES = 4096


class CallerStreams:
    """Writes to `sys.stdout` and `sys.stderr` as they are at that moment, so that notebooks and captures work."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._decoders: dict[str, Any] = {}
        self._live: bool | None = None
        self._began = time.monotonic()

    def stdout(self, data: bytes) -> None:
        self._remember(data)
        self._write("stdout", data)

    def stderr(self, data: bytes) -> None:
        self._remember(data)
        self._write("stderr", data)

    def notice(self, line: str) -> None:
        """Say something on stderr."""
        with terminal.writing, contextlib.suppress(Exception):
            terminal.line.erase()
            print(f"atoll: {line}", file=sys.stderr, flush=True)

    def progress(self, line: str) -> None:
        """Say on stderr what the call waits for; on a terminal the live line does."""
        if self._live is None:
            self._live = terminal.usable()
        if not self._live:
            self.notice(line)

    def waits(self, kind: str, detail: str) -> int | None:
        """Show what the call waits for; return after how many milliseconds to say so again, None for never."""
        if self._live is None:
            self._live = terminal.usable()
        if not self._live:
            return None
        with terminal.writing:
            return terminal.line.wait(id(self), kind, detail, self._began, time.monotonic())

    def proceeds(self) -> None:
        """Show no more that the call waits."""
        if self._live:
            with terminal.writing:
                terminal.line.leave(id(self))

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
        with terminal.writing:
            terminal.line.erase()
            terminal.line.wrote(data)
            buffer = getattr(stream, "buffer", None)
            if buffer is not None:
                stream.flush()
                buffer.write(data)
                buffer.flush()
            else:
                decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
                stream.write(decoder.decode(data))
                stream.flush()
