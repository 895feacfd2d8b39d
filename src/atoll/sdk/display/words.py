"""The words of the display: pure functions from the state of calls to texts that fit into a terminal's line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atoll.model.sizes import size_text as size
from atoll.terminal_text import printable

KINDS = ("running", "waiting", "building", "starting")
"""A call waits for its answer, a free slot, its environment, a sandbox."""
ID_CHARACTERS = 8
"""Characters of a call's id that people see; they differ for the calls of a process."""
NAMED_SECONDS = 1.0
"""A shorter wait is not named beside a call's own time."""
DOT = " \u00b7 "

_SEVERAL = {
    "running": "running",
    "waiting": "waiting",
    "building": "building the environment",
    "starting": "starting",
}


@dataclass(frozen=True)
class Waiting:
    """The wait of one call.

    Args:
        kind: one of `KINDS`.
        detail: the function's name, the number of calls before this one or the reason of the wait, or the build's
            step, by kind.
        since: the begin of this wait, by the clock that `text` is given.
        memory_bytes: used now, 0 where unknown.
    """

    kind: str
    detail: str
    since: float
    memory_bytes: int = 0


def text(calls: Iterable[Waiting], now: float, columns: int) -> str:
    """Return the line about calls, at most `columns` wide; empty for no calls."""
    waiting = list(calls)
    if not waiting:
        return ""
    if len(waiting) == 1:
        (one,) = waiting
        end = DOT + duration(now - one.since)
        return fit(_alone(one), end + (DOT + size(one.memory_bytes) if one.memory_bytes else ""), columns)
    counts = [(kind, sum(1 for one in waiting if one.kind == kind)) for kind in KINDS]
    states = ", ".join(f"{count} {_SEVERAL[kind]}" for kind, count in counts if count)
    longest = now - min(one.since for one in waiting)
    used = sum(one.memory_bytes for one in waiting)
    end = DOT + duration(longest) + (DOT + size(used) if used else "")
    reasons = dict.fromkeys(one.detail for one in waiting if _is_reason(one))
    states = DOT.join([states, *reasons])
    return fit(f"{len(waiting)} calls: {states}", end, columns)


def _is_reason(one: Waiting) -> bool:
    return one.kind == "waiting" and bool(one.detail) and not one.detail.isdecimal()


def _alone(one: Waiting) -> str:
    if one.kind == "running":
        return f"running {short_name(one.detail)}" if one.detail else "running"
    if one.kind == "waiting":
        if _is_reason(one):
            return f"waiting{DOT}{one.detail}"
        before = int(one.detail) if one.detail else 0
        return f"waiting for a free slot{DOT}{f'{before} before this call' if before else 'next in line'}"
    if one.kind == "building":
        return f"building{DOT}{one.detail}" if one.detail else "building the environment"
    return "starting a worker"


def ended(
    name: str,
    seconds: float,
    call: str,
    *,
    failed: bool,
    reason: str = "",
    built_seconds: float = 0.0,
    waited_seconds: float = 0.0,
    peak_bytes: int = 0,
    more: int = 0,
) -> list[str]:
    """Return the parts of the line that stays of a call.

    Args:
        reason: why it failed.
        built_seconds, waited_seconds: for its environment, and for anything else; named from `NAMED_SECONDS` on.
        more: calls before this one whose lines were left out.
    """
    parts = [f"{'✗' if failed else '✓'} {short_name(name) or 'call'}", reason, brief(seconds)]
    for verb, wait in (("built", built_seconds), ("waited", waited_seconds)):
        if wait >= NAMED_SECONDS:
            parts.append(f"{verb} {duration(wait)}")
    if peak_bytes:
        parts.append(f"peak {size(peak_bytes)}")
    if call:
        parts.append(f"id {call[:ID_CHARACTERS]}")
    if more:
        parts.append(f"{more:,} more ended before")
    return [part for part in parts if part]


def short_name(name: str) -> str:
    """Return a function's name without the function in which it was made."""
    return name.rpartition(".<locals>.")[2]


def duration(seconds: float) -> str:
    """Return whole seconds in words: `7 s`, `1 min 05 s`, `2 h 03 min`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def brief(seconds: float) -> str:
    """Return a duration in words, below ten seconds with a tenth: `0.6 s`, `12 ms`."""
    if seconds < 0.0995:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


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
    return cut(start, room) + end


def cut(text: str, room: int) -> str:
    """Return a text, or as much of it as fits into `room` columns with a mark of the cut."""
    if width(text) <= room:
        return text
    kept, used = [], 1
    for one in text:
        used += width(one)
        if used > room:
            break
        kept.append(one)
    return "".join(kept).rstrip() + "\u2026" if room > 0 else ""


def fit_parts(parts: Sequence[str], columns: int) -> str:
    """Return the parts that have room in one line; the first is cut if it alone is too long."""
    kept = list(parts)
    while len(kept) > 1 and width(DOT.join(kept)) > columns - 1:
        kept.pop()
    return fit(DOT.join(kept), "", columns)


def width(characters: str) -> int:
    """Return the number of columns that a text takes."""
    if characters.isascii():
        return len(characters)
    import unicodedata  # a large module, which a quick call does not need

    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1
        for one in characters
    )
