"""The search for the part of a function or an argument that cannot be pickled, and the names that lead to it.

Runs after the pickling of the whole has failed: parts are pickled one by one until one fails.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import os
import pickle
from collections.abc import Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, TracebackType
from typing import Any

from atoll.payload import pickling, private_cloudpickle
from atoll.payload.bytecode import code_facts
from atoll.payload.reducers import wrappers
from atoll.payload.values import first_line, type_name

_OWN_FILES = (os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep, pickle.__file__, copyreg.__file__)


def without_own_frames(error: Exception) -> Exception:
    """Drop Atoll's and the picklers' frames from the tracebacks of the error and its causes; return the error.

    The user's own reducers and modules stay. Without any, the error is printed as one line.
    """
    own = (*_OWN_FILES, private_cloudpickle.own_file())
    one: BaseException | None = error
    seen: set[int] = set()
    while one is not None and id(one) not in seen:  # contexts are left alone: the caller may be handling one
        seen.add(id(one))
        entries: list[TracebackType] = []
        entry = one.__traceback__
        while entry is not None:
            if not entry.tb_frame.f_code.co_filename.startswith(own):
                entries.append(entry)
            entry = entry.tb_next
        kept: TracebackType | None = None
        for entry in reversed(entries):
            kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
        one.__traceback__ = kept
        one = one.__cause__
    return error


def failure(value: Any, by_value: frozenset[str]) -> Exception | None:
    """Return why the value cannot be pickled; None when it can."""
    try:
        pickling.dumps(value, by_value)
    except Exception as error:
        return error
    return None


_SEARCHED = 200


def failing_part(path: str, value: Any, by_value: frozenset[str], depth: int = 6) -> tuple[str, Any]:
    """Follow a failing part into containers and attributes, while that is cheap; return its path and itself."""
    if depth == 0:
        return path, value
    for step, part in _parts(value):
        if failure(part, by_value) is not None:
            return failing_part(path + step, part, by_value, depth - 1)
    return path, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{_short(key)}]", part) for key, part in list(value.items())[:_SEARCHED]]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value[:_SEARCHED])]
    reduce: Any = type(value).__reduce__
    if reduce is object.__reduce__ and not isinstance(value, type):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            return [(f".{name}", part) for name, part in list(attributes.items())[:_SEARCHED]]
    return []


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 40 else text[:37] + "..."


def describe_captured(function: Any, by_value: frozenset[str]) -> tuple[str, Any]:
    """Describe the unpicklable thing that the function, or a function it calls, uses; return it too.

    The description is empty if nothing is found.
    """
    chain, description, culprit = _search_captured(function, by_value, set())
    if not chain:
        return (f"its {description}" if description else ""), culprit
    return "it uses " + ", which uses ".join(f"`{name}`" for name in chain) + f", whose {description}", culprit


_HINTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("_thread.", "threading.", "_queue.", "queue.", "multiprocessing.", "asyncio.", "concurrent.futures."),
        "create it inside the function: other processes do not share it; `max_concurrency=1` keeps calls apart",
    ),
    (
        ("_io.", "socket.", "_socket.", "ssl.", "_ssl.", "sqlite3.", "mmap.", "http.client.", "select.", "subprocess."),
        "open it inside the function, or once for each worker with `setup_function`",
    ),
    (
        ("generator", "coroutine", "async_generator", "zip", "map", "filter"),
        "make it inside the function, or pass a list of its items",
    ),
    (("frame", "traceback"), "pass its text, as `traceback.format_exc()` gives it"),
    (("module",), "name it with `local_modules=[...]`, or import it inside the function"),
)
_HINT = "create it inside the function or with `setup_function`, or pass plain data"
_MODULE_HINT = (
    "define it in a module of the project, which workers import by its name, or create it inside the function"
)


def hint_of(culprit: Any, *, captured: bool = False) -> str:
    """Return the next step for an object that cannot travel.

    Args:
        captured: a function uses it; otherwise it is an argument.
    """
    name = type_name(culprit)
    for names, hint in _HINTS:
        if any(name.startswith(one) if one.endswith(".") else name == one for one in names):
            return hint
    if captured and (callable(culprit) or isinstance(culprit, type)):
        return _MODULE_HINT
    return _HINT


def _search_captured(user: Any, by_value: frozenset[str], seen: set[int]) -> tuple[list[str], str, Any]:
    """Return the names from `user` to the user of the unpicklable part, a description and the part; no text for none."""
    seen.add(id(user))
    inner = []
    for kind, name, value in _captured(user):
        if id(value) in seen:
            continue
        reason = failure(value, by_value)
        if reason is None:
            continue
        used = _user(value, by_value)
        if used is not None:
            inner.append((name, used))  # followed after the direct ones: the shortest chain is named
            continue
        path, culprit = failing_part(name, value, by_value)
        at = "" if culprit is value else f" (`{path}` is a `{type_name(culprit)}`)"
        return [], f"{kind} `{name}` is a `{type_name(value)}`: {first_line(reason)}{at}", culprit
    for name, used in inner:
        if id(used) not in seen:
            chain, found, culprit = _search_captured(used, by_value, seen)
            if found:
                return [name, *chain], found, culprit
    return [], "", None


def _captured(user: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield each thing that travels with a function or a class: its role, its name, the value."""
    while isinstance(user, (functools.partial, MethodType)):
        user = user.func if isinstance(user, functools.partial) else user.__func__
    if isinstance(user, type):
        made_again = (GetSetDescriptorType, MemberDescriptorType)  # with the class, as is `_abc_impl`
        for name, value in tuple(vars(user).items()):
            if type(value) not in made_again and name != "_abc_impl":
                yield "attribute", name, value
        yield from (("base", base.__name__, base) for base in user.__bases__)
    if type(user) is not FunctionType:
        return
    registry = wrappers.registry_of(user)
    if registry is not None:
        name = user.__name__
        yield from (("function", f"{name}[{getattr(cls, '__name__', cls)}]", one) for cls, one in registry.items())
        return
    checked = wrappers.checked_function(user)
    if checked is not None:
        yield from _captured(checked)
        return
    for name in code_facts(user.__code__).names:
        if name in user.__globals__:
            yield "global", name, user.__globals__[name]
    for name, cell in zip(user.__code__.co_freevars, user.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # it holds nothing yet
            yield "variable", name, cell.cell_contents
    names = user.__code__.co_varnames[: user.__code__.co_argcount]
    defaults = user.__defaults__ or ()
    yield from (("default", *one) for one in zip(names[len(names) - len(defaults) :], defaults, strict=False))
    yield from (("default", *one) for one in (user.__kwdefaults__ or {}).items())


def _user(value: Any, by_value: frozenset[str]) -> Any:
    """Return the function or class whose captures keep `value` from being pickled; None if the fault is its own."""
    if isinstance(value, (FunctionType, type)):
        return value
    if hasattr(type(value), "__atoll_function__"):
        return value.__atoll_function__
    for name in ("func", "__func__", "fget", "__wrapped__"):  # partials and properties, methods, wrappers
        inner = getattr(value, name, None)
        if isinstance(inner, (FunctionType, type)) and failure(inner, by_value) is not None:
            return inner
    return type(value) if failure(type(value), by_value) is not None else None
