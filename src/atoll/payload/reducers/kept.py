"""Objects that are compared by identity, such as `object()`: one in each process, for every pickle that has it.

A sentinel of a library or of a module that travels is the module's own, by its name there. One that only its program
has gets a token; both ends remember which object a token stands for, so that it comes back as itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

MOST_KEPT = 10_000
"""Objects that have a token at a time; the oldest loses it."""

_tokens: dict[int, tuple[bytes, Any]] = {}
_objects: dict[bytes, Any] = {}
_names: dict[int, tuple[str, str]] = {}


def reduce_object(obj: Any, is_by_value: Callable[[str], bool]) -> tuple[Any, ...]:
    """Reduce an `object()`.

    Args:
        is_by_value: whether the contents of the module of that name travel by value.
    """
    for module, name in _places(obj, sys.modules):
        if not is_by_value(module):
            return rebuild_sentinel, (module, name, token(obj))
    return rebuild_kept, (token(obj), object)


def reduce_stateless(obj: Any, is_by_value: Callable[[str], bool]) -> tuple[Any, ...] | None:
    """Reduce an object without state that its class's module has by a name; None for any other object."""
    if getattr(obj, "__dict__", None):
        return None
    module = type(obj).__module__
    known = _tokens.get(id(obj))
    if known is not None and known[1] is obj and is_by_value(module):  # a worker has it by no name
        return rebuild_kept, (known[0], stateless, type(obj))
    for _, name in _places(obj, (module,)):
        if is_by_value(module):
            return rebuild_kept, (token(obj), stateless, type(obj))
        return rebuild_sentinel, (module, name, token(obj))
    return None


def _places(obj: Any, modules: Any) -> Any:
    """Yield modules that have the object, and its name there; the one found before comes first and ends the search."""
    known = _names.get(id(obj))
    if known is not None and getattr(sys.modules.get(known[0]), known[1], None) is obj:
        yield known
        return
    for module in list(modules):
        for name, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if value is obj:
                if len(_names) >= MOST_KEPT:
                    _names.clear()
                _names[id(obj)] = module, name
                yield module, name
                break


def reduce_context_variable(variable: Any) -> tuple[Any, ...]:
    """Reduce a `ContextVar`: the worker's has the same default, and no value yet."""
    with contextlib.suppress(LookupError):
        return rebuild_kept, (
            token(variable),
            context_variable,
            variable.name,
            contextvars.Context().run(variable.get),
        )
    return rebuild_kept, (token(variable), context_variable, variable.name)


def stateless(cls: Any) -> Any:
    """Return an object of the class; its `__init__` is not called."""
    return object.__new__(cls)


def context_variable(name: str, *default: Any) -> Any:
    """Return a new `ContextVar`."""
    return contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)


def token(obj: Any) -> bytes:
    """Return the token that stands for the object at both ends."""
    found = _tokens.get(id(obj))
    if found is None or found[1] is not obj:
        found = os.urandom(12), obj
        _remember(*found)
    return found[0]


def _remember(token: bytes, obj: Any) -> None:
    while len(_objects) >= MOST_KEPT:
        oldest = next(iter(_objects))
        _tokens.pop(id(_objects.pop(oldest)), None)
    _objects[token] = obj
    _tokens[id(obj)] = token, obj


def rebuild_kept(token: bytes, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return the object that the token stands for; made where it has not been met."""
    found = _objects.get(token)
    if found is None:
        found = make(*arguments)
        _remember(token, found)
    return found


def rebuild_sentinel(module: str, name: str, token: bytes) -> Any:
    """Return a module's object; where this Python lacks the module or the name, one that stands for the token."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return rebuild_kept(token, object)
