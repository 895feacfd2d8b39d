"""The live line: the terminal's last line, which shows why the calls of this process wait; drawn by `output`.

Theory of operation. There is no thread: a waiting caller wakes up now and then, and draws. All calls share the one
line. It is drawn behind the cursor, which returns to its place, with the terminal's line wrapping off. So erasing to
the end of the line removes it, whatever the program has printed before. The line goes before anything is printed, by
a function or by the program itself, and comes back when there is quiet. While a function's own line has no end yet
(a prompt, a progress bar), nothing is drawn.

Nothing of this happens unless standard output and standard error are both terminals, nor beside a progress bar of the
program itself, which has the last line: begin and end of a build are then lines above the bar.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from atoll import settings
from atoll.terminal_text import printable
from atoll.wire import nested

SHOW_SECONDS = 0.8
"""The wait of a call before the line appears."""
QUIET_SECONDS = 0.15
"""The time without output before the line comes back."""
TICK_MILLISECONDS = 500
SOON_MILLISECONDS = 150

writing = threading.RLock()
"""Held during each write to the caller's streams."""

KINDS = ("running", "waiting", "building", "starting")
"""A call waits for its answer, a free slot, its environment, a sandbox."""

_SEVERAL = {
    "running": "running",
    "waiting": "waiting for a free slot",
    "building": "building the environment",
    "starting": "starting",
}


@dataclass(frozen=True)
class Waiting:
    """The wait of one call.

    Args:
        kind: one of `KINDS`.
        detail: the function's name, the number of calls before this one, or the build's step, by kind.
        since: the begin of this wait, by the clock that `text` is given.
    """

    kind: str
    detail: str
    since: float


class LiveLine:
    """The one line of this process; its methods are called with `writing` held."""

    def __init__(self) -> None:
        self._calls: dict[int, Waiting] = {}
        self._drawn = ""
        self._printed_at = 0.0
        self._inside_line = False
        self._guarded: list[Any] = []

    def wait(self, key: int, kind: str, detail: str, began: float, now: float) -> int:
        """Show that a call, which began at `began`, waits; return the milliseconds until it must be shown again."""
        known = self._calls.get(key)
        since = began if known is None else known.since if known.kind == kind else now
        self._calls[key] = Waiting(kind, detail, since)
        if now - began < SHOW_SECONDS:
            return int((SHOW_SECONDS - now + began) * 1000) + 1
        if now - self._printed_at < QUIET_SECONDS:
            return SOON_MILLISECONDS
        if not self._inside_line:
            self._draw(now)
        return TICK_MILLISECONDS

    def leave(self, key: int) -> None:
        """Remove a call: it has been answered, or its caller has been interrupted."""
        if self._calls.pop(key, None) is None:
            return
        if not self._calls:
            self.erase()
            self._inside_line = False
        elif self._drawn:
            self._draw(time.monotonic())

    def wrote(self, data: bytes) -> None:
        """Note the output of a function."""
        self._inside_line = not data.endswith(b"\n")
        if self._calls:
            self._printed_at = time.monotonic()

    def _draw(self, now: float) -> None:
        stream = sys.stderr
        try:
            columns = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            return
        line = text(self._calls.values(), now, columns)
        if line == self._drawn:
            return
        dim, plain = ("\x1b[2m", "\x1b[22m") if settings.terminal()[1] else ("", "")
        self._put(f"\x1b[?7l\x1b7\x1b[K{dim}{line}{plain}\x1b8\x1b[?7h")
        self._drawn = line
        if not self._guarded:
            self._guard()

    def erase(self) -> None:
        """Erase the line; the cursor stays at its place."""
        self.unguard()
        if self._drawn:
            self._drawn = ""
            self._put("\x1b[K")

    def unguard(self) -> None:
        """Give the program's streams their own `write` back."""
        guarded, self._guarded = self._guarded, []
        for stream in guarded:
            with contextlib.suppress(AttributeError):
                del stream.write

    def _put(self, text: str) -> None:
        stream = sys.stderr
        guard = vars(stream).pop("write", None) if stream in self._guarded else None
        try:
            with contextlib.suppress(OSError, ValueError):
                stream.write(text)
                stream.flush()
        finally:
            if guard is not None:
                stream.write = guard  # type: ignore[method-assign]

    def _guard(self) -> None:
        """Have the program's own next `print` erase the line first."""
        for stream in (sys.stdout, sys.stderr):
            write = stream.write

            def guarded(text: str, write: Any = write) -> Any:
                with writing:
                    self.erase()
                    self._printed_at = time.monotonic()
                    return write(text)

            with contextlib.suppress(AttributeError):  # a stream without attributes of its own stays unguarded
                stream.write = guarded  # type: ignore[method-assign]
                self._guarded.append(stream)


