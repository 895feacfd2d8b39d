"""Ranges of process ids: pure but for the writer, which `tests/sandbox` has."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from atoll.sandbox.pid_ranges import PLACES, PidRanges


@pytest.mark.parametrize(
    "draw", [lambda most: 0, lambda most: most - 1, random.Random(1).randrange], ids=["lowest", "highest", "random"]
)
def test_live_ranges_are_far_from_each_other(draw: Callable[[int], int]) -> None:
    """Each of 64 live sandboxes has at least a quarter of its even share, whichever ended before."""
    ranges, live = PidRanges(draw), []
    for number in range(300):
        live.append(ranges.take())
        if len(live) > 64:
            ranges.give_back(live.pop(number % len(live)))
        starts = sorted(live)
        gaps = [after - start for start, after in zip(starts, [*starts[1:], starts[0] + PLACES], strict=True)]
        assert min(gaps) >= PLACES // 64 // 4
        assert all(0 <= start < PLACES for start in starts)


def test_a_new_range_is_seldom_that_of_one_that_has_just_ended() -> None:
    """What an ended sandbox wrote down names no process of the next one."""
    ranges = PidRanges(random.Random(2).randrange)
    ranges.take()
    places = []
    for _ in range(20):
        places.append(ranges.take())
        ranges.give_back(places[-1])
    assert len(set(places)) == len(places)
