"""Moments of schedules, and the runs that a policy makes of them, with clocks that go forward and back."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import errors
from atoll.server.schedules import crons
from atoll.server.schedules.planning import LATE_SECONDS, MOST_MISSED, admitted, plan


def at(text: str) -> float:
    """Return a moment of UTC in seconds since the epoch."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def shown(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%m-%d %H:%M}"


def moments(expression: str, zone: str, start: str, count: int) -> list[str]:
    found, moment = [], at(start)
    for _ in range(count):
        moment = crons.after(expression, zone, moment)
        found.append(shown(moment))
    return found


BERLIN = [
    ("each day at a time that does not exist on one", "30 2 * * *", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:30"]),
    ("a time before the gap", "30 1 * * *", "2026-03-28 12:00", ["03-29 00:30", "03-29 23:30"]),
    ("fixed times around the gap", "30 1-3 * * *", "2026-03-29 00:00", ["03-29 00:30", "03-29 01:00", "03-29 01:30"]),
    ("real time goes over the gap", "*/30 * * * *", "2026-03-29 00:10", ["03-29 00:30", "03-29 01:00", "03-29 01:30"]),
    ("each day at a time that exists twice", "30 2 * * *", "2026-10-24 12:00", ["10-25 00:30", "10-26 01:30"]),
    ("seen from the second of two equal hours", "30 2 * * *", "2026-10-25 01:10", ["10-26 01:30"]),
    (
        "fixed times around both hours",
        "30 1-3 * * *",
        "2026-10-24 23:00",
        ["10-24 23:30", "10-25 00:30", "10-25 02:30"],
    ),
    ("real time goes through both", "*/30 * * * *", "2026-10-25 00:10", ["10-25 00:30", "10-25 01:00", "10-25 01:30"]),
    ("the morning after", "0 7 * * *", "2026-10-24 12:00", ["10-25 06:00", "10-26 06:00"]),
]


@pytest.mark.parametrize(
    ("expression", "start", "expected"), [row[1:] for row in BERLIN], ids=[row[0] for row in BERLIN]
)
def test_clocks_of_a_zone_go_forward_and_back(expression: str, start: str, expected: list[str]) -> None:
    """A run at a fixed time happens once, whatever the clock of the wall does; runs in real time follow it."""
    assert moments(expression, "Europe/Berlin", start, len(expected)) == expected


def test_expressions() -> None:
    """UTC is the default of the program of 2023; names and seconds are understood."""
    assert moments("0 7 * * *", "UTC", "2026-03-28 12:00", 2) == ["03-29 07:00", "03-30 07:00"]
    assert moments("@daily", "UTC", "2026-03-28 12:00", 1) == ["03-29 00:00"]
    assert moments("0 0 * * MON", "UTC", "2026-03-28 12:00", 1) == ["03-30 00:00"]
    assert crons.after("*/2 * * * * *", "UTC", at("2026-03-28 12:00") + 0.5) == at("2026-03-28 12:00") + 2


@pytest.mark.parametrize(
    ("expression", "zone", "reason"),
    [
        ("0 25 * * *", "UTC", "bad hour"),
        ("7 * * *", "UTC", "wrong number of fields"),
        ("", "UTC", "wrong number of fields"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("٣ * * * *", "UTC", "no ASCII"),
        ("* " * 150, "UTC", "at most 200"),
        ("0 7 * * *", "Europe/Berlinn", "time zone"),
        ("0 7 * * *", "../../etc/passwd", "time zone"),
        ("0 7 * * *", "", "time zone"),
    ],
)
def test_wrong_expressions_have_named_errors(expression: str, zone: str, reason: str) -> None:
    """An expression that no clock understands is refused with a next step."""
    with pytest.raises(errors.CallerError, match=reason) as caught:
        crons.check(expression, zone)
    assert caught.value.hint


MINUTES = partial(crons.after, "* * * * *", "UTC")
NOON = at("2026-03-28 12:00")


@pytest.mark.parametrize(
    ("missed", "away_minutes", "begun", "dropped"),
    [
        ("skip", 0, 1, False),  # in time
        ("once", 0, 1, False),
        ("all", 0, 1, False),
        ("skip", 1, 2, False),  # a minute late is late
        ("skip", 10, 2, True),
        ("once", 10, 2, True),  # those that are late make up for the missed ones
        ("all", 10, 11, False),
        ("all", 1000, MOST_MISSED, True),
        ("all", 500_000, MOST_MISSED, True),
    ],
)
def test_missed_runs(missed: str, away_minutes: int, begun: int, dropped: bool) -> None:
    """Runs up to a minute ago begin; of those before as many as the policy says, the newest."""
    now = NOON + 60 * away_minutes
    found = plan(MINUTES, NOON, now, missed)
    assert found.begin == [now - 60 * number for number in range(begun)][::-1]
    assert bool(found.dropped) is dropped
    assert found.next == now + 60


def test_once_begins_the_newest_missed_run() -> None:
    """Where no run is merely late, `once` makes up all missed ones by the newest."""
    daily = partial(crons.after, "0 7 * * *", "UTC")
    due, now = at("2026-03-20 07:00"), at("2026-03-28 12:00")
    found = plan(daily, due, now, "once")
    assert list(map(shown, found.begin)) == ["03-28 07:00"]
    assert shown(found.dropped) == "03-27 07:00"
    assert plan(daily, due, now, "skip").begin == []


@given(st.integers(0, 10_000), st.integers(0, 5_000), st.sampled_from(("skip", "once", "all")))
def test_no_run_is_planned_twice(offset: int, away: int, missed: str) -> None:
    """Runs of one plan and of the next are different moments, each after the last one that was planned."""
    due = MINUTES(NOON + offset)
    first = plan(MINUTES, due, due + away, missed)
    second = plan(MINUTES, first.next, first.next + away, missed)
    both = [*first.begin, *second.begin]
    assert both == sorted(set(both))
    assert all(due <= one <= first.next + away for one in both)
    assert all(one >= due + away - LATE_SECONDS for one in first.begin) or missed != "skip"


@pytest.mark.parametrize(
    ("overlap", "live", "queued", "states"),
    [
        ("skip", 0, 0, ["due", "skipped", "skipped"]),
        ("skip", 1, 0, ["skipped", "skipped", "skipped"]),
        ("queue", 0, 0, ["due", "queued", "queued"]),
        ("queue", 1, MOST_MISSED - 1, ["queued", "skipped", "skipped"]),
        ("allow", 5, 0, ["due", "due", "due"]),
    ],
)
def test_overlapping_runs(overlap: str, live: int, queued: int, states: list[str]) -> None:
    """Runs whose predecessor has not ended are left out, wait, or begin, as the policy says."""
    found = admitted(overlap, [1.0, 2.0, 3.0], live, queued)
    assert [state for _, state, _ in found] == states
    assert all(bool(reason) == (state == "skipped") for _, state, reason in found)
