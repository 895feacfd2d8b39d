"""Names that code uses as text only, and that travel with it for that: no instruction names them.

Globals of a function are an exact dict, which `eval`, frames and type hints read raw: nothing can be asked for then.
So with the functions and classes of a program travel, of their own module's top-level names:

- all identifiers in annotations that are text;
- identifiers in strings that look like expressions (`"a >= @x"`);
- every name, where the code has `eval`, `exec`, `globals` (as a name, not as a method) or its own module;
- subclasses of classes that travel, where the code has `__subclasses__`.

Such a name travels if its value is a function, a class, a module or small plain data, has a pickle, and that is small;
otherwise it is left out without a word: the name may be none. Docstrings do not count.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterable
from typing import Any, cast

from atoll.payload.bytecode import CodeFacts, code_facts, names_in_annotations
from atoll.payload.reducers.singletons import VARIABLES

MOST_BYTES = 64 << 10
"""Size of the pickle of one name."""
MOST_BYTES_TOGETHER = 256 << 10
MOST_NAMES = 2000
_EVERYTHING = frozenset({"eval", "exec", "globals"})
"""Builtins that may use any top-level name as text; `__main__` and `sys.modules[__name__]` are others."""
_PLAIN_BYTES = 4 << 10
_PLAIN_ITEMS = 64
_ATOMS = frozenset({int, float, bool, complex, type(None)})
_TEXTS = frozenset({str, bytes})
_CONTAINERS = frozenset({tuple, list, set, frozenset})
_NAMED_KINDS = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    functools.partial,
    functools._lru_cache_wrapper,
)
_TYPING = frozenset({"typing", "types", "typing_extensions"})
_VALUES = frozenset({"datetime", "decimal", "fractions", "uuid", "pathlib", "pathlib._local", "re"})
"""Modules whose objects are small and immutable."""

Place = tuple[dict[str, Any], str]
"""A namespace and a name in it."""


class TextNames:
    """Collects the functions and classes that travel, and finds the names that they use as text."""

    def __init__(self) -> None:
        self.namespaces: dict[int, dict[str, Any]] = {}
        """Namespaces of which every name is used, by their ids."""
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._new: list[Place] = []
        self._seen: set[tuple[int, str]] = set()
        self.lists_subclasses = False
        self._unwritten: set[tuple[int, str]] = set()

    def add_function(self, function: types.FunctionType) -> None:
        """Take a function of the program."""
        self.add_code(code_facts(function.__code__), function.__globals__)
        notes = function.__annotations__
        if notes:
            self._add_names(names_in_annotations(notes.values()), function.__globals__)

    def add_code(self, facts: CodeFacts, namespace: dict[str, Any]) -> None:
        self._add_names(facts.words, namespace)
        self.lists_subclasses = self.lists_subclasses or "__subclasses__" in facts.attributes
        if _uses_everything(facts) and id(namespace) not in self.namespaces:
            self.namespaces[id(namespace)] = namespace
            count = len(self._new)
            self._add_names((name for name in tuple(namespace) if not name.startswith("__")), namespace)
            self._unwritten.update((id(namespace), name) for _, name in self._new[count:])

    def add_class(self, cls: type) -> None:
        """Take a class of the program."""
        module = sys.modules.get(cls.__module__)
        namespace = vars(module) if module is not None else {}
        self._classes.append((cls, namespace))
        notes: Any = None
        with contextlib.suppress(Exception):  # annotations of Python 3.14 are evaluated here
            notes = cls.__annotations__
        if isinstance(notes, dict) and notes:
            self._add_names(names_in_annotations(notes.values()), namespace)

    def take(self) -> list[Place]:
        """Return the names that were found since the last time, with values of any kind."""
        if self.lists_subclasses:
            for cls, namespace in self._classes:
                for below in cast("list[type]", type.__subclasses__(cls)):
                    if below.__module__ == cls.__module__ and namespace.get(below.__name__) is below:
                        self._add_names((below.__name__,), namespace)
        found, self._new = self._new, []
        return found

    def is_written(self, namespace: dict[str, Any], name: str) -> bool:
        """Return whether the code has the name, if only in a string; it may use names that it computes."""
        return (id(namespace), name) not in self._unwritten

    def _add_names(self, names: Iterable[str], namespace: dict[str, Any]) -> None:
        for name in names:
            place = id(namespace), name
            self._unwritten.discard(place)
            if place not in self._seen and len(self._seen) < MOST_NAMES:
                self._seen.add(place)
                self._new.append((namespace, name))


def _uses_everything(facts: CodeFacts) -> bool:
    own_module = "modules" in facts.attributes and ("__name__" in facts.attributes or "__main__" in facts.words)
    if own_module or "__main__" in facts.attributes or not _EVERYTHING.isdisjoint(facts.names):
        return True
    has_builtins = not facts.attributes.isdisjoint(("builtins", "__builtins__"))  # others have methods of these names
    return has_builtins and not _EVERYTHING.isdisjoint(facts.attributes)


def travels(value: Any) -> bool:
    """Return whether a value that is found by text may travel."""
    kind = type(value)
    if isinstance(value, _NAMED_KINDS) or kind.__module__ in _TYPING or kind.__module__ in _VALUES:
        return True
    return _is_small(value)


def is_data(value: Any) -> bool:
    """Return whether a value that travels is no function, class or module."""
    return not isinstance(value, _NAMED_KINDS) and type(value).__module__ not in _TYPING


def _is_small(value: Any) -> bool:
    """Return whether a value is plain data of few bytes."""
    pending, size = [value], 0
    for item in pending:
        kind = type(item)
        if kind in _ATOMS:
            continue
        if kind in _TEXTS:
            size += len(item)
        elif kind in _CONTAINERS:
            if len(item) > _PLAIN_ITEMS:
                return False
            pending.extend(item)
        elif kind is dict:
            if item is VARIABLES:  # which travel as a name
                continue
            if len(item) > _PLAIN_ITEMS:
                return False
            pending.extend(item)
            pending.extend(item.values())
        else:
            return False
        if size > _PLAIN_BYTES or len(pending) > 2 * _PLAIN_ITEMS:
            return False
    return True
