"""`@cached`: computed once in each worker for each combination of code, globals and arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from atoll import cached

from .conftest import Place

if TYPE_CHECKING:
    import pytest

SCALE = 10


def computed(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("computing")]


@cached
def square(value: Any, offset: int = 0) -> int:
    print("computing", value, offset)
    return int(value) ** 2 + offset


@cached
def scaled(value: int) -> int:
    print("computing", value)
    return value * SCALE


def test_the_second_four_and_three_compute_nothing(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """In the sequence 4, 3, 4, 3, 5 there are three computations."""
    function = place.isolated(lambda value: square(value), env={"CACHED": "sequence"}, keep_alive=60)
    assert [function(value) for value in (4, 3, 4, 3, 5)] == [16, 9, 16, 9, 25]
    assert computed(capfd.readouterr().out) == ["computing 4 0", "computing 3 0", "computing 5 0"]


def test_defaults_and_keywords_are_the_same_arguments(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """However an argument is given, it is the same call."""

    def several() -> list[int]:
        return [square(6), square(6, 0), square(value=6), square(offset=0, value=6), square(6, offset=1)]

    assert place.isolated(several, env={"CACHED": "keywords"})() == [36, 36, 36, 36, 37]
    assert computed(capfd.readouterr().out) == ["computing 6 0", "computing 6 1"]


def test_arguments_that_cannot_be_hashed_are_compared(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Lists, dicts and sets are arguments like any other."""

    @cached
    def count(items: Any) -> int:
        print("computing", type(items).__name__)
        return len(items)

    def several() -> list[int]:
        given: list[Any] = [[1, 2], {"a": [1]}, {3, 4}, [1, 2], {"a": [1]}, {4, 3}, [2, 1]]
        return [count(one) for one in given]

    assert place.isolated(several, env={"CACHED": "unhashable"})() == [2, 1, 2, 2, 1, 2, 2]
    assert computed(capfd.readouterr().out) == [f"computing {kind}" for kind in ("list", "dict", "set", "list")]


def test_a_changed_global_is_computed_anew(
    place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached function whose global has another value is another function; with the old value it is known again."""
    function = place.isolated(lambda value: scaled(value), env={"CACHED": "global"}, keep_alive=60)
    assert function(2) == 20
    with monkeypatch.context() as patch:  # `undo` would take back patches of fixtures, too
        patch.setitem(scaled.__wrapped__.__globals__, "SCALE", 100)
        assert [function(2), function(2)] == [200, 200]
    assert function(2) == 20
    assert len(computed(capfd.readouterr().out)) == 2


def test_functions_of_one_text_do_not_collide(place: Place) -> None:
    """Two functions with the same text and different closures keep their own results."""

    def make(factor: int) -> Any:
        @cached
        def times(value: int) -> int:
            return value * factor

        return times

    two, three = make(2), make(3)
    function = place.isolated(lambda value: (two(value), three(value), two(value)), env={"CACHED": "text"})
    assert function(5) == (10, 15, 10)


def test_another_isolated_function_finds_what_is_cached(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """An edit of the isolated function, which leaves the cached one alone, keeps what was computed."""
    options: dict[str, Any] = {"env": {"CACHED": "edit"}, "keep_alive": 60}
    assert place.isolated(lambda value: square(value) + 1, **options)(7) == 50
    assert place.isolated(lambda value: square(value) + 2, **options)(7) == 51
    assert computed(capfd.readouterr().out) == ["computing 7 0"]


def test_threads_that_ask_at_once_compute_once(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Concurrent first calls in one worker wait for the one that computes."""

    @cached
    def slow(value: int) -> int:
        import time

        print("computing", value)
        time.sleep(0.1)
        return value

    def several() -> list[int]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(slow, [1] * 8))

    assert place.isolated(several, env={"CACHED": "threads"})() == [1] * 8
    assert computed(capfd.readouterr().out) == ["computing 1"]


def test_the_same_object_is_given_again(place: Place) -> None:
    """What is cached is not copied: a large model is held once."""

    @cached
    def load() -> list[int]:
        return [os.getpid()]

    def twice() -> bool:
        return load() is load()

    assert place.isolated(twice)()


def test_an_exception_is_not_cached(place: Place) -> None:
    """A computation that failed is tried again by the next call."""

    @cached
    def flaky() -> str:
        path = "/tmp/conformance-flaky"
        if not os.path.exists(path):
            with open(path, "w"):
                raise OSError("the first time")
        return "well"

    def twice() -> tuple[str, str]:
        try:
            flaky()
        except OSError as error:
            return str(error), flaky()
        return "did not fail", ""

    assert place.isolated(twice)() == ("the first time", "well")


def test_in_the_callers_process_it_is_the_plain_function(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is kept where no worker is."""
    assert [square(2), square(2)] == [4, 4]
    assert computed(capfd.readouterr().out) == ["computing 2 0"] * 2
