"""Type parameters, aliases and new types of the program: one object in each worker, as they are compared by identity.

cloudpickle keeps a part of a `TypeVar`, and has no way for the others, which pickle as a name in their module.
"""

from __future__ import annotations

import contextlib
import sys
import typing
from collections.abc import Callable
from typing import Any

from atoll.payload.reducers import kept

TYPES: tuple[Any, ...] = tuple(
    found
    for name in ("TypeVar", "NewType", "ParamSpec", "TypeVarTuple", "TypeAliasType")
    if (found := getattr(typing, name, None)) is not None
)


def reduce_type_parameter(obj: Any, is_by_value: Callable[[str], bool]) -> tuple[Any, ...] | None:
    """Reduce a type parameter or alias; None for one of a module that the worker has.

    Args:
        is_by_value: whether the contents of the module of that name travel by value.
    """
    module, name = obj.__module__, obj.__name__
    if not is_by_value(module) and getattr(sys.modules.get(module), name, None) is obj:
        return None
    return kept.rebuild_kept, (kept.token(obj), rebuild_type_parameter, type(obj), module, name, *_options(obj))


def add(function: Any, state: dict[str, Any]) -> None:
    """Add a function's own type parameters to its state, where Python has such: cloudpickle leaves them out."""
    parameters = getattr(function, "__type_params__", ())
    if parameters:
        state["__type_params__"] = parameters


def _options(obj: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if hasattr(obj, "__supertype__"):
        return (obj.__supertype__,), {}
    if hasattr(obj, "__value__"):
        return (obj.__value__,), {"type_params": obj.__type_params__}
    options = {}
    for name in ("bound", "covariant", "contravariant", "infer_variance"):
        value = getattr(obj, f"__{name}__", None)
        if value:
            options[name] = value
    if getattr(obj, "has_default", bool)():
        options["default"] = obj.__default__
    return tuple(getattr(obj, "__constraints__", ())), options


_MAKE = compile("kind(name, *values, **options)", "<type parameter>", "eval")


def rebuild_type_parameter(kind: Any, module: str, name: str, values: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # An alias takes the module of the frame that makes it, for good: it pickles by its name there.
    made = eval(_MAKE, {"__name__": module, "kind": kind, "name": name, "values": values, "options": options})  # noqa: S307
    with contextlib.suppress(AttributeError, TypeError):  # an alias has none
        made.__module__ = module
    return made
