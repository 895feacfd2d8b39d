"""The live line: one line at the end of a terminal that says why the calls of this process wait; drawn by `output`.

Theory of operation. There is no thread: a waiting caller wakes up now and then, and draws. All calls share the one
line. At rest it is drawn behind the cursor, which returns to its place, with the terminal's line wrapping off: erasing
to the end of the screen removes it, whatever the program has printed before. Where the cursor's line is known to have
no end yet (a function's prompt or bar, a bar of the program), the line is drawn in the row below it; `ESC D` makes
that row without a change of the column. The line goes before anything is printed, by a function or by the program
itself, and comes back when there is quiet, or at once beside a bar. After text that moves the cursor elsewhere nothing
is drawn until a line has ended.

Nothing of this happens where `mode.current` is not `LIVE`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atoll import settings
from atoll.sdk.display import beside, parallel

if TYPE_CHECKING:
    from atoll.sdk.display.words import Waiting

SHOW_SECONDS = 0.9
"""The wait of a call before the line appears."""
QUIET_SECONDS = 0.15
"""The time without output before the line comes back."""
AGAIN_SECONDS = 0.1
"""The time after which the line comes back beside a bar that prints again and again."""
TICK_MILLISECONDS = 500
SOON_MILLISECONDS = 150

_MOVES = re.compile(r"\x1b(?!\[[0-9;]*[mK])|[\x0b\x0c\x84\x85\x8d\x9b]")
"""Control that takes the cursor off its line, or may: all but colours and the erasure of a line."""
_PLAIN = str.maketrans({"✓": "+", "✗": "x", "·": "-", "…": "~", "▕": "|", "▏": "|", "█": "#"})
"""For terminals that do not know these characters."""

writing = threading.RLock()
"""Held during each write to the caller's streams."""

Bar = Callable[[float, int], str]
"""Gives the text of a bar at a time, for a number of columns; empty where it is not to be seen."""


