"""Ends of calls before their time: an interrupt, a grace in which the function can save its work, then the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.sdk.futures import threads

from ..waiting import PATIENCE_SECONDS, until
from .conftest import Place


def mark(place: Place, name: str) -> Callable[[], str]:
    """Return a function that reads a file of `/data`, empty where there is none, and begin without it."""

    def read(name: str, remove: bool) -> str:
        path = Path("/data") / name
        found = path.read_text() if path.exists() else ""
        if remove:
            path.unlink(missing_ok=True)
        return found

    function = place.isolated(read, env={"CONFORMANCE": "endings"})
    function(name, True)
    return lambda: function(name, False)


def train(name: str, how: str = "interrupt") -> str:
    """Work until the end is asked for, then save a checkpoint and return in spite of it."""
    path = Path("/data") / name
    stopped: list[int] = []
    if how == "handler":
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    try:
        path.write_text("begun")
        print("begun", flush=True)
        while not stopped:
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("saving")
    path.write_text(f"saved {how}")
    return "done"


Ending = Callable[[Any, str, Callable[[], str]], None]


def by_timeout(function: Any, name: str, read: Callable[[], str]) -> None:
    with pytest.raises(errors.CallTimeout):
        function.on(timeout=0.5)(name)


def by_cancel(function: Any, name: str, read: Callable[[], str]) -> None:
    future = function.submit(name)
    until(lambda: read() == "begun")
    assert function.cancel(future)
    with pytest.raises(errors.CallCancelled):
        future.result(PATIENCE_SECONDS)


def by_asyncio(function: Any, name: str, read: Callable[[], str]) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(function.aio(name))
        await asyncio.to_thread(until, lambda: read() == "begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    until(lambda: not threads()._running)  # else the lease is still held


def by_map(function: Any, name: str, read: Callable[[], str]) -> None:
    """Leave the results of `map` before the second one has come."""

    for first in function.map(["", name]):
        assert first == ""
        until(lambda: read() == "begun")
        break


@pytest.mark.parametrize("end", [by_timeout, by_cancel, by_asyncio, by_map], ids=lambda end: end.__name__)
@pytest.mark.parametrize("how", ["interrupt", "handler"])
def test_a_function_can_save_its_work_when_its_call_ends(place: Place, end: Ending, how: str) -> None:
    """It meets `KeyboardInterrupt`, or its own handler of SIGTERM; its result is not the call's outcome."""
    name = f"ending-{end.__name__}-{how}"
    read = mark(place, name)

    def work(name: str) -> str:
        return name and train(name, how)

    end(place.isolated(work, grace=60), name, read)
    until(lambda: read() == f"saved {how}")


@pytest.mark.parametrize("grace", [0, 0.3])
def test_a_function_that_does_not_listen_has_its_grace_and_no_more(place: Place, grace: float) -> None:
    """It is killed with its processes, and the next call works."""
    read = mark(place, "ending-deaf")

    def deaf() -> None:
        process = subprocess.Popen(["sh", "-c", "trap '' TERM INT; echo $$ > /data/ending-deaf; sleep 1000"])
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()

    with pytest.raises(errors.CallTimeout):
        place.isolated(deaf, timeout=0.5, grace=grace)()
    child = read().strip()
    assert child

    def lives(child: str) -> bool:
        with contextlib.suppress(OSError):
            return b"trap" in Path(f"/proc/{child}/cmdline").read_bytes()
        return False

    assert not place.isolated(lives)(child)


def test_children_are_asked_to_end_too(place: Place) -> None:
    """A program that the function runs gets what it has a handler for: SIGTERM, else SIGINT."""
    read = mark(place, "ending-children")

    def parent() -> None:
        program = (
            "import signal, sys, time\n"
            "name, own = sys.argv[1:]\n"
            "def end(number, _):\n"
            "    raise SystemExit(str(number))\n"
            "if own: signal.signal(signal.SIGTERM, end)\n"
            "try:\n"
            "    open(name, 'w').write('begun'); time.sleep(1000)\n"
            "except BaseException as error:\n"
            "    open(name, 'w').write(repr(error))\n"
        )
        names = ["/tmp/one", "/tmp/two"]
        children = [subprocess.Popen([sys.executable, "-c", program, name, own]) for name, own in zip(names, ["", "1"])]
        while not all(os.path.exists(name) and Path(name).read_text() for name in names):
            time.sleep(0.01)
        Path("/data/ending-children").write_text("begun")
        try:
            time.sleep(1000)
        finally:
            for child in children:
                child.wait()
            Path("/data/ending-children").write_text(" ".join(Path(name).read_text() for name in names))

    by_cancel(place.isolated(lambda name: parent(), grace=60), "ending-children", read)
    assert read() == "KeyboardInterrupt() SystemExit('15')"


def test_a_coroutine_is_cancelled(place: Place) -> None:
    """As `asyncio.run` does at Ctrl-C: its `finally` runs."""
    read = mark(place, "ending-coroutine")

    async def work(name: str) -> None:
        path = Path("/data") / name
        path.write_text("begun")
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            path.write_text("saved")

    by_cancel(place.isolated(work, grace=60), "ending-coroutine", read)
    assert read() == "saved"


