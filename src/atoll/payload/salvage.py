"""Pickles of exceptions that cannot be pickled as they are: a part that cannot travel costs that part alone.

Theory of operation. A pickler in Python writes the exception's arguments and attributes. Where a value fails, its bytes
are taken back and an `Unsent` is written in its place. Containers, and objects without a finalizer, lose the failing
part only; any other object is replaced as a whole, since half of a connection or a file is worse than none. If the
result cannot be unpickled, the arguments and attributes are tried one by one.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from atoll.payload import pickling
from atoll.payload.reducers.exceptions import reduce_exception
from atoll.payload.reducers.unsent import Unsent, unsent
from atoll.payload.values import first_line, type_name

_Pickler: Any = pickle._Pickler
Missing = tuple[str, str, str]
"""The name of a failing argument or attribute, the type of the part that failed, and the reason."""


_WHOLE = (type, FunctionType, BuiltinFunctionType, MethodType)
"""Types of objects that are nothing without one of their parts; so are those with a finalizer."""


class _Salvager(_Pickler):  # type: ignore[misc]
    """Writes stand-ins for the parts that fail.

    Args:
        plainly: write exceptions by their fields, whatever their own pickling is.
    """

    def __init__(self, names: dict[int, str], *, plainly: bool) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, pickling.PROTOCOL)
        self.framer.start_framing = lambda: None  # bytes in a frame could not be taken back
        self._inner = pickling.new_pickler()
        self.dispatch_table = self._inner.dispatch_table
        self._plainly = plainly
        self._names = names
        self._name = ""
        self._depth = 0
        self._whole = 0
        """The depth of objects that are written whole or not at all."""
        self._failed: dict[int, tuple[Any, Unsent, str]] = {}
        self.missing: list[Missing] = []

    def dump_bytes(self, value: Any) -> bytes:
        self.dump(value)
        return self._file.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        if self._plainly and isinstance(obj, BaseException):
            return reduce_exception(obj, plainly=True)
        return self._inner.reducer_override(obj)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        name, self._name = self._name, self._names.get(id(obj), self._name)
        whole = isinstance(obj, _WHOLE) or hasattr(type(obj), "__del__")
        self._whole += whole
        self._depth += 1
        place, known = self._file.tell(), len(self.memo)
        try:
            failed = self._failed.get(id(obj))
            if failed is not None and self._whole:
                raise pickle.PicklingError(f"it holds a {failed[2]}")
            super().save(obj if failed is None else failed[1], save_persistent_id)
        except RecursionError:  # without an end, each level would be tried again
            raise
        except BaseException as error:
            # a type that fails costs the objects that need it
            if self._whole > whole or isinstance(obj, type) or self._depth == 1:
                raise
            self._take_back(place, known)
            reason = f"{type(error).__name__}: {first_line(error)}"
            self._failed[id(obj)] = obj, unsent(obj, type_name(obj), reason), type_name(obj)
            self.missing.append((self._name, type_name(obj), reason))
            super().save(self._failed[id(obj)][1])
        finally:
            self._name = name
            self._whole -= whole
            self._depth -= 1

    def _take_back(self, place: int, known: int) -> None:
        self._file.seek(place)
        self._file.truncate()
        for key in list(self.memo)[known:]:
            del self.memo[key]


def dumps(
    exc: BaseException, is_right: Callable[[Any], bool], *, is_group: bool = False
) -> tuple[bytes, list[Missing]] | None:
    """Pickle an exception without the parts that cannot be pickled; None if its type cannot be either.

    Args:
        is_right: tells whether an unpickled object is the exception again.
        is_group: pickle its type, message and attributes: the members travel by themselves.
    """
    for attempt in (_group,) if is_group else (_by_fields, _by_its_own_way, _field_by_field):
        with contextlib.suppress(BaseException):  # of the exception's methods, or of its parts'
            data, missing = attempt(exc)
            if is_right(pickling.loads(data)):
                return data, missing
    return None


def _by_fields(exc: BaseException) -> tuple[bytes, list[Missing]]:
    salvager = _Salvager(_names(exc), plainly=True)
    return salvager.dump_bytes(exc), salvager.missing


def _group(exc: BaseException) -> tuple[bytes, list[Missing]]:
    salvager = _Salvager({id(value): f"`{name}`" for name, value in vars(exc).items()}, plainly=True)
    return salvager.dump_bytes((type(exc), exc.message, dict(vars(exc)))), salvager.missing  # type: ignore[attr-defined]


def _by_its_own_way(exc: BaseException) -> tuple[bytes, list[Missing]]:
    salvager = _Salvager(_names(exc), plainly=False)
    return salvager.dump_bytes(exc), salvager.missing


def _field_by_field(exc: BaseException) -> tuple[bytes, list[Missing]]:
    """Replace each argument and attribute that cannot be unpickled by itself, or refers to itself without an end."""
    reduced = reduce_exception(exc, plainly=True)
    assert reduced is not None
    make, (cls, args, keywords), state, *_, restore = reduced
    missing: list[Missing] = []

    def kept(name: str, value: Any) -> Any:
        salvager = _Salvager({id(value): name}, plainly=True)
        try:
            pickling.loads(salvager.dump_bytes([value]))
        except BaseException as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            missing.append((name, type_name(value), reason))
            return unsent(value, type_name(value), reason)
        return value

    names = _names(exc)
    fields, members = state if type(state) is tuple else (state, {})
    state = tuple({name: kept(f"`{name}`", value) for name, value in part.items()} for part in (fields, members))
    args = tuple(kept(names.get(id(value), "an argument"), value) for value in args)
    salvager = _Salvager(names, plainly=True)
    data = salvager.dump_bytes(_Parts(make, (cls, args, keywords), state, None, None, restore))
    return data, missing + salvager.missing


class _Parts:
    """An object that is pickled as the exception whose parts these are."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self._parts


def _names(exc: BaseException) -> dict[int, str]:
    """Return the names of an exception's attributes, or else the numbers of its arguments, by the ids of the values."""
    names: dict[int, list[str]] = {}
    reduced = reduce_exception(exc, plainly=True)
    if reduced is not None:
        _, (_, args, _), state, *_ = reduced
        for part in state if type(state) is tuple else (state,):
            known = set(names)
            for name, value in part.items():
                if id(value) not in known:
                    names.setdefault(id(value), []).append(f"`{name}`")
        for number, value in enumerate(args, 1):
            names.setdefault(id(value), [f"argument {number}"])
    return {key: " and ".join(found) for key, found in names.items()}


def note(missing: list[Missing]) -> str:
    """Return one line for the reader of the traceback; empty for nothing."""
    if not missing:
        return ""
    found = list({name: (name, kind, reason) for name, kind, reason in reversed(missing)}.values())[::-1]
    said = [f"{name or 'a part'} (`{kind}`: {reason})" for name, kind, reason in found[:_MOST_NAMED]]
    rest = f", and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f"atoll: not sent with this exception: {', '.join(said)}{rest}"


_MOST_NAMED = 3
