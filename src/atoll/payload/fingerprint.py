"""The digest of a function's behaviour, for `@cached`: its code, the globals and closures that it uses, plain values.

A pickle is no such digest: it depends on shared objects and on the order in which sets were filled. The walk here
writes values down instead: imported things by name, other functions by their instructions, other objects by the
result of their `__reduce_ex__`. File names and line numbers are left out, so that a function which only moved keeps
its digest. Each part is written with its kind and length, so that no two different values give the same bytes.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from atoll.blake2 import blake2b
from atoll.payload.bytecode import code_facts
from atoll.payload.reducers import kept, singletons, weak, wrappers

DIGEST_BYTES = 20
_SCALARS = frozenset({int, float, complex, bool, type(None), type(Ellipsis), type(NotImplemented), range, slice})


class Unknowable(TypeError):
    """A value has nothing to compare it by."""


def of_function(function: Callable[..., Any]) -> bytes:
    """Return the digest of a function: code, defaults, closure, and the globals that it names, followed down."""
    return _Walk(by_identity=True).digest(function)


def of_arguments(arguments: Iterable[Any]) -> bytes:
    """Return the digest of values; equal values of equal types have equal digests.

    Raises:
        Unknowable: a value cannot be compared, as an open file or a lock.
    """
    return _Walk(by_identity=False).digest(tuple(arguments))


class _Walk:
    """One walk over values; an object that occurs again is written as its number."""

    def __init__(self, *, by_identity: bool) -> None:
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self._seen: dict[int, tuple[int, Any]] = {}
        self._by_identity = by_identity

    def digest(self, value: Any) -> bytes:
        self._value(value)
        return self._hash.digest()

    def _write(self, kind: str, data: Any = b"") -> None:
        view = memoryview(data).cast("B")
        self._hash.update(f"{kind}:{view.nbytes}:".encode())
        self._hash.update(view)

    def _text(self, kind: str, text: str) -> None:
        self._write(kind, text.encode("utf-8", "surrogatepass"))

    def _value(self, value: Any) -> None:
        kind = type(value)
        if kind is str:
            self._text("str", value)
        elif kind is bytes:
            self._write("bytes", value)
        elif kind in _SCALARS:
            self._text(kind.__name__, repr(value))
        elif kind is tuple:
            self._items("tuple", value)
        elif kind is set or kind is frozenset:
            self._unordered(kind.__name__, value)
        elif id(value) in self._seen:
            self._text("again", str(self._seen[id(value)][0]))
        elif self._by_identity and (single := singletons.name_of(value)):
            self._text("name", ":".join(single))
        else:
            self._seen[id(value)] = len(self._seen), value
            self._object(kind, value)

    def _items(self, kind: str, items: Iterable[Any]) -> None:
        kept = list(items)
        self._text(kind, str(len(kept)))
        for item in kept:
            self._value(item)

    def _unordered(self, kind: str, items: Iterable[Any]) -> None:
        self._write(kind, b"".join(sorted(self._inner(item) for item in items)))

    def _pairs(self, value: dict[Any, Any]) -> list[tuple[Any, Any]]:
        """Return the pairs in an order that depends on the keys alone: equal dicts may have been filled differently."""
        if all(type(key) is str for key in value):
            return sorted(value.items(), key=lambda pair: pair[0])
        return sorted(value.items(), key=lambda pair: self._inner(pair[0]))

    def _inner(self, value: Any) -> bytes:
        inner = _Walk(by_identity=self._by_identity)
        inner._seen = dict(self._seen)  # a container may hold itself
        return inner.digest(value)

    def _object(self, kind: Any, value: Any) -> None:
        if kind is list:
            self._items("list", value)
        elif kind is dict:
            self._items("dict", (part for pair in self._pairs(value) for part in pair))
        elif kind in (bytearray, memoryview):
            self._write(kind.__name__, bytes(value))
        elif kind is CodeType:
            self._code(value)
        elif kind is FunctionType:
            self._function(value)
        elif kind is MethodType:
            self._items("method", (value.__func__, value.__self__))
        elif kind is ModuleType:
            self._text("module", value.__name__)
        elif kind is object:
            self._write("token", kept.token(value))
        elif isinstance(value, type):
            self._class(value)
        elif hasattr(kind, "__atoll_function__"):
            self._items("wrapped", (kind.__name__, value.__atoll_function__))
        elif kind is pickle.PickleBuffer:
            self._write("buffer", value.raw())
        else:
            self._reduced(kind, value)

    def _code(self, code: CodeType) -> None:
        self._items(
            "code",
            (
                code.co_code,
                code.co_consts,
                code.co_names,
                code.co_varnames,
                code.co_freevars,
                code.co_cellvars,
                (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
                getattr(code, "co_exceptiontable", b""),
            ),
        )

    def _function(self, function: Any) -> None:
        if _importable(function):
            self._text("name", f"{function.__module__}:{function.__qualname__}")
            return
        registry = wrappers.registry_of(function)
        if registry is not None:  # its closure has what it found for earlier calls
            self._unordered("dispatcher", registry.items())
            return
        checked = wrappers.checked_function(function)
        if checked is not None:
            self._items("checked", (function.__code__, checked))
            return
        facts = code_facts(function.__code__)
        cells = [_contents(cell) for cell in function.__closure__ or ()]
        self._items("function", (function.__code__, function.__defaults__, function.__kwdefaults__, cells))
        for name in facts.names:
            if name in function.__globals__:
                self._text("global", name)
                self._value(function.__globals__[name])

    def _class(self, cls: Any) -> None:
        if _importable(cls):
            self._text("name", f"{cls.__module__}:{cls.__qualname__}")
            return
        fields = {
            name: value
            for name, value in vars(cls).items()
            if name not in ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__")
            and not name.startswith(("_abc_", "__static_attributes__"))
        }
        self._items("class", (cls.__qualname__, cls.__bases__))
        for name, value in fields.items():
            self._text("field", name)
            inner = getattr(value, "__func__", value)
            if isinstance(inner, property):
                self._items("property", (inner.fget, inner.fset, inner.fdel))
            elif type(inner).__name__ in ("member_descriptor", "getset_descriptor"):
                self._text("slot", name)
            else:
                self._value(inner)

    def _reduced(self, kind: Any, value: Any) -> None:
        if kind is singletons.Environ and self._by_identity:
            self._text("name", f"os:{singletons.environ_name(value)}")
            return
        if kind in weak.MAPPINGS:
            self._unordered("weak mapping", value.items())
            return
        if kind in weak.REFERENCES:
            self._items("weak reference", (value(),))
            return
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type(None))):
            self._text("name", f"{value.__module__}:{value.__qualname__}")
            return
        try:
            reduced = value.__reduce_ex__(5)
        except Exception as error:
            if not self._by_identity:
                raise Unknowable(f"a `{kind.__module__}.{kind.__qualname__}` cannot be compared: {error}") from error
            # an unpicklable global, such as a lock: the same object behaves the same
            self._text("identity", f"{kind.__module__}.{kind.__qualname__}:{id(value)}")
            return
        if isinstance(reduced, str):
            self._text("name", f"{getattr(value, '__module__', '')}:{reduced}")
            return
        parts = [*reduced, None, None, None]
        self._items("object", (kind, parts[0], parts[1], parts[2]))
        for more in parts[3:5]:
            self._items("more", more or ())


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return Ellipsis


def _importable(value: Any) -> bool:
    """Return whether its module has it under its name; never so for the main program's, which travel by value."""
    module = getattr(value, "__module__", None)
    if module in (None, "__main__"):
        return False
    found: Any = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value
