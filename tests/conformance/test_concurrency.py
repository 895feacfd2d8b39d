"""Many calls at once: each is answered once, with its own answer."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from ..server.process import on_cluster
from .conftest import Place

CALLS = 1000


def double(value: int) -> int:
    return 2 * value


def wait_for(path: str) -> str:
    deadline = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return path if os.path.exists(path) else "never came"


def touch(path: str) -> None:
    Path(path).touch()


def remove(*paths: str) -> None:
    for path in paths:
        Path(path).unlink(missing_ok=True)


def test_submit_gives_a_future(place: Place) -> None:
    """A future has its call's result, or its exception."""
    future = place.isolated(double).submit(4)
    assert isinstance(future, Future)
    assert future.result(60) == 8
    assert future.done()
    assert future.exception() is None
    failed = place.isolated(lambda: 1 // 0).submit()
    assert isinstance(failed.exception(60), ZeroDivisionError)


def test_callbacks_of_a_future_are_called(place: Place) -> None:
    """`add_done_callback` is called with the future, also when it is done already."""
    called: list[int] = []
    future = place.isolated(double).submit(1)
    future.add_done_callback(lambda done: called.append(done.result()))
    wait([future], 60)
    future.add_done_callback(lambda done: called.append(-done.result()))
    assert called[-1] == -2
    deadline = time.monotonic() + 120
    while len(called) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(called) == [-2, 2]


def test_as_completed_gives_each_once(place: Place) -> None:
    """Fifty futures complete, each with the answer of its own call."""
    function = place.isolated(double)
    futures: dict[Future[int], int] = {function.submit(number): number for number in range(50)}
    assert sorted((futures[future], future.result()) for future in as_completed(futures, 60)) == [
        (number, 2 * number) for number in range(50)
    ]


def test_a_short_call_does_not_wait_for_a_long_one(place: Place) -> None:
    """Of two calls that run side by side the shorter one is answered first."""
    gate = "/data/conformance-short"
    long = place.isolated(wait_for).submit(gate)
    short = place.isolated(double).submit(1)
    both: list[Future[Any]] = [long, short]
    assert wait(both, 60, FIRST_COMPLETED).done == {short}
    place.isolated(touch)(gate)
    assert long.result(60) == gate
    place.isolated(remove)(gate)


def test_two_calls_run_at_the_same_time(place: Place) -> None:
    """Each of two calls waits for what the other one writes."""

    def meet(mine: str, theirs: str) -> str:
        touch(mine)
        return wait_for(theirs)

    one, two = "/data/conformance-meet-1", "/data/conformance-meet-2"
    function = place.isolated(meet)
    futures = [function.submit(one, two), function.submit(two, one)]
    assert [future.result(90) for future in futures] == [two, one]
    place.isolated(remove)(one, two)


def test_a_thousand_calls_submitted_at_once_are_answered_once_each(place: Place) -> None:
    """Each call runs once and gets its own answer, whatever the number of cores."""
    record = "/data/conformance-thousand-"

    def answer(number: int) -> tuple[int, int]:
        mount = os.stat("/data").st_dev  # on JuiceFS one of each machine: appends of two to one file lose lines
        with open(f"{record}{mount}", "a") as file:
            file.write(f"{number}\n")
        return number, number * number

    def ran() -> list[int]:
        lines = list[str]()
        for path in Path("/data").glob(f"{os.path.basename(record)}*"):
            lines += path.read_text().splitlines()
            path.unlink()
        return [int(line) for line in lines]

    place.isolated(ran)()
    function = place.isolated(answer)
    futures = [function.submit(number) for number in range(CALLS)]
    assert [future.result(100) for future in futures] == [(number, number * number) for number in range(CALLS)]
    assert sorted(place.isolated(ran)()) == list(range(CALLS))


def test_threads_may_share_a_function(place: Place) -> None:
    """Twenty threads that call the same function get their own answers."""
    function = place.isolated(double)
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(function, range(200))) == [2 * number for number in range(200)]


def test_a_future_can_be_awaited(place: Place) -> None:
    """`asyncio.wrap_future` turns a future into one of an event loop."""

    async def several() -> list[int]:
        function = place.isolated(double)
        return await asyncio.gather(*(asyncio.wrap_future(function.submit(number)) for number in range(10)))

    assert asyncio.run(several()) == [2 * number for number in range(10)]


