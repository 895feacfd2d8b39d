"""The cloudpickle that is Atoll's own: both sides know it as `_atoll_cloudpickle`, and pickles name that module.

In a sandbox it is a file on `sys.path`; in a client it is loaded from the installed package's file, without
importing the public `cloudpickle`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, GetSetDescriptorType
from typing import Any, NamedTuple

NAME = "_atoll_cloudpickle"

_lock = threading.Lock()
_module: Any = None


def _renew_lock() -> None:
    """In a forked child: the thread that held the lock is the parent's."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def cloudpickle() -> Any:
    """Return the private cloudpickle module; the first use loads it.

    Modules that the user has given to the public `cloudpickle.register_pickle_by_value` count here too.
    """
    global _module
    if _module is None:
        with _lock:
            if _module is None:
                _module = _adapt(_load())
    public = sys.modules.get("cloudpickle.cloudpickle")
    registered = getattr(public, "_PICKLE_BY_VALUE_MODULES", None)
    if registered is not None and _module._PICKLE_BY_VALUE_MODULES is not registered:
        _module._PICKLE_BY_VALUE_MODULES = registered
    return _module


def _load() -> Any:
    found = sys.modules.get(NAME)
    if found is not None:
        return found
    if importlib.util.find_spec(NAME) is not None:
        return importlib.import_module(NAME)
    package = importlib.util.find_spec("cloudpickle")
    if package is None or not package.submodule_search_locations:
        raise ImportError("`cloudpickle` is not installed", name="cloudpickle")
    path = os.path.join(package.submodule_search_locations[0], "cloudpickle.py")
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules.setdefault(NAME, module)


def _adapt(module: Any) -> Any:
    """Make cloudpickle capture the globals of class bodies inside a function (`LOAD_NAME`).

    Classes keep their `__slots__` and `__qualname__`. A class that comes again is not made again.
    """
    opcodes = module.opcode.opmap
    wanted = [opcodes[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in opcodes]
    module.GLOBAL_OPS = (*module.GLOBAL_OPS, *(code for code in wanted if code not in module.GLOBAL_OPS))
    arguments = module._class_getnewargs

    def with_own_fields(cls: Any) -> tuple[Any, ...]:
        kind, name, bases, namespace, *rest = arguments(cls)
        slots = _slots(cls)
        if slots is not None:
            namespace = {**namespace, "__slots__": slots}
        qualname = cls.__qualname__
        if qualname != name:  # a nested class, which pickles by this name
            namespace = {**namespace, "__qualname__": qualname}
        return (kind, name, bases, namespace, *rest)

    module._class_getnewargs = with_own_fields
    for name in ("_make_skeleton_class", "_make_skeleton_enum"):
        setattr(module, name, _make_once(module, getattr(module, name)))
    return module


def _make_once(module: Any, make: Callable[..., Any]) -> Callable[..., Any]:
    """Return cloudpickle's maker of classes, for classes that are new here: no base gets the same subclass twice."""

    @functools.wraps(make)
    def make_class(*arguments: Any) -> Any:
        identifier = arguments[-2]
        found = module._DYNAMIC_CLASS_TRACKER_BY_ID.get(identifier) if identifier is not None else None
        return make(*arguments) if found is None else found

    return make_class


def _slots(cls: Any) -> Any:
    """Return the `__slots__` that the class was made with; None for a class without."""
    fields = vars(cls)
    slots = fields.get("__slots__")
    if slots is None or NamedTuple in fields.get("__orig_bases__", ()):  # which sets them itself, and allows no others
        return None
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    set_later = type(fields.get("__dict__")) is GetSetDescriptorType and "__dict__" not in names
    return None if set_later else slots


def own_file() -> str:
    """Return the file name in the private module's code objects, as tracebacks show them."""
    name: str = cloudpickle().dumps.__code__.co_filename
    return name


_FILE_NAME = 10
"""The position of `co_filename` among the arguments of `CodeType`, in CPython 3.8 and later."""


def with_file_name(reduce: Callable[[CodeType], Any]) -> Callable[[CodeType], Any]:
    """Return cloudpickle's reducer of code objects, with their file names: from 3.1.3 on it drops them."""

    def reduce_code(code: CodeType) -> tuple[Any, ...]:
        made, arguments = reduce(code)
        return made, (*arguments[:_FILE_NAME], code.co_filename, *arguments[_FILE_NAME + 1 :])

    return reduce_code
