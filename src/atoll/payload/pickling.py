"""Pickling on both sides of a call, with a cloudpickle that is Atoll's own.

The user's environment may hold another release of cloudpickle, whose pickles ours could not read, or none. So each
version of the package carries its copy, and both sides know it as `_atoll_cloudpickle`: pickles name that module.
In a sandbox it is a file on `sys.path`; in a client it is loaded from the installed package's file, without
importing the public `cloudpickle`.

A function's program should not notice that it was pickled, so this module adds to cloudpickle:

- exceptions are rebuilt without calling their `__init__`, whose signature need not fit `args`;
- `functools.lru_cache` and `cached_property` travel by value as the functions in them do;
- classes keep their `__slots__`, and code objects their file names, which tracebacks show;
- class bodies inside a function count as readers of its globals;
- functions of test modules run without pytest;
- `os.environ` is the process's own on either side: its variables are not for the sandbox, and may be secrets.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import os
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, GetSetDescriptorType, MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

from atoll.wire.frames import Rope

NAME = "_atoll_cloudpickle"
PROTOCOL = 5
OUT_OF_BAND_BYTES = 2048
"""Smaller buffers stay in the pickle: a piece of a frame costs more than the copy of so few bytes."""
ROPE_BYTES = 1 << 20
MAX_BUFFERS = 32_000
"""Buffers of one pickle that travel out of band; a frame holds 65,536."""
Environ = os._Environ
"""The type of `os.environ` and `os.environb`."""

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
    """Make cloudpickle capture the globals of class bodies inside a function (`LOAD_NAME`), and keep `__slots__`."""
    opcodes = module.opcode.opmap
    wanted = [opcodes[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in opcodes]
    module.GLOBAL_OPS = (*module.GLOBAL_OPS, *(code for code in wanted if code not in module.GLOBAL_OPS))
    arguments = module._class_getnewargs

    def with_slots(cls: Any) -> tuple[Any, ...]:
        kind, name, bases, namespace, *rest = arguments(cls)
        slots = _slots(cls)
        return (kind, name, bases, namespace if slots is None else {**namespace, "__slots__": slots}, *rest)

    module._class_getnewargs = with_slots
    return module


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


def _with_file_name(reduce: Callable[[CodeType], Any]) -> Callable[[CodeType], Any]:
    """Return cloudpickle's reducer of code objects, with their file names: from 3.1.3 on it drops them."""

    def reduce_code(code: CodeType) -> tuple[Any, ...]:
        made, arguments = reduce(code)
        return made, (*arguments[:_FILE_NAME], code.co_filename, *arguments[_FILE_NAME + 1 :])

    return reduce_code


# --- plain data -------------------------------------------------------------------------------------------------

_ATOMS = frozenset({int, float, bool, complex, type(None)})
_TEXTS = frozenset({str, bytes})
_SEQUENCES = frozenset({tuple, list, set, frozenset})
_PLAIN_ITEMS = 128
_PLAIN_BYTES = 64 << 10
"""From this size on the pickler is faster with a file to write to than with memory of its own."""


def is_plain(value: Any) -> bool:
    """Return whether `value` is small and made of exact built-in types only, so that the C pickler alone can do it."""
    pending = [value]
    for item in pending:
        kind = type(item)
        if kind in _ATOMS:
            continue
        if kind in _TEXTS:
            if len(item) >= _PLAIN_BYTES:
                return False
        elif kind in _SEQUENCES:
            if len(item) + len(pending) > _PLAIN_ITEMS:
                return False
            pending.extend(item)
        elif kind is dict:
            if 2 * len(item) + len(pending) > _PLAIN_ITEMS:
                return False
            pending.extend(item)
            pending.extend(item.values())
        else:
            return False
    return True


# --- the pickler ------------------------------------------------------------------------------------------------


@functools.cache
def _pickler_class() -> Any:
    module = cloudpickle()
    base: Any = module.Pickler

    class Pickler(base):  # type: ignore[misc]  # the module is found at run time
        dispatch_table: ClassVar[Any] = ChainMap({CodeType: _with_file_name(module._code_reduce)}, base.dispatch_table)

        def __init__(
            self, file: Any, by_value: frozenset[str], buffer_callback: Callable[[Any], Any] | None, result: bool
        ) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
            self._by_value = by_value
            self._result = result

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is FunctionType:
                if obj.__module__ in self._by_value:
                    return self._dynamic_function_reduce(obj)
            elif isinstance(obj, type):
                if self._by_value and getattr(obj, "__module__", None) in self._by_value:
                    return module._dynamic_class_reduce(obj)
            elif isinstance(obj, BaseException):
                reduced = reduce_exception(obj)
                if reduced is not None:
                    return reduced
            elif kind is functools._lru_cache_wrapper:
                wrapped = obj.__wrapped__
                if type(wrapped) is FunctionType and self._is_by_value(wrapped):
                    return rebuild_lru_cache, (wrapped, dict(obj.cache_parameters())), dict(vars(obj))
            elif kind is functools.cached_property:
                return rebuild_cached_property, (obj.func, obj.attrname, obj.__doc__)
            elif kind is ModuleType and obj.__name__ == ASSERTIONS:
                return rebuild_assertions, ()
            elif kind is Environ:
                return reduce_environ(obj, self._result)
            elif kind is MappingProxyType:
                (inner,) = gc.get_referents(obj)
                if type(inner) in (Environ, ChainMap):  # cloudpickle would copy the variables
                    return MappingProxyType, (inner,)
            return super().reducer_override(obj)

        def _is_by_value(self, function: Any) -> bool:
            name = function.__module__
            if name in self._by_value or name in ("__main__", None) or "<locals>" in function.__qualname__:
                return True
            owner = sys.modules.get(name)
            return owner is None or bool(module._is_registered_pickle_by_value(owner))

    return Pickler


