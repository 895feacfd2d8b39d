"""Generators, coroutines, timeouts, retries, prepared workers: every kind of call for real."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.sdk import map_items
from atoll.sdk.retries import Retries
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")


@isolated()
def count_to(number: int, path: str = "") -> Iterator[int]:
    try:
        yield from range(number)
    finally:
        if path:
            Path(path).write_text("closed")


def fresh(name: str) -> str:
    """Return a path below `/data` that no other test uses."""
    return f"/data/{name}-{os.getpid()}-{time.monotonic_ns()}"


@isolated()
def read(path: str) -> str:
    return Path(path).read_text()


@isolated()
def wait_for(path: str, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def hold(path: str) -> None:
    """Hold the lock of `path` for as long as this worker lives."""
    file = open(f"{path}.lock", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    Path(path).touch()
    sys.modules["__main__"].held = file  # type: ignore[attr-defined]


@isolated(timeout=120)
def wait_end(path: str) -> bool:
    """Wait until the worker that holds the lock of `path` has ended."""
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    return True


# --- generators -------------------------------------------------------------------------------------------------


def test_items_come_as_they_are_made() -> None:
    """The first item is here while the function waits for what the caller does after it."""
    path = fresh("go-on")

    @isolated()
    def in_two_steps() -> Iterator[str]:
        yield "first"
        while not os.path.exists(path):
            time.sleep(0.01)
        yield "second"

    @isolated()
    def go_on() -> None:
        Path(path).touch()

    items = in_two_steps()
    assert next(items) == "first"
    go_on()
    assert list(items) == ["second"]


def test_an_exception_in_the_middle_comes_after_the_items_before_it() -> None:
    """What was yielded before the failure arrives, then the failure with its own type."""

    @isolated()
    def breaks() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("third")

    taken: list[Any] = []
    with pytest.raises(LookupError, match="third"):
        taken.extend(breaks())
    assert taken == [1, 2]


def test_closing_the_iterator_closes_the_generator() -> None:
    """The function's `finally` runs, and its worker serves the next call."""
    path = fresh("closed")
    items: Any = count_to(10**9, path)
    assert next(items) == 0
    items.close()
    assert read(path) == "closed"


def test_closing_a_generator_that_does_not_end_kills_it() -> None:
    """A function that is stuck between two items is ended when nobody wants its items any more."""
    path = fresh("stuck")

    @isolated()
    def stuck() -> Iterator[int]:
        hold(path)
        yield 1
        Path(f"{path}.between").touch()
        time.sleep(1000)
        yield 2

    items: Any = stuck()
    next(items)
    assert wait_for(f"{path}.between")  # a worker that gets `stop` before would close the generator at its `yield`
    items.close()
    assert wait_end(path)


def test_a_dropped_iterator_gives_its_worker_back() -> None:
    """Two hundred generators that are left in the middle leave no workers behind that block the next call."""
    for _ in range(200):
        assert next(count_to(10)) == 0
    assert list(count_to(3)) == [0, 1, 2]


def test_what_a_generator_returns_is_the_value_of_yield_from() -> None:
    """`yield from` gives what the function returned."""

    @isolated()
    def with_value() -> Any:
        yield 1
        return "end"

    def through() -> Any:
        return (yield from with_value())

    items = through()
    assert next(items) == 1
    with pytest.raises(StopIteration) as stopped:
        next(items)
    assert stopped.value.value == "end"


