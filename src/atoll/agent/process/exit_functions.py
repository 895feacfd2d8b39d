"""Exit functions of a worker: a child that a function forks does not run those of programs before its own.

They stay registered, since they run at the worker's end. `atexit` does not list its functions, but compares each of
them with the one to be removed.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Any

_earlier: list[Any] = []
"""Functions of earlier programs."""
_lasting: list[Any] = []
"""Functions of modules and of `setup_function`, which stay."""


class _Comparison:
    """An object that `atexit` compares with its functions."""

    def __init__(self, equals: Callable[[Any], bool]) -> None:
        self._equals = equals

    def __eq__(self, other: object) -> bool:
        return self._equals(other)

    __hash__ = None  # type: ignore[assignment]


def count() -> int:
    """Return a number that grows by one with each function that is registered."""
    return atexit._ncallbacks()


def keep_all() -> None:
    """Let all that are registered belong to every program."""
    _lasting[:] = _registered()


def keep(number: int) -> None:
    """Let the newest functions, so many of them, belong to every program."""
    if number > 0:
        _lasting.extend(_registered()[-number:])


def begin_program() -> None:
    """Take the functions that are registered now, but for those that stay, for other programs'."""
    found = _registered()
    _earlier[:] = [one for one, stays in zip(found, _marked(found, _lasting), strict=True) if not stays]


def forget_earlier() -> None:
    """Unregister the functions of earlier programs: in a forked child."""
    if _earlier:
        steps = iter(_in_order(_marked(_registered(), _earlier)))
        _unregister(lambda _: next(steps, False))


def _unregister(equals: Callable[[Any], bool]) -> None:
    comparison: Any = _Comparison(equals)
    atexit.unregister(comparison)


def _registered() -> list[Any]:
    """Return the registered functions, the oldest first."""
    found: list[Any] = []

    def look(one: Any) -> bool:
        found.append(one)
        return False

    _unregister(look)
    return _in_order(found)


def _in_order(found: list[Any]) -> list[Any]:
    return found[::-1] if sys.version_info >= (3, 14) else found  # there the newest one is the first


def _marked(found: list[Any], among: list[Any]) -> list[bool]:
    """Return for each function whether it is among others, each of which counts once."""
    left = [id(one) for one in among]
    marks = []
    for one in found:
        marks.append(id(one) in left)
        if marks[-1]:
            left.remove(id(one))
    return marks
