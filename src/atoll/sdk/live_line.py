"""The text of the line that says what a caller waits for: pure, from what each call waits for to one line."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

KINDS = ("running", "waiting", "building", "starting")
"""What a call can wait for: its answer, a free slot, its environment, a sandbox."""

_SEVERAL = {
    "running": "running",
    "waiting": "waiting for a free slot",
    "building": "building the environment",
    "starting": "starting",
}


@dataclass(frozen=True)
class Waiting:
    """What one call waits for.

    Args:
        kind: one of `KINDS`.
        detail: the function's name, how many calls are before it, or what the build does, by kind.
        since: when this wait began, by the clock that `text` is given.
    """

    kind: str
    detail: str
    since: float


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
    """Return both texts in one line that is narrower than the terminal; of `start` the end is cut.

    What comes from elsewhere may hold anything: only printable characters are kept.
    """
    most = max(columns - 1, 0)
    start = " ".join("".join(one if one.isprintable() else " " for one in start).split())
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
    """Return how many columns a text takes."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in ("W", "F") else 1
        for one in characters
    )