def test_what_is_printed_before_an_item_is_there_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever has an item has seen what the function printed before it, and perhaps what it printed since."""

    @isolated()
    def speaks() -> Iterator[int]:
        for number in range(3):
            print("before", number)
            yield number

    seen = ""
    for number in speaks():
        seen += capfd.readouterr().out
        assert f"before {number}\n" in seen


def test_a_slow_consumer_holds_the_generator_back() -> None:
    """A function that yields a great deal waits for its caller, and keeps nothing for it in memory."""
    path = fresh("progress")

    @isolated()
    def large() -> Iterator[bytes]:
        for number in range(50):
            Path(path).write_text(str(number))
            yield bytes(500_000)

    items = large()
    next(items)
    last = ""
    while (now := read(path)) != last:
        last = now
    assert int(now) < 10
    assert sum(1 for _ in items) == 49


def test_a_loop_over_items_that_makes_calls_needs_one_core(atoll_home: Home, tmp_path: Path) -> None:
    """Generators that are ahead of their consumers hold no core: two of them and a call in the loop run on one."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\n")
    program = tmp_path / "program.py"
    program.write_text(
        "from atoll import isolated\n"
        "@isolated()\ndef batches():\n    for _ in range(20):\n        yield bytes(1_000_000)\n"
        "@isolated()\ndef size(data):\n    return len(data)\n"
        "@isolated()\ndef inside():\n    return sum(size(a) for a, b in zip(batches(), batches()))\n"
        "if __name__ == '__main__':\n"
        "    print(sum(size(a) + size(b) for a, b in zip(batches(), batches())), inside())\n"
    )
    assert atoll_home.python(str(program)).stdout == "40000000 20000000\n"


def test_a_worker_that_dies_between_items_is_named() -> None:
    """The items before its death arrive, then `WorkerDied`."""

    @isolated()
    def dies() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)

    items = dies()
    assert next(items) == 1
    with pytest.raises(errors.WorkerDied):
        next(items)


def test_an_item_that_cannot_be_sent_is_named_and_closes_the_generator() -> None:
    """The items before it arrive; the function's `finally` runs."""
    path = fresh("unsendable")

    @isolated()
    def gives_a_lock() -> Iterator[Any]:
        try:
            yield 1
            yield threading.Lock()
        finally:
            Path(path).write_text("closed")

    items = gives_a_lock()
    assert next(items) == 1
    with pytest.raises(errors.SerializationError, match="lock"):
        next(items)
    assert read(path) == "closed"


def test_a_child_that_a_generator_forks_sends_nothing() -> None:
    """Each item arrives once, whatever the function forks between two of them."""

    @isolated()
    def forks() -> Iterator[int]:
        for number in range(5):
            os.fork()
            yield number

    assert list(forks()) == [0, 1, 2, 3, 4]


def test_submit_and_map_give_the_lists_of_a_generator() -> None:
    """A future has one value: the list of the items."""
    assert count_to.submit(3).result() == [0, 1, 2]
    assert list(count_to.map([1, 2])) == [[0], [0, 1]]


# --- async ------------------------------------------------------------------------------------------------------


async def doubled(number: int, seconds: float = 0.0) -> int:
    await asyncio.sleep(seconds)
    return 2 * number


double: Any = isolated()(doubled)


def test_an_async_function_gives_its_result() -> None:
    """Called without `await` it is a call like any other."""
    assert double(4) == 8


