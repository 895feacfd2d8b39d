"""The kind of display that this process shows: live lines, plain lines, lines of builds alone, or nothing.

`ATOLL_DISPLAY=auto|plain|none` chooses it, and `choose` for the command line (`-q`, `-v`).
"""

from __future__ import annotations

import os
import stat
import sys
import warnings
from typing import Any

from atoll import settings
from atoll.terminal_text import printable
from atoll.wire import nested

LIVE, LINES, PIPE, NONE = "live", "lines", "pipe", "none"
"""A line that is drawn again and again; lines that stay alone; begin, steps and end of builds alone; nothing."""
CHOICES = ("auto", "plain", "none")

verbose = False
"""Whether a build's lines are printed as they come, and each call has a line when it has ended."""
_chosen = ""
_refused = set[str]()
"""Wrong values that the user was told of."""


def choose(display: str = "", *, more: bool = False) -> None:
    """Set this process's display in place of `ATOLL_DISPLAY`: `-q` is `choose("none")`, `-v` `choose(more=True)`.

    Raises:
        ValueError: there is no such display.
    """
    global _chosen, verbose
    if display and display not in CHOICES:
        raise ValueError(f"`{display}` is no display; there are {', '.join(CHOICES)}")
    _chosen, verbose = display, more


def current() -> str:
    """Return which of `LIVE`, `LINES`, `PIPE` and `NONE` fits the program's streams as they are now.

    A line is drawn on standard error, a terminal then. Standard output is the same one or a file: the reader of a
    pipe may print to the terminal too (`| less`).
    """
    wanted = _wanted()
    if wanted == "none":
        return NONE
    if nested.inside():
        return PIPE
    try:
        out, err = sys.stdout, sys.stderr
        if type(err).__module__.startswith("ipykernel."):
            return LINES
        if not err.isatty():
            return PIPE
        if wanted == "plain" or not settings.terminal()[0]:
            return LINES
        return LIVE if out.isatty() or _is_file(out) else PIPE
    except Exception:  # of a stream that the program has made
        return PIPE


def _wanted() -> str:
    wanted = _chosen or settings.display()
    if wanted in CHOICES:
        return wanted
    if wanted and wanted not in _refused:
        _refused.add(wanted)
        warnings.warn(
            f"`ATOLL_DISPLAY` is `{printable(wanted[:40])}`; there are {', '.join(CHOICES)}",
            RuntimeWarning,
            stacklevel=levels(),
        )
    return "auto"


def _is_file(stream: Any) -> bool:
    found = os.fstat(stream.fileno())
    null = os.stat(os.devnull)
    return stat.S_ISREG(found.st_mode) or (stat.S_ISCHR(found.st_mode) and found.st_rdev == null.st_rdev)


def levels() -> int:
    """Return the `stacklevel` with which a warning of the caller of this function names the user's line."""
    from atoll.payload.tracebacks import is_own  # for a warning alone

    frame, levels = sys._getframe(1), 1
    while frame.f_back is not None and is_own(frame.f_code.co_filename):
        frame, levels = frame.f_back, levels + 1
    return levels
