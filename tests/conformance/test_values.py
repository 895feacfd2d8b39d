"""Arguments and results: what arrives is what was given."""

from __future__ import annotations

import array
import collections
import datetime as dt
import decimal
import fractions
import ipaddress
import math
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from typing import Any

import pytest

from atoll import errors

from .conftest import Place
from .samples import Color, Order, Position, Slotted, UnreadableValue


def echo(value: Any) -> Any:
    return value


def describe(value: Any) -> tuple[str, str]:
    return type(value).__name__, repr(value)


VALUES: dict[str, Any] = {
    "None": None,
    "booleans": (True, False),
    "a small integer": -1,
    "an integer of 5000 bits": 1 << 5000,
    "a float": 0.1 + 0.2,
    "infinities": (math.inf, -math.inf, -0.0),
    "a complex number": 1 - 2j,
    "an empty text": "",
    "texts of many scripts": "naïve Ωμέγα 日本語 🏝️ \u202eabc",
    "a text with a NUL": "a\0b",
    "a lone surrogate": "\udcff",
    "all bytes": bytes(range(256)),
    "a bytearray": bytearray(b"abc"),
    "an array": array.array("d", [1.5, 2.5]),
    "containers in containers": {"a": [1, (2, {3}), {"b": frozenset({4})}], 5: None},
    "an ordered mapping": {"z": 1, "a": 2, "m": 3},
    "empty containers": ([], (), {}, set(), frozenset()),
    "a range and a slice": (range(1, 10, 3), slice(1, None, 2)),
    "singletons": (..., NotImplemented),
    "a decimal and a fraction": (decimal.Decimal("0.10"), fractions.Fraction(1, 3)),
    "a date": dt.date(2024, 2, 29),
    "a time with its zone": dt.datetime(2024, 3, 31, 1, 30, tzinfo=dt.UTC),
    "a named zone": dt.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
    "a duration": dt.timedelta(days=-1, microseconds=7),
    "a UUID": uuid.UUID(int=7),
    "paths": (pathlib.PurePosixPath("/a/b"), pathlib.Path("c")),
    "an address": ipaddress.ip_network("10.0.0.0/8"),
    "a pattern": re.compile("a+", re.IGNORECASE),
    "collections": (collections.deque([1, 2], 5), collections.Counter("aab"), collections.OrderedDict(b=1, a=2)),
    "a mapping with a default": collections.defaultdict(list, {"a": [1]}),
    "a namespace": types.SimpleNamespace(a=1),
    "an object of the project": Order(7, ["apples"]),
    "a named tuple": Position(1, 2),
    "members of an enumeration": [Color.RED, Color.BLUE],
    "an object without a dictionary": Slotted([1]),
    "types": (int, Order, collections.OrderedDict),
    "functions by name": (len, math.sqrt, echo.__class__),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_went(place: Place, name: str) -> None:
    """An argument arrives equal and of its own type, and so does the result."""
    value = VALUES[name]
    returned = place.isolated(echo)(value)
    assert returned == value
    assert type(returned) is type(value)
    assert place.isolated(describe)(value) == describe(value)


def test_not_a_number_stays_one(place: Place) -> None:
    """A value that is not equal to itself travels too."""
    assert math.isnan(place.isolated(echo)(math.nan))


def test_members_and_classes_keep_their_identity(place: Place) -> None:
    """What there is one of stays the one: `is` holds for members, classes and None."""
    returned = place.isolated(echo)([Color.RED, Order, None])
    assert returned[0] is Color.RED
    assert returned[1] is Order
    assert returned[2] is None


def test_shared_and_circular_references_keep_their_shape(place: Place) -> None:
    """One object that is referred to twice arrives once, and a list may hold itself."""
    shared: list[Any] = [1]
    shared.append(shared)
    one, two = place.isolated(echo)((shared, shared))
    assert one is two
    assert one[1] is one


def test_deeply_nested_values_travel(place: Place) -> None:
    """A list in a list, two hundred deep, arrives."""
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    assert place.isolated(echo)(value) == value


def test_a_value_too_deep_to_pickle_is_named(place: Place) -> None:
    """A result that no pickle can hold is an error of the call, and not the worker's death."""

    def dig() -> Any:
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]
        return value

    with pytest.raises((errors.SerializationError, RecursionError)):
        place.isolated(dig)()
    assert place.isolated(echo)(1) == 1


