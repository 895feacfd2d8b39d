"""When a call is made again, and when not."""

from __future__ import annotations

from typing import Any

import pytest

from atoll import errors, isolated
from atoll.sdk import retries
from atoll.sdk.options import is_generator
from atoll.sdk.retries import Retries


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (None, Retries(0)),
        (3, Retries(3)),
        (Retries(2, wait_seconds=9), Retries(2, wait_seconds=9)),
        ((2, ValueError, OSError), Retries(2, (ValueError, OSError))),
        (Retries(1, on=KeyError), Retries(1, (KeyError,))),
    ],
)
def test_the_option_is_read_in_each_of_its_forms(given: Any, made: Retries) -> None:
    """A number, `Retries`, a number with types."""
    assert retries.of(given) == made


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("3", TypeError),
        (True, TypeError),
        (-1, ValueError),
        (1.5, TypeError),
        ((1, "x"), TypeError),
        (2000, ValueError),
    ],
)
def test_anything_else_is_refused_when_the_function_is_defined(given: Any, kind: type[Exception]) -> None:
    """The error comes with the decorator, not with the first call."""
    with pytest.raises(kind, match=r"retries|Retries"):
        isolated(retries=given)


@pytest.mark.parametrize(
    ("error", "by_default"),
    [
        (errors.WorkerDied("died"), True),
        (errors.HostUnreachable("the daemon ended while the call was running"), True),
        (errors.OutOfMemory("limit"), False),
        (errors.CallTimeout("late"), False),
        (errors.CallCancelled("cancelled"), False),
        (errors.EnvironmentBuildError("no such package"), False),
        (ValueError("the function's own"), False),
    ],
)
def test_only_lost_workers_count_unless_more_is_named(error: BaseException, by_default: bool) -> None:
    """What would fail again is not tried again, unless its type is listed."""
    assert Retries(1).covers(error) == by_default
    assert Retries(1, on=(type(error),)).covers(error)


def test_waits_grow_up_to_the_longest() -> None:
    """Each wait is the last one times the factor."""
    assert [Retries(9, wait_seconds=1, factor=3, most_seconds=20).wait(n) for n in range(5)] == [1, 3, 9, 20, 20]
    assert Retries(9, wait_seconds=0).wait(100) == 0
    assert Retries(9, wait_seconds=1, factor=1).wait(999) == 1


def test_generators_are_known_in_every_wrapping() -> None:
    """Functions, partials, methods and objects whose call gives items; not functions that return a generator."""
    import functools

    def items() -> Any:
        yield 1

    async def later() -> Any:
        yield 1

    class Source:
        def __call__(self) -> Any:
            yield 1

        def method(self) -> Any:
            yield 1

    for function in (items, later, functools.partial(items), Source(), Source().method):
        assert is_generator(function), function
    for plain in (lambda: items(), len, Source, functools.partial(len)):
        assert not is_generator(plain), plain


@pytest.mark.parametrize(("option", "value"), [("timeout", 0), ("timeout", -1), ("timeout", 1e9)])
def test_a_timeout_is_a_positive_number_of_seconds(option: str, value: float) -> None:
    """No time at all is refused."""
    with pytest.raises(ValueError, match="timeout"):
        isolated("virtualenv", **{option: value})  # type: ignore[call-overload]


def test_a_setup_function_must_be_callable() -> None:
    """Something else is a `TypeError` at the decorator."""
    with pytest.raises(TypeError, match="setup_function"):
        isolated(setup_function="load")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="generator"):
        isolated(setup_function=lambda: (yield))
