"""Lines of builds: those that a program prints as they come, and the one that stays of each on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable

from atoll.model.build_progress import BuildLine
from atoll.sdk.display import call_lines, mode, words
from atoll.terminal_text import printable

BEGIN = "Building environment "
"""The first words of a build, which stay with its end where lines stay alone."""
_told: set[tuple[str, float]] = set()
"""Builds whose end this process has told: several of its calls may have waited for one."""
_lock = threading.Lock()


def built_seconds(line: str) -> float:
    """Return for how long an environment was built, at the end of its build; 0 before."""
    progress = line.progress if isinstance(line, BuildLine) else None
    return progress.seconds if progress is not None and progress.step == "built" else 0.0


def tell(print_line: Callable[[str], None], line: str, shown: str, prefix: str = "atoll: ") -> None:
    """Print what is to be printed of a build's line, for a display of `mode`.

    Args:
        line: with the build's state beside it, if it is a `BuildLine`.
        prefix: before the builder's own lines.
    """
    progress = line.progress if isinstance(line, BuildLine) else None
    if progress is not None and progress.step == "built" and shown in (mode.LIVE, mode.LINES):
        key = (progress.environment, progress.seconds)
        with _lock:
            known = key in _told
            _told.add(key)
        if not known and line:
            parts = [*printable(progress.text()).split(words.DOT), words.duration(progress.seconds)]
            print_line(words.fit_parts(parts, call_lines.columns()))
        return
    if shown == mode.LIVE and not mode.verbose:
        return
    if shown == mode.LINES and not mode.verbose and progress is not None and not line.startswith(BEGIN):
        return
    if isinstance(line, BuildLine) and (not line or (line.is_of_download and not mode.verbose)):
        return
    if line:
        print_line(f"{prefix}{printable(line)}")
