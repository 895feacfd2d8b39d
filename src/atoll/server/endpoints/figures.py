"""Figures of the last hour: requests to one revision, their times, and how many waited. In memory, and bounded.

Theory of operation. A ring has a slot for each `SLOT_SECONDS`; one that is too old is emptied when its place is needed. Times
are counted in buckets, four for each doubling: a request costs the same whatever it took, and a percentile is known to an
eighth of its value.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SLOT_SECONDS = 30.0
SLOTS = 120
_LEAST = -10
"""The exponent of the shortest times: all below 2**-11 s, half a millisecond, are in the first bucket."""
_DOUBLINGS, _PARTS = 22, 4
_LEAST_SECONDS = 5.0
"""A slot that is younger counts as so old: one request would be a peak."""
BUCKETS = _DOUBLINGS * _PARTS
_NONE = bytes(4 * BUCKETS)
KINDS = 10
"""Kinds of statuses, by their first digit."""
MOST_SERIES = 2000
"""Endpoints whose queues are remembered."""


def bound_of(bucket: int) -> float:
    """Return the seconds at which a bucket ends, and the next one begins."""
    doubling, part = divmod(bucket + 1, _PARTS)
    return float(2.0 ** (_LEAST + doubling - 1) * (1 + part / _PARTS))


BOUNDS = [bound_of(bucket) for bucket in range(BUCKETS - 1)]
"""Ends of the buckets, but for the last one's, which has none."""


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time."""
    return bisect_right(BOUNDS, seconds)


def by_doublings(times: array[int]) -> Iterator[tuple[float, int]]:
    """Yield the seconds at which each doubling ends, and how many times are within; the last is endless."""
    within = 0
    for first in range(0, BUCKETS, _PARTS):
        within += sum(times[first : first + _PARTS])
        last = first + _PARTS == BUCKETS
        yield float("inf") if last else bound_of(first + _PARTS - 1), within


def share(times: array[int], wanted: float) -> float | None:
    """Return the seconds within which a share of all times lies; None for no times."""
    total = sum(times)
    if not total:
        return None
    before = 0
    for bucket, count in enumerate(times):
        if count and before + count >= wanted * total:
            low = bound_of(bucket - 1) if bucket else 0.0
            return low + (bound_of(bucket) - low) * max(wanted * total - before, 0.5) / count
        before += count
    return None


class Point(NamedTuple):
    """The figures of one slot.

    Args:
        seconds: that the slot has lasted.
        failed: requests without an answer, or with one from 500 on.
        waiting: the most that waited at a time.
        median, p95: seconds; None without requests.
    """

    seconds: float = SLOT_SECONDS
    requests: int = 0
    failed: int = 0
    waiting: int = 0
    median: float | None = None
    p95: float | None = None


class _Slot:
    """A slot; `kinds` are requests by the first digit of their status, 0 for no answer."""

    __slots__ = ("end", "kinds", "number", "point", "seconds", "times", "waiting")

    def __init__(self, number: int) -> None:
        self.number, self.end = number, (number + 1) * SLOT_SECONDS
        self.kinds = [0] * KINDS
        self.waiting, self.seconds = 0, 0.0
        self.times: array[int] | None = None
        self.point: Point | None = None  # of one that is over

    @property
    def failed(self) -> int:
        """Requests without an answer, or with one from 500 on."""
        return self.kinds[0] + sum(self.kinds[5:])

    def figures(self, seconds: float) -> Point:
        """Return the figures, of so many seconds."""
        times = self.times
        shares = (None, None) if times is None else (share(times, 0.5), share(times, 0.95))
        return Point(seconds, sum(self.kinds), self.failed, self.waiting, *shares)


class Sums:
    """Requests by the first digit of their status, times by bucket, and the sum of these, over a long time."""

    def __init__(self) -> None:
        self.kinds = [0] * KINDS
        self.times = array("Q", bytes(8 * BUCKETS))
        self.seconds = 0.0

    def add(self, other: Sums | _Slot) -> None:
        """Add those of another one."""
        self.seconds += other.seconds
        for kind, count in enumerate(other.kinds):
            self.kinds[kind] += count
        for bucket, count in enumerate(other.times or ()):
            self.times[bucket] += count


class Series:
    """The figures of one revision, or of one queue."""

    def __init__(self) -> None:
        self._slots: list[_Slot | None] = []
        self._now = _Slot(-1)
        self._before = Sums()

    def note(self, seconds: float, status: int, now: float) -> None:
        """Count a request that is over.

        Args:
            status: of its answer; 0 for none.
            now: by the monotonic clock.
        """
        slot = self._now
        if now >= slot.end:
            slot = self._next(now)
        times = slot.times
        if times is None:
            times = slot.times = array("I", _NONE)
        times[bisect_right(BOUNDS, seconds)] += 1
        slot.kinds[status // 100] += 1
        slot.seconds += seconds

    def wait(self, count: int, now: float) -> None:
        """Note how many wait at this moment."""
        slot = self._now if now < self._now.end else self._next(now)
        slot.waiting = max(slot.waiting, count)

    def _next(self, now: float) -> _Slot:
        if not self._slots:
            self._slots = [None] * SLOTS
        self._before.add(self._now)
        number = int(now // SLOT_SECONDS)
        self._now = self._slots[number % SLOTS] = _Slot(number)
        return self._now

    def is_old(self, now: float) -> bool:
        """Return whether nothing has come for longer than is remembered."""
        return now // SLOT_SECONDS - self._now.number >= SLOTS

    def sums(self) -> Sums:
        """Return the sums since the server's start."""
        found = Sums()
        found.add(self._before)
        found.add(self._now)
        return found

    def points(self, now: float | None = None) -> list[Point]:
        """Return the figures of all slots, the oldest first."""
        now = time.monotonic() if now is None else now
        last = int(now // SLOT_SECONDS)
        found = []
        for number in range(last - SLOTS + 1, last + 1):
            slot = self._slots[number % SLOTS] if self._slots else None
            if slot is None or slot.number != number:
                found.append(Point())
                continue
            if number == last:
                found.append(slot.figures(max(now - number * SLOT_SECONDS, _LEAST_SECONDS)))
                continue
            if slot.point is None:
                slot.point = slot.figures(SLOT_SECONDS)
            found.append(slot.point)
        return found

    def recent(self, slots: int, now: float | None = None) -> tuple[float, float | None, float | None]:
        """Return requests a second, median and 95th percentile over the last slots, the present one included."""
        now = time.monotonic() if now is None else now
        last = int(now // SLOT_SECONDS)
        times = array("Q", bytes(8 * BUCKETS))
        count = 0
        for slot in self._slots:
            if slot is not None and last - slots < slot.number <= last:
                count += sum(slot.kinds)
                for bucket, number in enumerate(slot.times or ()):
                    times[bucket] += number
        seconds = max(now - (last - slots + 1) * SLOT_SECONDS, _LEAST_SECONDS)
        return count / seconds, share(times, 0.5), share(times, 0.95)


class Depths:
    """How many requests have waited in each queue, by the endpoint's owner and alias."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def note(self, waiting: Mapping[tuple[str, str], int], now: float) -> None:
        """Note how many wait at this moment; a queue that nobody has used for long is forgotten."""
        for name, count in waiting.items():
            if name not in self._series and len(self._series) >= MOST_SERIES:
                continue
            self._series.setdefault(name, Series()).wait(count, now)
        for name in [name for name, series in self._series.items() if series.is_old(now)]:
            del self._series[name]

    def of(self, owner: str, alias: str) -> Series:
        """Return the depths of one queue."""
        return self._series.get((owner, alias)) or Series()

    def all_of(self, owner: str) -> Iterator[tuple[str, Series]]:
        """Yield the queues of one owner with their depths, by alias."""
        for (user, alias), series in sorted(self._series.items()):
            if user == owner:
                yield alias, series
