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
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

MOST_KEPT = 10_000
"""Objects that have a token at a time; the oldest loses it."""

_tokens: dict[int, tuple[bytes, Any]] = {}
_objects: dict[bytes, Any] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked child: the thread that held the lock is the parent's."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

_objects_of_modules: tuple[int, dict[int, list[tuple[str, str]]]] = 0, {}
_instances: WeakKeyDictionary[type, tuple[int, dict[int, str]]] = WeakKeyDictionary()


def reduce_object(obj: Any, is_by_value: Callable[[str], bool]) -> tuple[Any, ...]:
    """Reduce an `object()`.

    Args:
        is_by_value: whether the contents of the module of that name travel by value.
    """
    for module, name in _places(obj):
        if not is_by_value(module) and getattr(sys.modules.get(module), name, None) is obj:
            return rebuild_sentinel, (module, name, token(obj))
    return rebuild_kept, (token(obj), object)


def _places(obj: Any) -> list[tuple[str, str]]:
    """Return modules that had this `object()` when the last of them was imported, and its names there."""
    global _objects_of_modules
    count = len(sys.modules)
    if _objects_of_modules[0] != count:  # once, and not for each of many objects
        found: dict[int, list[tuple[str, str]]] = {}
        for module, owner in list(sys.modules.items()):
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if type(value) is object:
                    found.setdefault(id(value), []).append((module, name))
        _objects_of_modules = count, found
    return _objects_of_modules[1].get(id(obj), [])


def reduce_stateless(obj: Any, is_by_value: Callable[[str], bool]) -> tuple[Any, ...] | None:
    """Reduce an object without state that its class's module has by a name; None for any other object."""
    if getattr(obj, "__dict__", None):
        return None
    kind = type(obj)
    module = kind.__module__
    known = _tokens.get(id(obj))
    if known is not None and known[1] is obj and is_by_value(module):  # a worker has it by no name
        return rebuild_kept, (known[0], stateless, kind)
    namespace = getattr(sys.modules.get(module), "__dict__", {})
    count, names = _instances.get(kind, (-1, {}))
    if count != len(namespace):
        names = {id(value): name for name, value in list(namespace.items()) if type(value) is kind}
        _instances[kind] = len(namespace), names
    name = names.get(id(obj), "")
    if namespace.get(name) is not obj:
        return None
    if is_by_value(module):
        return rebuild_kept, (token(obj), stateless, kind)
    return rebuild_sentinel, (module, name, token(obj))


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
        with _lock:
            found = _tokens.get(id(obj))
            if found is None or found[1] is not obj:  # another thread has not been faster
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
        with _lock:
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