def test_a_forked_caller_has_calls_of_its_own(place: Place) -> None:
    """A process that forks after a call can go on calling in both halves."""
    function = place.isolated(double)
    assert function(1) == 2
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if [function(number) for number in range(5)] == [0, 2, 4, 6, 8] else 1)
        finally:
            os._exit(2)
    assert [function(number) for number in range(5)] == [0, 2, 4, 6, 8]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert function(7) == 14


# --- map ---------------------------------------------------------------------------------------------------------------


def test_map_keeps_the_order(place: Place) -> None:
    """Results come in the order of the input, although later calls may end first."""

    def slow_first(number: int) -> int:
        time.sleep(0.05 if number == 0 else 0)
        return number

    assert list(place.isolated(slow_first).map(range(20))) == list(range(20))


def test_map_takes_several_inputs(place: Place) -> None:
    """Several iterables are walked together, as far as the shortest goes."""
    function = place.isolated(lambda one, two: (one, two))
    assert list(function.map([1, 2, 3], "ab")) == [(1, "a"), (2, "b")]


def test_starmap_spreads_its_items(place: Place) -> None:
    """Items of `starmap` are the arguments of a call each."""
    function = place.isolated(lambda one, two=0: one + two)
    items: list[Any] = [(1, 2), (3,), [4, 5]]
    assert list(function.starmap(items)) == [3, 3, 9]


def test_map_of_nothing_is_nothing(place: Place) -> None:
    """An empty input gives an empty output, and no call."""
    assert list(place.isolated(double).map([])) == []


def test_map_is_an_iterator(place: Place) -> None:
    """The results are given one at a time."""
    results = place.isolated(double).map([1, 2])
    assert iter(results) is results
    assert next(results) == 2
    assert next(results) == 4
    with pytest.raises(StopIteration):
        next(results)


def test_map_takes_from_an_endless_input_as_it_goes(place: Place) -> None:
    """Only a bounded number of items is taken ahead of the results."""
    taken = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = place.isolated(double).map(endless())
    assert list(itertools.islice(results, 5)) == [0, 2, 4, 6, 8]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 1000
    assert place.isolated(double)(1) == 2


def test_an_item_that_comes_late_gets_a_worker_of_its_own(place: Place) -> None:
    """The second call begins while the first, which waits for it, runs: the input gave it after that had begun."""

    def meet(mine: str, theirs: str) -> str:
        touch(mine)
        return wait_for(theirs)

    one, two = "/data/conformance-late-1", "/data/conformance-late-2"

    def pairs() -> Iterator[tuple[str, str]]:
        yield one, two
        place.isolated(wait_for)(one)
        yield two, one

    assert list(place.isolated(meet).starmap(pairs())) == [two, one]
    place.isolated(remove)(one, two)


