"""The output of a call, passed on to the caller's own streams as it comes."""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import re
import select
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from atoll import settings
from atoll.sdk.display import beside, live_line, mode, parallel
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.model.terminal import Terminal
    from atoll.sdk.display.parallel import WholeLines

TAIL_BYTES = 4096
_ASCII = frozenset({"ascii", "US-ASCII", "ANSI_X3.4-1968"})
_UNCHANGED = _ASCII | {"utf-8", "UTF-8", "utf8"}
"""Encodings whose streams take the function's bytes as they are."""
_NO_TEXT = re.compile("([\udc80-\udcff]+)")
_PIECE = 1000
"""Characters that fit into the buffer of a stream, in any encoding."""


class ReaderGone(BrokenPipeError):
    """Nobody reads what this program prints: it ends, as any other that prints (`| head`)."""

    is_meant_for_user = True

    def __reduce__(self) -> tuple[Any, ...]:
        return BrokenPipeError, self.args


ReaderGone.__module__, ReaderGone.__qualname__ = "builtins", "BrokenPipeError"  # a traceback reads as after a `print`


ReaderGone.__name__ = ReaderGone.__qualname__ = "BrokenPipeError"  # as any program shows it
ReaderGone.__module__ = "builtins"


class CallerStreams:
    """Writes to `sys.stdout` and `sys.stderr` as they are at that moment, so that notebooks and captures work.

    Args:
        call: the call's id.
        name: the function's name.
    """

    _mode = ""
    """See `mode.current`; empty until something is to be shown."""
    _lines: WholeLines | None = None
    """Set from the first output beside other calls on."""
    _built_seconds = 0.0
    _tail = b""
    _decoders: Mapping[str, Any] = MappingProxyType({})
    _broken: frozenset[str] = frozenset()

    def __init__(self, call: str = "", name: str = "") -> None:
        self.call = call
        self.name = name
        self._began = time.monotonic()
        self._handled = sys.exc_info()[1]  # the program may call in an `except`
        if call:
            parallel.active.add(self)

    def stdout(self, data: bytes) -> None:
        self._remember(data)
        self._write("stdout", data)

    def stderr(self, data: bytes) -> None:
        self._remember(data)
        self._write("stderr", data)

    def notice(self, line: str) -> None:
        """Print a line of Atoll's own on stderr, above a progress bar of the program."""
        self.tell(f"atoll: {printable(line)}")

    def tell(self, text: str, *, is_inside: bool | None = False) -> None:
        """Print a line that stays, made by the display: it holds nothing that could act on a terminal but colours."""
        if (write := beside.above()) is not None:
            with contextlib.suppress(Exception):
                write(text)
            return
        with live_line.writing, contextlib.suppress(Exception):
            live_line.line.print(text, is_inside=is_inside)

    def progress(self, line: str) -> None:
        """Show a line about a build: the live line has it as the cause of the wait, and it is printed elsewhere."""
        shown = self._display()
        if shown == mode.NONE:
            return
        from atoll.sdk.display import build_lines  # for builds alone

        self._built_seconds = build_lines.built_seconds(line) or self._built_seconds
        build_lines.tell(self.tell, line, shown)

    def waits(self, kind: str, detail: str) -> int | None:
        """Show the cause of a wait; return the milliseconds until it must be shown again, None for never."""
        if self._display() != mode.LIVE:
            return None
        now, memory_bytes = time.monotonic(), 0
        if kind == "running" and self.call and now - self._began >= live_line.SHOW_SECONDS:
            from atoll.sdk.display import usage  # for long calls

            memory_bytes = usage.usage.now(self.call)
        with beside.exclusive(), live_line.writing:
            return live_line.line.wait(id(self), kind, detail, self._began, now, memory_bytes)

    def proceeds(self) -> None:
        """End the display of the wait."""
        if self._mode == mode.LIVE:
            with beside.exclusive(), live_line.writing:
                live_line.line.leave(id(self))

    def ended(self, *, failed: bool, retry: tuple[int, int] | None = None) -> None:
        """End the display of the call; a long one or one that failed leaves a line on a terminal.

        Args:
            retry: number of the next attempt and that of the last possible one, if it is made again.
        """
        parallel.active.discard(self)
        if self._lines is not None:
            self.end_lines()
        if self._mode or failed or mode.verbose:
            self.proceeds()
            if self._display() in (mode.LIVE, mode.LINES):
                from atoll.sdk.display import call_lines  # for few calls

                seconds, error = time.monotonic() - self._began, sys.exc_info()[1]
                error = None if error is self._handled else error
                # behind the echo of Ctrl-C, and behind a function's line without an end
                is_inside = True if isinstance(error, KeyboardInterrupt) else self._is_inside()
                tell = functools.partial(self.tell, is_inside=is_inside)
                if retry is not None:
                    call_lines.tell_retry(tell, self.name, *retry, error)
                    return
                call_lines.tell(
                    tell, self.name, self.call, seconds, failed=failed, error=error, built_seconds=self._built_seconds
                )

    def _is_inside(self) -> bool | None:
        """Return whether the call has left the cursor inside a line; None where the program may have."""
        if self._lines is not None:
            return False
        if self._tail and sys.stdout.isatty():
            return not self._tail.endswith(b"\n")
        return None if self._mode == mode.LIVE else False

    def _display(self) -> str:
        if not self._mode:
            self._mode = mode.current()
        return self._mode

    def tail(self) -> str:
        """Return the last few thousand bytes of the output, as text."""
        return self._tail.decode("utf-8", "replace")

    def _remember(self, data: bytes) -> None:
        self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]

    def rests(self) -> None:
        """Take note that no thread waits for the call at the moment; `goes_on` ends that."""
        parallel.active.discard(self)

    def goes_on(self) -> None:
        """Take note that a thread waits for the call again."""
        parallel.active.add(self)

    def beside_others(self) -> bool:
        """Return whether other calls may print at the same time."""
        return len(parallel.active) > 1

    def end_lines(self) -> None:
        """Print what is kept of a line without an end, after the call's last output."""
        parallel.active.discard(self)
        if self._lines is not None:
            for name, data in self._lines.rest():
                self._print(name, data)

    def _write(self, name: str, data: bytes) -> None:
        if self._lines is None and self.call and self.beside_others():
            shown = self._display() in (mode.LIVE, mode.LINES)
            self._lines = parallel.WholeLines(self.call if shown else "", colours=settings.terminal()[1])
        self._print(name, data if self._lines is None else self._lines.take(name, data))

    def _print(self, name: str, data: bytes) -> None:
        stream = getattr(sys, name)
        if stream is None or not data:
            return
        with beside.exclusive(), live_line.writing, beside.cleared(stream):
            live_line.line.erase()
            if self._lines is not None:
                self._end_line_of_another()
            try:
                if _takes_bytes(stream):
                    _write_bytes(stream, data)
                elif _is_of_python(stream):
                    _write_encoded(stream, self._decoder(f"{name} encoded", "surrogateescape").decode(data))
                else:
                    # a notebook's stream takes text only, and a chunk may end inside a character
                    _write_text(stream, self._decoder(name, "replace").decode(data))
            except BrokenPipeError as error:
                raise ReaderGone(*error.args) from None
            except Exception as error:
                self._warn(name, error)
            live_line.line.wrote(data)
            parallel.open_line = None if data.endswith(b"\n") else (self, stream)

    def _end_line_of_another(self) -> None:
        """End the line that another call has begun, alone by then, before a line of this one; never in a pipe or file."""
        if parallel.open_line is not None and parallel.open_line[0] is not self:
            if self._display() in (mode.LIVE, mode.LINES):
                with contextlib.suppress(Exception):
                    _write_text(parallel.open_line[1], "\n")
            parallel.open_line = None

    def _decoder(self, key: str, errors: str) -> Any:
        if key not in self._decoders:
            self._decoders = {**self._decoders, key: codecs.getincrementaldecoder("utf-8")(errors)}
        return self._decoders[key]

    def _warn(self, name: str, error: Exception) -> None:
        """Say once that a stream of the program takes no output; the call goes on, and its result is not lost."""
        if name not in self._broken:
            self._broken |= {name}
            warnings.warn(
                f"`sys.{name}` does not take what the function prints: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=mode.levels(),
            )


