"""Answers to a worker that asks for names of the program which its function comes from."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from atoll.payload import pickling
from atoll.payload.bytecode import code_facts
from atoll.payload.program.carrier import Carrier, TooLarge
from atoll.payload.values import first_line, type_name

MOST_SNAPSHOT_BYTES = 64 << 20
"""Size of the pickles of a whole module together."""
MOST_SNAPSHOT_NAMES = 10_000

Answer = tuple[dict[str, Any], Sequence[Any]]


class Names:
    """Top-level names of the modules that a function travels with, as they are when they are asked for.

    Args:
        by_value: modules whose functions and classes travel by value, beside `__main__`.
        main: the globals that the function knows as `__main__`; None for those of this process.
    """

    def __init__(self, by_value: frozenset[str], main: dict[str, Any] | None) -> None:
        self._by_value = by_value
        self._main = main

    @property
    def by_value(self) -> frozenset[str]:
        """Modules whose functions and classes travel by value."""
        return self._by_value

    @property
    def main(self) -> dict[str, Any] | None:
        """The globals that the function knows as `__main__`; None for those of this process."""
        return self._main

    @property
    def modules(self) -> list[str]:
        """The modules that may be asked about."""
        return sorted({"__main__", *self._by_value})

    def pairs(self, module: str) -> Iterable[tuple[str, Any]]:
        """Return the names of a module with their values."""
        namespace = self._namespace(module)
        return [(name, namespace[name]) for name in self._list(module) if name in namespace]

    def answer(self, question: dict[str, Any]) -> Answer:
        """Return the header and the buffers that answer a worker's question.

        Nothing is raised for a bad question: the answer says why there is no value.
        """
        module, name = str(question.get("module")), question.get("name")
        if module != "__main__" and module not in self._by_value:
            return {"missing": f"the function does not travel with the module `{module}`"}, ()
        if question.get("snapshot"):
            return self._snapshot(module, question.get("known"))
        if not isinstance(name, str):
            return {"names": self._list(module)[:MOST_SNAPSHOT_NAMES]}, ()
        return self._value(module, name)

    def _namespace(self, module: str) -> dict[str, Any]:
        if module == "__main__" and self._main is not None:
            return self._main
        found = sys.modules.get(module)
        return vars(found) if found is not None else {}

    def _list(self, module: str) -> list[str]:
        names = [name for name in tuple(self._namespace(module)) if isinstance(name, str)]
        if self._main is None or module != "__main__":
            names = sorted({*names, *dir(sys.modules.get(module))})
        return names

    def _value(self, module: str, name: str) -> Answer:
        try:
            value = self._find(module, name)
        except Exception as error:
            if isinstance(error, AttributeError):
                return {"missing": ""}, ()
            return {"missing": f"{type(error).__name__}: {first_line(error)}"}, ()
        carrier = Carrier(self._by_value, self._main)
        try:
            data, buffers = pickling.dumps(value, self._by_value, carrier=carrier)
        except Exception as error:
            return {"missing": _reason(value, error)}, ()
        return {}, [data, *buffers]

    def _find(self, module: str, name: str) -> Any:
        namespace = self._namespace(module)
        if name in namespace:
            return namespace[name]
        return getattr(sys.modules.get(module), name)  # which may have a `__getattr__`, or be a worker's that asks on

    def _snapshot(self, module: str, known: Any) -> Answer:
        """Return all names but the known ones, each with a pickle of its own, and why others have none."""
        skipped = frozenset(known) if isinstance(known, list) and all(isinstance(one, str) for one in known) else ()
        pairs = ((name, self._namespace(module).get(name)) for name in self._list(module) if name not in skipped)
        made = snapshot(pairs, self._by_value, self._main)
        return {"names": made.names, "left_out": made.left_out, "callables": made.callables}, made.pickles


class Snapshot(NamedTuple):
    """Values of a module.

    Args:
        names: those that have a pickle, in the order of `pickles`.
        left_out: why others have none.
        callables: functions and classes among these.
    """

    names: list[str]
    left_out: dict[str, str]
    callables: list[str]
    pickles: list[bytes]


def snapshot(pairs: Iterable[tuple[str, Any]], by_value: frozenset[str], main: dict[str, Any] | None) -> Snapshot:
    """Pickle values one by one, those that can be."""
    names: list[str] = []
    left_out: dict[str, str] = {}
    callables: list[str] = []
    pickles: list[bytes] = []
    left = MOST_SNAPSHOT_BYTES
    for name, value in pairs:
        if name.startswith("__") or len(names) >= MOST_SNAPSHOT_NAMES:
            continue
        try:
            data = bounded_pickle(value, by_value, main, left)
        except (Exception, SystemExit) as error:  # a reducer's own, of an object that the child may not want at all
            left_out[name] = _too_large(name, value) if isinstance(error, TooLarge) else _reason(value, error)
            if isinstance(value, (FunctionType, type)):
                callables.append(name)
            continue
        left -= len(data)
        names.append(name)
        pickles.append(data)
    return Snapshot(names, left_out, callables, pickles)


def bounded_pickle(value: Any, by_value: frozenset[str], main: dict[str, Any] | None, most_bytes: int) -> bytes:
    """Pickle a value for a process of this program."""
    if pickling.is_plain(value):
        return pickle.dumps(value, pickling.PROTOCOL)
    return pickling.dumps_bounded(value, by_value, Carrier(by_value, main), most_bytes=most_bytes)


def _too_large(name: str, value: Any) -> str:
    """Return why a value is left out whose pickle is too large."""
    message = f"`{name}`"
    if isinstance(value, FunctionType):
        used = [one for one in code_facts(value.__code__).names if one in value.__globals__]
        largest = max(used, key=lambda one: sys.getsizeof(value.__globals__[one], 0), default="")
        message += f" with the names that it uses, `{largest}` the largest," if largest else ""
    return (
        f"{message} takes more than is left of {MOST_SNAPSHOT_BYTES >> 20} MiB, the most for the main module of a child; "
        "pass it as an argument"
    )


def _reason(value: Any, error: BaseException) -> str:
    return f"a `{type_name(value)}` cannot be sent: {first_line(error)}"
