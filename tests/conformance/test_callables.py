"""Whatever can be called can be isolated, and is found as it is when the call is made."""

from __future__ import annotations

import asyncio
import functools
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atoll import IsolatedFunction, isolated

from .conftest import Place
from .samples import Counter, Order, Position, plus, remembered

LEVEL = 1
TABLE: dict[str, int] = {"a": 1}


def level() -> int:
    return LEVEL


def through_helper() -> int:
    return level() + 100


def is_even(number: int) -> bool:
    return True if number == 0 else is_odd(number - 1)


def is_odd(number: int) -> bool:
    return False if number == 0 else is_even(number - 1)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return ("logged", function(*args, **kwargs))

    return wrapper


@logged
def decorated(value: int) -> int:
    return value + 1


def grüße(名前: str, *, größe: int = 1) -> str:  # noqa: PLC2401 - these names are what is tested
    return 名前 * größe


CALLABLES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = {
    "a lambda": (lambda value: value + 1, (1,), {}, 2),
    "a builtin": (len, ([1, 2],), {}, 2),
    "a class": (Position, (1, 2), {}, Position(1, 2)),
    "a type's method": (str.upper, ("abc",), {}, "ABC"),
    "an object's method": ("-".join, (["a", "b"],), {}, "a-b"),
    "a method of the project's object": (Order(1, ["a", "b"]).total, (3,), {}, 6),
    "a class method": (Order.empty, (9,), {}, Order(9)),
    "a static method": (Order.double, (4,), {}, 8),
    "a partial": (functools.partial(pow, 2), (5,), {}, 32),
    "a partial of a partial": (functools.partial(functools.partial(plus, 1), three=0), (2,), {}, 3),
    "an object with `__call__`": (Counter(5), (2,), {}, 7),
    "an operator": (operator.itemgetter(1), ("abc",), {}, "b"),
    "a decorated function": (decorated, (1,), {}, ("logged", 2)),
    "a function with a cache": (remembered, (4,), {}, 8),
    "functions that call each other": (is_even, (7,), {}, False),
    "names of other scripts": (grüße, ("é",), {"größe": 3}, "ééé"),
    "positional, default and keyword arguments": (plus, (1,), {"three": 3}, 14),
    "all arguments at once": (lambda *args, **kwargs: (args, kwargs), (1, 2), {"a": 3}, ((1, 2), {"a": 3})),
    "names that Atoll uses itself": (
        lambda self, args, timeout, host, function: (self, args, timeout, host, function),
        (),
        {"self": 1, "args": 2, "timeout": 3, "host": 4, "function": 5},
        (1, 2, 3, 4, 5),
    ),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_callable_runs(place: Place, name: str) -> None:
    """The call's result is what the callable gives here."""
    function, args, kwargs, expected = CALLABLES[name]
    assert place.isolated(function)(*args, **kwargs) == expected


def test_a_method_that_is_isolated_in_its_class_gets_its_object(place: Place) -> None:
    """`@isolated` on a method is called on an instance, like the method."""

    class Account:
        def __init__(self, money: int) -> None:
            self.money = money

        add = place.isolated(lambda self, more: self.money + more)

    assert Account(10).add(5) == 15


class Ladder:
    """A class whose methods are isolated by the test below."""

    def __init__(self, start: int) -> None:
        self.start = start

    def rung(self, more: int) -> int:
        return self.start + more

    def rungs(self, most: int) -> Iterator[int]:
        yield from range(self.start, self.start + most)

    async def slow(self, more: int) -> int:
        return self.start + more


def test_a_method_has_every_way_to_call(place: Place) -> None:
    """Of an object's method all that an isolated function has works, with the object as first argument."""

    class Isolated(Ladder):
        rung = place.isolated(Ladder.rung)
        rungs = place.isolated(Ladder.rungs)
        slow = place.isolated(Ladder.slow)

    one, two = Isolated(10), Isolated(20)
    function: Any = one.rung
    assert isinstance(function, IsolatedFunction)
    assert (function(1), two.rung(1), Isolated.rung(two, 2)) == (11, 21, 22)
    assert (function.submit(2).result(), function.local(3), function.on(retries=1)(4)) == (12, 13, 14)
    assert list(function.map(range(200))) == list(range(10, 210))  # most requests are made like the one before
    assert list(function.starmap([(1,), (2,)])) == [11, 12]
    rungs: Any = two.rungs
    assert (list(rungs(2)), rungs.submit(2).result(), list(rungs.map([1]))) == ([20, 21], [20, 21], [[20]])

    async def main() -> tuple[int, list[int]]:
        slow: Any = two.slow
        return await slow.aio(5), [item async for item in rungs.aio(2)]

    assert asyncio.run(main()) == (25, [20, 21])
    one.start = 30
    assert function(1) == 31
    assert str(inspect.signature(function)) == "(more: 'int') -> 'int'"


def test_a_method_travels_to_another_function(place: Place) -> None:
    """As an argument, a global or in a closure an isolated method stays the method of its object."""

    class Isolated(Ladder):
        rung = place.isolated(Ladder.rung)

    method: Any = Isolated(10).rung
    assert place.isolated(lambda function: function.local(1))(method) == 11
    assert place.isolated(lambda: method.local(2))() == 12


def test_static_and_class_methods(place: Place) -> None:
    """A static method is one in either order of the decorators; `@classmethod` goes above."""

    class Plain:
        above = staticmethod(place.isolated(lambda x: 2 * x))
        below = place.isolated(staticmethod(lambda x: 3 * x))
        of_class = classmethod(place.isolated(lambda cls, x: (cls.__name__, x)))

    Scale: Any = Plain
    assert (Scale.above(1), Scale().above(2), Scale.below(1), Scale().below(2)) == (2, 4, 3, 6)
    assert Scale().of_class(1) == Scale.of_class(1) == ("Plain", 1)
    with pytest.raises(TypeError, match="write `@classmethod` above"):
        isolated(classmethod(len))  # type: ignore[arg-type, call-overload]


def test_a_nested_definition_and_its_closure_travel(place: Place) -> None:
    """Cells, defaults and functions within functions are taken along."""

    def make(base: int) -> Callable[[int], int]:
        def scale(value: int, by: int = base) -> int:
            def inner() -> int:
                return value * by + base

            return inner()

        return scale

    assert place.isolated(make(3))(2) == 9
    assert place.isolated(make(4))(3) == 16


def test_an_isolated_function_looks_like_the_plain_one(place: Place) -> None:
    """Name, documentation and the function itself can be read off."""

    def documented(value: int) -> int:
        """Says what it does."""
        return value

    function = place.isolated(documented)
    assert isinstance(function, IsolatedFunction)
    assert function.__name__ == "documented"
    assert function.__doc__ == "Says what it does."
    assert function.__wrapped__ is documented
    assert "documented" in repr(function)
    assert function.local(3) == 3


def test_local_runs_in_this_process(place: Place) -> None:
    """`.local` is the plain function; a call is not."""
    function = place.isolated(os.getpid)
    assert function.local() == os.getpid()
    assert function() != os.getpid()


def test_on_changes_what_it_names_and_keeps_the_rest(place: Place) -> None:
    """`.on` gives another function; the first one is as it was."""
    function = place.isolated(lambda: os.environ.get("WHO"), env={"WHO": "first"}, keep_alive=5)
    changed = function.on(place.host, env={"WHO": "second"})
    assert (function(), changed(), function()) == ("first", "second", "first")
    assert changed.options.keep_alive == 5
    assert changed.options.host == place.host


# --- as it is when the call is made ------------------------------------------------------------------------------------


def test_a_rebound_global_is_seen_by_the_next_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A global that is set to something else is taken anew, also by a warm worker and through a helper."""
    function = place.isolated(through_helper)
    assert function() == 101
    monkeypatch.setattr(sys.modules[__name__], "LEVEL", 2)
    assert function() == 102


def test_a_global_that_is_changed_in_place_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change inside a global list or dict is taken anew."""
    function = place.isolated(lambda: TABLE)
    assert function() == {"a": 1}
    monkeypatch.setitem(TABLE, "b", 2)
    assert function() == {"a": 1, "b": 2}


def test_a_helper_that_is_replaced_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that the function calls may be another one at the next call."""
    function = place.isolated(through_helper)
    assert function() == 101
    monkeypatch.setattr(sys.modules[__name__], "level", lambda: 7)
    assert function() == 107


def test_a_closures_variable_is_seen(place: Place) -> None:
    """A cell that the caller changes between two calls is taken anew."""
    value = 1
    function = place.isolated(lambda: value)
    assert function() == 1
    value = 2
    assert function() == 2


def test_a_mutable_default_is_taken_as_it_is(place: Place) -> None:
    """What a function puts into its own default stays in the worker; the caller's is its own."""

    def collect(value: int, into: list[int] = []) -> list[int]:
        into.append(value)
        return into

    function = place.isolated(collect)
    assert function(1) == [1]
    assert function(2) == [2]
    default: list[int] = (collect.__defaults__ or ())[0]
    assert default == []
    default.append(9)
    assert function(3) == [9, 3]


def test_what_a_function_does_to_a_global_stays_with_it(place: Place) -> None:
    """A function that changes a global changes its worker's, never the caller's."""

    def change() -> int:
        global LEVEL
        LEVEL += 1
        TABLE["changed"] = 1
        return LEVEL

    assert place.isolated(change)() == 2
    assert LEVEL == 1
    assert "changed" not in TABLE


def test_an_attribute_of_a_class_is_seen(place: Place) -> None:
    """A class that is changed in the running program is taken as it is."""

    class Rate:
        value = 1

    function = place.isolated(lambda: Rate.value)
    assert function() == 1
    Rate.value = 2
    assert function() == 2


def test_two_functions_of_one_text_do_not_get_mixed_up(place: Place) -> None:
    """Functions that differ in their closures or defaults only are two functions."""
    functions = [place.isolated(lambda number=number: number) for number in range(20)]
    assert [function() for function in functions] == list(range(20))


def test_an_object_with_call_is_taken_as_it_is(place: Place) -> None:
    """The state of a callable object at the time of the call is what runs; its changes stay there."""
    counter = Counter(0)
    function = place.isolated(counter)
    assert [function(), function()] == [1, 1]
    counter.value = 10
    assert function() == 11
    assert counter.value == 10


# --- functions that call functions -------------------------------------------------------------------------------------


def test_a_function_calls_another_one(place: Place) -> None:
    """An isolated function is called from inside another, and its result comes through both."""
    inner = place.isolated(lambda value: value * 2)
    assert place.isolated(lambda value: inner(value) + 1)(5) == 11


def test_an_exception_passes_through_nested_calls(place: Place) -> None:
    """What the inner function raises can be caught in the outer one, or arrives here."""

    def refuse() -> None:
        raise LookupError("inner")

    inner = place.isolated(refuse)

    def catch(wanted: bool) -> str:
        try:
            inner()
        except LookupError as error:
            if wanted:
                return f"caught {error}"
            raise
        return "nothing"

    outer = place.isolated(catch)
    assert outer(True) == "caught inner"
    with pytest.raises(LookupError, match="inner"):
        outer(False)


def test_a_function_calls_itself_through_its_isolated_name(place: Place) -> None:
    """A chain of ten nested calls of one function does not block itself."""
    holder: dict[str, Any] = {}

    def down(depth: int, again: Any) -> int:
        return 0 if depth == 0 else 1 + again(depth - 1, again)

    holder["down"] = place.isolated(down)
    assert holder["down"](10, holder["down"]) == 10


def test_nested_calls_may_run_side_by_side(place: Place) -> None:
    """A function submits several nested calls and collects them, from more than the machine has cores."""
    square = place.isolated(lambda value: value * value)

    def collect(count: int) -> list[int]:
        return [future.result() for future in [square.submit(number) for number in range(count)]]

    assert place.isolated(collect)(8) == [number * number for number in range(8)]


def test_output_of_a_nested_call_arrives(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """What the inner function prints is printed here, through the outer one."""
    inner = place.isolated(lambda: print("from inside"))
    place.isolated(lambda: inner())()
    assert capfd.readouterr().out == "from inside\n"


def test_a_nested_workers_death_is_an_error_in_the_outer_function(place: Place) -> None:
    """The outer function may go on after its inner call's worker has died."""
    inner = place.isolated(lambda: os._exit(3))

    def outer() -> str:
        from atoll import errors

        try:
            inner()
        except errors.WorkerDied as error:
            return f"died with {error.exit_status}"
        return "lived"

    assert place.isolated(outer)() == "died with 3"
