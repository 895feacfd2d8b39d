"""The worker's side of a call's payload: unpickle the function and its arguments, pickle the result.

A function whose bytes say all of its state, and that cannot change it, is kept from one call to the next: that is
the difference between a microsecond and the unpickling of its code. The client decides which those are
(`payload.captures`); everything else is unpickled anew, so that no call sees what another left in a global.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from atoll.errors import AtollError, SerializationError
from atoll.payload import pickling
from atoll.payload.program import namespaces

_KEPT = 16
_functions: dict[bytes, tuple[Any, namespaces.Modules | None]] = {}


def loads_function(data: Any, reusable: bool = False) -> Callable[..., Any]:
    """Return the function that `payload.functions.FunctionPickler` pickled.

    Args:
        reusable: as the pickler said; the same bytes then give the same object again.

    Raises:
        SerializationError: it cannot be unpickled here; a missing module is named.
        AtollError: raised by a module that is imported for it.
    """
    key = bytes(data)
    if reusable:
        found = _functions.get(key)
        if found is not None:
            function, modules = found
            namespaces.enter(modules)
            return function  # type: ignore[no-any-return]
    modules = namespaces.renew()
    try:
        function = pickling.loads(key)
    except AtollError:
        raise
    except Exception as error:
        raise _unpickling_failed("the function", error) from error
    if reusable:
        while len(_functions) >= _KEPT:
            del _functions[next(iter(_functions))]
        _functions[key] = function, modules
    return function  # type: ignore[no-any-return]


def loads_arguments(data: Any, buffers: Sequence[Any] = ()) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `args` and `kwargs`; arrays use the buffers' memory and are writable where the buffers are.

    Raises:
        SerializationError: they cannot be unpickled here; a missing module is named.
        AtollError: raised by a module that is imported for them.
    """
    try:
        args, kwargs = pickling.loads(data, buffers)
    except AtollError:
        raise
    except Exception as error:
        raise _unpickling_failed("the arguments", error) from error
    return args, kwargs


def dumps_result(value: Any) -> tuple[bytes, list[Any]]:
    """Pickle the function's result; the buffers are views of memory that `value` owns.

    Raises:
        SerializationError: it cannot be pickled; its type is named.
    """
    try:
        if pickling.is_plain(value):
            return pickle.dumps(value, pickling.PROTOCOL), []
        return pickling.dumps(value, result=True)
    except Exception as error:
        raise SerializationError(
            f"the result cannot be sent back: a `{type_name(value)}`: {first_line(error)}",
            hint="return plain data or objects that pickle, or write to `/data` and return the path",
        ) from error


def dumps_answer(value: Any, plain: bool = False) -> list[Any]:
    """Return the buffers of a message that brings `value` to the caller.

    Args:
        plain: as plain data (`payload.plain.encode`) instead of a pickle.

    Raises:
        SerializationError: it cannot be sent; the message names its type, and for plain data the part that cannot.
    """
    if not plain:
        data, pieces = dumps_result(value)
        return [data, *pieces]
    from atoll.payload.plain.encode import dumps
    from atoll.payload.plain.format import NotPlainError

    try:
        return dumps(value)
    except NotPlainError as error:
        reason, path = str(error), error.path
    except (RecursionError, BufferError) as error:
        reason, path = first_line(error), "it"
    raise SerializationError(
        f"the result cannot be sent as plain data: {reason}",
        hint='return numbers, texts, bytes, containers, dates, NumPy arrays or Arrow tables, or use `results="pickle"`',
        path=path,
    )


def type_name(value: Any) -> str:
    """Return the qualified name of the value's type, without `builtins`."""
    cls = value if isinstance(value, type) else type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def first_line(error: BaseException) -> str:
    """Return the error's message, on one line of bounded length, for any `__str__`."""
    try:
        lines = str(error).splitlines()
    except Exception:
        lines = []
    return (lines[0] if lines else type(error).__name__)[:300]


def _unpickling_failed(what: str, error: Exception) -> SerializationError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return SerializationError(
            f"{what} cannot be unpickled by the worker: its environment has no module `{error.name}`",
            hint=f"add what provides `{error.name}` to `requirements`; a module of your own to `local_modules`",
            module=error.name,
        )
    return SerializationError(
        f"{what} cannot be unpickled by the worker: {type(error).__name__}: {first_line(error)}",
        hint="the versions of the packages in `requirements` must fit those that the caller has",
    )


def import_function(module: str, qualname: str) -> Any:
    """Return a function by its name, as it is before `@isolated` wrapped it; pickles name this function.

    A chain of wrappers is followed to the isolated one: to call that would be another call, without an end.
    """
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part) if isinstance(found, type) else getattr(found, part)
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
    inner = found
    while inner is not None:
        if hasattr(type(inner), "__atoll_function__"):
            return inner.__atoll_function__
        inner = getattr(inner, "__wrapped__", None)
    return found


# --- functions for a caller whose Python is another version ---------------------------------------------------------


def printing(module: str, name: str) -> Callable[..., None]:
    """Return a function that calls the one of this name and prints its result unless that is None; pickles name this.

    A caller of another Python cannot send bytecode: the function is imported from its file, and its result is printed
    here, because a class of this Python would be none of the caller's. The items of a generator are printed one by
    one; an async function is run to its end. An isolated function's `setup_function` is called before.
    """
    found = getattr(importlib.import_module(module), name)
    options = getattr(found, "options", None)
    setup = getattr(options, "setup_function", None)
    function = import_function(module, name)

    def call(*args: Any, **kwargs: Any) -> None:
        value = function(*((setup(), *args) if setup is not None else args), **kwargs)
        if inspect.iscoroutine(value):
            import asyncio

            value = asyncio.run(value)
        if inspect.isasyncgen(value):
            import asyncio

            asyncio.run(_print_items(value))
        elif inspect.isgenerator(value):
            for item in value:
                print(item, flush=True)
        elif value is not None:
            print(value)
        sys.stdout.flush()

    return call


async def _print_items(items: AsyncIterator[Any]) -> None:
    async for item in items:
        print(item, flush=True)