def dumps(
    value: Any, by_value: frozenset[str] = frozenset(), out_of_band: bool = True, *, result: bool = False
) -> tuple[Any, list[Any]]:
    """Pickle `value`; return the pickle and its out-of-band buffers, which are views of memory that `value` owns.

    The pickle is bytes; a large one is a `Rope` where `out_of_band` is given, whose parts are memory of `value` too.

    Args:
        by_value: modules whose functions and classes travel by value, as those of `__main__` always do.
        out_of_band: False keeps everything in the pickle.
        result: `os.environ` becomes a dict of the variables here, instead of the reader's own variables.

    Raises:
        Exception: any error of the value's own reducers.
    """
    buffers: list[Any] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND_BYTES or len(buffers) >= MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    parts: list[Any] = []
    # The pickler gives large bytes and texts to `write` as they are, and collects everything else in pieces of 64 KiB.
    _pickler_class()(_Sink(parts.append), by_value, keep_in_band if out_of_band else None, result).dump(value)
    if len(parts) == 1:
        return parts[0], buffers
    rope = Rope([part if type(part) is bytes else pickle.PickleBuffer(part).raw() for part in parts])
    return rope if out_of_band and rope.nbytes >= ROPE_BYTES else b"".join(rope.parts), buffers


class _Sink:
    """A file that can only be written to."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], Any]) -> None:
        self.write = write


def loads(data: Any, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle a result of `dumps`; classes that came by value before are updated."""
    if _module is None:
        cloudpickle()
    return pickle.loads(whole(data), buffers=buffers)


def whole(data: Any) -> Any:
    """Return a pickle of `dumps` in one piece."""
    return b"".join(data.parts) if type(data) is Rope else data


# --- rebuilding: pickles name these functions, so they keep their names and signatures --------------------------


def rebuild_lru_cache(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def rebuild_cached_property(function: Any, name: str | None, doc: str | None) -> Any:
    rebuilt: Any = functools.cached_property(function)
    rebuilt.attrname = name
    rebuilt.__doc__ = doc
    return rebuilt


def reduce_environ(environ: Any, result: bool) -> tuple[Any, ...]:
    """Reduce `os.environ`, `os.environb` or a copy, which shares the variables or sets them too."""
    if result:
        return dict, (dict(environ),)
    return getattr, (os, environ_name(environ))


def environ_name(environ: Any) -> str:
    """Return the name in `os` of an object of type `Environ`."""
    return "environb" if environ.decodevalue is bytes else "environ"


ASSERTIONS = "_pytest.assertion.rewrite"
"""The module of pytest that its rewritten `assert` statements call when they fail."""


def rebuild_assertions() -> Any:
    """Return that module, or without pytest a stand-in that compares in no detail."""
    try:
        return importlib.import_module(ASSERTIONS)
    except ImportError:
        return SimpleNamespace(
            _saferepr=repr,
            _format_assertmsg=str,
            _should_repr_global_name=lambda _: False,
            _format_boolop=lambda parts, is_or: "(" + (" or " if is_or else " and ").join(parts) + ")",
            _call_reprcompare=lambda _ops, results, texts, _objects: next(
                (text for result, text in zip(results, texts, strict=False) if not result), texts[-1]
            ),
            _format_explanation=lambda text: text.partition("\n")[0],
        )


_HEAP_TYPE = 1 << 9
_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def _static_base(cls: type) -> Any:
    """Return the nearest base that is written in C: it decides the object's layout and its fields."""
    return next(base for base in cls.__mro__ if not base.__flags__ & _HEAP_TYPE)


def reduce_exception(exc: BaseException) -> tuple[Any, ...] | None:
    """Reduce an exception so that `__init__` is not called again; None if its type defines its own pickling."""
    cls = type(exc)
    base = _static_base(cls)
    if cls is base or any(getattr(cls, hook, None) is not getattr(base, hook, None) for hook in _HOOKS):
        return None
    if hasattr(cls, "__getnewargs__") or hasattr(cls, "__getnewargs_ex__"):
        return None
    args = base.__reduce__(exc)[1]
    keywords = {}
    if issubclass(base, ImportError):
        keywords = {"name": exc.name, "path": exc.path}  # type: ignore[attr-defined]
    elif issubclass(base, (NameError, AttributeError)):
        keywords = {"name": exc.name}  # type: ignore[attr-defined]
    return rebuild_exception, (cls, args, keywords), dict(vars(exc)), None, None, restore_exception


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], keywords: dict[str, Any]) -> BaseException:
    base = _static_base(cls)
    exc: BaseException = base.__new__(cls, *args)
    base.__init__(exc, *args, **keywords)
    return exc


def restore_exception(exc: BaseException, state: dict[str, Any]) -> None:
    vars(exc).update(state)