def test_calls_can_be_awaited_together() -> None:
    """`aio` works for plain and async functions, many at a time, and raises what the function raises."""

    @isolated()
    def plain(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number + 1

    async def main() -> list[int]:
        with pytest.raises(ValueError, match="negative"):
            await plain.aio(-1)
        found: list[int] = await asyncio.gather(
            *(plain.aio(number) for number in range(20)), *(double.aio(n) for n in range(20))
        )
        return found

    assert asyncio.run(main()) == [*range(1, 21), *range(0, 40, 2)]


def test_a_cancelled_task_kills_its_call() -> None:
    """`asyncio.timeout` around an awaited call ends the call itself."""
    path = fresh("not-cancelled")

    @isolated()
    def late() -> None:
        hold(path)
        time.sleep(1000)

    async def main() -> None:
        running = asyncio.ensure_future(late.aio())
        assert await wait_for.aio(path)
        await asyncio.wait_for(running, 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert wait_end(path)


def test_async_generators_give_items_to_both_kinds_of_callers() -> None:
    """An async generator is iterated with `for`, and with `async for` through `aio`; so is a plain one."""

    @isolated()
    async def ticks(number: int) -> AsyncIterator[int]:
        for one in range(number):
            await asyncio.sleep(0)
            yield one

    async def main() -> tuple[list[int], list[int]]:
        return [one async for one in ticks.aio(3)], [one async for one in count_to.aio(4)]

    assert list(ticks(3)) == [0, 1, 2]
    assert asyncio.run(main()) == ([0, 1, 2], [0, 1, 2, 3])


def test_what_a_coroutine_leaves_running_is_cancelled() -> None:
    """A task that was not awaited does not go on in the next call."""

    @isolated()
    async def leaves(path: str) -> int:
        async def later() -> None:
            await asyncio.sleep(0.2)
            Path(path).touch()

        leaves.task = asyncio.ensure_future(later())  # type: ignore[attr-defined]
        return os.getpid()

    path = fresh("left")
    call: Any = leaves
    call(path)
    double(1, 0.4)
    assert not wait_for(path, 0.5)


# --- map --------------------------------------------------------------------------------------------------------


def test_map_returns_exceptions_in_their_places() -> None:
    """With `return_exceptions` a failed call is an item, and the others go on."""

    @isolated()
    def odd(number: int) -> int:
        if number % 2 == 0:
            raise ValueError(number)
        return number

    found = list(odd.map(range(5), return_exceptions=True))
    assert [type(item) for item in found] == [ValueError, int, ValueError, int, ValueError]
    assert found[1::2] == [1, 3]


def test_a_failing_input_is_raised_after_the_results_before_it() -> None:
    """What the input raises comes in its place."""

    def inputs() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no more")

    taken: list[Any] = []
    with pytest.raises(OSError, match="no more"):
        taken.extend(double.map(inputs()))
    assert taken == [2, 4]


def test_results_come_while_the_input_blocks() -> None:
    """An input that waits for the first result gets it."""
    arrived = threading.Event()

    def inputs() -> Iterator[int]:
        yield 1
        assert arrived.wait(120)
        yield 2

    results = double.map(inputs())
    assert next(results) == 2
    arrived.set()
    assert list(results) == [4]


def test_a_map_that_has_ended_leaves_its_workers_warm() -> None:
    """One `map` after the other uses the same few workers."""

    @isolated(keep_alive=60, env={"MAPPED": "again"})
    def whoami(_: int) -> int:
        return os.getpid()

    found: set[int] = set()
    for _ in range(20):
        found.update(whoami.map(range(10)))
    assert len(found) <= 2 * len(os.sched_getaffinity(0))


def test_an_endless_input_is_drawn_only_a_little_ahead() -> None:
    """Work in flight is bounded, and closing the results cancels it."""
    drawn = 0

    def inputs() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results: Any = double.map(inputs())
    assert [next(results) for _ in range(3)] == [2, 4, 6]
    results.close()
    assert drawn < 2000


class Rows(Sequence[Any]):
    """Reads row after row, of which one may fail."""

    def __init__(self, length: int, bad: int = -1) -> None:
        self.length, self.bad, self.read = length, bad, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if index >= self.length:
            raise IndexError(index)
        if index == self.bad:
            raise OSError("no such row")
        self.read += 1
        return (index,)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_sequence_that_fails_is_raised_after_the_results_before_it(retries: int) -> None:
    """What a row raises comes in its place: the results neither end there nor wait for ever."""
    taken: list[Any] = []
    with pytest.raises(OSError, match="no such row"):
        taken.extend(double.on(retries=retries).starmap(Rows(10, bad=3)))
    assert taken == [0, 2, 4]


def test_a_sequence_is_read_only_a_little_ahead() -> None:
    """`map` takes from a sequence as it goes, as from any other input."""

    @isolated()
    def first(row: tuple[int]) -> int:
        return row[0]

    rows = Rows(50_000)
    results: Any = first.map(rows)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert rows.read < 2000


def test_arguments_that_cannot_be_spread_fail_in_their_place() -> None:
    """An item that is no tuple of arguments is an error of that call, for every kind of function."""
    for function in (double, double.on(retries=1), count_to):
        found = list(function.starmap([(1,), 2, (3,)], return_exceptions=True))  # type: ignore[list-item]
        assert [type(item) for item in found] == [type(found[0]), TypeError, type(found[0])]
        assert type(found[0]) in (int, list)


def _wait_for_flag(name: str) -> str:
    deadline = time.monotonic() + 60
    while name == "slow" and not os.path.exists("/data/map-flag") and time.monotonic() < deadline:
        time.sleep(0.01)
    if name == "bad":
        raise ValueError(name)
    return name


def _remove_flag() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove("/data/map-flag")


def test_results_come_as_they_are_ready() -> None:
    """With `ordered=False` the first item's call may be the last to give its result; all kinds of functions do so."""
    plain = isolated(keep_alive=30)(_wait_for_flag)
    for function in (plain, plain.on(retries=1)):
        isolated(_remove_flag)()
        results = function.map(["slow", "quick", "bad"], ordered=False, return_exceptions=True)
        early = [next(results), next(results)]
        assert {str(one) for one in early} == {"quick", "bad"}
        isolated(lambda: open("/data/map-flag", "w").close())()
        assert list(results) == ["slow"]


def test_ends_of_unordered_results() -> None:
    """An error ends them as it comes; nothing, an input that fails, and more items than are taken ahead have their end."""

    def failing() -> Iterator[int]:
        yield 1
        raise LookupError("input")

    assert list(double.map([], ordered=False)) == []
    assert sorted(double.map(range(2000), ordered=False)) == [2 * n for n in range(2000)]
    found = double.map(failing(), ordered=False)
    assert next(found) == 2
    with pytest.raises(LookupError, match="input"):
        next(found)
    with pytest.raises(ValueError, match="bad"):
        list(isolated(keep_alive=30)(_wait_for_flag).map(["bad", "quick"], ordered=False))


def test_progress_is_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar that was asked for leaves its last line on stderr; otherwise nothing is printed, and a wrong value is refused."""
    assert list(double.map([1, 2], progress=True)) == [2, 4]
    assert list(double.starmap([(1,)], progress="numbers")) == [2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"✓ doubled · 2 calls · [\d.]+ m?s\n✓ numbers · 1 call · [\d.]+ m?s\n", printed.err), (
        printed.err
    )
    assert list(double.map([1], progress=False)) == list(double.map([1])) == [2]
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="`progress` must be"):
        double.map([1], progress=3)


def test_each_map_sees_what_the_function_refers_to_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the `map` before it is used, however little later it begins."""
    monkeypatch.setattr(map_items, "SAME_SECONDS", 3600)
    state = [0]

    @isolated()
    def look(_: int) -> int:
        return state[0]

    found: list[int] = []
    for value in range(3):
        state[0] = value
        found.extend(look.map([1]))
    assert found == [0, 1, 2]


# --- timeout ----------------------------------------------------------------------------------------------------


@isolated(timeout=1.0)
def sleep_for(seconds: float, path: str = "") -> float:
    if path:
        hold(path)
    time.sleep(seconds)
    return seconds


def test_a_call_over_its_timeout_is_killed() -> None:
    """`CallTimeout` is a `TimeoutError` that names the limit; nothing of the call goes on, and the next one works."""
    path = fresh("overdue")
    with pytest.raises(errors.CallTimeout, match="timeout of 1 s") as raised:
        sleep_for(1000, path)
    assert isinstance(raised.value, TimeoutError)
    assert wait_end(path)
    assert sleep_for(0) == 0


def test_calls_within_the_timeout_do_not_add_up() -> None:
    """Each call has the whole time."""
    patient: Any = sleep_for.on(timeout=3.0)
    assert [patient(0.8) for _ in range(4)] == [0.8] * 4


def test_a_timeout_counts_for_generators_and_stops_native_code() -> None:
    """A generator that takes too long is ended; so is code that never lets Python run."""

    @isolated(timeout=2.0)
    def trickle() -> Iterator[int]:
        yield 0
        time.sleep(1000)
        yield 1

    taken: list[Any] = []
    with pytest.raises(errors.CallTimeout):
        taken.extend(trickle())
    assert taken == [0]

    @isolated(timeout=1.0)
    def native() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        pow(3, 10**9)

    with pytest.raises(errors.CallTimeout):
        native()


# --- retries ----------------------------------------------------------------------------------------------------


@isolated(retries=Retries(3, wait_seconds=0.01))
def dies_twice(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    if len(Path(path).read_text()) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(Path(path).read_text())


def test_a_lost_worker_is_made_good_where_asked_for() -> None:
    """The call is made again, as often as allowed, and only then is the loss an error."""
    path = fresh("tries")
    assert dies_twice(path) == 3
    with pytest.raises(errors.WorkerDied):
        dies_twice.on(retries=Retries(1, wait_seconds=0.01))(fresh("tries"))


def test_without_retries_a_call_is_delivered_once() -> None:
    """A worker that dies took its only call with it."""
    path = fresh("once")
    with pytest.raises(errors.WorkerDied):
        dies_twice.on(retries=0)(path)
    assert read(path) == "x"


def test_listed_exceptions_are_tried_again_and_others_are_not() -> None:
    """`Retries.on` names the types; a subclass counts."""

    def fails(path: str, kind: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        tries = len(Path(path).read_text())
        if tries < 3:
            raise ConnectionResetError("again") if kind == "listed" else LookupError("no")
        return tries

    function = isolated(retries=Retries(5, on=(ConnectionError,), wait_seconds=0.01))(fails)
    assert function(fresh("listed"), "listed") == 3
    path = fresh("others")
    with pytest.raises(LookupError):
        function(path, "other")
    assert read(path) == "x"


def test_the_wait_before_a_retry_ends_with_its_cancellation() -> None:
    """A future that is cancelled while its call waits for a retry is done at once."""
    path = fresh("waits")
    function = dies_twice.on(retries=Retries(3, wait_seconds=600))
    future = function.submit(path)
    assert wait_for(path)
    until(lambda: function.cancel(future) or future.done())
    with pytest.raises(BaseException, match=r"cancelled|ended by"):
        future.result(timeout=120)


# --- setup_function ---------------------------------------------------------------------------------------------


def test_setup_runs_once_for_each_worker() -> None:
    """Its result is the first argument of every call that the worker serves."""
    path = fresh("setups")

    def prepare() -> dict[str, int]:
        with open(path, "a") as file:
            file.write("x")
        os.environ["PREPARED"] = "yes"
        return {"calls": 0}

    @isolated(setup_function=prepare, keep_alive=30)
    def serve(state: dict[str, int], step: int) -> tuple[int, str]:
        state["calls"] += step
        return state["calls"], os.environ["PREPARED"]

    call: Any = serve
    assert [call(1), call(1), call(step=2)] == [(1, "yes"), (2, "yes"), (4, "yes")]
    assert read(path) == "x"


def test_a_changed_setup_gives_a_new_worker() -> None:
    """The next call after an edit of the setup function, or of what it uses, sees the new one."""
    version = 1

    def prepare() -> int:
        return version

    @isolated(setup_function=prepare, keep_alive=30)
    def serve(state: int) -> tuple[int, int]:
        return state, os.getpid()

    first: Any = serve()
    version = 2
    second: Any = serve()
    assert (first[0], second[0]) == (1, 2)
    assert first[1] != second[1]


def test_a_failing_setup_is_an_error_of_the_call() -> None:
    """Its exception is raised here, and it is tried again at the next call."""
    path = fresh("setup-works")

    def prepare() -> str:
        return Path(path).read_text()

    @isolated(setup_function=prepare)
    def serve(state: str) -> str:
        return state

    with pytest.raises(FileNotFoundError):
        serve()

    @isolated()
    def mend() -> None:
        Path(path).write_text("ready")

    mend()
    assert serve() == "ready"


# --- Ctrl-C -----------------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys, time
from atoll import isolated

@isolated()
def busy(seconds):
    print("running", flush=True)
    time.sleep(seconds)

@isolated()
def items():
    print("running", flush=True)
    for number in range(10**6):
        yield number
        time.sleep(0.5)

stage = sys.argv[1]
if stage == "call":
    busy(60)
elif stage == "map":
    list(busy.map([60] * 50))
elif stage == "futures":
    futures = [busy.submit(60) for _ in range(50)]
    futures[0].result()
elif stage == "exit":
    futures = [busy.submit(60) for _ in range(50)]
elif stage == "generator":
    list(items())
"""


@pytest.mark.parametrize("stage", ["call", "map", "futures", "exit", "generator"])
def test_an_interrupt_stops_what_was_started_and_returns_at_once(atoll_home: Home, tmp_path: Path, stage: str) -> None:
    """Ctrl-C ends the program within seconds, and no worker of it goes on."""
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    child = subprocess.Popen(
        [sys.executable, str(program), stage],
        env=atoll_home.environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout is not None
            assert "running" in child.stdout.readline()
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=120)
            assert child.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
        finally:
            child.kill()

    def workers() -> list[Any]:
        found: list[Any] = json.loads(atoll_home.atoll("status", "--json").stdout)["workers"]
        return found

    until(lambda: all(worker["state"] == "idle" for worker in workers()))


FORKED = """
import faulthandler, os, sys
from atoll import isolated

@isolated()
def double(x):
    return x * 2

double(1)
futures = [double.submit(number) for number in range(50)]
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(120, exit=True)
    print(double(5), double.submit(6).result(), flush=True)
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
print(status, sum(future.result() for future in futures))
"""


def test_a_fork_while_calls_are_in_flight_can_call_too(shared_home: Home, tmp_path: Path) -> None:
    """Neither parent nor child waits for a lock of a thread that is the other's."""
    program = tmp_path / "forked.py"
    program.write_text(FORKED)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=shared_home.environment({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["10 12", "0 2450"], done.stderr


ITEMS = """
from atoll import isolated

@isolated()
def items(count: int):
    yield from range(count)

@isolated()
async def later(count: int):
    for number in range(count):
        yield number
"""


@pytest.mark.parametrize("name", ["items", "later"])
def test_run_prints_the_items_of_a_generator(shared_home: Home, tmp_path: Path, name: str) -> None:
    """`atoll run` prints each item on a line of its own, async or not."""
    program = tmp_path / "items.py"
    program.write_text(ITEMS)
    assert shared_home.atoll("run", f"{program}::{name}", "--count", "3").stdout.split() == ["0", "1", "2"]


COLLECTED = """
import asyncio, gc, sys
from atoll import isolated

@isolated()
def echo(self):
    return self

@isolated()
async def items():
    yield 1
    yield 2

async def first(source):
    sys.set_asyncgen_hooks(None, None)  # the loop knows nothing of it, and does not end it
    return await source.__anext__()

print(asyncio.run(echo.aio(self=1)))
source = items.aio()
print(asyncio.run(first(source)))
del source
gc.collect()
"""


def test_a_generator_that_outlives_its_event_loop_ends_silently(shared_home: Home, tmp_path: Path) -> None:
    """Nothing is printed for one that is collected without a loop; and `self` may be an argument's name."""
    program = tmp_path / "collected.py"
    program.write_text(COLLECTED)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=shared_home.environment({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["1", "1"], done.stderr
    assert "ignored" not in done.stderr
    assert "Traceback" not in done.stderr
