"""Pickling on both sides of a call, with a cloudpickle that is Atoll's own.

The user's environment may hold another release of cloudpickle, whose pickles ours could not read, or none. So each
version of the package carries its copy (`payload.private_cloudpickle`).

A function's program should not notice that it was pickled, so this module adds to cloudpickle:

- exceptions are rebuilt without calling their `__init__`, whose signature need not fit `args`;
- `functools.lru_cache`, `cached_property`, `singledispatch` and pydantic's `validate_call` travel by value as the
  functions in them do;
- classes keep their `__slots__`, and code objects their file names, which tracebacks show;
- class bodies inside a function count as readers of its globals;
- functions of test modules run without pytest;
- objects of which a process has one are the process's own on either side. Among them is `os.environ`: its variables
  are not for the sandbox, and may be secrets;
- objects that are compared by identity stay themselves.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any

from atoll.payload.private_cloudpickle import NAME, cloudpickle
from atoll.payload.reducers import singletons, type_parameters, wrappers
from atoll.payload.reducers.choice import reducer_of
from atoll.wire.frames import Rope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from atoll.payload.program.carrier import Carrier

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
            if item is singletons.VARIABLES:
                return False
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
        def __init__(
            self,
            file: Any,
            by_value: frozenset[str],
            buffer_callback: Callable[[Any], Any] | None,
            result: bool,
            codes: list[CodeType],
            carrier: Carrier | None,
        ) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=buffer_callback)
            self._by_value = by_value
            self.result = result
            self.codes = codes
            self._carrier = carrier
            self._singletons = singletons.names()
            singletons.begin(self, file, result)

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is FunctionType:
                reduced = wrappers.reduce_wrapper(obj, self.is_by_value)
                if reduced is not None:
                    return reduced
                if obj.__module__ in self._by_value:
                    return self._dynamic_function_reduce(obj)
            elif isinstance(obj, type):
                return self._reduce_class(obj)
            else:
                single = self._singletons.get(id(obj))
                if single is not None:
                    return singletons.rebuild_singleton, single[1]
                try:
                    reduce = reducer_of(kind)  # type: ignore[arg-type]  # mypy does not know that types can be hashed
                except Exception:  # a metaclass that answers to nothing
                    reduce = None
                if reduce is not None:
                    reduced = reduce(self, obj)
                    if reduced is not None:
                        return reduced
            return super().reducer_override(obj)

        def _dynamic_function_reduce(self, function: Any) -> Any:
            reduced = super()._dynamic_function_reduce(function)
            state = reduced[2][1]
            singletons.name_containers(state)
            type_parameters.add(function, state)
            return reduced if self._carrier is None else self._carrier.reduce_function(function, reduced)

        def _reduce_class(self, cls: Any) -> Any:
            if self._by_value and getattr(cls, "__module__", None) in self._by_value:
                reduced = module._dynamic_class_reduce(cls)
            else:
                reduced = super().reducer_override(cls)
            if self._carrier is not None and type(reduced) is tuple and reduced[-1] is module._class_setstate:
                self._carrier.add_class(cls)
            return reduced

        def is_by_value(self, function: Any) -> bool:
            name = function.__module__
            return "<locals>" in function.__qualname__ or self.module_is_by_value(name)

        def module_is_by_value(self, name: str | None) -> bool:
            if name in self._by_value or name in ("__main__", "__mp_main__", None):
                return True
            owner = sys.modules.get(name)
            return owner is None or bool(module._is_registered_pickle_by_value(owner))

    return Pickler


def dumps(
    value: Any,
    by_value: frozenset[str] = frozenset(),
    out_of_band: bool = True,
    *,
    result: bool = False,
    codes: list[CodeType] | None = None,
    carrier: Carrier | None = None,
) -> tuple[Any, list[Any]]:
    """Pickle `value`; return the pickle and its out-of-band buffers, which are views of memory that `value` owns.

    The pickle is bytes; a large one is a `Rope` where `out_of_band` is given, whose parts are memory of `value` too.

    Args:
        by_value: modules whose functions and classes travel by value, as those of `__main__` always do.
        out_of_band: False keeps everything in the pickle.
        result: `os.environ` becomes a dict of the variables here, instead of the reader's own variables.
        codes: gets the code objects that the pickle holds.
        carrier: for pickles that a worker of this program reads: its functions share their globals there, and bring
            the names that they use as text.

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
    callback = keep_in_band if out_of_band else None
    held: list[CodeType] = []
    make = _pickler_class()
    make(_Sink(parts.append), by_value, callback, result, held, carrier).dump(value)
    if carrier is not None and (
        whole := carrier.whole(value, lambda found, most: dumps_bounded(found, by_value, carrier, most, held))
    ):
        parts.clear()
        buffers.clear()
        make(_Sink(parts.append), by_value, callback, result, [], carrier).dump(whole)
    if codes is not None:
        codes.extend(held)
    if len(parts) == 1:
        return parts[0], buffers
    rope = Rope([part if type(part) is bytes else pickle.PickleBuffer(part).raw() for part in parts])
    return rope if out_of_band and rope.nbytes >= ROPE_BYTES else b"".join(rope.parts), buffers


def new_pickler() -> Any:
    """Return a pickler that writes nowhere: its reducers are for a pickler of another kind."""
    return _pickler_class()(_Sink(len), frozenset(), None, False, [], None)


def dumps_bounded(
    value: Any,
    by_value: frozenset[str],
    carrier: Carrier,
    most_bytes: int,
    codes: list[CodeType] | None = None,
) -> bytes:
    """Pickle `value` for a worker of this program; the other arguments are those of `dumps`.

    Raises:
        TooLarge: the pickle is larger than `most_bytes`.
        Exception: any error of the value's own reducers.
    """
    from atoll.payload.program.carrier import BoundedSink  # workers do without

    sink = BoundedSink(most_bytes)
    _pickler_class()(sink, by_value, None, False, [] if codes is None else codes, carrier).dump(value)
    return sink.content()


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
