"""The output of a call, passed on to the caller's own streams as it comes."""

from __future__ import annotations

import codecs
import contextlib
import sys
import time
from typing import Any

from atoll.sdk import live_line
from atoll.terminal_text import printable

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
        """Print a line of Atoll's own on stderr."""
        with live_line.writing, contextlib.suppress(Exception):
            live_line.line.erase()
            print(f"atoll: {printable(line)}", file=sys.stderr, flush=True)

    def progress(self, line: str) -> None:
        """Print the cause of a wait on stderr; on a terminal the live line shows it."""
        if self._live is None:
            self._live = live_line.usable()
        if not self._live:
            self.notice(line)

    def waits(self, kind: str, detail: str) -> int | None:
        """Show the cause of a wait; return the milliseconds until it must be shown again, None for never."""
        if self._live is None:
            self._live = live_line.usable()
        if not self._live:
            return None
        with live_line.writing:
            return live_line.line.wait(id(self), kind, detail, self._began, time.monotonic())

    def proceeds(self) -> None:
        """End the display of the wait."""
        if self._live:
            with live_line.writing:
                live_line.line.leave(id(self))

    def tail(self) -> str:
        """Return the last few thousand bytes of the output, as text."""
        return self._tail.decode("utf-8", "replace")

    def _remember(self, data: bytes) -> None:
        self._tail += data[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]

    def _write(self, name: str, data: bytes) -> None:
        stream = getattr(sys, name)
        if stream is None:
            return
        with live_line.writing:
            live_line.line.erase()
            live_line.line.wrote(data)
            buffer = getattr(stream, "buffer", None)
            if buffer is not None:
                stream.flush()  # text that the program has printed comes first
                buffer.write(data)
                buffer.flush()
            else:
                # a notebook's stream takes text only, and a chunk may end inside a character
                decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
                stream.write(decoder.decode(data))
                stream.flush()
