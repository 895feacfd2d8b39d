"""What makes two functions, or two arguments, the same to `@cached`."""

from __future__ import annotations

import datetime as dt
import functools
import math
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from atoll.payload import fingerprint

SOURCE = """
LIMIT = {limit}
def helper(x):
    return x + {offset}
class Box:
    size = {size}
    def open(self): return self.size
def work(x, y={default}):
    '''Documented.'''
    return helper(x) + LIMIT + Box().open() in {{"a", "b", "c", 1}}
"""


def made(before: str = "", limit: int = 1, offset: int = 2, size: int = 3, default: int = 4) -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(
        compile(before + SOURCE.format(limit=limit, offset=offset, size=size, default=default), "<here>", "exec"), names
    )
    return names["work"]


def test_the_same_text_is_the_same_function_wherever_it_stands() -> None:
    """Lines above it, and what it does not use, make no difference."""
    assert fingerprint.of_function(made()) == fingerprint.of_function(made("\n\nUNUSED = 3\n"))


@pytest.mark.parametrize("change", ["limit", "offset", "size", "default"])
def test_what_it_uses_is_part_of_it(change: str) -> None:
    """A global, a helper, a class and a default each make another function."""
    assert fingerprint.of_function(made()) != fingerprint.of_function(made("", **{change: 99}))


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    """The order of sets, which changes from process to process, does not count."""
    program = tmp_path / "program.py"
    program.write_text(
        "from atoll.payload import fingerprint\n"
        + SOURCE.format(limit=1, offset=2, size=3, default=4)
        + "print(fingerprint.of_function(work).hex(), fingerprint.of_arguments([{'x', 'y', 'z'}]).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, str(program)],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(found) == 1


class Point:
    def __init__(self, x: Any) -> None:
        self.x = x


DIFFERENT: list[Any] = [
    None, True, 1, 1.0, 1 + 0j, "1", b"1", bytearray(b"1"), math.nan, 0.0, -0.0, (), [], {}, set(), frozenset(),
    (1,), [1], {1}, {1: 1}, {1: "1"}, [[1], 2], [1, [2]], "a" * 100, ("a", "b"), ("ab",), ("a", ("b",)),
    Point(1), Point(2), Point([1]), dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), Path("a"), "a", range(3),
    len, math, math.sin, functools.partial(len), int, Point, types.SimpleNamespace(x=1),
]  # fmt: skip


def test_different_values_have_different_digests() -> None:
    """Values of other types or other contents do not meet."""
    digests = [fingerprint.of_arguments([value]) for value in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)


def test_equal_values_have_equal_digests() -> None:
    """It makes no difference whether two equal parts are one object."""
    one = [1, 2]
    assert fingerprint.of_arguments([(Point([1]), "ab" * 2)]) == fingerprint.of_arguments([(Point([1]), "abab")])
    assert fingerprint.of_arguments([{"x": (1, 2)}]) == fingerprint.of_arguments([{"x": tuple(one)}])


def test_a_value_that_holds_itself_has_a_digest() -> None:
    """A cycle ends the walk."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint.of_arguments([loop])


@pytest.mark.parametrize("value", [threading.Lock(), sys.stdout, (i for i in "a")])
def test_what_says_nothing_of_itself_is_refused(value: Any) -> None:
    """Locks, files and generators cannot be compared."""
    with pytest.raises(fingerprint.Unknowable):
        fingerprint.of_arguments([value])


def test_equal_dicts_are_the_same_however_they_were_filled() -> None:
    """The order of a dict counts for nothing, at any depth and for keys of any types; its values do."""
    first = {"a": [1], "b": {1: "x", None: "y", (2, 3): "z"}}
    second = {"b": {(2, 3): "z", None: "y", 1: "x"}, "a": [1]}
    third = {"b": {(2, 3): "x", None: "y", 1: "z"}, "a": [1]}
    assert fingerprint.of_arguments([first]) == fingerprint.of_arguments([second])
    assert fingerprint.of_arguments([first]) != fingerprint.of_arguments([third])


KEPT = {
    "a dispatcher": (
        (
            "import functools\n@functools.singledispatch\ndef show(x): return 1\n@show.register\ndef _(x: int): return {0}\n"
            "def f(): return show(1)"
        ),
        "show(2); show('')",
    ),
    "a generator of random numbers": (
        "from random import random, choice\ndef f(): return random(), choice, {0}",
        "random()",
    ),
    "the path": ("from sys import path, modules\ndef f(): return path, modules, {0}", "path.append('x'); path.pop()"),
    "a weak registry": (
        "import weakref\nclass C: pass\nc = C()\nW = weakref.WeakValueDictionary(a=c)\nR = weakref.ref(c)\ndef f(): return W, R, {0}",
        "W.get('a')",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_a_process_or_a_library_remembers_does_not_count(name: str) -> None:
    """The digest is that of the next worker's function, before and after the function has run; an edit changes it."""
    source, use = KEPT[name]
    digests = []
    for number in (1, 1, 2):
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source.format(number), "<here>", "exec"), names)
        before = fingerprint.of_function(names["f"])
        exec(use, names)
        digests += [before, fingerprint.of_function(names["f"])]
    assert len(set(digests[:4])) == 1
    assert len(set(digests[4:])) == 1
    assert digests[0] != digests[4]


def test_an_object_is_the_same_as_itself_alone() -> None:
    """A sentinel is no other `object()`."""
    unset = object()
    assert fingerprint.of_arguments([unset]) == fingerprint.of_arguments([unset])
    assert fingerprint.of_arguments([unset]) != fingerprint.of_arguments([object()])
