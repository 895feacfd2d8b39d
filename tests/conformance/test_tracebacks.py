"""Tracebacks show the user's frames here and in the worker, and none of Atoll's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from atoll import IsolatedFunction, cached, errors, sync_dir

from .conftest import Place


def divide(number: int) -> float:
    return 1 / number


async def divide_later(number: int) -> float:
    return divide(number)


def divide_twice(number: int) -> Iterator[float]:
    yield 1.0
    yield divide(number)


@cached
def divide_once(number: int) -> float:
    return divide(number)


def use_cache(number: int) -> float:
    return divide_once(number)


def frames_of(call: Callable[[], Any]) -> list[str]:
    """Return the names of the frames below this one, which must all be of this file or of Python's library."""
    try:
        call()
    except (ZeroDivisionError, ValueError, TimeoutError, errors.AtollError) as error:
        found = traceback.extract_tb(error.__traceback__)
    files = {frame.filename for frame in found}
    assert not [file for file in files if "/atoll/" in file.rpartition("/src/")[2] and file != __file__], files
    return [frame.name for frame in found[1:] if frame.filename == __file__]


def test_a_call_shows_the_calling_line_and_the_remote_frames(place: Place) -> None:
    """It holds for functions of each kind, for a builtin's, and for each way to call."""
    plain, later, twice = (place.isolated(one) for one in (divide, divide_later, divide_twice))
    retried = place.isolated(divide, retries=1)

    async def await_it() -> None:
        await plain.aio(0)

    async def await_items() -> None:
        items: AsyncIterator[float] = cast("Any", twice.aio(0))
        async for _ in items:
            pass

    def result_of_future() -> None:
        future = plain.submit(0)
        assert isinstance(future.exception(), ZeroDivisionError)
        with pytest.raises(ZeroDivisionError):
            future.result()
        future.result()

    assert frames_of(lambda: plain(0)) == ["<lambda>", "divide"]
    assert frames_of(lambda: later(0)) == ["<lambda>", "divide_later", "divide"]
    items: Any = twice(0)
    assert frames_of(lambda: list(items)) == ["<lambda>", "divide_twice", "divide"]
    assert frames_of(lambda: place.isolated(use_cache)(0)) == ["<lambda>", "use_cache", "divide_once", "divide"]
    assert frames_of(lambda: list(plain.map([0]))) == ["<lambda>", "divide"]
    assert frames_of(lambda: list(retried.starmap([(0,)]))) == ["<lambda>", "divide"]
    assert frames_of(lambda: plain.local(0)) == ["<lambda>", "divide"]
    assert frames_of(result_of_future) == ["result_of_future", "divide"], "each `result` shows its own line alone"
    assert frames_of(lambda: asyncio.run(await_it())) == ["<lambda>", "await_it", "divide"]
    assert frames_of(lambda: asyncio.run(await_items())) == ["<lambda>", "await_items", "divide_twice", "divide"]
    assert frames_of(lambda: place.isolated(json.loads)("x")) == ["<lambda>"]
    (error,) = plain.map([0], return_exceptions=True)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["divide"]  # type: ignore[attr-defined]


def test_errors_of_atoll_show_the_calling_line(place: Place) -> None:
    """An argument that cannot travel, a build that fails, a wait that is over: one line of the user's program."""
    plain = place.isolated(divide)
    unsendable: Any = threading.Lock()
    assert frames_of(lambda: plain(unsendable)) == ["<lambda>"]
    assert frames_of(lambda: place.isolated(divide, requirements=["=="])(1)) == ["<lambda>"]

    def wait() -> None:
        future: concurrent.futures.Future[Any] = place.isolated(held_up).submit()
        try:
            future.result(0)
        finally:
            place.isolated(held_up).cancel(future)

    assert frames_of(wait) == ["wait"]
    assert frames_of(lambda: sync_dir("/nowhere/at/all", "there", host=place.host)) == ["<lambda>"]


def held_up() -> None:
    threading.Event().wait()


def test_debugging_shows_all_frames(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ATOLL_DEBUG=1` the frames of both sides are there."""
    monkeypatch.setenv("ATOLL_DEBUG", "1")
    with pytest.raises(ZeroDivisionError) as caught:
        place.isolated(divide)(0)
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert any("atoll/sdk/function.py" in file for file in files)
    assert any("atoll/agent/" in file for file in files)


def test_the_interpreter_prints_no_frame_of_atoll(place: Place, tmp_path: Path) -> None:
    """An uncaught exception of a program, and a logged one, with their causes."""
    text = """
import logging
from atoll import isolated
@isolated
def fail():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise ValueError("no") from error
try:
    fail()
except ValueError:
    logging.exception("logged")
fail()
"""
    with place.program(tmp_path / "program.py", text) as run:
        _, told = run.communicate(timeout=120)
    printed = told.decode()
    assert printed.count("ValueError: no") == 2
    assert printed.count("ZeroDivisionError: division by zero") == 2
    assert {line.split('"')[1] for line in printed.splitlines() if line.startswith('  File "')} == {
        str(tmp_path / "program.py")
    }


def test_an_error_of_map_names_its_item_and_call(place: Place) -> None:
    """The arguments are in a note, cut to a line, whatever their own text does."""
    plain, retried = place.isolated(divide), place.isolated(divide, retries=1)
    following: IsolatedFunction[[Any], Any] = place.isolated(next)
    for failing in (plain.map([1, 0]), retried.starmap([(1,), (0,)])):
        with pytest.raises(ZeroDivisionError) as caught:
            list(failing)
        (note,) = caught.value.__notes__
        assert note == f"atoll: item 1: divide(0), call {errors.call_id(caught.value)}"
    with pytest.raises(RuntimeError, match="raised StopIteration") as stopped:  # a generator cannot raise that itself
        list(following.map([iter([1]), iter(())]))
    assert errors.call_id(stopped.value)
    assert stopped.value.__notes__[0].endswith(f"call {errors.call_id(stopped.value)}")
    assert type(stopped.value.__cause__) is StopIteration
    with pytest.raises(errors.SerializationError) as refused:
        list(plain.map([threading.Lock()]))  # type: ignore[list-item]
    assert refused.value.__notes__[0].startswith("atoll: item 0: divide(<unlocked _thread.lock object")
    takes = place.isolated(takes_any)
    found: list[Any] = list(takes.starmap([(Wordless(), "x" * 10_000, list(range(1000)))], return_exceptions=True))
    assert "takes_any(<Wordless" in found[0].__notes__[0]
    assert len(found[0].__notes__[0]) < 400


class Wordless:
    def __repr__(self) -> str:
        raise SystemExit(3)


def takes_any(*_: Any) -> None:
    raise ValueError("no")
