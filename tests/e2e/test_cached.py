"""`@cached` in real workers."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll import cached, errors, isolated
from tests.conftest import Home
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")

FACTOR = 10


@cached
def heavy(number: Any, *more: Any, **named: Any) -> list[Any]:
    print("computed")
    return [number, FACTOR]


@isolated(keep_alive=60, env={"CACHED": "main"})
def use(*args: Any, **kwargs: Any) -> list[Any]:
    return heavy(*args, **kwargs)


def computed(capfd: pytest.CaptureFixture[str]) -> int:
    return capfd.readouterr().out.count("computed")


def test_a_worker_computes_each_combination_once(capfd: pytest.CaptureFixture[str]) -> None:
    """In the sequence 4, 3, 4, 3, 5 the second 4 and 3 compute nothing."""
    counts = []
    for number in (4, 3, 4, 3, 5):
        assert use(number) == [number, FACTOR]
        counts.append(computed(capfd))
    assert counts == [1, 1, 0, 0, 1]


def test_arguments_that_cannot_be_hashed_are_compared_by_value(capfd: pytest.CaptureFixture[str]) -> None:
    """Lists, dicts, sets, arrays and objects are keys too; equal numbers of different types are not the same."""
    values: list[Any] = [[1, {"a": {2}}], {"b": [1]}, {"c", "d", "e"}, Path("x"), 1, 1.0, True, "1", b"1"]
    for value in values:
        use(value)
    assert computed(capfd) == len(values)
    for value in values:
        use(value)
    assert computed(capfd) == 0


def test_the_same_arguments_are_the_same_however_they_are_given(capfd: pytest.CaptureFixture[str]) -> None:
    """Order of keywords, and position or name, make no difference."""
    use(77, a=1, b=2)
    use(77, b=2, a=1)
    use(number=77, a=1, b=2)
    assert computed(capfd) == 1


def test_a_changed_global_is_another_function(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed with the old value is not given for the new one, and is still there for the old."""
    assert use(1000) == [1000, 10]
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 11)
    assert use(1000) == [1000, 11]
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 10)
    assert use(1000) == [1000, 10]
    assert computed(capfd) == 2


def test_functions_of_the_same_text_and_other_closures_do_not_meet() -> None:
    """Two functions that differ only in what they close over have results of their own."""

    def make(offset: int) -> Any:
        @cached
        def add(number: int) -> int:
            return number + offset

        return add

    one, two = make(1), make(2)

    @isolated(keep_alive=30)
    def both() -> list[int]:
        return [one(0), two(0), one(0), two(0)]

    assert both() == [1, 2, 1, 2]


def test_threads_that_ask_at_once_compute_once() -> None:
    """The first computes, the others wait for it."""

    @cached
    def slow() -> object:
        import time

        time.sleep(0.3)
        return object()

    @isolated()
    def many() -> int:
        with ThreadPoolExecutor(8) as pool:
            return len({id(found) for found in pool.map(lambda _: slow(), range(8))})

    assert many() == 1


def test_a_failure_is_not_kept() -> None:
    """An exception is raised, and the next call computes again."""
    marker = f"/data/cached-failure-{threading.get_ident()}"

    @cached
    def fails(path: str) -> str:
        if not Path(path).exists():
            Path(path).touch()
            raise OSError("first")
        return "second"

    @isolated(keep_alive=30)
    def call() -> str:
        return fails(marker)

    with pytest.raises(OSError, match="first"):
        call()
    assert call() == "second"


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    """An open file is no key; the error says so and the next call works."""

    @isolated(keep_alive=30)
    def call(opened: bool) -> list[Any]:
        with open("/etc/passwd") as file:
            return heavy(file if opened else "plain")

    with pytest.raises(errors.SerializationError, match="cannot be compared"):
        call(True)
    assert call(False) == ["plain", FACTOR]


def test_arrays_are_compared_by_their_contents(capfd: pytest.CaptureFixture[str]) -> None:
    """An array with the same numbers is the same argument."""

    @isolated(requirements=["numpy"], keep_alive=30)
    def call(values: list[int]) -> int:
        import numpy as np  # type: ignore[import-not-found,unused-ignore]

        return int(heavy(np.array(values))[0].sum())

    assert [call(values) for values in ([1, 2], [1, 2], [1, 3])] == [3, 3, 4]
    assert computed(capfd) == 2


def test_here_it_is_the_plain_function(capfd: pytest.CaptureFixture[str]) -> None:
    """In the caller's own process nothing is kept."""
    assert heavy(1) == heavy(1) == [1, FACTOR]
    assert computed(capfd) == 2


PROGRAM = """
from atoll import cached, isolated

@cached
def compute(number):
    print("computed")
    return number * {factor}

@isolated(keep_alive=60)
def call(number):
    {body}

print(call(3))
"""


def test_an_edit_of_the_calling_function_keeps_what_was_computed(atoll_home: Home, tmp_path: Path) -> None:
    """From one run to the next the cache is kept while the cached function's text is; an edit of that is seen."""
    program = tmp_path / "program.py"

    def run(factor: int, body: str) -> str:
        program.write_text(PROGRAM.format(factor=factor, body=body))
        done: subprocess.CompletedProcess[str] = atoll_home.python(str(program))
        return done.stdout

    assert run(2, "return compute(number)") == "computed\n6\n"
    assert run(2, "return compute(number) + 1") == "7\n"
    assert run(2, "\n\n    return compute(number) + 2") == "8\n"
    assert run(5, "return compute(number)") == "computed\n15\n"
    assert run(2, "return compute(number)") == "6\n"


LEAVING = """
import os, sys, time
from atoll import cached, isolated


class Slow:
    @property
    def __spec__(self):
        time.sleep(1)


@cached
def token():
    return os.urandom(8).hex()


@isolated(keep_alive=60)
def answer(name):
    sys.modules[name] = Slow()  # the worker looks at new modules when it has answered
    return token()


print(answer(sys.argv[1]))
"""


def test_a_caller_that_leaves_with_the_answer_leaves_the_worker(atoll_home: Home, tmp_path: Path) -> None:
    """A worker that is not done with a call's end, since the machine is busy, goes on for the next program."""
    program = tmp_path / "leaving.py"
    program.write_text(LEAVING)
    first = atoll_home.python(str(program), "first").stdout
    until(lambda: '"state": "idle"' in atoll_home.atoll("status", "--json").stdout)
    assert atoll_home.python(str(program), "second").stdout == first
