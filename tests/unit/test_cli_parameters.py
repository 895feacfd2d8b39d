"""A function's options on the command line keep the types of values, and say how they are read."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import cyclopts
import pytest

from atoll import isolated
from atoll.cli.programs import parameters


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    name: str = "a"


class Fields(TypedDict):
    a: int
    b: str


def plain(a, b=None, c=3, d="t", e=1.5, f=False, g=[], h={}, i=object()): ...  # type: ignore[no-untyped-def]
def rest(*args, **more): ...  # type: ignore[no-untyped-def]
def numbers(*args: int, **more: float) -> None: ...
def anything(x: Any) -> None: ...
def absent(x: Absent, y: int = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # for type checkers only
def a_dict(x: dict) -> None: ...  # type: ignore[type-arg]
def counts(x: dict[str, int]) -> None: ...
def texts(x: dict[str, str]) -> None: ...
def nested(x: dict[str, list[int]]) -> None: ...
def maybe(x: dict[str, Any] | None = None, y: int | None = None) -> None: ...
def a_list(x: list) -> None: ...  # type: ignore[type-arg]
def floats(x: list[float]) -> None: ...
def sequence(x: Sequence[int]) -> None: ...
def a_set(x: set[int]) -> None: ...
def many(x: tuple[int, ...]) -> None: ...
def pair(x: tuple[int, str]) -> None: ...
def either(x: int | float | str) -> None: ...  # noqa: PYI041  # as users write it
def count(x: int) -> None: ...
def rate(x: float) -> None: ...
def text(x: str) -> None: ...
def choice(x: Literal["a", 3]) -> None: ...
def colour(x: Colour) -> None: ...
def path(x: Path) -> None: ...
def time(x: dt.datetime) -> None: ...
def flags(x: bool = False, y: bool = True) -> None: ...
def config(x: Config) -> None: ...
def fields(x: Fields) -> None: ...


def parse(function: Callable[..., Any], arguments: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parser = parameters.parser(function, "atoll run it.py")
    _, bound, _ = parser.parse_args(list(arguments), exit_on_error=False, print_error=True)
    return bound.args, bound.kwargs


@pytest.mark.parametrize(
    ("function", "arguments", "values"),
    [
        (plain, ["1"], [1]),
        (plain, ["--a", "1e3", "--b", "0x10", "--c", "0.5"], [1000.0, 16, 0.5]),
        (plain, ["007", "-3.5"], ["007", -3.5]),
        (plain, ["True", "1j"], ["True", 1j]),
        (plain, ["it", "--d", "5", "--f", "--g", "1", "--h", '{"a": 1}'], ["it"]),
        (rest, ["1", "b", "2.5"], [1, "b", 2.5]),
        (numbers, ["1", "2"], [1, 2]),
        (anything, ["2.5"], [2.5]),
        (absent, ["2", "3"], [2, 3]),
        (
            a_dict,
            ["--x", '{"b": 2, "c": [1, null, {"d": true}], "e": "2"}'],
            [{"b": 2, "c": [1, None, {"d": True}], "e": "2"}],
        ),
        (a_dict, ["--x.b", "2", "--x.c.d", "e"], [{"b": 2, "c": {"d": "e"}}]),
        (counts, ["--x", '{"b": 2}'], [{"b": 2}]),
        (counts, ["--x.b", "2"], [{"b": 2}]),
        (texts, ["--x.b", "2"], [{"b": "2"}]),
        (nested, ["--x", '{"a": [1, 2]}'], [{"a": [1, 2]}]),
        (maybe, ["--x", '{"a": 1}', "--y", "2"], [{"a": 1}, 2]),
        (maybe, ["--x", "null", "--y", "none"], [None, None]),
        (a_list, ["--x", '[1, 2.5, "a", "3"]'], [[1, 2.5, "a", "3"]]),
        (a_list, ["--x", "1", "--x", "a"], [[1, "a"]]),
        (floats, ["--x", "[1, 2.5]"], [[1.0, 2.5]]),
        (floats, ["1", "2.5"], [[1.0, 2.5]]),
        (sequence, ["1", "2"], [[1, 2]]),
        (a_set, ["[1, 1, 2]"], [{1, 2}]),
        (many, ["1", "2"], [(1, 2)]),
        (pair, ["1", "2"], [(1, "2")]),
        (either, ["3"], [3]),
        (either, ["3.5"], [3.5]),
        (either, ["x"], ["x"]),
        (count, ["1_000"], [1000]),
        (count, ["-5"], [-5]),
        (rate, ["1e-3"], [0.001]),
        (text, ["5"], ["5"]),
        (choice, ["3"], [3]),
        (colour, ["BLUE"], [Colour.BLUE]),
        (path, ["a/b"], [Path("a/b")]),
        (time, ["2024-01-02T03:04:05"], [dt.datetime.fromisoformat("2024-01-02T03:04:05")]),
        (flags, ["--x", "--no-y"], [True, False]),
        (config, ["--x.rate", "3"], [Config(3.0)]),
        (config, ["--x", '{"rate": 3, "name": "b"}'], [Config(3.0, "b")]),
        (fields, ["--x", '{"a": 1, "b": "2"}'], [{"a": 1, "b": "2"}]),
    ],
)
def test_values_have_their_types(function: Callable[..., Any], arguments: list[str], values: list[Any]) -> None:
    """JSON keeps its types, an annotation decides, and without one a number is what Python would read as one."""
    found = list(parse(function, arguments)[0])[: len(values)]
    assert found == values[: len(found)]
    assert [type(value) for value in found] == [type(value) for value in values[: len(found)]]
    assert found


def test_values_of_keywords_have_their_types() -> None:
    """Options behind a flag, and those that only `**more` takes."""
    args, kwargs = parse(plain, ["it", "--d", "5", "--f", "--g", "1", "--h", '{"a": 1}', "--i", "x"])
    assert (args, kwargs) == (("it",), {"d": "5", "f": True, "g": [1], "h": {"a": 1}, "i": "x"})
    assert parse(rest, ["--one", "1", "--two", "x"]) == ((), {"one": 1, "two": "x"})
    assert parse(numbers, ["--one", "1"]) == ((), {"one": 1.0})


@pytest.mark.parametrize(
    ("function", "arguments", "parts"),
    [
        (count, ["--x", "three"], ["--x", "three", "whole number"]),
        (count, ["2.5"], ["X", "2.5", "whole number"]),
        (rate, ["z"], ["X", "z", "number"]),
        (numbers, ["1", "2.5"], ["ARGS", "2.5", "whole number"]),
        (numbers, ["--one", "z"], ["--one", "z", "number"]),
        (plain, ["x", "--c", "abc"], ["--c", "abc", "number"]),
        (a_dict, ["--x", "{oops"], ["--x", "{oops", "JSON object"]),
        (a_dict, ["--x", "[1]"], ["--x", "[1]", "JSON object"]),
        (counts, ["--x", '{"b": "z"}'], ["--x", "z", "whole number"]),
        (counts, ["--x.b", "z"], ["--x", "z", "whole number"]),
        (floats, ["--x", '["z"]'], ["--x", "z", "number"]),
        (maybe, ["--y", "q"], ["--y", "q", "whole number, or null"]),
        (choice, ["z"], ["z", '"a"', "3"]),
        (colour, ["--x", "green"], ["--x", "green", "red"]),
        (time, ["--x", "tomorrow"], ["--x", "tomorrow", "datetime"]),
    ],
)
def test_a_wrong_value_is_named(
    function: Callable[..., Any], arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The error has the parameter, the value and the form that is wanted."""
    with pytest.raises(cyclopts.CycloptsError):
        parse(function, arguments)
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert [part for part in parts if part not in shown] == []


def test_help_says_how_each_parameter_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the words of the docstring."""

    def f(a, b: int = 1, *, c: dict[str, int] | None = None, d: list[float] = []):  # type: ignore[no-untyped-def]
        """Do something.

        Args:
            a: the thing.
            b: how often.
        """

    parser = parameters.parser(f, "atoll run it.py")
    command, bound, _ = parser.parse_args(["--help"], exit_on_error=False)
    command(*bound.args, **bound.kwargs)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "Do something.",
        "the thing. (a number, or a text)",
        "how often. (a whole number)",
        "A JSON object of whole numbers, or null.",
        "A JSON list of numbers, or one value each time.",
    ):
        assert part in shown, shown


def test_the_result_of_a_setup_function_is_no_option() -> None:
    """The first argument comes from the worker, not from the command line."""

    def prepared(state: dict[str, int], x: int) -> None: ...

    parser = parameters.parser(isolated(setup_function=dict)(prepared), "atoll run it.py")
    _, bound, _ = parser.parse_args(["--x", "3"], exit_on_error=False)
    assert (bound.args, bound.kwargs) == ((3,), {})