def test_map_stops_at_the_first_failed_call(place: Place) -> None:
    """The results before it are given; then its exception is raised."""

    def fail_at_three(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = place.isolated(fail_at_three).map(range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_an_input_that_fails_ends_the_map_with_its_own_error(place: Place) -> None:
    """An exception of the input iterator reaches the caller, and nothing is left running."""

    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the input broke")

    with pytest.raises(OSError, match="the input broke"):
        list(place.isolated(double).map(broken()))
    assert place.isolated(double)(1) == 2


def test_maps_may_run_side_by_side(place: Place) -> None:
    """Two maps that are read in turn keep their results apart."""
    one = place.isolated(double).map(range(30))
    two = place.isolated(lambda value: -value).map(range(30))
    pairs = list(zip(one, two, strict=True))
    assert pairs == [(2 * number, -number) for number in range(30)]


# --- cancelling --------------------------------------------------------------------------------------------------------


def test_a_call_that_has_not_started_is_cancelled_by_its_future(place: Place) -> None:
    """`Future.cancel` of a waiting call means that it never runs."""
    gate = "/data/conformance-cancel-gate"
    ran = "/data/conformance-cancel-ran"
    blocking = place.isolated(wait_for)
    many = [blocking.submit(gate) for _ in range((os.cpu_count() or 1) + 200)]
    last = place.isolated(touch).submit(ran)
    assert last.cancel()
    assert last.cancelled()
    for future in many:
        blocking.cancel(future)
    wait(many, 60)
    assert not place.isolated(os.path.exists)(ran)


def test_a_running_call_is_killed_by_cancel(place: Place) -> None:
    """`f.cancel(future)` ends a call that runs; its future says `CallCancelled`, and what it started ends."""
    began = "/data/conformance-cancel-began"

    def run() -> None:
        import subprocess

        touch(began)
        subprocess.run(["sleep", "100"], check=True)

    function = place.isolated(run)
    future = function.submit()
    assert place.isolated(wait_for)(began) == began
    assert function.cancel(future)
    with pytest.raises(errors.CallCancelled):
        future.result(60)
    assert not function.cancel(future)
    place.isolated(remove)(began)

    def sleeping() -> bool:
        return any(b"sleep\x00100\x00" in path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))

    assert not place.isolated(sleeping)()


def test_an_answered_call_cannot_be_cancelled(place: Place) -> None:
    """`cancel` of a finished call is False and changes nothing."""
    function = place.isolated(double)
    future = function.submit(2)
    assert future.result(60) == 4
    assert not function.cancel(future)
    assert future.result() == 4


def test_cancelling_at_random_moments_loses_no_other_call(place: Place) -> None:
    """Of calls that are cancelled at any moment each ends, and all others get their answers."""
    function = place.isolated(double)
    keep, drop = [], []
    for number in range(120):
        future: Future[Any] = function.submit(number)
        if number % 3 == 0:
            threading.Timer(number / 20_000, function.cancel, (future,)).start()
            drop.append((number, future))
        else:
            keep.append((number, future))
    assert [future.result(60) for _, future in keep] == [2 * number for number, _ in keep]
    wait([future for _, future in drop], 60)
    for number, future in drop:
        if future.cancelled():
            continue
        error = future.exception()
        assert isinstance(error, errors.CallCancelled) if error is not None else future.result() == 2 * number


# --- workers -----------------------------------------------------------------------------------------------------------


def test_calls_in_a_row_meet_the_same_worker(place: Place) -> None:
    """A warm worker is used again, and keeps what its modules hold."""

    def count() -> tuple[int, int]:
        import math

        math.conformance_count = getattr(math, "conformance_count", 0) + 1  # type: ignore[attr-defined]
        return os.getpid(), math.conformance_count  # type: ignore[attr-defined]

    function = place.isolated(count, env={"CONFORMANCE": "warm"})
    (first, one), (second, two) = function(), function()
    assert first == second
    assert two == one + 1


def test_keep_alive_of_zero_gives_each_call_a_worker_of_its_own(place: Place) -> None:
    """Nothing of one call's process is there at the next."""

    def count() -> int:
        import math

        math.conformance_single = getattr(math, "conformance_single", 0) + 1  # type: ignore[attr-defined]
        return int(math.conformance_single)  # type: ignore[attr-defined]

    function = place.isolated(count, keep_alive=0)
    assert [function() for _ in range(3)] == [1, 1, 1]


def test_other_variables_mean_another_worker(place: Place) -> None:
    """Functions with different `env` do not share a process."""
    one = place.isolated(os.getpid, env={"CONFORMANCE": "1"})
    two = place.isolated(os.getpid, env={"CONFORMANCE": "2"})
    first, second = {one(), one()}, {two(), two()}
    assert not first & second
    assert on_cluster() or len(first | second) == 2  # of several machines any may have room


def test_a_long_idle_function_works_again(place: Place) -> None:
    """A worker whose `keep_alive` has passed is replaced without a word."""

    def whoami() -> tuple[int, str]:
        """Return the process number, which a new sandbox may use again, and when the process began."""
        return os.getpid(), Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]

    function = place.isolated(whoami, keep_alive=0.05, env={"CONFORMANCE": "idle"})
    first = function()
    deadline = time.monotonic() + 120
    while (again := function()) == first and time.monotonic() < deadline:
        time.sleep(0.2)  # longer than the worker is kept
    assert again != first
