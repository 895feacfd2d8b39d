"""Pickling on both sides of a call, with a cloudpickle that is Atoll's own.

The user's environment may hold another release of cloudpickle, whose pickles ours could not read, or none. So each
version of the package carries its copy (`payload.private_cloudpickle`).

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
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any, ClassVar

from atoll.payload.private_cloudpickle import NAME, cloudpickle, with_file_name
from atoll.payload.reducers.exceptions import reduce_exception
from atoll.payload.reducers.singletons import ASSERTIONS, Environ, rebuild_assertions, reduce_environ
from atoll.payload.reducers.wrappers import rebuild_cached_property, rebuild_lru_cache
from atoll.wire.frames import Rope

PROTOCOL = 5
OUT_OF_BAND_BYTES = 2048
"""Smaller buffers stay in the pickle: a piece of a frame costs more than the copy of so few bytes."""
ROPE_BYTES = 1 << 20
MAX_BUFFERS = 32_000
"""Buffers of one pickle that travel out of band; a frame holds 65,536."""

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
        dispatch_table: ClassVar[Any] = ChainMap({CodeType: with_file_name(module._code_reduce)}, base.dispatch_table)

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
    if NAME not in sys.modules:
        cloudpickle()
    return pickle.loads(whole(data), buffers=buffers)


def whole(data: Any) -> Any:
    """Return a pickle of `dumps` in one piece."""
    return b"".join(data.parts) if type(data) is Rope else data
