"""Figures of requests: slots, buckets and percentiles, and what they remember."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.server.endpoints import figures
from atoll.server.endpoints.figures import BUCKETS, SLOT_SECONDS, SLOTS, Depths, Series, bound_of, bucket_of, share

LEAST, MOST = bound_of(0), bound_of(BUCKETS - 1)


@given(st.floats(LEAST, MOST * 0.999))
def test_a_bucket_has_its_times(seconds: float) -> None:
    """A time is in the bucket between whose bounds it is, which are at most a quarter apart."""
    bucket = bucket_of(seconds)
    assert bound_of(bucket - 1) <= seconds < bound_of(bucket) <= bound_of(bucket - 1) * 1.2501


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (1e-9, 0), (1e9, BUCKETS - 1)])
def test_times_beyond_the_bounds_are_in_the_outer_buckets(seconds: float, bucket: int) -> None:
    """No time is outside."""
    assert bucket_of(seconds) == bucket


@given(st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_percentiles_are_known_to_a_bucket(times: list[float], wanted: float) -> None:
    """The percentile is in the bucket of the true one."""
    counts = array("I", bytes(4 * BUCKETS))
    for seconds in times:
        counts[bucket_of(seconds)] += 1
    true = sorted(times)[max(-(-len(times) * int(wanted * 100) // 100) - 1, 0)]
    found = share(counts, wanted)
    assert found is not None
    assert bound_of(bucket_of(true) - 1) <= found <= bound_of(bucket_of(true)) * 1.0001
    assert share(array("I", bytes(4 * BUCKETS)), wanted) is None


def test_a_series_remembers_an_hour() -> None:
    """Requests are in their slot until the ring has gone round; sums stay."""
    series, start = Series(), SLOT_SECONDS * 1000
    for status in (200, 404, 500, 0):
        series.note(0.1, status, start)
    series.wait(7, start + 1)
    series.wait(3, start + 2)
    series.note(0.2, 200, start + SLOT_SECONDS)
    *_, before, last = series.points(start + SLOT_SECONDS + 10)
    assert (before.requests, before.failed, before.waiting) == (4, 2, 7)
    assert (last.requests, last.failed, last.seconds) == (1, 0, 10.0)
    assert before.median == pytest.approx(0.1, rel=0.25)
    assert series.recent(2, start + SLOT_SECONDS + 10)[0] == pytest.approx(5 / (SLOT_SECONDS + 10))
    later = series.points(start + SLOT_SECONDS * (SLOTS + 1))
    assert sum(point.requests for point in later) == 0
    assert series.is_old(start + SLOT_SECONDS * (SLOTS + 1))
    sums = series.sums()
    assert {kind: count for kind, count in enumerate(sums.kinds) if count} == {2: 2, 4: 1, 5: 1, 0: 1}
    assert sum(sums.times) == 5
    assert sums.seconds == pytest.approx(0.6)


def test_depths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues of each owner are apart; so many are remembered, and those that are old no more."""
    monkeypatch.setattr(figures, "MOST_SERIES", 2)
    depths = Depths()
    depths.note({("ada", "a"): 2, ("bob", "a"): 3, ("bob", "b"): 4}, 0.0)
    assert [alias for alias, _ in depths.all_of("bob")] == ["a"]
    assert depths.of("ada", "a").points(0.0)[-1].waiting == 2
    assert depths.of("bob", "b").points(0.0)[-1].waiting == 0
    depths.note({}, SLOT_SECONDS * (SLOTS + 1))
    assert not list(depths.all_of("bob"))
