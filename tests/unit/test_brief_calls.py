"""Calls that are excused from a look at all state of the process."""

from __future__ import annotations

import pickle

import pytest

from atoll.agent.process.brief_calls import MOST_BYTES, BriefCalls
from atoll.payload.functions import FunctionPickler, dumps_arguments

PLAIN = pickle.dumps(((1, "signal"), {}), 5)


def plain(x: int) -> int:
    return x + 1


def waits(number: int) -> None:
    import signal

    signal.alarm(number)


def leads_elsewhere(module: object) -> None:
    module.os.umask(0)  # type: ignore[attr-defined]


def runs_text(text: str) -> None:
    exec(text)


def looks_around(known: dict[str, int]) -> tuple[object, ...]:
    import sys
    import time

    return time.time(), sys.version_info, set(known), known.setdefault("a", 1)


def joins_names(name: str) -> tuple[object, ...]:
    import os
    import time

    return os.path.join(str(os.getpid()), name), time.monotonic()


def extends_the_path(name: str) -> None:
    import sys

    sys.path.append(name)


def limits_recursion() -> None:
    import sys

    sys.setrecursionlimit(2000)


def sets_a_variable() -> None:
    import os

    os.environ["A"] = "b"


def uses_what_it_is_told(name: str) -> None:
    import os

    getattr(os, name)("/")


@pytest.mark.parametrize(
    ("function", "excused"),
    [
        (plain, True),
        (looks_around, True),
        (joins_names, True),
        (waits, False),
        (leads_elsewhere, False),
        (runs_text, False),
        (extends_the_path, False),
        (limits_recursion, False),
        (sets_a_variable, False),
        (uses_what_it_is_told, False),
    ],
)
def test_code_that_names_state_is_not_excused(function: object, excused: bool) -> None:
    """A function whose pickle names a module or function by which state can change is looked after in full."""
    made = FunctionPickler(function).current()  # type: ignore[arg-type]
    assert BriefCalls().may_be("digest", BriefCalls.searched([made.data, PLAIN])) is excused


def test_arguments_may_bring_code() -> None:
    """Plain arguments name nothing, whatever their texts are; a function among them is searched."""
    calls = BriefCalls()
    made = FunctionPickler(plain).current().data
    assert calls.may_be("digest", BriefCalls.searched([made, PLAIN]))
    function, _ = dumps_arguments((waits,), {}, by_value=frozenset({__name__}))
    assert not calls.may_be("digest", BriefCalls.searched([made, function]))
    long, _ = dumps_arguments((plain, b"x" * MOST_BYTES), {}, by_value=frozenset({__name__}))
    assert not calls.may_be("digest", BriefCalls.searched([made, long]))
    assert calls.may_be("digest", BriefCalls.searched([made, b"x" * MOST_BYTES]))
    assert calls.may_be("digest", BriefCalls.searched([made, PLAIN]))


def test_long_and_unknown_functions_are_not_excused() -> None:
    """A function that is not kept, or whose pickle is too long to search, is looked after in full."""
    made = FunctionPickler(plain).current().data
    assert not BriefCalls().may_be("", BriefCalls.searched([made, PLAIN]))
    assert not BriefCalls().may_be("digest", BriefCalls.searched([made + b"x" * MOST_BYTES, PLAIN]))