class LiveLine:
    """The one line of this process; its methods are called with `writing` held, and the lock of `beside` before it."""

    def __init__(self) -> None:
        self._calls: dict[int, Waiting] = {}
        self._bars: dict[int, Bar] = {}
        self._drawn = ""
        self._drawn_at = 0.0
        self._below = 0
        """Rows below the cursor's, in which the line is."""
        self._beside_bars = False
        self._printed_at = 0.0
        self._inside_line = self._lost = False
        self._guarded: list[Any] = []

    def wait(self, key: int, kind: str, detail: str, began: float, now: float, memory_bytes: int = 0) -> int:
        """Show that a call, which began at `began`, waits; return the milliseconds until it must be shown again."""
        known = self._calls.get(key)
        since = began if known is None else known.since if known.kind == kind else now
        from atoll.sdk.display.words import Waiting  # for calls that take long

        self._calls[key] = Waiting(kind, detail, since, memory_bytes)
        if now - began < SHOW_SECONDS:
            return int((SHOW_SECONDS - now + began) * 1000) + 1
        return self.show(now)

    def show(self, now: float) -> int:
        """Draw the line where there is quiet; return the milliseconds until it must be shown again."""
        beside_bar = self._inside_line or beside.rows() > 0
        if now - (self._drawn_at if beside_bar else self._printed_at) < (
            AGAIN_SECONDS if beside_bar else QUIET_SECONDS
        ):
            return SOON_MILLISECONDS
        self._draw(now)
        return TICK_MILLISECONDS

    def leave(self, key: int) -> None:
        """Remove a call: it has been answered, or its caller has been interrupted."""
        if self._calls.pop(key, None) is not None:
            self._left()

    def set_bar(self, key: int, bar: Bar | None) -> None:
        """Show a bar, which takes the place of the line about running calls, or remove it."""
        if bar is not None:
            self._bars[key] = bar
        elif self._bars.pop(key, None) is not None:
            self._left()

    def _left(self) -> None:
        if not self._calls and not self._bars:
            self.erase()
            self._unguard()
            self._inside_line = self._lost = False
        elif self._drawn:
            self._draw(time.monotonic())

    def wrote(self, data: bytes) -> None:
        """Note the output of a function."""
        if self._calls or self._bars:
            self._note(data.decode("utf-8", "replace") if b"\x1b" in data or not data.endswith(b"\n") else "\n")

    def _note(self, text: str) -> None:
        self._inside_line = not text.endswith("\n")
        if _MOVES.search(text):
            self._lost = True
        elif not self._inside_line:
            self._lost = False
        self._printed_at = time.monotonic()

    def print(self, line: str, *, is_inside: bool | None = False) -> None:
        """Print a line that stays, above the live one.

        Args:
            is_inside: whether the cursor is in a line that has no end; None where that is not known.
        """
        self.erase()
        if is_inside or (self._inside_line and not self._lost):
            line = f"\n{line}"
        elif is_inside is None and (columns := _columns(sys.stderr)):
            # A full row of spaces wraps from any column but the first: then the cursor is in the next row.
            line = f"{' ' * columns}\r\x1b[K{line}"
        self._put(f"{line}\n", sys.stderr)
        self._inside_line = False

    def _draw(self, now: float) -> None:
        stream = beside.own(sys.stderr)
        columns = _columns(stream)
        if not columns:
            return
        line, is_bar = self._text(now, columns)
        rows = beside.rows()
        below = rows or int(self._inside_line or beside.has_live())
        if not line or self._lost:
            self.erase()
            return
        self._drawn_at = now
        if line == self._drawn and below == self._below:
            return
        dim, plain = ("\x1b[2m", "\x1b[22m") if settings.terminal()[1] and not is_bar else ("", "")
        room = "\x1bD" * below + f"\x1b[{below}A" if below else ""
        move = f"\x1b[{below}B\r" if below else ""
        before = self._erasure() if self._drawn and below != self._below else ""
        # first: an interrupt may come while it is written, and the line is to be erased then
        self._drawn, self._below, self._beside_bars = line, below, rows > 0
        self._put(f"{before}\x1b[?7l{room}\x1b7{move}\x1b[J{dim}{line}{plain}\x1b8\x1b[?7h", stream)
        if not self._guarded:
            self._guard()

    def _text(self, now: float, columns: int) -> tuple[str, bool]:
        """Return the line, and whether it is a bar."""
        from atoll.sdk.display import words  # as above

        room = max(columns // max(len(self._bars), 1) - 1, 1)
        bars = [shown for shown in (bar(now, room) for bar in self._bars.values()) if shown]
        if len(bars) == 1:
            bars = [shown for shown in (bar(now, columns) for bar in self._bars.values()) if shown]
        if bars:
            return words.cut("  ".join(bars), columns - 1), True
        return words.text(self._calls.values(), now, columns), False

    def erase(self) -> None:
        """Erase the line; the cursor stays at its place."""
        if self._drawn:
            self._put(self._erasure(), beside.own(sys.stderr))
            self._drawn = ""  # last: an interrupt may come before

    def _erasure(self) -> str:
        rows = beside.rows()
        if self._beside_bars and not rows:
            return "\r\x1b[J"  # the bars have ended meanwhile, and left the cursor at the begin of a row
        below = max(rows, self._below)
        return f"\x1b7\x1b[{below}B\r\x1b[J\x1b8" if below else "\x1b[J"

    def _unguard(self) -> None:
        """Give the program's streams their own `write` back."""
        guarded, self._guarded = self._guarded, []
        for stream in guarded:
            with contextlib.suppress(AttributeError):
                del stream.write

    def _put(self, text: str, stream: Any) -> None:
        guard = vars(stream).pop("write", None) if any(stream is one for one in self._guarded) else None
        try:
            with contextlib.suppress(OSError, ValueError):
                try:
                    stream.write(text)
                except UnicodeEncodeError as error:
                    plain = text.translate(_PLAIN).encode(error.encoding, "replace")
                    stream.write(plain.decode(error.encoding))
                stream.flush()
        finally:
            if guard is not None:
                stream.write = guard

    def _guard(self) -> None:
        """Have the program's own prints erase the line first."""
        for stream in (beside.own(sys.stdout), beside.own(sys.stderr)):
            if any(stream is one for one in self._guarded) or not _is_terminal(stream):
                continue
            write = stream.write

            def guarded(text: str, write: Any = write) -> Any:
                with beside.exclusive(), writing:
                    was_drawn = bool(self._drawn)
                    self.erase()
                    try:
                        return write(text)
                    finally:
                        if (self._calls or self._bars) and isinstance(text, str) and text:
                            is_live = beside.has_live()
                            self._note("\n" if is_live or beside.rows() else text)
                            if was_drawn and is_live:  # it prints again and again
                                self._draw(self._printed_at)

            with contextlib.suppress(AttributeError):  # a stream without attributes of its own stays unguarded
                stream.write = guarded
                self._guarded.append(stream)

    def forget(self) -> None:
        """In a forked child: the line is the parent's."""
        self._drawn = ""
        self._unguard()


def _columns(stream: Any) -> int:
    """Return the width of a stream's terminal, 0 for none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 0


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except Exception:  # of a stream that the program has made
        return False


line = LiveLine()


def _renew() -> None:
    """In a forked child: the lock may be held by a thread of the parent, and the line is the parent's."""
    global line, writing
    writing = threading.RLock()
    line.forget()
    line = LiveLine()
    parallel.active.clear()
    if (usage := sys.modules.get("atoll.sdk.display.usage")) is not None:
        usage.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
