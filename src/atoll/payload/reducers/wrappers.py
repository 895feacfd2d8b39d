"""Wrappers of functions that travel by value as the functions in them do: caches, dispatchers, checked functions.

`functools.singledispatch` keeps its registry and a cache of weak references in a closure, which no pickler can copy.
So a dispatcher is made anew, empty, and then gets what was registered, which may refer to the dispatcher itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

_NAMES = ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__type_params__")


_caches: WeakKeyDictionary[Any, tuple[dict[str, Any], Any]] = WeakKeyDictionary()


def rebuild_lru_cache(function: Any, parameters: dict[str, Any]) -> Any:
    """Return the cache of a function, which may hold it itself: a recursive one is reached, and made, twice."""
    known, reference = _caches.get(function, ({}, None))
    found = reference() if reference is not None and known == parameters else None
    if found is None:
        found = functools.lru_cache(**parameters)(function)
        _caches[function] = parameters, weakref.ref(found)
    return found


def rebuild_cached_property(function: Any, name: str | None, doc: str | None) -> Any:
    rebuilt: Any = functools.cached_property(function)
    rebuilt.attrname = name
    rebuilt.__doc__ = doc
    return rebuilt


def reduce_wrapper(function: FunctionType, is_by_value: Callable[[Any], bool]) -> tuple[Any, ...] | None:
    """Reduce a function that a library has made around others; None for a function that cloudpickle can do.

    Args:
        is_by_value: whether a function travels by value.
    """
    registry = registry_of(function)
    if registry is not None:
        return _reduce_dispatcher(function, registry, is_by_value)
    inner = checked_function(function)
    if inner is not None and is_by_value(function):
        return _reduce_checked_function(function, inner)
    return None


# --- functools.singledispatch -----------------------------------------------------------------------------------


def _unregistered(*_arguments: Any, **_more: Any) -> Any:
    raise TypeError("the dispatcher has no function yet")


_DISPATCHER = functools.singledispatch(_unregistered).__code__  # type: ignore[attr-defined]
_OWN_ATTRIBUTES = frozenset({"register", "dispatch", "registry", "_clear_cache"})


def registry_of(function: FunctionType) -> Mapping[Any, Any] | None:
    """Return the registry of a function that `functools.singledispatch` has made; None for any other function."""
    if function.__code__ is not _DISPATCHER:
        return None
    found = function.__dict__.get("registry")
    return found if isinstance(found, Mapping) else None


def dispatcher_attributes(function: FunctionType) -> dict[str, Any]:
    """Return the attributes that such a function has beside those of the dispatch."""
    return {name: value for name, value in vars(function).items() if name not in _OWN_ATTRIBUTES}


def _reduce_dispatcher(
    function: FunctionType, registry: Mapping[Any, Any], is_by_value: Callable[[Any], bool]
) -> tuple[Any, ...] | None:
    """Reduce a dispatcher, or one of a module with what was registered elsewhere; None for one that a name says all of."""
    if is_by_value(function):
        names = {name: getattr(function, name) for name in _NAMES if hasattr(function, name)}
        state = names, dispatcher_attributes(function), list(registry.items())
        return rebuild_dispatcher, (), state, None, None, restore_dispatcher
    added = [(cls, one) for cls, one in registry.items() if type(one) is FunctionType and is_by_value(one)]
    if not added:
        return None
    name = function.__module__, function.__qualname__
    return rebuild_named_function, name, ({}, {}, added), None, None, restore_dispatcher


def rebuild_dispatcher() -> Any:
    return functools.singledispatch(_unregistered)


def restore_dispatcher(dispatcher: Any, state: tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]) -> None:
    names, attributes, registry = state
    for cls, function in registry:
        dispatcher.register(cls, function)
    for name, value in names.items():
        setattr(dispatcher, name, value)
    vars(dispatcher).update(attributes)
    for variable, cell in zip(dispatcher.__code__.co_freevars, dispatcher.__closure__, strict=True):
        if variable == "funcname" and names:
            cell.cell_contents = names["__name__"]


def rebuild_named_function(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


# --- pydantic.validate_call -------------------------------------------------------------------------------------


def checked_function(function: FunctionType) -> Any:
    """Return the function that `pydantic.validate_call` checks the arguments of; None for any other function."""
    found = function.__dict__.get("raw_function")
    own = found is not None and str(function.__globals__.get("__name__")).startswith("pydantic.")
    return found if own else None


def _reduce_checked_function(function: FunctionType, inner: Any) -> tuple[Any, ...] | None:
    """Reduce a function that `validate_call` has made from `inner`; None where its options are not found.

    Its validator is made anew: it holds the functions and classes of this process.
    """
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError, AttributeError):
            owner = getattr(cell.cell_contents, "__self__", cell.cell_contents)
            if hasattr(owner, "config_wrapper"):
                options = {"config": owner.config_wrapper.config_dict, "validate_return": owner.validate_return}
            else:  # before pydantic 2.10
                options = {"config": owner._config, "validate_return": owner._validate_return}
            attributes = {name: value for name, value in vars(function).items() if name != "raw_function"}
            state = inner, options, attributes, _annotated(inner)
            return rebuild_checked_function, (), state, None, None, restore_checked_function
    return None


_TYPING = frozenset({"typing", "types", "typing_extensions"})


def _annotated(function: Any) -> dict[str, Any]:
    """Return what a function's annotations name as text: its validator is made before such names come else."""
    from atoll.payload.bytecode import names_in_annotations  # workers do without

    namespace = getattr(function, "__globals__", {})
    found = {}
    for word in names_in_annotations(getattr(function, "__annotations__", {}).values()):
        value = namespace.get(word)
        if isinstance(value, (type, ModuleType)) or type(value).__module__ in _TYPING:
            found[word] = value
    return found


def rebuild_checked_function() -> Any:
    return importlib.import_module("pydantic").validate_call(_unchecked)


def _unchecked(*_arguments: Any, **_more: Any) -> Any:
    raise TypeError("the checked function has no function yet")


def restore_checked_function(checked: Any, state: tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    inner, options, attributes, names = state
    for name, value in names.items():
        inner.__globals__.setdefault(name, value)
    made = importlib.import_module("pydantic").validate_call(**options)(inner)
    checked.__code__ = made.__code__
    for cell, new in zip(checked.__closure__, made.__closure__, strict=True):
        cell.cell_contents = new.cell_contents
    for name in _NAMES:
        if hasattr(made, name):
            setattr(checked, name, getattr(made, name))
    vars(checked).update({**vars(made), **attributes})
