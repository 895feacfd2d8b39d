"""Repeated attempts of a call, for functions that ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll import errors

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Retries:
    """The number of further attempts of a call, the failures that they follow, and the waits before them.

    A lost worker, or a daemon that ended while the call ran, counts always; `OutOfMemory`, `CallTimeout` and the
    function's own exceptions count where `on` names their type or one above it.

    Args:
        count: the most attempts after the first.
        on: further types of exceptions.
        wait_seconds: before the first retry.
        factor: growth of the wait from one retry to the next.
        most_seconds: the longest wait.
    """

    count: int = 0
    on: tuple[type[BaseException], ...] = ()
    wait_seconds: float = 0.5
    factor: float = 2.0
    most_seconds: float = 60.0

    if TYPE_CHECKING:  # `on` may be given as one type, or as any collection of types

        def __init__(
            self,
            count: int = 0,
            on: type[BaseException] | Iterable[type[BaseException]] = (),
            wait_seconds: float = 0.5,
            factor: float = 2.0,
            most_seconds: float = 60.0,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int):
            raise TypeError(f"`retries` must be a whole number, is {self.count!r}")
        if not 0 <= self.count <= 1000:
            raise ValueError(f"`retries` must be from 0 to 1000, is {self.count}")
        kinds = (self.on,) if isinstance(self.on, type) else tuple(self.on)
        for kind in kinds:
            if not isinstance(kind, type) or not issubclass(kind, BaseException):
                raise TypeError(f"`Retries.on` must be types of exceptions, and has {kind!r}")
        object.__setattr__(self, "on", kinds)
        for name in ("wait_seconds", "factor", "most_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
                raise ValueError(f"`Retries.{name}` must be a number of at least 0, is {value!r}")

    def covers(self, error: BaseException) -> bool:
        """Return whether a call that failed so is to be made again."""
        if self.on and isinstance(error, self.on):
            return True
        if isinstance(error, errors.OutOfMemory):  # a `WorkerDied` that would most likely happen again
            return False
        return isinstance(error, (errors.WorkerDied, errors.HostUnreachable))

    def wait(self, retry: int) -> float:
        """Return the seconds before the retry of this number, counted from 0."""
        if not self.wait_seconds or not self.factor:
            return min(self.wait_seconds, self.most_seconds)
        seconds = self.wait_seconds
        for _ in range(retry):
            if seconds >= self.most_seconds:  # a thousand retries would overflow a float
                break
            seconds *= self.factor
        return min(seconds, self.most_seconds)


def of(value: Any) -> Retries:
    """Read the option `retries`: a number, `Retries`, or a tuple of a number and types of exceptions.

    Raises:
        TypeError, ValueError: it is of another form.
    """
    if isinstance(value, Retries):
        return value
    if value is None:
        return Retries()
    if isinstance(value, (tuple, list)) and value:
        return Retries(value[0], tuple(value[1:]))
    return Retries(value)
