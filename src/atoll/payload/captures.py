"""Captures: the values that a function's pickle depends on, and a check for changes of them.

Pickles are made anew at each call, so that a rebound global, cell or helper is seen by the next call. To pickle
costs a hundred microseconds and more, and most calls follow one that changed nothing. So a walk records, for each
place that the pickle was read from, the object that was found there: a pickle may be used again while each place
still holds the identical object, and all objects found are immutable, or containers and functions whose own places
are recorded too. An unknown kind of value makes the captures unprovable: then every call pickles anew.

The walk sees what cloudpickle sees: code, defaults, closure cells, attributes, and those globals that the code or a
code nested in it names, absent ones included (they may be defined later, or shadow a builtin).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from atoll.payload.bytecode import CodeFacts, code_facts
from atoll.payload.private_cloudpickle import cloudpickle
from atoll.payload.program.carrier import ABSENT, Carrier
from atoll.payload.program.text_names import travels as may_travel
from atoll.payload.reducers import singletons, wrappers

_ABSENT = ABSENT
_ATOMS = frozenset(
    {
        int,
        float,
        complex,
        str,
        bytes,
        bool,
        range,
        type(None),
        type(Ellipsis),
        type(NotImplemented),
        CodeType,
        object,
        singletons.Environ,
    }
)
"""Types whose pickles never change: `os.environ` travels by name, and an `object()` has no more than its identity."""
_IMMUTABLE_NAMES = frozenset(
    {
        ("re", "Pattern"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib", "PureWindowsPath"),
        ("pathlib._local", "PosixPath"),
        ("pathlib._local", "WindowsPath"),
        ("datetime", "date"),
        ("datetime", "datetime"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("uuid", "UUID"),
        ("logging", "Logger"),
        ("dataclasses", "_MISSING_TYPE"),
        ("dataclasses", "_HAS_DEFAULT_FACTORY_CLASS"),
    }
)
_OF_SLOTS = frozenset({("dataclasses", "Field"), ("dataclasses", "_DataclassParams")})
_OWN = frozenset({("atoll.sdk.options", "Options"), ("atoll.sdk.retries", "Retries")})
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})
_SLOTS = frozenset({types.GetSetDescriptorType, types.MemberDescriptorType})
"""Types of what Python itself puts into classes."""
_LABELS = frozenset({"type", "_field_type"})
"""Attributes of fields of dataclasses that are recorded by identity alone."""
_MOST_ITEMS = 64
_MOST_OBJECTS = 2000


class Captures:
    """The places that the pickle of `root` was read from, as they were when this was made.

    An object with a property `__atoll_function__` is one of Atoll's wrappers: its identity and that function
    decide its pickle.

    Args:
        by_value: modules whose functions and classes are pickled by value, beside those of `__main__`.

    Attributes:
        provable: whether `unchanged` can prove anything; False makes it always False.
        codes: all code that travels by value, with the package that it belongs to (empty for none).
    """

    def __init__(self, root: Any, by_value: frozenset[str] = frozenset()) -> None:
        self.provable = True
        self.codes: list[tuple[CodeFacts, str]] = []
        self._by_value = by_value
        self._names: list[tuple[Callable[[Any, Any], Any], Any, Any]] = []
        self._functions: list[tuple[Any, ...]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._lists: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self._dicts: list[tuple[Mapping[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._wrappers: list[tuple[Any, Any]] = []
        self._namespaces: list[tuple[dict[str, Any], int]] = []
        self._mutable = False
        self._rebinds = False
        self._binds_attributes = False
        self._introspects = False
        self._function_is_a_value = False
        self._root = root
        self._singletons = {**singletons.names(), **singletons.containers()}
        self._seen: dict[int, Any] = {}
        self._pending: list[Any] = [root]
        self._walk()

    @property
    def constant(self) -> bool:
        """True if no reachable code can change the captured values: one unpickled copy can serve many calls."""
        return self.provable and not (
            self._mutable
            or self._rebinds
            or self._introspects
            or (self._binds_attributes and self._function_is_a_value)
        )

    def add(self, carrier: Carrier) -> None:
        """Take the names that the pickle brings for text in the code."""
        for namespace, name, value, travels in carrier.places:
            self._names.append((namespace.get, name, value))
            if travels:
                self._pending.append(value)
            elif type(value) in _CONTAINERS:  # it may become small enough
                self._names.append((_may_travel, value, may_travel(value)))
        if carrier.lists_subclasses:  # of which there may be more
            self.provable = False
        self._namespaces = [(namespace, len(namespace)) for namespace in carrier.whole_namespaces]
        self._walk()

    def unchanged(self) -> bool:
        """Return whether a pickle made now would equal the one made with these captures."""
        if not self.provable:
            return False
        absent = _ABSENT
        for get, name, value in self._names:
            if get(name, absent) is not value:
                return False
        for function, code, defaults, kwdefaults, notes, name, qualname, doc, module in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not kwdefaults
                or function.__annotations__ is not notes
                or function.__name__ is not name
                or function.__qualname__ is not qualname
                or function.__doc__ is not doc
                or function.__module__ is not module
            ):
                return False
        for cell, value in self._cells:
            if _contents(cell) is not value:
                return False
        same = operator.is_
        try:
            for mapping, keys, values in self._dicts:
                if len(mapping) != len(keys):
                    return False
                if keys and not (all(map(same, mapping, keys)) and all(map(same, mapping.values(), values))):
                    return False
            for items, kept in self._lists:
                if len(items) != len(kept) or not all(map(same, items, kept)):
                    return False
            for namespace, count in self._namespaces:
                if len(namespace) != count:
                    return False
            for wrapper, inner in self._wrappers:
                if wrapper.__atoll_function__ is not inner:
                    return False
        except RuntimeError:  # another thread changes a dict while it is compared
            return False
        return True

    # --- the walk -----------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        while self._pending:
            if len(self._seen) > _MOST_OBJECTS:
                self.provable = False
                self._pending.clear()
                break
            try:
                self._visit(self._pending.pop())
            except Exception:  # an object whose class answers to nothing: it is not understood, so nothing is proven
                self.provable = False

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS:
            return
        if id(value) in self._seen or id(value) in self._singletons:  # those travel by their names
            self._function_is_a_value = self._function_is_a_value or value is self._root
            return
        self._seen[id(value)] = value
        if kind is FunctionType:
            self._visit_function(value)
        elif kind is ModuleType:
            if not self._module_by_reference(value):
                self.provable = False
        elif kind is BuiltinFunctionType:
            if not (value.__self__ is None or isinstance(value.__self__, ModuleType)):
                self.provable = False
        elif isinstance(value, type):
            self._visit_class(value)
        elif kind is tuple or kind is frozenset:
            self._pending.extend(value)
        elif kind is slice:
            self._pending.extend((value.start, value.stop, value.step))
        elif (kind is list or kind is set) and len(value) <= _MOST_ITEMS:
            self._mutable = True
            self._lists.append((value, tuple(value)))
            self._pending.extend(value)
        elif kind is dict and len(value) <= _MOST_ITEMS:
            self._mutable = True
            self._visit_dict(value)
        elif hasattr(kind, "__atoll_function__"):
            self._function_is_a_value = True
            self._wrappers.append((value, value.__atoll_function__))
            self._pending.append(value.__atoll_function__)
        elif kind is functools.partial:
            self._pending.extend((value.func, value.args))
            self._visit_dict(value.keywords)
            self._visit_dict(vars(value))
            self._function_is_a_value = True
        else:
            self._visit_object(value, kind)

    def _visit_object(self, value: Any, kind: Any) -> None:
        name = kind.__module__, kind.__qualname__
        if name in _IMMUTABLE_NAMES:
            self._pending.append(getattr(value, "tzinfo", None))  # a time zone of the program may be mutable
        elif kind is types.GenericAlias:
            self._pending.extend((value.__origin__, value.__args__))
        elif name in _OWN:
            self._visit_dict(vars(value))
        elif name in _OF_SLOTS:
            self._visit_attributes(value, kind.__slots__)
        elif kind is types.MappingProxyType and not value:  # the metadata of most fields
            self._dicts.append((value, (), ()))
        elif kind is property:
            self._visit_attributes(value, ("fget", "fset", "fdel", "__doc__"))
        elif kind is staticmethod or kind is classmethod:
            self._pending.append(value.__func__)
        else:
            self.provable = False
            if isinstance(value, types.MethodType):
                self._pending.append(value.__func__)
            elif kind is functools._lru_cache_wrapper:
                self._pending.append(value.__wrapped__)

    def _visit_dict(self, mapping: Any) -> None:
        keys, values = tuple(mapping), tuple(mapping.values())
        self._dicts.append((mapping, keys, values))
        self._pending.extend(keys)
        self._pending.extend(values)

    def _visit_attributes(self, value: Any, names: Iterable[str]) -> None:
        for name in names:
            found = getattr(value, name, _ABSENT)
            self._names.append((functools.partial(getattr, value), name, found))
            if found is not _ABSENT and name not in _LABELS:
                self._pending.append(found)

    def _visit_function(self, function: Any) -> None:
        registry = wrappers.registry_of(function)
        if registry is not None:
            self._visit_dispatcher(function, registry)
            return
        if self._by_reference(function):
            return
        self._function_is_a_value = self._function_is_a_value or function is not self._root
        if wrappers.checked_function(function) is not None:  # an attribute is all that its pickle is made of
            self._visit_dict(vars(function))
            return
        code = function.__code__
        facts = code_facts(code)
        namespace = function.__globals__
        self.codes.append((facts, str(namespace.get("__package__") or "")))
        annotations = function.__annotations__
        self._functions.append(
            (
                function,
                code,
                function.__defaults__,
                function.__kwdefaults__,
                annotations,
                function.__name__,
                function.__qualname__,
                function.__doc__,
                function.__module__,
            )
        )
        if annotations:  # by identity: their contents do not change the function's behaviour
            self._dicts.append((annotations, tuple(annotations), tuple(annotations.values())))
        self._visit_dict(vars(function))
        self._pending.append(function.__defaults__)
        if function.__kwdefaults__:
            self._visit_dict(function.__kwdefaults__)
        captured = []
        for name in facts.names:
            value = namespace.get(name, _ABSENT)
            self._names.append((namespace.get, name, value))
            captured.append(value)
        for cell in function.__closure__ or ():
            value = _contents(cell)
            self._cells.append((cell, value))
            captured.append(value)
        for value in captured:
            if type(value) is ModuleType:
                self._record_submodules(value.__name__, facts.attributes)
            if value is not _ABSENT:
                self._pending.append(value)
        self._rebinds = self._rebinds or bool(facts.rebinds)
        self._binds_attributes = self._binds_attributes or facts.binds_attributes
        self._introspects = self._introspects or facts.introspects

    def _visit_dispatcher(self, function: Any, registry: Any) -> None:
        """Record what a dispatcher has registered, one of a module included: more may be registered here."""
        self._mutable = True
        self._visit_dict(registry)
        if not self._by_reference(function):
            self._visit_dict(wrappers.dispatcher_attributes(function))

    def _record_submodules(self, package: str, attributes: frozenset[str]) -> None:
        """Record which submodules that the code could mean are loaded: cloudpickle has the worker import those."""
        module = sys.modules.get(package)
        if not hasattr(module, "__path__"):
            return
        for attribute in attributes:
            name = f"{package}.{attribute}"
            found = sys.modules.get(name, _ABSENT)
            self._names.append((sys.modules.get, name, found))
            if found is not _ABSENT:
                self._record_submodules(name, attributes)

    def _visit_class(self, cls: Any) -> None:
        if cls.__module__ in ("builtins", "types") or self._by_reference(cls):
            return
        self.provable = self.provable and type(cls) is type  # others' pickles are made of more: members, for example
        self._mutable = True
        self._visit_attributes(cls, ("__name__", "__qualname__", "__bases__"))
        content = vars(cls)
        with contextlib.suppress(Exception):
            _ = cls.__annotations__  # made at the first look, which the pickling has
        self._dicts.append((content, tuple(content), tuple(content.values())))
        code, data = [], []
        for name, value in tuple(content.items()):
            inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
            if type(inner) is FunctionType:
                code.append(inner)
            if type(value) is dict and name == "__annotations__":  # by identity, as those of functions
                self._dicts.append((value, tuple(value), tuple(value.values())))
            elif type(value) not in _SLOTS:
                data.append(value)
        self._pending[:0] = data  # looked at last: many objects must not keep code from being found
        self._pending.extend(code)

    def _by_reference(self, value: Any) -> bool:
        """Return whether it is pickled by its name; the name's place is recorded."""
        if value.__module__ in self._by_value or not cloudpickle()._should_pickle_by_reference(value):
            return False
        owner = sys.modules.get(value.__module__)
        if owner is not None:
            name = value.__qualname__.partition(".")[0]
            self._names.append((vars(owner).get, name, vars(owner).get(name, _ABSENT)))
        return True

    def _module_by_reference(self, module: ModuleType) -> bool:
        return bool(cloudpickle()._should_pickle_by_reference(module))


def _may_travel(value: Any, _: Any) -> bool:
    return may_travel(value)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


def imported_names(captures: Captures) -> tuple[set[str], set[str]]:
    """Return the top-level modules that the captured code imports, and those that it may import by a string."""
    imports: set[str] = set()
    for facts, package in captures.codes:
        imports.update(name or package.partition(".")[0] for name in facts.imports)
    imports.discard("")
    return imports, set(itertools.chain.from_iterable(facts.literals for facts, _ in captures.codes))