line = LiveLine()


def usable() -> bool:
    """Return whether the program's output goes to a terminal only, and the line can be drawn there."""
    if nested.inside() or not settings.terminal()[0]:
        return False
    try:
        return bool(sys.stdout.isatty() and sys.stderr.isatty()) and above() is None
    except Exception:  # of a stream that the program has made
        return False


def above() -> Callable[[str], object] | None:
    """Return the function that prints a line above the program's own progress bar; None without a bar.

    Called without `writing`: the bar has a lock of its own, and may be writing.
    """
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    stream = sys.stderr
    try:
        if not stream.isatty():
            return None
        if getattr(bars, "_instances", None):
            return functools.partial(bars.write, file=stream)  # type: ignore[union-attr]  # it has instances
        if hasattr(stream, "rich_proxied_file"):
            return functools.partial(print, file=stream, flush=True)
    except Exception:  # of a stream that the program has made
        return None
    return None


def _renew() -> None:
    """In a forked child: the lock may be held by a thread of the parent, and the line is the parent's."""
    global line, writing
    writing = threading.RLock()
    line.unguard()
    line = LiveLine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


# --- the text: pure -----------------------------------------------------------------------------------------------


def text(calls: Iterable[Waiting], now: float, columns: int) -> str:
    """Return the line, at most `columns` wide; empty for no calls."""
    waiting = list(calls)
    if not waiting:
        return ""
    if len(waiting) == 1:
        (one,) = waiting
        return fit(f"atoll: {_alone(one)}", f", {duration(now - one.since)}", columns)
    counts = [(kind, sum(1 for one in waiting if one.kind == kind)) for kind in KINDS]
    states = ", ".join(f"{count} {_SEVERAL[kind]}" for kind, count in counts if count)
    longest = now - min(one.since for one in waiting)
    return fit(f"atoll: {len(waiting)} calls: {states}", f", {duration(longest)}", columns)


def _alone(one: Waiting) -> str:
    if one.kind == "running":
        return f"running {one.detail}" if one.detail else "running"
    if one.kind == "waiting":
        before = int(one.detail) if one.detail.isdigit() else 0
        return f"waiting for a free slot{f', {before} before this call' if before else ', next in line'}"
    if one.kind == "building":
        return f"building the environment: {one.detail}" if one.detail else "building the environment"
    return "starting a worker"


def duration(seconds: float) -> str:
    """Return whole seconds in words: `7 s`, `1 min 05 s`, `2 h 03 min`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def fit(start: str, end: str, columns: int) -> str:
    """Return both texts in one line that is narrower than the terminal; the end of `start` is cut.

    A build's step or a function's name may hold any characters: runs of white space become one space, others that
    cannot be printed are shown as escapes.
    """
    most = max(columns - 1, 0)
    start = printable(" ".join(start.split()))
    room = most - width(end)
    if room < 8:
        end, room = "", most
    if width(start) <= room:
        return start + end
    kept, used = [], 1
    for one in start:
        used += width(one)
        if used > room:
            break
        kept.append(one)
    return "".join(kept).rstrip() + "\u2026" + end if room > 0 else ""


def width(characters: str) -> int:
    """Return the number of columns that a text takes."""
    import unicodedata  # a large module, which a quick call does not need

    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1
        for one in characters
    )
