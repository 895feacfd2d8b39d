"""The program's share of one pickle: namespaces of its functions, and names that these use as text only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import FunctionType
from typing import Any

from atoll.payload.program.namespaces import FIELDS, program_namespace, restore_function, with_names
from atoll.payload.program.text_names import MOST_BYTES, MOST_BYTES_TOGETHER, TextNames, is_data, travels

ABSENT: Any = type("Absent", (), {"__doc__": "Stands where a name has no value."})()


class TooLarge(Exception):
    """The pickle is larger than it may be."""


class Namespace:
    """Pickles as the globals of a module of the program."""

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        self._name = name
        self._fields = {field: namespace[field] for field in FIELDS if field in namespace}
        spec = namespace.get("__spec__")
        if name == "__main__" and isinstance(spec, ModuleSpec):
            self._fields["__spec__"] = ModuleSpec(spec.name, None, origin=spec.origin)

    def __reduce__(self) -> tuple[Any, ...]:
        return program_namespace, (self._name, self._fields)


class Carried:
    """Pickles as `value`, with names for its namespaces."""

    def __init__(self, value: Any, names: list[tuple[Namespace, dict[str, bytes]]]) -> None:
        self._made = value, names

    def __reduce__(self) -> tuple[Any, ...]:
        return with_names, self._made


class Carrier:
    """Collects from a pickler the functions and classes of a program.

    Args:
        by_value: modules whose functions and classes travel by value, beside `__main__`.
        main: the globals of the program's main module; by default `__main__`'s.
        trusted: False keeps data back, and functions, classes and modules that the code does not have the name of.

    Attributes:
        places: names that were found by text, with their values: a namespace, a name, its value or `ABSENT`, and
            whether the value travels.
    """

    def __init__(
        self, by_value: frozenset[str] = frozenset(), main: dict[str, Any] | None = None, *, trusted: bool = True
    ) -> None:
        self.places: list[tuple[dict[str, Any], str, Any, bool]] = []
        self._by_value = by_value
        self._trusted = trusted
        self._main = main if main is not None else vars(sys.modules.get("__main__", sys))
        self._texts = TextNames()
        self._namespaces: dict[int, Namespace] = {}
        self._captured: set[tuple[int, str]] = set()

    @property
    def whole_namespaces(self) -> list[dict[str, Any]]:
        """The namespaces of which every name travels, if it can."""
        return list(self._texts.namespaces.values())

    @property
    def lists_subclasses(self) -> bool:
        """True if code that travels asks a class for its subclasses."""
        return self._texts.lists_subclasses

    def reduce_function(self, function: FunctionType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return how a function is pickled, from how cloudpickle does it."""
        own = self._namespace(function.__globals__)
        if own is None:
            return reduced
        self._texts.add_function(function)
        make, (code, _, *rest), state = reduced[:3]
        self._captured.update((id(function.__globals__), name) for name in state[1]["__globals__"])
        return make, (code, own, *rest), state, None, None, restore_function

    def add_class(self, cls: type) -> None:
        """Take a class that travels by value."""
        self._texts.add_class(cls)

    def whole(self, value: Any, dumps: Callable[[Any, int], bytes]) -> Carried | None:
        """Return a pickled value with the names that travel beside; None where there are none.

        Args:
            dumps: pickles a value, unless it has more bytes.
        """
        found: dict[int, dict[str, bytes]] = {}
        size = 0
        while new := self._texts.take():
            for namespace, name in new:
                if (id(namespace), name) in self._captured or name.startswith("__"):
                    continue
                there = namespace.get(name, ABSENT)
                data = b""
                own = self._namespace(namespace)
                sent = (
                    there is not ABSENT and travels(there) and (self._trusted or self._may_have(namespace, name, there))
                )
                if own is not None and sent and size < MOST_BYTES_TOGETHER:
                    try:
                        data = dumps(there, MOST_BYTES)
                    except (Exception, SystemExit):  # it may be no name at all, so its pickling is nobody's fault
                        data = b""
                self.places.append((namespace, name, there, bool(data)))
                if data:
                    size += len(data)
                    found.setdefault(id(namespace), {})[name] = data
        names = [(self._namespaces[key], pickles) for key, pickles in found.items()]
        return Carried(value, names) if names else None

    def _may_have(self, namespace: dict[str, Any], name: str, value: Any) -> bool:
        return not is_data(value) and self._texts.is_written(namespace, name)

    def _namespace(self, namespace: dict[str, Any]) -> Namespace | None:
        """Return how a dict of globals is pickled; None for one that is no module's of the program."""
        found = self._namespaces.get(id(namespace))
        if found is not None:
            return found
        name = namespace.get("__name__")
        if namespace is self._main:
            name = "__main__"
        elif name not in self._by_value or vars(sys.modules.get(name, sys)) is not namespace:
            return None
        found = self._namespaces[id(namespace)] = Namespace(name, namespace)
        return found


class BoundedSink:
    """A file that takes at most so many bytes."""

    __slots__ = ("_left", "parts")

    def __init__(self, most_bytes: int) -> None:
        self.parts: list[bytes] = []
        self._left = most_bytes

    def write(self, data: Any) -> None:
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        self._left -= size
        if self._left < 0:
            raise TooLarge
        self.parts.append(bytes(data))

    def content(self) -> bytes:
        return b"".join(self.parts)