def test_a_closed_generator_that_computes_is_interrupted(place: Place) -> None:
    """One that is closed while it works on its next item gets an interrupt, and its `finally` has the grace."""
    read = mark(place, "ending-generator")

    def items(name: str) -> Iterator[int]:
        path = Path("/data") / name
        try:
            yield 1
            time.sleep(1000)
        finally:
            path.write_text("saved")

    for _ in place.isolated(items, grace=60)("ending-generator"):
        break
    until(lambda: read() == "saved")


def test_the_finally_of_a_closed_generator_is_not_interrupted(place: Place) -> None:
    """It goes on for as long as the grace."""
    read = mark(place, "ending-finally")

    def items(name: str) -> Iterator[int]:
        try:
            for number in range(1000):
                yield number
                time.sleep(0.01)
        finally:
            time.sleep(1.5)  # longer than a generator may take to its next item
            (Path("/data") / name).write_text("saved")

    for _ in place.isolated(items, grace=60)("ending-finally"):
        break
    assert read() == "saved"


PROGRAM = (
    "import sys, time\n"
    "from atoll import isolated\n"
    "@isolated(grace=float(sys.argv[2]), env={'CONFORMANCE': 'interrupted'})\n"
    "def work(name):\n"
    "    try:\n"
    "        open(f'/data/{name}', 'w').write('begun')\n"
    "        print('begun', flush=True)\n"
    "        time.sleep(1000)\n"
    "    except KeyboardInterrupt:\n"
    "        print('saving', flush=True)\n"
    "        open(f'/data/{name}', 'w').write('saved')\n"
    "        print('saved', flush=True)\n"
    "        while name.endswith('deaf'): time.sleep(1000)\n"
    "how, name = sys.argv[1], sys.argv[3]\n"
    "if how == 'call': work(name)\n"
    "elif how == 'future': work.submit(name).result()\n"
    "elif how == 'end': work.submit(name)\n"
    "elif how == 'map': list(work.map([name]))\n"
)


@pytest.mark.parametrize("how", ["call", "future", "end", "map"])
def test_output_is_seen_until_an_interrupted_call_has_ended(place: Place, tmp_path: Path, how: str) -> None:
    """Ctrl-C asks the function to end; the program shows what it prints, and ends as Python does."""
    name = f"ending-interrupt-{how}"
    read = mark(place, name)
    with place.program(tmp_path / "program.py", PROGRAM, how, "60", name) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        run.send_signal(signal.SIGINT)
        assert run.stdout.read() == b"saving\nsaved\n"
        assert run.wait(PATIENCE_SECONDS) == -signal.SIGINT
    assert read() == "saved"


@pytest.mark.parametrize("how", ["call", "future"])
def test_a_second_interrupt_ends_at_once(place: Place, tmp_path: Path, how: str) -> None:
    """The rest of the grace is not waited for."""
    name = "ending-deaf"
    mark(place, name)
    with place.program(tmp_path / "program.py", PROGRAM, how, "600", name) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        run.send_signal(signal.SIGINT)
        assert [run.stdout.readline(), run.stdout.readline()] == [b"saving\n", b"saved\n"]
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_SECONDS) == -signal.SIGINT


def test_the_call_of_a_killed_caller_has_its_grace(place: Place, tmp_path: Path) -> None:
    """Its prints, which nobody reads, do not keep it from saving its work."""
    name = "ending-killed"
    read = mark(place, name)
    with place.program(tmp_path / "program.py", PROGRAM, "call", "60", name) as run:
        until(lambda: read() == "begun")
        run.kill()
        run.wait()
    until(lambda: read() == "saved")


@pytest.mark.parametrize("grace", [-1, 601, float("nan"), float("inf"), "2", None, True])
def test_a_grace_out_of_range_is_refused(place: Place, grace: Any) -> None:
    """It is a number of seconds from 0 to 600."""
    with pytest.raises((TypeError, ValueError), match="grace"):
        place.isolated(abs, grace=grace)


def test_an_interrupted_command_ends_with_one_line(place: Place, tmp_path: Path) -> None:
    """`atoll run` has status 130, the function's output, and no traceback."""
    path = tmp_path / "program.py"
    path.write_text(
        "import time\n"
        "from atoll import isolated\n"
        "@isolated(grace=60)\n"
        "def work():\n"
        "    try:\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(1000)\n"
        "    finally:\n"
        "        print('saved')\n"
    )
    command = [sys.executable, "-c", "from atoll.cli.main import main; main()", "run", str(path)]
    environment = {**os.environ, **place.variables}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        run.send_signal(signal.SIGINT)
        output, error = run.communicate(timeout=PATIENCE_SECONDS)
    assert (run.returncode, output, error.splitlines()[-1:]) == (130, b"saved\n", [b"interrupted"])
    assert b"Traceback" not in error