@pytest.mark.parametrize("megabytes", [1, 8, 64])
def test_large_values_arrive_whole(place: Place, megabytes: int) -> None:
    """Size does not matter, in either direction."""
    value = bytes(range(256)) * (megabytes << 12)
    assert place.isolated(echo)(value) == value


def test_many_small_values_arrive_whole(place: Place) -> None:
    """A list of 200,000 items keeps its items and their order."""
    value = [(number, str(number)) for number in range(200_000)]
    assert place.isolated(echo)(value) == value


def test_an_argument_that_the_function_changes_is_the_callers_own(place: Place) -> None:
    """A function works on a copy: the caller's list stays as it is."""

    def spoil(value: list[int]) -> list[int]:
        value.append(4)
        return value

    given = [1, 2, 3]
    assert place.isolated(spoil)(given) == [1, 2, 3, 4]
    assert given == [1, 2, 3]


def test_a_lambda_and_a_closure_travel_as_values(place: Place) -> None:
    """Functions without a name can be arguments and results."""
    factor = 3

    def make(inner: Any) -> Any:
        return lambda value: inner(value) + 1

    assert place.isolated(make)(lambda value: value * factor)(2) == 7


def test_a_class_that_is_made_in_the_function_travels_back(place: Place) -> None:
    """An object of a class that only the worker has defined brings its class along."""

    def make() -> Any:
        class Local:
            word = "hello"

            def say(self) -> str:
                return self.word

        return Local()

    assert place.isolated(make)().say() == "hello"


def test_a_class_of_a_function_travels_by_value(place: Place) -> None:
    """An object of a class that was defined inside a caller's function is known to the worker."""

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

        def twice(self) -> int:
            return 2 * self.value

    def use(item: Any) -> tuple[int, Any]:
        return item.twice(), type(item)(5)

    doubled, another = place.isolated(use)(Local(4))
    assert doubled == 8
    assert another.twice() == 10


def test_an_isolated_function_is_a_value_too(place: Place) -> None:
    """A function that is isolated can be an argument; it is called as a nested call."""

    def apply(function: Any, value: int) -> int:
        return int(function(value))

    assert place.isolated(apply)(place.isolated(lambda value: value + 1), 1) == 2


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda: (number for number in range(3)), id="a generator"),
        pytest.param(lambda: __import__("threading").Lock(), id="a lock"),
        pytest.param(lambda: open("/dev/null", "rb"), id="an open file"),
        pytest.param(lambda: __import__("socket").socket(), id="a socket"),
        pytest.param(lambda: sys._getframe(), id="a frame"),
    ],
)
def test_an_argument_that_cannot_travel_is_named(place: Place, value: Any) -> None:
    """What has no pickle is refused before the call, with the argument's place."""
    given = value()
    with pytest.raises(errors.SerializationError, match="argument") as caught:
        place.isolated(echo)(given)
    assert caught.value.hint
    if hasattr(given, "close"):
        given.close()


def test_a_result_that_cannot_travel_is_named(place: Place) -> None:
    """A result without a pickle is an error of the call that says so."""

    def make() -> Any:
        import threading

        return {"a": [threading.Lock()]}

    with pytest.raises(errors.SerializationError, match=r"result.*lock"):
        place.isolated(make)()


def test_an_argument_that_does_not_unpickle_is_an_error_of_the_call(place: Place) -> None:
    """What fails when the worker reads it fails there, and the worker goes on."""
    with pytest.raises((errors.SerializationError, RuntimeError), match="cannot be loaded"):
        place.isolated(echo)(UnreadableValue())
    assert place.isolated(echo)(2) == 2


def test_a_result_that_does_not_unpickle_is_an_error_of_the_call(place: Place) -> None:
    """What fails when the caller reads it is named; the next call works."""

    def make() -> Any:
        return UnreadableValue()

    with pytest.raises((errors.SerializationError, RuntimeError), match="cannot be loaded"):
        place.isolated(make)()
    assert place.isolated(echo)(2) == 2
