"""`@cached`: computed once in each worker, for as long as it lives.

The results belong to the worker and not to the wrapper. A function is unpickled anew after each change of the things
that it uses, so the next call has another wrapper, which finds earlier results by digest. The digest covers the
function's behaviour (`payload.fingerprint`): functions of the same text and different globals do not share results,
and an edit of the calling function changes nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from atoll.errors import SerializationError
from atoll.payload.values import type_name
from atoll.wire import nested

if TYPE_CHECKING:
    from typing import Self  # functions may run on Python 3.10

    from atoll.payload.captures import Captures

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R")


class _Entry:
    """One combination of function and arguments; the lock is held while it is computed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.done = False
        self.value: Any = None


_entries: dict[tuple[bytes, bytes], _Entry] = {}
_entries_lock = threading.Lock()


def _renew_locks() -> None:
    """In a forked child: the threads that held the locks are the parent's."""
    global _entries_lock
    _entries_lock = threading.Lock()
    for entry in _entries.values():
        entry.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class CachedFunction(Generic[P, R]):
    """A function that a worker runs once for each combination of its code, the globals it uses and its arguments.

    All calls get the same object: a change to it is seen by the next call. An exception is not kept. In the caller's
    own process it is the plain function. Threads that ask for one result at once wait for the first of them.

    Raises:
        SerializationError: an argument cannot be compared with that of another call, such as an open file.
    """

    __slots__ = ("__dict__", "__weakref__", "_proof")  # as in `IsolatedFunction`

    def __init__(self, function: Callable[P, R]) -> None:
        if not callable(function):
            raise TypeError(f"`cached` needs something that can be called, not {function!r}")
        for test, kind in (
            (inspect.isgeneratorfunction, "a generator"),
            (inspect.isasyncgenfunction, "an asynchronous generator"),
            (inspect.iscoroutinefunction, "an async function"),
        ):
            if test(function):
                raise TypeError(f"`cached` cannot keep what {kind} gives; return the finished value")
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._proof: tuple[Captures, bytes] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not nested.inside():
            return self.__wrapped__(*args, **kwargs)
        entry = self._entry(args, kwargs)
        if not entry.done:
            with entry.lock:
                if not entry.done:  # another thread may have computed it meanwhile
                    from atoll.agent.process import left_running  # not in the caller's process

                    with left_running.kept():
                        entry.value = self.__wrapped__(*args, **kwargs)
                    entry.done = True
        value: R = entry.value
        return value

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self: Callable[Concatenate[A, Q], R], instance: A, owner: Any = None) -> Callable[Q, R]: ...
    @overload  # the attribute is a static method
    def __get__(self, instance: Any, owner: Any = None) -> Self: ...
    def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<cached {getattr(self.__wrapped__, '__qualname__', self.__wrapped__)}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        from atoll.payload.reducers import named  # keeps `from atoll import cached` cheap

        return named.reduce_by_name(self, "cached function", self.__atoll_reduce__)

    def __atoll_reduce__(self) -> tuple[Any, ...]:
        """Reduce it by value, for calls and for cloudpickle."""
        return CachedFunction, (self.__wrapped__,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # as plain functions are

    @property
    def __atoll_function__(self) -> Callable[P, R]:
        """The plain function, for walks over a function's globals."""
        return self.__wrapped__

    def _entry(self, args: Any, kwargs: Any) -> _Entry:
        from atoll.payload import fingerprint

        try:
            key = self._digest(), fingerprint.of_arguments(_bound(self.__wrapped__, args, kwargs))
        except fingerprint.Unknowable as error:
            raise SerializationError(
                f"`{type_name(self.__wrapped__)}` `{getattr(self.__wrapped__, '__qualname__', '')}` is cached, and {error}",
                hint="pass plain data, such as the path instead of the open file",
            ) from error
        entry = _entries.get(key)
        if entry is None:
            with _entries_lock:
                entry = _entries.setdefault(key, _Entry())
        return entry

    def _digest(self) -> bytes:
        from atoll.payload import fingerprint
        from atoll.payload.captures import Captures

        proof = self._proof
        if proof is None or not proof[0].unchanged():
            captures = Captures(self.__wrapped__)
            self._proof = proof = captures, fingerprint.of_function(self.__wrapped__)
        return proof[1]


def _bound(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return the arguments in one order, however they were given."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself raises the fitting error
        return (args, tuple(sorted(kwargs.items())))
    bound.apply_defaults()
    return tuple(
        (name, tuple(sorted(value.items())) if isinstance(value, dict) and name == _variable(function) else value)
        for name, value in bound.arguments.items()
    )


def _variable(function: Callable[..., Any]) -> str:
    """Return the name of `**kwargs`, or an empty text."""
    parameters = inspect.signature(function).parameters.values()
    return next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), "")


def cached(function: Callable[P, R]) -> CachedFunction[P, R]:
    """Mark a function that isolated functions call to be computed once in each worker: `@cached`.

    Raises:
        TypeError: it cannot be called, or is a generator or async.
    """
    return CachedFunction(function)
