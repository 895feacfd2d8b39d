"""The live line: what the calls of this process wait for, on the terminal's last line while they do.

Theory of operation. There is no thread: whoever waits for a call wakes up now and then, and draws. All calls share
the one line. It is drawn behind the cursor, which is put back to where it was, with the terminal's line wrapping
off; so it is erased by erasing to the end of the line, whatever the program has printed before. It goes before
anything is printed, by a function or by the program itself, and comes back when there is quiet. While a function's
own line has no end yet (a prompt, a progress bar), nothing is drawn.

Nothing of this happens unless standard output and standard error are both terminals.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from atoll import settings
from atoll.wire import nested

if TYPE_CHECKING:
    from atoll.sdk.live_line import Waiting

SHOW_SECONDS = 0.8
"""How long a call waits before the line appears."""
QUIET_SECONDS = 0.15
"""How long nothing has been printed before it comes back."""
TICK_MILLISECONDS = 500
SOON_MILLISECONDS = 150

writing = threading.RLock()
"""Held by who writes to the caller's streams."""


class LiveLine:
    """The one line of this process; its methods are called with `writing` held."""

    def __init__(self) -> None:
        self._calls: dict[int, Waiting] = {}
        self._drawn = ""
        self._printed_at = 0.0
        self._inside_line = False
        self._guarded: list[Any] = []

    def wait(self, key: int, kind: str, detail: str, began: float, now: float) -> int:
        """Show that a call, which began at `began`, waits; return after how many milliseconds to say so again."""
        from atoll.sdk import live_line  # a quick call does not need it

        known = self._calls.get(key)
        since = began if known is None else known.since if known.kind == kind else now
        self._calls[key] = live_line.Waiting(kind, detail, since)
        if now - began < SHOW_SECONDS:
            return int((SHOW_SECONDS - now + began) * 1000) + 1
        if now - self._printed_at < QUIET_SECONDS:
            return SOON_MILLISECONDS
        if not self._inside_line:
            self._draw(now)
        return TICK_MILLISECONDS

    def leave(self, key: int) -> None:
        """Show no more of a call: it has been answered, or its caller has been interrupted."""
        if self._calls.pop(key, None) is None:
            return
        if not self._calls:
            self.erase()
            self._inside_line = False
        elif self._drawn:
            self._draw(time.monotonic())

    def wrote(self, data: bytes) -> None:
        """Take note of what a function has printed."""
        self._inside_line = not data.endswith(b"\n")
        if self._calls:
            self._printed_at = time.monotonic()

    def _draw(self, now: float) -> None:
        from atoll.sdk import live_line

        stream = sys.stderr
        try:
            columns = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            return
        line = live_line.text(self._calls.values(), now, columns)
        if line == self._drawn:
            return
        dim, plain = ("\x1b[2m", "\x1b[22m") if settings.terminal()[1] else ("", "")
        self._put(f"\x1b[?7l\x1b7\x1b[K{dim}{line}{plain}\x1b8\x1b[?7h")
        self._drawn = line
        if not self._guarded:
            self._guard()

    def erase(self) -> None:
        """Take the line away; the cursor stays where it is."""
        self.unguard()
        if self._drawn:
            self._drawn = ""
            self._put("\x1b[K")

    def unguard(self) -> None:
        """Give the program's streams back as they were."""
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

            with contextlib.suppress(AttributeError):
                stream.write = guarded  # type: ignore[method-assign]
                self._guarded.append(stream)


line = LiveLine()


def usable() -> bool:
    """Whether there is a terminal that the line can be drawn on, and that is all that the program's output goes to."""
    if nested.inside() or not settings.terminal()[0]:
        return False
    try:
        return sys.stdout.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _forget() -> None:
    global line, writing
    writing = threading.RLock()
    line.unguard()
    line = LiveLine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
