"""The choice of a reducer for an object that is neither a function nor a class, by its type."""

from __future__ import annotations

import contextvars
import copyreg
import functools
import gc
import operator
import sys
from collections import ChainMap
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, Protocol

from atoll.payload.private_cloudpickle import cloudpickle, with_file_name
from atoll.payload.reducers import handlers, kept, singletons, type_parameters, weak, wrappers
from atoll.payload.reducers.exceptions import reduce_exception


class Pickler(Protocol):
    """The state of a pickler that reducers ask for."""

    result: bool
    """Whether a worker sends a result to its caller."""
    codes: list[CodeType]
    """The code objects pickled so far."""

    def is_by_value(self, function: Any) -> bool:
        """Return whether a function travels by value."""

    def module_is_by_value(self, name: str) -> bool:
        """Return whether the contents of a module travel by value."""


Reducer = Callable[[Pickler, Any], Any]
"""Returns a reduction, or None to leave the object to cloudpickle."""


@functools.lru_cache(maxsize=1024)
def reducer_of(kind: type) -> Reducer | None:
    """Return the reducer for objects of a type; None for a type that pickles as it is."""
    found = _EXACT.get(kind)
    if found is not None:
        return found
    if issubclass(kind, BaseException):
        return _exception
    if hasattr(kind, "__atoll_reduce__"):
        return _by_value
    logging: Any = sys.modules.get("logging")  # not imported for this: it costs every sandbox's start 4 ms
    if logging is not None and issubclass(kind, logging.Logger) and kind not in (logging.Logger, logging.RootLogger):
        return _logger
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if not plain or kind in copyreg.dispatch_table:
        return None
    if logging is not None and issubclass(kind, logging.Handler):
        return _handler
    return _stateless if _has_no_state_of_its_own(kind) else None


def _has_no_state_of_its_own(kind: type) -> bool:
    """Return whether an object's `__dict__`, if it has one, is all of its state."""
    if getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None):
        return False
    if hasattr(kind, "__getnewargs__") or hasattr(kind, "__getnewargs_ex__"):
        return False
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__) and not any(
        vars(base).get("__slots__") for base in kind.__mro__
    )


_HEAP_TYPE = 1 << 9


def _exception(_pickler: Pickler, exc: Any) -> Any:
    return reduce_exception(exc)


def _by_value(_pickler: Pickler, function: Any) -> Any:
    return function.__atoll_reduce__()


def _handler(_pickler: Pickler, handler: Any) -> Any:
    return handlers.reduce_handler(handler)


def _logger(_pickler: Pickler, logger: Any) -> Any:
    return handlers.reduce_logger(logger)


def _stateless(pickler: Pickler, obj: Any) -> Any:
    return kept.reduce_stateless(obj, pickler.module_is_by_value)


def _object(pickler: Pickler, obj: Any) -> Any:
    return kept.reduce_object(obj, pickler.module_is_by_value)


def _context_variable(_pickler: Pickler, variable: Any) -> Any:
    return kept.reduce_context_variable(variable)


def _type_parameter(pickler: Pickler, obj: Any) -> Any:
    return type_parameters.reduce_type_parameter(obj, pickler.module_is_by_value)


def _reference(_pickler: Pickler, reference: Any) -> Any:
    return weak.reduce_reference(reference)


def _weak_mapping(_pickler: Pickler, mapping: Any) -> Any:
    return weak.reduce_mapping(mapping)


def _code(pickler: Pickler, code: CodeType) -> Any:
    pickler.codes.append(code)
    return _reduce_code()(code)


@functools.cache
def _reduce_code() -> Callable[[CodeType], Any]:
    return with_file_name(cloudpickle()._code_reduce)


def _cell(_pickler: Pickler, cell: CellType) -> Any:
    try:
        found = singletons.containers().get(id(cell.cell_contents))
    except ValueError:  # it holds nothing yet
        return None
    return None if found is None else (cloudpickle()._make_cell, (singletons.Named(found[1]),))


def _lru_cache(pickler: Pickler, cache: Any) -> Any:
    wrapped = cache.__wrapped__
    if type(wrapped) is FunctionType and pickler.is_by_value(wrapped):
        return wrappers.rebuild_lru_cache, (wrapped, dict(cache.cache_parameters())), dict(vars(cache))
    return None


def _cached_property(_pickler: Pickler, found: Any) -> Any:
    return wrappers.rebuild_cached_property, (found.func, found.attrname, found.__doc__)


def _module(_pickler: Pickler, module: ModuleType) -> Any:
    return (singletons.rebuild_assertions, ()) if module.__name__ == singletons.ASSERTIONS else None


def _environ(pickler: Pickler, environ: Any) -> Any:
    return singletons.reduce_environ(environ, pickler.result)


def _mapping_proxy(_pickler: Pickler, proxy: Any) -> Any:
    (inner,) = gc.get_referents(proxy)
    if (
        type(inner) in (singletons.Environ, ChainMap) or inner is singletons.VARIABLES
    ):  # cloudpickle would copy the variables
        return MappingProxyType, (inner,)
    return None


def _dict_view(_pickler: Pickler, view: Any) -> Any:
    (inner,) = gc.get_referents(view)
    if inner is not singletons.VARIABLES:
        return None
    return operator.methodcaller(type(view).__name__.removeprefix("dict_")), (inner,)


_EXACT: dict[Any, Reducer] = {
    object: _object,
    contextvars.ContextVar: _context_variable,
    **dict.fromkeys(type_parameters.TYPES, _type_parameter),
    **dict.fromkeys(weak.REFERENCES, _reference),
    **dict.fromkeys(weak.MAPPINGS, _weak_mapping),
    CodeType: _code,
    CellType: _cell,
    functools._lru_cache_wrapper: _lru_cache,
    functools.cached_property: _cached_property,
    ModuleType: _module,
    singletons.Environ: _environ,
    MappingProxyType: _mapping_proxy,
    **dict.fromkeys((type({}.keys()), type({}.values()), type({}.items())), _dict_view),
}
