"""Some weeks of runs by the clock, in one time zone: those that are over with their states, and those to come. Pure."""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

MOST_A_DAY = 24
"""Runs of one schedule that are counted on one day to come."""
WEEKS = 6
"""Weeks that are shown of the time around today."""
MOST_STEPS = 4000
"""Runs to come that are looked for, of all schedules together."""
After = Callable[[float], float]


@dataclass
class Entry:
    """Runs of one schedule on one day that have the same state.

    Args:
        at: the first one's moment.
        state: `coming`, or that of an activation; a failed one is `failed`.
        more: there are more than `count`.
    """

    schedule: str
    function: str
    at: float
    state: str
    count: int = 1
    more: bool = False


@dataclass
class Day:
    """A day of a calendar.

    Args:
        outside: it belongs to another month.
    """

    date: dt.date
    outside: bool = False
    today: bool = False
    entries: list[Entry] = field(default_factory=list)


def month_of(text: str) -> dt.date | None:
    """Return the first day of a month such as `2026-12`; None for another text."""
    try:
        found = dt.date.fromisoformat(f"{text}-01")
    except ValueError:
        return None
    return found if 1971 <= found.year <= 2200 else None


def other(month: dt.date, by: int) -> dt.date:
    """Return the first day of a month before or after another one."""
    count = month.year * 12 + month.month - 1 + by
    return dt.date(count // 12, count % 12 + 1, 1)


def days_of(month: dt.date, today: dt.date) -> list[Day]:
    """Return the days of a month in whole weeks, which begin on Monday."""
    dates = calendar.Calendar().itermonthdates(month.year, month.month)
    return [Day(date, date.month != month.month, date == today) for date in dates]


def days_around(today: dt.date) -> list[Day]:
    """Return the days of the week before this one, of this one, and of those to come."""
    first = today - dt.timedelta(today.weekday() + 7)
    return [Day(date, today=date == today) for date in (first + dt.timedelta(count) for count in range(7 * WEEKS))]


def begin_of(date: dt.date, zone: dt.tzinfo) -> float:
    """Return the moment at which a day begins."""
    return dt.datetime.combine(date, dt.time(), zone).timestamp()


def add_past(days: Sequence[Day], runs: Iterable[tuple[str, str, float, str]], zone: dt.tzinfo) -> None:
    """Add runs that there have been.

    Args:
        runs: schedule, function, moment and state of each.
    """
    by_date = {day.date: day for day in days}
    known: dict[tuple[dt.date, str, str], Entry] = {}
    for schedule, function, at, state in runs:
        date = dt.datetime.fromtimestamp(at, zone).date()
        if date not in by_date:
            continue
        entry = known.get((date, schedule, state))
        if entry is None:
            known[date, schedule, state] = entry = Entry(schedule, function, at, state, 0)
            by_date[date].entries.append(entry)
        entry.count += 1
        entry.at = min(entry.at, at)


def add_coming(days: Sequence[Day], schedules: Iterable[tuple[str, str, After]], now: float, zone: dt.tzinfo) -> bool:
    """Add runs that are to come; return whether all of them are there.

    Args:
        schedules: id and function of each, and a function that gives its first moment after another one, 0 for none.
    """
    if not days:
        return True
    by_date = {day.date: day for day in days}
    start = max(begin_of(days[0].date, zone) - 0.001, now)
    end = begin_of(days[-1].date + dt.timedelta(1), zone)
    steps = 0
    for schedule, function, after in schedules:
        moment, entry, date = after(start), None, None
        while moment and moment < end:
            steps += 1
            if steps > MOST_STEPS:
                return False
            this = dt.datetime.fromtimestamp(moment, zone).date()
            if entry is None or this != date:
                date, entry = this, Entry(schedule, function, moment, "coming", 0)
                by_date[this].entries.append(entry)
            if entry.count == MOST_A_DAY:
                entry.more = True
                moment = after(begin_of(this + dt.timedelta(1), zone) - 0.001)
                continue
            entry.count += 1
            moment = after(moment)
    return True


def put_in_order(days: Sequence[Day]) -> None:
    """Put the entries of each day in the order of their moments."""
    for day in days:
        day.entries.sort(key=lambda one: (one.at, one.function))


def moments(after: After, moment: float) -> Iterator[float]:
    """Yield the moments of a schedule after another one."""
    while moment := after(moment):
        yield moment
