"""The runs of one schedule when its moment has come or has passed: a pure function of its policy.

Theory of operation. A run is late while its moment is no longer ago than `LATE_SECONDS`: a server that restarts, or a
machine that is busy, begins it anyway. Runs from before are missed, and the policy decides about them. The moments are
looked for in a window that grows backwards from now, so that an absence of months costs as little as one of minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

LATE_SECONDS = 60.0
MOST_MISSED = 100
"""Runs that `missed="all"` begins after an absence, and that a queue of one schedule has."""
_WINDOW_SECONDS = 3600.0


class Plan(NamedTuple):
    """The runs of a schedule.

    Args:
        begin: moments of the runs that begin now, the oldest first.
        dropped: the moment of the newest run that is missed and not begun; 0 for none.
        next: the moment of the next run; 0 for none.
    """

    begin: list[float]
    dropped: float
    next: float


def plan(after: Callable[[float], float], due: float, now: float, missed: str) -> Plan:
    """Return the runs of a schedule.

    Args:
        after: gives the schedule's first moment after another one; 0 for none.
        due: the first moment that has not been planned.
        now: not before it.
        missed: see `model.schedule_rules`.
    """
    window = _WINDOW_SECONDS
    while True:
        start = max(due, now - window)
        found = list(_between(after, start, now))
        if start == due or len(found) > MOST_MISSED:
            break
        window *= 4
    late = [one for one in found if one >= now - LATE_SECONDS]
    gone = found[: len(found) - len(late)]
    begin = late[-MOST_MISSED:]
    if missed == "all":
        begin = found[-MOST_MISSED:]
    elif missed == "once" and not late:
        begin = gone[-1:]
    left = [one for one in gone if one not in begin]
    following = after(now)
    return Plan(begin, left[-1] if left else 0.0, following)


def _between(after: Callable[[float], float], start: float, now: float) -> Iterator[float]:
    moment = after(start - 0.001)
    while moment and moment <= now:
        yield moment
        moment = after(moment)


def admitted(overlap: str, moments: list[float], live: int, queued: int) -> list[tuple[float, str, str]]:
    """Return the state of each run that is to begin, with the reason where it is skipped.

    Args:
        overlap: see `model.schedule_rules`.
        live: runs of the schedule that are under way.
        queued: those that wait for these.
    """
    found = []
    for moment in moments:
        if overlap == "allow" or not live:
            found.append((moment, "due", ""))
            live += 1
        elif overlap == "queue" and queued < MOST_MISSED:
            found.append((moment, "queued", ""))
            queued += 1
        else:
            reason = "the run before has not ended" if overlap == "skip" else f"{MOST_MISSED} runs wait already"
            found.append((moment, "skipped", reason))
    return found
