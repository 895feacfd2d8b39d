"""The output of a call, passed on to the caller's own streams as it comes."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atoll import settings
from atoll.sdk import live_line
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.model.terminal import Terminal

TAIL_BYTES = 4096


class ReaderGone(BrokenPipeError):
    """Nobody reads what this program prints: it ends, as any other that prints (`| head`)."""


ReaderGone.__name__ = ReaderGone.__qualname__ = "BrokenPipeError"  # as any program shows it
ReaderGone.__module__ = "builtins"


class CallerStreams:
    """Writes to `sys.stdout` and `sys.stderr` as they are at that moment, so that notebooks and captures work."""

    def __init__(self) -> None:
        self._tail = bytearray()
        self._decoders: dict[str, Any] = {}
        self._broken: set[str] = set()
        self._live: bool | None = None
        self._built = False
        """Whether a line of a build has come."""
        self._began = time.monotonic()

    def stdout(self, data: bytes) -> None:
        self._remember(data)
        self._write("stdout", data)

    def stderr(self, data: bytes) -> None:
        self._remember(data)
        self._write("stderr", data)

    def notice(self, line: str) -> None:
        """Print a line of Atoll's own on stderr, above a progress bar of the program."""
        if (write := live_line.above()) is not None:
            with contextlib.suppress(Exception):
                write(f"atoll: {printable(line)}")
            return
        with live_line.writing, contextlib.suppress(Exception):
            live_line.line.erase()
            print(f"atoll: {printable(line)}", file=sys.stderr, flush=True)

    def progress(self, line: str) -> None:
        """Print the cause of a wait on stderr; on a terminal the live line shows it.

        Beside a progress bar of the program only begin and end of a build are printed.
        """
        if self._live is None:
            self._live = live_line.usable()
        is_step, self._built = self._built and not line.startswith("Built "), True
        if not self._live and not (is_step and live_line.above() is not None):
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
            try:
                if _takes_bytes(stream):
                    _write_bytes(stream, data)
                else:
                    # a notebook's stream takes text only, and a chunk may end inside a character
                    decoder = self._decoders.setdefault(name, codecs.getincrementaldecoder("utf-8")("replace"))
                    _write_text(stream, decoder.decode(data))
            except BrokenPipeError as error:
                raise ReaderGone(*error.args) from None
            except Exception as error:
                self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        """Say once that a stream of the program takes no output; the call goes on, and its result is not lost."""
        if name not in self._broken:
            self._broken.add(name)
            warnings.warn(
                f"`sys.{name}` does not take what the function prints: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def arrangement() -> str:
    """Return how the streams of a call keep their order between each other; see `model.specs.Call.streams`."""
    out, err = sys.stdout, sys.stderr
    if out is None or err is None:
        return ""
    if out is err:
        return "one"
    if not _takes_bytes(out):
        return "" if _takes_bytes(err) else "turns"  # a notebook's pair: the reader sees both
    try:
        found, other = os.fstat(out.fileno()), os.fstat(err.fileno())
    except (OSError, ValueError):  # no file behind one of them
        return ""
    return "one" if (found.st_ino, found.st_dev) == (other.st_ino, other.st_dev) and _takes_bytes(err) else ""


def terminal() -> Terminal | None:
    """Return the terminal of streams that are one; None where they are no terminal."""
    try:
        if not sys.stdout.isatty():
            return None
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    from atoll.model.terminal import MOST_CHARACTERS, VARIABLES, Terminal  # for programs on a terminal

    found = ((name, settings.variable(name)) for name in VARIABLES)
    return Terminal(
        descriptor, tuple((name, value) for name, value in found if value and len(value) <= MOST_CHARACTERS)
    )


def _takes_bytes(stream: Any) -> bool:
    """Return whether a stream is Python's own: any other one's `write` may do more than pass the text on."""
    return isinstance(stream, io.TextIOWrapper) and type(stream).write is io.TextIOWrapper.write


def _write_bytes(stream: io.TextIOWrapper, data: bytes) -> None:
    _until_ready(stream.flush, stream)  # text that the program has printed comes first
    while data:
        try:
            stream.buffer.write(data)
            break
        except BlockingIOError as error:
            data = data[error.characters_written :]
            _until_ready(stream.buffer.flush, stream)
    _until_ready(stream.buffer.flush, stream)


def _until_ready(flush: Callable[[], object], stream: io.TextIOWrapper) -> None:
    """Flush; wait where the terminal or pipe behind a stream does not block."""
    while True:
        try:
            flush()
        except BlockingIOError:
            select.select([], [stream.fileno()], [])
        else:
            return


def _write_text(stream: Any, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:  # as the function's own stderr does
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    flush = getattr(stream, "flush", None)  # `print` needs `write` alone
    if flush is not None:
        flush()
