"""Generators, async functions, and the options of a call: `timeout`, `retries`, `setup_function`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from ..waiting import PATIENCE_SECONDS, until
from .conftest import Place
from .samples import numbers


def exists(path: str) -> bool:
    return os.path.exists(path)


def wait_until(place: Place, path: str) -> bool:
    """Wait until a file is there in `/data`."""
    look = place.isolated(exists)
    return until(lambda: look(path))


def remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


# --- generators --------------------------------------------------------------------------------------------------------


def test_a_generator_gives_its_items_in_order(place: Place) -> None:
    """A call of a generator function is an iterator of all its items."""
    items = place.isolated(numbers)(1000)
    assert iter(items) is items
    assert list(items) == list(range(1000))


def test_a_generator_without_items_ends_at_once(place: Place) -> None:
    """No item is no error."""
    assert list(place.isolated(numbers)(0)) == []


def test_items_arrive_while_the_generator_runs(place: Place) -> None:
    """The first item is there before the second one can be made."""
    gate = "/data/conformance-items"

    def two() -> Iterator[str]:
        yield "first"
        deadline = time.monotonic() + 120
        while not os.path.exists(gate) and time.monotonic() < deadline:
            time.sleep(0.005)
        yield "second" if os.path.exists(gate) else "too late"

    items = place.isolated(two)()
    assert next(items) == "first"
    place.isolated(lambda: Path(gate).touch())()
    assert list(items) == ["second"]
    place.isolated(remove)(gate)


def test_an_exception_arrives_after_the_items_before_it(place: Place) -> None:
    """What was yielded before the exception is given first."""

    def some() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no third")

    items = place.isolated(some)()
    assert next(items) == 1
    assert next(items) == 2
    with pytest.raises(LookupError, match="no third"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_closing_the_iterator_stops_the_function(place: Place) -> None:
    """A caller that leaves early ends the generator, whose `finally` runs."""
    mark = "/data/conformance-closed"

    def endless() -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            Path(mark).touch()

    items = place.isolated(endless)()
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]
    assert wait_until(place, mark)
    place.isolated(remove)(mark)


def test_leaving_a_loop_stops_the_function(place: Place) -> None:
    """`break` in the caller's loop is enough: an endless generator does not run on."""
    beat = "/data/conformance-beat"

    def endless() -> Iterator[int]:
        number = 0
        while True:
            Path(beat).write_text(str(number))
            yield number
            number += 1

    for item in place.isolated(endless)():
        if item == 3:
            break
    read = place.isolated(lambda: Path(beat).read_text())
    last = read()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (now := read()) != last:
        assert time.monotonic() < deadline
        last = now


def test_a_slow_reader_holds_a_fast_generator_back(place: Place) -> None:
    """What nobody has taken is not made without bound."""
    made = "/data/conformance-made"

    def endless() -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            Path(f"{made}-new").write_bytes(b"%06d" % number)
            os.replace(f"{made}-new", made)  # on a shared disk one that is written over may be read as zeros
            yield bytes(100_000)

    items = place.isolated(endless)()
    next(items)
    read = place.isolated(lambda: int(Path(made).read_text()))
    last = -1
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (now := read()) != last and time.monotonic() < deadline:
        last = now
    assert now < 2000
    items.close()  # type: ignore[attr-defined]


def test_large_items_arrive_whole(place: Place) -> None:
    """Items of megabytes are as good as small ones."""

    def some() -> Iterator[bytes]:
        for number in range(5):
            yield bytes([number]) * 3_000_000

    assert [(item[0], len(item)) for item in place.isolated(some)()] == [(number, 3_000_000) for number in range(5)]


def test_an_item_that_cannot_travel_is_named(place: Place) -> None:
    """An item without a pickle is an error after the items before it."""

    def some() -> Iterator[Any]:
        import threading

        yield 1
        yield threading.Lock()

    items = place.isolated(some)()
    assert next(items) == 1
    with pytest.raises(errors.SerializationError, match="lock"):
        next(items)


def test_a_worker_that_dies_between_items_is_named(place: Place) -> None:
    """The items before the death are given; then it is `WorkerDied`."""

    def some() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    items = place.isolated(some)()
    assert next(items) == 1
    with pytest.raises(errors.WorkerDied):
        next(items)


def test_generators_may_be_read_in_turn(place: Place) -> None:
    """Two generators of one function do not mix their items."""

    def count(first: int) -> Iterator[int]:
        for number in range(50):
            yield first + number

    one, two = place.isolated(count)(0), place.isolated(count)(1000)
    assert list(zip(one, two, strict=True)) == [(number, 1000 + number) for number in range(50)]


