"""The bar of a `map`: `143/200 ▕███▏ 2 running · 1 failed · 12 s left`."""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from atoll.sdk.display import beside, live_line, mode, words
from atoll.sdk.display.words import DOT
from atoll.terminal_text import printable

SHOW_SECONDS = 1.0
"""A shorter `map` has no bar, unless one is asked for."""
DRAW_SECONDS = 0.2
LINE_SECONDS = 10.0
"""Seconds between the lines that take the bar's place where nothing can be drawn."""
MOST_BAR = 24
"""Columns of the bar."""
_SPEED_SECONDS = 30.0
"""The time over which the speed is measured."""
_SETTLED_SECONDS = 1.0
"""The age from which the remaining time can be estimated."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Counts:
    """The calls of a `map` so far.

    Args:
        answered: ended, `failed` of them with an error.
        running: on a worker now.
        total: calls in all, -1 where that is not known.
    """

    answered: int
    failed: int
    running: int
    total: int = -1


def text(title: str, counts: Counts, seconds: float, left: float | None, columns: int) -> str:
    """Return the bar with its numbers in one line.

    Args:
        seconds: since the begin.
        left: seconds that remain; None where that is not known.
    """
    title = f"{words.cut(printable(' '.join(title.split())), columns // 3)} " if title else ""
    after = [f"{counts.running:,} running"]
    if counts.failed:
        after.append(f"{counts.failed:,} failed")
    if counts.total < 0:
        return words.cut(title + DOT.join([f"{counts.answered:,} done", *after, words.duration(seconds)]), columns - 1)
    after.append(f"{words.duration(left)} left" if left is not None else words.duration(seconds))
    done = f"{title}{counts.answered:,}/{counts.total:,}"
    while after:
        room = columns - 1 - words.width(f"{done} ▕▏ {DOT.join(after)}")
        if room >= 6 or len(after) == 1:
            break
        after.pop(0)  # the number of failed calls and the time say more
    bar = f" ▕{_blocks(counts.answered / max(counts.total, 1), min(room, MOST_BAR))}▏" if room >= 3 else ""
    return words.cut(f"{done}{bar} {DOT.join(after)}", columns - 1)


def _blocks(share: float, width: int) -> str:
    eighths = int(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


class MapBar:
    """The display of one `map`, drawn by the threads that wait.

    Args:
        name: the function's.
        progress: True or a title for a bar from the begin; None for one on a terminal, after a second, and for a line at
            the end where nothing can be drawn.
        counts: gives the numbers as they are.
    """

    def __init__(self, name: str, progress: bool | str | None, counts: Callable[[], Counts], shown: str) -> None:
        self._name = words.short_name(name)
        self._title = progress if isinstance(progress, str) else ""
        self._asked = bool(progress)
        self._counts = counts
        self._shown = shown
        self._began = time.monotonic()
        self._due = self._began + (0.0 if self._asked else SHOW_SECONDS)
        self._known: deque[tuple[float, int]] = deque()
        self._is_set = False
        self._last: Counts | None = None

    @property
    def seconds(self) -> float:
        """Seconds until `tick` has something to do."""
        return max(self._due - time.monotonic(), 0.01)

    def tick(self) -> None:
        """Draw the bar if it is time; from any thread."""
        now = time.monotonic()
        if now < self._due:
            return
        if self._shown == mode.LIVE:
            self._due = now + DRAW_SECONDS
            with beside.exclusive(), live_line.writing:
                self._note(now)
                if not self._is_set:
                    self._is_set = True
                    live_line.line.set_bar(id(self), self.text)
                live_line.line.show(now)
        else:
            began, self._due = self._due == self._began, now + LINE_SECONDS
            if self._asked and not began:
                self._say(self._line(now))

    def _note(self, now: float) -> None:
        self._known.append((now, self._counts().answered))
        while len(self._known) > 2 and now - self._known[0][0] > _SPEED_SECONDS:
            self._known.popleft()

    def text(self, now: float, columns: int) -> str:
        """Return the bar for the live line; empty before the first call runs."""
        counts = self._counts()
        if not counts.answered and not counts.running:
            return ""
        return text(self._title, counts, now - self._began, self._left(counts, now), columns)

    def _left(self, counts: Counts, now: float) -> float | None:
        if counts.total < 0 or not counts.answered or now - self._began < _SETTLED_SECONDS:
            return None
        at, before = self._known[0] if len(self._known) > 2 else (self._began, 0)
        if counts.answered <= before:
            at, before = self._began, 0
        return (counts.total - counts.answered) * (now - at) / (counts.answered - before)

    def _line(self, now: float) -> str:
        counts = self._counts()
        of = f"/{counts.total:,}" if counts.total >= 0 else ""
        failed = f"{counts.failed:,} failed{DOT}" if counts.failed else ""
        return f"{self._title or self._name} {counts.answered:,}{of}{DOT}{failed}{words.duration(now - self._began)}"

    def interrupted(self) -> None:
        """Keep the numbers as they are: the calls that an interrupt ends have not failed."""
        self._last = self._counts()

    def end(self, ending: str | None) -> None:
        """Remove the bar; a long `map`, or one with failed calls, leaves a line on a terminal.

        Args:
            ending: empty for its end, `failed` or `interrupted`; None if its results are not wanted any more.
        """
        if self._is_set:
            with beside.exclusive(), live_line.writing:
                live_line.line.set_bar(id(self), None)
        if ending is None:
            return
        from atoll.sdk.display import call_lines  # for few calls

        seconds, counts = time.monotonic() - self._began, self._last or self._counts()
        failed = bool(ending or counts.failed)
        if not (failed or seconds >= call_lines.LONG_SECONDS or self._asked or mode.verbose):
            return
        title = printable(" ".join((self._title or self._name).split()))
        of = f" of {counts.total:,}" if counts.total > counts.answered else ""
        parts = [
            f"{'✗' if failed else '✓'} {words.cut(title, max(call_lines.columns() // 3, 8))}",
            f"{counts.answered:,}{of} call{'s' * (counts.answered != 1 or bool(of))}",
        ]
        parts += [f"{counts.failed:,} failed"] if counts.failed else []
        if ending == "interrupted":
            parts.append(ending)
            call_lines.note_interrupt()
        line = call_lines.styled([*parts, words.brief(seconds)], failed=failed)
        self._say(line, is_inside=True if ending == "interrupted" else None)

    def _say(self, line: str, *, is_inside: bool | None = None) -> None:
        from atoll.sdk.display.output import CallerStreams  # it imports nothing of this module

        CallerStreams().tell(line, is_inside=is_inside if self._shown == mode.LIVE else False)


def total_of(*iterables: Any) -> int:
    """Return the number of calls for these inputs, -1 where it is not known before they are read."""
    found = []
    for iterable in iterables:
        try:
            found.append(operator.length_hint(iterable, -1))
        except Exception:  # of a class of the program
            found.append(-1)
    known = [number for number in found if number >= 0]
    return min(known) if known else -1


def make(name: str, progress: bool | str | None, counts: Callable[[], Counts]) -> MapBar | None:
    """Return the bar of a `map`, or None if it has none.

    Raises:
        TypeError: `progress` is something else.
    """
    shown = mode.current()
    if progress is False or shown == mode.NONE or (not progress and shown == mode.PIPE):
        return None
    return MapBar(name, progress, counts, shown)