def arrangement() -> str:
    """Return how the streams of a call keep their order between each other; see `model.specs.Call.streams`."""
    out, err = sys.stdout, sys.stderr
    if out is None or err is None:
        return ""
    if out is err:
        return "one"
    if not _is_of_python(out):
        return "" if _is_of_python(err) else "turns"  # a notebook's pair: the reader sees both
    try:
        found, other = os.fstat(out.fileno()), os.fstat(err.fileno())
    except (OSError, ValueError):  # no file behind one of them
        return ""
    return "one" if (found.st_ino, found.st_dev) == (other.st_ino, other.st_dev) and _is_of_python(err) else ""


def _is_of_python(stream: Any) -> bool:
    """Return whether a stream is Python's own: any other one's `write` may do more than pass the text on."""
    return isinstance(stream, io.TextIOWrapper) and type(stream).write is io.TextIOWrapper.write


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
    """Return whether a stream of Python's own would pass a function's bytes on as they are.

    A stream that the program has opened may translate newlines, and does not tell.
    """
    is_first = any(stream is one for one in (sys.__stdout__, sys.__stderr__))
    return _is_of_python(stream) and stream.encoding in (_UNCHANGED if is_first else _ASCII)


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


def _write_encoded(stream: io.TextIOWrapper, text: str) -> None:
    """Write text in the stream's own encoding and with its newlines; bytes that are no UTF-8 pass as they are."""
    for number, part in enumerate(_NO_TEXT.split(text)):
        if number % 2:
            _write_bytes(stream, part.encode("utf-8", "surrogateescape"))
        elif part:
            size = len(part) if _blocks(stream) else _PIECE
            for start in range(0, len(part), size):
                with contextlib.suppress(BlockingIOError):  # the text is in the buffer by then
                    _write_text(stream, part[start : start + size], flush=False)
                _until_ready(stream.flush, stream)


def _blocks(stream: io.TextIOWrapper) -> bool:
    try:
        return os.get_blocking(stream.fileno())
    except (OSError, ValueError):  # no file behind it
        return True


def _write_text(stream: Any, text: str, *, flush: bool = True) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:  # as the function's own stderr does
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
    method = getattr(stream, "flush", None) if flush else None  # `print` needs `write` alone
    if method is not None:
        method()
