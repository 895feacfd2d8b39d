"""Functions and their calls, drawn from the published distributions of a large cloud's workload. No data is downloaded.

Source: M. Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a Large Cloud
Provider", USENIX ATC 2020 (Azure Functions, two weeks of 2019).

- Popularity: 45 of 100 applications are called at most once an hour, 81 at most once a minute. A log-normal distribution
  has both. It is cut at the top where the 18.6 most popular of 100 have 99.6 of 100 calls, as published.
- Mean time of a function: log-normal, mu -0.38 and sigma 2.36 of seconds; bounded by ten minutes.
- Memory: Burr, c 11.652, k 0.221, lambda 107.083 MB.
- Timers: 16 of 100 functions are called by a timer, at equal times. Of the others, 40 of 100 are called in bursts
  (a coefficient of variation above 1), here of 4 on average.

Ours: all rates have one factor, so that the calls take a given share of the cluster. One function of 200 takes a GPU, and
one of 200 is large (type `L`), which the trace does not tell.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

MU, SIGMA = -0.38, 2.36
LONGEST_SECONDS = 600.0
BURR_C, BURR_K, BURR_MB = 11.652, 0.221, 107.083
DECADES_MU, DECADES_SIGMA = -1.555, 1.77
"""Of calls a minute, as powers of ten: from 45 of 100 at most 1/60, and 81 of 100 at most 1."""
MOST_POPULAR = 3.0
"""Standard deviations above the mean from which functions are equally popular."""
TIMERS, BURSTY, BURST = 0.16, 0.4, 4.0
LARGE = GPU = 0.005
USERS = 2000


@dataclass(frozen=True)
class Function:
    """One function.

    Args:
        number: its place in the list.
        user: its owner.
        machine_type: the smallest that its memory fits in.
        seconds: of a call, on average.
        rate: calls a second.
        timer: its calls come at equal times.
        bursty: they come several at a time.
    """

    number: int
    user: str
    machine_type: str
    seconds: float
    rate: float
    timer: bool
    bursty: bool


@dataclass(frozen=True)
class Call:
    """One call: when it comes, and how long it takes."""

    at: float
    function: Function
    seconds: float


def functions(count: int, cores: float, seed: int, machine_cores: dict[str, float]) -> list[Function]:
    """Return functions whose calls keep so many cores busy."""
    drawn = random.Random(seed)
    found = []
    for number in range(count):
        # Each part of the distribution is drawn from equally often, so that two seeds differ little.
        rate = 10 ** (DECADES_MU + DECADES_SIGMA * min(_normal((number + drawn.random()) / count), MOST_POPULAR)) / 60
        seconds = min(math.exp(drawn.gauss(MU, SIGMA)), LONGEST_SECONDS)
        megabytes = BURR_MB * ((1 - drawn.random()) ** (-1 / BURR_K) - 1) ** (1 / BURR_C)
        kind = drawn.random()
        if kind < GPU:
            machine_type = "GPU-T4"
        elif kind < GPU + LARGE:
            machine_type = "L"
        else:
            machine_type = "XS" if megabytes <= 256 else "S" if megabytes <= 1024 else "M"
        if kind < GPU + LARGE:
            rate = min(rate, 1 / 60)  # a popular function is not one that takes a large part of a machine
        timer = drawn.random() < TIMERS
        bursty = not timer and drawn.random() < BURSTY
        user = f"u{int(USERS * drawn.random() ** 2)}"
        found.append(Function(number, user, machine_type, seconds, rate, timer, bursty))
    busy = sum(one.rate * one.seconds * machine_cores[one.machine_type] for one in found)
    factor = cores / busy
    return [
        Function(one.number, one.user, one.machine_type, one.seconds, one.rate * factor, one.timer, one.bursty)
        for one in found
    ]


def calls(found: list[Function], seed: int) -> Iterator[Call]:
    """Yield the calls of functions, in order of time, without end."""
    drawn = random.Random(seed)
    others = [one for one in found if not one.timer]
    rates = list(itertools.accumulate(one.rate / (BURST if one.bursty else 1) for one in others))
    number = itertools.count()
    coming = [(drawn.random() / one.rate, next(number), one) for one in found if one.timer]
    heapq.heapify(coming)
    next_other = drawn.expovariate(rates[-1])
    while True:
        while coming and coming[0][0] <= next_other:
            at, _, function = coming[0]
            yield Call(at, function, _seconds(function, drawn))
            if function.timer:
                heapq.heapreplace(coming, (at + 1 / function.rate, next(number), function))
            else:
                heapq.heappop(coming)
        function = others[bisect.bisect_left(rates, drawn.random() * rates[-1])]
        yield Call(next_other, function, _seconds(function, drawn))
        if function.bursty:
            at = next_other
            while drawn.random() < 1 - 1 / BURST:
                at += drawn.expovariate(20.0)
                heapq.heappush(coming, (at, next(number), function))
        next_other += drawn.expovariate(rates[-1])


def running(found: list[Function], seed: int) -> list[Call]:
    """Return the calls that run at the beginning, each with the seconds that are left of it."""
    drawn = random.Random(seed)
    calls = []
    for function in found:
        mean = function.rate * function.seconds
        count = int(mean) + (drawn.random() < mean % 1)
        calls += [Call(0.0, function, drawn.random() * function.seconds) for _ in range(count)]
    drawn.shuffle(calls)
    return calls


def share_of_popular(found: list[Function], part: float = 0.186) -> float:
    """Return the share of calls that the most popular part of the functions has."""
    rates = sorted((one.rate for one in found), reverse=True)
    return sum(rates[: int(len(rates) * part)]) / sum(rates)


def _seconds(function: Function, drawn: random.Random) -> float:
    return min(function.seconds * drawn.lognormvariate(-0.08, 0.4), LONGEST_SECONDS)


def _normal(share: float) -> float:
    """Return the value below which this share of a standard normal distribution is."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9))