def test_a_generator_may_call_functions(place: Place) -> None:
    """Nested calls work between two items, and a nested generator too."""
    inner = place.isolated(numbers)

    def outer(count: int) -> Iterator[int]:
        for number in inner(count):
            yield number * 10

    assert list(place.isolated(outer)(5)) == [0, 10, 20, 30, 40]


def test_output_comes_with_its_item(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """What was printed before an item is on the caller's stdout when the item is there."""

    def speak() -> Iterator[int]:
        for number in range(3):
            print("made", number)
            yield number

    printed = ""
    for item in place.isolated(speak)():
        printed += capfd.readouterr().out
        assert f"made {item}\n" in printed
    assert printed == "made 0\nmade 1\nmade 2\n"


# --- asyncio -----------------------------------------------------------------------------------------------------------


def test_aio_gives_the_result(place: Place) -> None:
    """`await f.aio(...)` is the call's result, or raises its exception."""
    function = place.isolated(lambda value: 10 // value)

    async def ask() -> int:
        with pytest.raises(ZeroDivisionError):
            await function.aio(0)
        return int(await function.aio(2))

    assert asyncio.run(ask()) == 5


def test_aio_calls_run_side_by_side(place: Place) -> None:
    """Many awaited calls are in flight at once, and the event loop is not blocked."""
    function = place.isolated(lambda value: value * value)

    async def ask() -> list[int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        answers = await asyncio.gather(*(function.aio(number) for number in range(50)))
        beating.cancel()
        assert beats > 10
        return list(answers)

    assert asyncio.run(ask()) == [number * number for number in range(50)]


def test_a_cancelled_task_stops_its_call(place: Place) -> None:
    """Cancelling the task that awaits a call ends the call."""
    began = "/data/conformance-aio"

    def forever() -> None:
        Path(began).touch()
        time.sleep(1000)

    async def ask() -> None:
        task = asyncio.create_task(place.isolated(forever, env={"CONFORMANCE": "aio"}).aio())
        while not await place.isolated(exists).aio(began):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    look = place.isolated(lambda: _running(b"CONFORMANCE=aio\0"))
    until(lambda: not look())
    place.isolated(remove)(began)


def _running(mark: bytes) -> bool:
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes():
                return True
    return False


def test_a_time_limit_of_asyncio_works(place: Place) -> None:
    """`asyncio.timeout` around a call ends it."""

    async def ask() -> None:
        async with asyncio.timeout(0.2):
            await place.isolated(time.sleep).aio(1000)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())


def test_an_async_function_gives_its_result(place: Place) -> None:
    """A coroutine function runs in the worker's own event loop."""

    async def add(one: int, two: int) -> int:
        await asyncio.sleep(0)
        return one + two

    function: Any = place.isolated(add)
    assert function(1, 2) == 3

    async def ask() -> int:
        return int(await function.aio(3, 4))

    assert asyncio.run(ask()) == 7


def test_an_async_generator_gives_its_items(place: Place) -> None:
    """An async generator function is read with `async for` through `aio`."""

    async def count(most: int) -> AsyncIterator[int]:
        for number in range(most):
            await asyncio.sleep(0)
            yield number

    async def collect() -> list[int]:
        function: Any = place.isolated(count)
        return [item async for item in function.aio(5)]

    assert asyncio.run(collect()) == [0, 1, 2, 3, 4]


def test_a_generators_call_can_be_awaited(place: Place) -> None:
    """Awaited, it gives the list of its items; closed early, its generator ends."""

    def count(most: int) -> Iterable[int]:
        yield from range(most)

    function: Any = place.isolated(count)

    async def both() -> tuple[list[int], int]:
        async with contextlib.aclosing(function.aio(3)) as items:
            first = await anext(items)
        return await function.aio(3), first

    assert asyncio.run(both()) == ([0, 1, 2], 0)


# --- map, with what fails ----------------------------------------------------------------------------------------------


def test_map_gives_exceptions_in_their_places(place: Place) -> None:
    """With `return_exceptions=True` a failed call is one item among the others."""

    def third(number: int) -> int:
        if number % 3 == 0:
            raise ValueError(number)
        return number

    found: list[Any] = list(place.isolated(third).map(range(7), return_exceptions=True))
    assert [item for item in found if isinstance(item, int)] == [1, 2, 4, 5]
    assert [(type(found[number]), found[number].args) for number in (0, 3, 6)] == [
        (ValueError, (0,)),
        (ValueError, (3,)),
        (ValueError, (6,)),
    ]


def test_map_gives_a_lost_worker_in_its_place(place: Place) -> None:
    """A call whose worker dies is one item too; the others have their results."""

    def die_at_two(number: int) -> int:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    found: list[Any] = list(place.isolated(die_at_two).map(range(5), return_exceptions=True))
    assert isinstance(found[2], errors.WorkerDied)
    assert found[:2] + found[3:] == [0, 1, 3, 4]


def test_results_come_while_the_input_blocks(place: Place) -> None:
    """An input that waits for the results of its own earlier items works."""
    got: list[int] = []

    def chained() -> Iterator[int]:
        yield 1
        until(lambda: got)
        yield got[0] + 1

    function: Any = place.isolated(abs)
    for result in function.map(chained()):
        got.append(result)  # noqa: PERF402 - the input looks at it meanwhile
    assert got == [1, 2]


# --- timeout -----------------------------------------------------------------------------------------------------------


def test_a_call_over_its_timeout_is_ended(place: Place) -> None:
    """The error is a `CallTimeout`, which is a `TimeoutError`, and names the time; the call is dead."""
    late = place.isolated(time.sleep, timeout=0.2, env={"CONFORMANCE": "late"})
    with pytest.raises(errors.CallTimeout, match=r"0\.2") as caught:
        late(1000)
    assert isinstance(caught.value, TimeoutError)
    look = place.isolated(lambda: _running(b"CONFORMANCE=late\0"))
    until(lambda: not look())


def test_a_timeout_ends_what_does_not_listen(place: Place) -> None:
    """Code that ignores signals, and what it has started, is ended too."""

    def deaf() -> None:
        import subprocess

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        subprocess.run(["sh", "-c", "trap '' TERM INT; sleep 1000"], check=True)

    with pytest.raises(errors.CallTimeout):
        place.isolated(deaf, timeout=0.3)()
    assert place.isolated(abs)(-1) == 1


def test_a_call_within_its_timeout_is_left_alone(place: Place) -> None:
    """The time counts for each call anew, and not between calls."""
    function = place.isolated(os.getpid, timeout=100)
    assert function() == function()


def test_a_timeout_of_the_functions_own_is_its_own(place: Place) -> None:
    """A `TimeoutError` that the function raises is no `CallTimeout`."""

    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own") as caught:
        place.isolated(fail, timeout=100)()
    assert not isinstance(caught.value, errors.CallTimeout)


# --- retries -----------------------------------------------------------------------------------------------------------


def fail_until(path: str, attempts: int, how: str) -> int:
    """Fail in the given way until it has been tried so often; return how often that was."""
    with open(path, "a") as file:
        file.write("x")
    tried = os.path.getsize(path)
    if tried < attempts:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionError("try again") if how == "raise" else ValueError("for good")
    return tried


def test_retries_make_good_for_lost_workers(place: Place) -> None:
    """With `retries=2` a call that loses its worker twice is answered at the third attempt."""
    path = "/data/conformance-retries"
    assert place.isolated(fail_until, retries=2)(path, 3, "die") == 3
    place.isolated(remove)(path)


def test_retries_are_bounded(place: Place) -> None:
    """When all attempts fail the last error is raised, and there was no attempt more."""
    path = "/data/conformance-bounded"
    with pytest.raises(errors.WorkerDied):
        place.isolated(fail_until, retries=1)(path, 10, "die")
    assert place.isolated(os.path.getsize)(path) == 2
    place.isolated(remove)(path)


def test_exceptions_that_are_not_listed_are_not_tried_again(place: Place) -> None:
    """A plain exception of the function is its answer, also with `retries`."""
    path = "/data/conformance-listed"
    with pytest.raises(ValueError, match="for good"):
        place.isolated(fail_until, retries=3)(path, 10, "for good")
    assert place.isolated(os.path.getsize)(path) == 1
    place.isolated(remove)(path)


# --- setup_function ----------------------------------------------------------------------------------------------------


def test_setup_runs_once_for_each_worker(place: Place) -> None:
    """Its result is the first argument of every call, the same object."""

    def load() -> dict[str, int]:
        return {"pid": os.getpid(), "calls": 0}

    def use(state: dict[str, int], value: int) -> tuple[int, int, bool]:
        state["calls"] += 1
        return value, state["calls"], state["pid"] == os.getpid()

    function: Any = place.isolated(use, setup_function=load)
    assert [function(number) for number in (7, 8, 9)] == [(7, 1, True), (8, 2, True), (9, 3, True)]


def test_a_failed_setup_is_an_error_of_the_call(place: Place) -> None:
    """What the setup raises reaches the caller, each time, and nothing is broken by it."""

    def load() -> None:
        raise RuntimeError("no model")

    def use(state: Any) -> str:
        return "used"

    function: Any = place.isolated(use, setup_function=load)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no model"):
            function()
    assert place.isolated(abs)(-1) == 1
