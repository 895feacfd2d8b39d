"""Many small things in a row: calls of a `map`, and items of a generator, in how many a second.

    make bench SUITE=streams
    make bench SUITE=streams BENCH="--calls 2000 --items 2000 --rounds 2"

One run, one table; the things that are compared take turns in each round. All have as many processes as this one has
cores, started and warm. What is measured is the caller's view: from the first request to the last answer in hand.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from peers import PipeGenerator, QueueGenerator, find_ray, stop_daemon
from table import Comparison, Samples, command_line, finish, say

CORES = len(os.sched_getaffinity(0))
Run = Callable[[int], int]


def add(a: int, b: int = 1) -> int:
    return a + b


def numbers(count: int) -> Iterator[int]:
    number = 0
    while number < count:  # not `yield from`, which Ray does not take
        yield number
        number += 1


def race(what: str, count: int, expected: int, rounds: int, runners: dict[str, Run]) -> dict[str, Samples]:
    """Let each runner do it once in each round, after one that is not counted."""
    found = {name: Samples(name) for name in runners}
    for number in range(rounds + 1):
        say(f"{what}: round {number} of {rounds}" if number else f"{what}: warm-up")
        for name, run in runners.items():
            with found[name].time():
                total = run(count)
            assert total == expected, (name, total)
        if number == 0:
            for samples in found.values():
                samples.clear()
    return found


def compare(found: dict[str, Samples], ours: str, count: int, unit: str, aims: dict[str, float]) -> list[Comparison]:
    return [
        Comparison(found[ours], samples, aim=aims.get(name), amount=count, unit=unit)
        for name, samples in found.items()
        if name != ours
    ]


def measure_map(count: int, rounds: int, ray: Any) -> list[Comparison]:
    """`map` of tiny calls, results in order."""
    from atoll import isolated

    function: Any = isolated(keep_alive=600)(add)
    pool = ProcessPoolExecutor(CORES)
    runners: dict[str, Run] = {
        "map of tiny calls": lambda count: sum(function.map(range(count))),
        "ProcessPoolExecutor.map": lambda count: sum(pool.map(add, range(count))),
    }
    if ray is not None:
        remote = ray.remote(add)
        runners["Ray tasks"] = lambda count: sum(ray.get([remote.remote(number) for number in range(count)]))
    expected = count * (count - 1) // 2 + count
    try:
        found = race("map", count, expected, rounds, runners)
    finally:
        pool.shutdown()
    return compare(found, "map of tiny calls", count, "calls/s", {"ProcessPoolExecutor.map": 1.0, "Ray tasks": 1.0})


def measure_items(count: int, rounds: int, ray: Any) -> list[Comparison]:
    """Items of a generator in another process, each in the caller's hand before the next is asked for."""
    from atoll import isolated

    function: Any = isolated(keep_alive=600)(numbers)
    context = multiprocessing.get_context("fork")
    pipe, queue = PipeGenerator(context, numbers), QueueGenerator(context, numbers)
    runners: dict[str, Run] = {
        "items of a generator": lambda count: sum(function(count)),
        "a process and a Pipe": lambda count: sum(pipe.items(count)),
        "a process and a Queue": lambda count: sum(queue.items(count)),
    }
    if ray is not None:
        remote = ray.remote(num_returns="streaming")(numbers)
        runners["Ray's streaming generator"] = lambda count: sum(ray.get(item) for item in remote.remote(count))
    try:
        found = race("items", count, count * (count - 1) // 2, rounds, runners)
    finally:
        pipe.close()
        queue.close()
    return compare(found, "items of a generator", count, "items/s", {})


def main() -> int:
    parser = command_line("Measure calls and items per second.", 5)
    parser.add_argument("--calls", type=int, default=10_000, help="calls of each map (default 10000)")
    parser.add_argument("--items", type=int, default=10_000, help="items of each generator (default 10000)")
    options = parser.parse_args()
    calls, items, rounds = (50, 50, 1) if options.tiny else (options.calls, options.items, max(1, options.rounds))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True) as name:
        os.environ["ATOLL_HOME"] = str(Path(name) / "home")
        ray = None if options.tiny else find_ray(CORES)
        try:
            rows = measure_map(calls, rounds, ray) + measure_items(items, rounds, ray)
        finally:
            stop_daemon()
            if ray is not None:
                ray.shutdown()
    notes = [
        f"{rounds} rounds after one that is not counted; {calls} calls of `add(n)`, {items} items `n`; {CORES} processes each.",
        "ProcessPoolExecutor.map: with its default of one item at a time. A ratio is Atoll's rate by the peer's.",
    ]
    if ray is None:
        notes.append("Ray is not installed here: `make bench` installs it.")
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
