"""Lines that stay of calls: one for each that was long or failed, few of them in all."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from atoll import settings
from atoll.errors import AtollError, CallCancelled, CallTimeout, WorkerDied
from atoll.sdk.display import mode, words

if TYPE_CHECKING:
    from atoll.sdk.display.usage import Ran

LONG_SECONDS = 5.0
"""Shorter calls leave no line, unless they fail."""
MOST = 10
"""Lines at once; then one in `EVERY_SECONDS`, with the number of calls that were left out."""
EVERY_SECONDS = 10.0


class Budget:
    """The lines that this process may still print."""

    def __init__(self) -> None:
        self._left = float(MOST)
        self._at = 0.0
        self._skipped = 0

    def take(self, now: float) -> int | None:
        """Return the number of lines that were left out before this one; None to leave this one out."""
        self._left = min(self._left + (now - self._at) / EVERY_SECONDS, float(MOST))
        self._at = now
        if self._left < 1:
            self._skipped += 1
            return None
        self._left -= 1
        skipped, self._skipped = self._skipped, 0
        return skipped


budget = Budget()
told_interrupt = False
"""Whether a line has said that an interrupt ended a call."""


def tell(
    print_line: Callable[[str], None],
    name: str,
    call: str,
    seconds: float,
    *,
    failed: bool,
    error: BaseException | None,
    built_seconds: float = 0.0,
) -> None:
    """Print the line of a call that has ended, if it is to have one.

    Args:
        seconds: since it was made; the line has the function's own, with the waits before it.
        error: raised instead of an answer.
        built_seconds: for which its environment was built.
    """
    if isinstance(error, CallCancelled):
        return  # it was asked for
    if not (failed or seconds >= LONG_SECONDS or mode.verbose):
        return
    if isinstance(error, KeyboardInterrupt):
        note_interrupt()
    more = budget.take(time.monotonic()) if failed and not mode.verbose else 0
    if more is None:
        return  # before the daemon is asked: a program may go on after many failures
    ran = _record(call, seconds, error)
    built = min(built_seconds, ran.waited_seconds)
    if not failed and not mode.verbose:
        if ran.seconds + built < LONG_SECONDS:
            return  # it has waited for others
        more = budget.take(time.monotonic())
    if more is not None:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else ""
        reason = "timed out" if isinstance(error, CallTimeout) else reason
        parts = words.ended(
            name,
            ran.seconds,
            call,
            failed=failed,
            reason=reason,
            built_seconds=built,
            waited_seconds=ran.waited_seconds - built,
            peak_bytes=ran.peak_bytes,
            more=more,
        )
        print_line(styled(parts, failed=failed))


def _record(call: str, seconds: float, error: BaseException | None) -> Ran:
    """Return what the daemon has recorded of a call, or else what is known here."""
    from atoll.sdk.display import usage  # for few calls

    seen = usage.usage.peak(call)
    ran = None
    if call and (
        not isinstance(error, AtollError) or isinstance(error, (WorkerDied, CallTimeout))
    ):  # it may have begun
        is_interrupt = isinstance(error, KeyboardInterrupt)
        most = usage.INTERRUPTED_SECONDS if is_interrupt else usage.RECORD_SECONDS
        ran = usage.usage.record(call, seconds, most)
    return ran if ran is not None else usage.Ran(seconds, 0.0, seen)


def tell_retry(print_line: Callable[[str], None], name: str, number: int, of: int, error: BaseException | None) -> None:
    """Print the line of an attempt that failed and is made again, if there is room for one.

    Args:
        number, of: the next attempt's, and that of the last possible one.
    """
    if mode.verbose or budget.take(time.monotonic()) is not None:
        parts = [f"retrying {words.short_name(name)}", f"{number} of {of}", type(error).__name__]
        print_line(words.fit_parts(parts, columns()))


def note_interrupt() -> None:
    """Take note that a line says it."""
    global told_interrupt
    told_interrupt = True


def styled(parts: Sequence[str], *, failed: bool) -> str:
    """Return parts, the first of which begins with a mark, as a line for the terminal; coloured where that is wanted."""
    line = words.fit_parts(parts, columns())
    moves, colours = settings.terminal()
    if not (moves and colours) or mode.current() != mode.LIVE:
        return line
    return f"\x1b[{31 if failed else 32}m{line[:1]}\x1b[39m{line[1:]}"


def columns() -> int:
    """Return the width of the terminal of standard error."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80
