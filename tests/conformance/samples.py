"""Values, types and functions that travel; in a module of their own, as a project has them."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class Order:
    """A class of the caller's project."""

    number: int
    lines: list[str] = field(default_factory=list)

    def total(self, price: int) -> int:
        return price * len(self.lines)

    @classmethod
    def empty(cls, number: int) -> Order:
        return cls(number)

    @staticmethod
    def double(value: int) -> int:
        return 2 * value


class Position(NamedTuple):
    """A tuple with names."""

    x: int
    y: int


class Color(enum.Enum):
    """Members are the same object wherever they arrive."""

    RED = 1
    BLUE = "blue"


class Slotted:
    """Has no `__dict__`."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Slotted({self.value!r})"


class Counter:
    """An object that can be called, with state."""

    def __init__(self, start: int) -> None:
        self.value = start

    def __call__(self, step: int = 1) -> int:
        self.value += step
        return self.value


class Refusing(Exception):
    """An exception whose constructor takes something else than its `args`."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class Unreadable(Exception):
    """An exception that cannot be unpickled anywhere."""

    def __reduce__(self) -> Any:
        return _fail_to_load, (str(self),)


def _fail_to_load(text: str) -> Any:
    raise RuntimeError(f"cannot be loaded: {text}")


class UnreadableValue:
    """A value that can be pickled and never unpickled."""

    def __reduce__(self) -> Any:
        return _fail_to_load, ("value",)


class Speechless(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def plus(one: int, two: int = 10, /, *, three: int = 100) -> int:
    return one + two + three


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@functools.lru_cache(maxsize=10)
def remembered(value: int) -> int:
    return value * 2
