"""Progress bars of the program itself, beside which the display finds its place: tqdm's, and rich's live displays."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any


def exclusive() -> contextlib.AbstractContextManager[Any]:
    """Return the lock of the program's bars; taken before `live_line.writing`, as a bar that prints has it already."""
    bars = _bars()
    if not getattr(bars, "_instances", None):
        return contextlib.nullcontext()
    try:
        lock: contextlib.AbstractContextManager[Any] = bars.get_lock()
    except Exception:
        return contextlib.nullcontext()
    return lock


def rows() -> int:
    """Return the rows of tqdm's bars on the terminal from the cursor on, 0 for none."""
    most = 0
    try:
        streams = (sys.stderr, sys.stdout)
        for one in list(getattr(_bars(), "_instances", None) or ()):
            if getattr(one, "disable", True) or getattr(one, "gui", False):
                continue
            stream = getattr(one.fp, "_wrapped", one.fp)
            if any(stream is known for known in streams):
                most = max(most, 1 + abs(one.pos))
    except Exception:  # of another version of tqdm
        return 0
    return most


def has_live() -> bool:
    """Return whether a live display of rich has the end of the screen."""
    return hasattr(sys.stderr, "rich_proxied_file") or hasattr(sys.stdout, "rich_proxied_file")


def own(stream: Any) -> Any:
    """Return the stream behind rich's, which would print above the live display."""
    return getattr(stream, "rich_proxied_file", stream)


def above() -> Callable[[str], object] | None:
    """Return the function that prints a line above the program's own bar; None without a bar.

    Called without `live_line.writing`: the bar has a lock of its own, and may be writing.
    """
    stream = sys.stderr
    try:
        if not stream.isatty():
            return None
        if rows():
            return functools.partial(_bars().write, file=stream)
        if hasattr(stream, "rich_proxied_file"):
            return functools.partial(print, file=stream, flush=True)
    except Exception:  # of a stream that the program has made
        return None
    return None


def cleared(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which tqdm's bars make room for whole lines on a stream."""
    if not rows():
        return contextlib.nullcontext()
    try:
        if not stream.isatty():
            return contextlib.nullcontext()
        found: contextlib.AbstractContextManager[Any] = _bars().external_write_mode(file=stream, nolock=True)
    except Exception:
        return contextlib.nullcontext()
    return found


def _bars() -> Any:
    return getattr(sys.modules.get("tqdm.std"), "tqdm", None)
