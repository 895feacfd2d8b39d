"""Values of parameters, read from a text of the command line or from JSON as the annotation wants them.

`form` says in words how an annotation is read. Annotations that are not listed here are left to the parser.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import datetime as dt
import enum
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

ANYTHING = (Any, object, None)
"""Annotations that say nothing; None where there is none."""
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LISTS = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.MutableSequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Set: set,
}
_DATES = (dt.datetime, dt.date, dt.time)


def number_or_text(text: str) -> Any:
    """Return a number for a text that Python would read as one, and the text otherwise."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if type(value) in (int, float, complex) else text


def plain(hint: Any) -> Any:
    """Return an annotation without `Annotated`, `NotRequired` and the like."""
    while typing.get_origin(hint) in (typing.Annotated, typing.Required, typing.NotRequired, typing.Final):
        hint = typing.get_args(hint)[0]
    return hint


def is_dict(hint: Any) -> bool:
    """Return whether an annotation wants a dict of any keys."""
    return (typing.get_origin(hint) or hint) in _DICTS


def is_list(hint: Any) -> bool:
    """Return whether an annotation wants a list, a set, or a tuple of any length."""
    if (typing.get_origin(hint) or hint) not in _LISTS:
        return False
    return hint is tuple or typing.get_origin(hint) is not tuple or typing.get_args(hint)[1:] == (...,)


def is_union(hint: Any) -> bool:
    """Return whether an annotation is a `Union`, or an `Optional`."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def form(hint: Any) -> str:
    """Return the values that an annotation takes, in words; empty where the parser knows better."""
    hint = plain(hint)
    if hint in ANYTHING:
        return "a number, or a text"
    if hint is int:
        return "a whole number"
    if hint in (float, complex):
        return "a number"
    if hint is str:
        return "a text"
    if hint is bool:
        return "true or false"
    if hint is types.NoneType:
        return "null"
    if is_dict(hint):
        return "a JSON object" + _of(typing.get_args(hint)[1:])
    if is_list(hint):
        return "a JSON list" + _of(typing.get_args(hint)[:1])
    if is_union(hint):
        members = [
            member for member in typing.get_args(hint) if member is not int or float not in typing.get_args(hint)
        ]
        return ", or ".join(dict.fromkeys(filter(None, map(form, members))))
    return getattr(hint, "__name__", str(hint))


def _of(elements: tuple[Any, ...]) -> str:
    inner = form(elements[0]) if elements and plain(elements[0]) not in ANYTHING else ""
    return f" of {inner.removeprefix('a ')}s" if inner.startswith("a ") and "," not in inner else ""


def from_text(hint: Any, text: str) -> Any:
    """Return the value that a text of the command line stands for.

    Raises:
        ValueError: it stands for none.
    """
    hint = plain(hint)
    if hint in ANYTHING:
        return number_or_text(text)
    if hint is str:
        return text
    if is_union(hint):
        return _first(typing.get_args(hint), from_text, text, hint)
    if hint is types.NoneType:
        if text.lower() in ("none", "null", ""):
            return None
        raise _wrong(text, hint)
    if hint in (int, float, complex):
        return _number(hint, text)
    if hint is bool:
        return _truth(text)
    if is_dict(hint) or is_list(hint) or dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return from_json(hint, _json(hint, text))
    return _scalar(hint, text)


def from_json(hint: Any, value: Any) -> Any:
    """Return a value of JSON as an annotation wants it: types are kept where it does not say more.

    Raises:
        ValueError: it is of another form.
    """
    hint = plain(hint)
    if hint in ANYTHING:
        return value
    if is_union(hint):
        exact = [member for member in typing.get_args(hint) if plain(member) is type(value)]
        return _first((*exact, *typing.get_args(hint)), from_json, value, hint)
    if is_dict(hint) and isinstance(value, dict):
        keys, values = typing.get_args(hint) or (Any, Any)
        return {from_text(str if keys is Any else keys, key): from_json(values, inner) for key, inner in value.items()}
    origin = typing.get_origin(hint) or hint
    if origin in _LISTS and isinstance(value, list):
        return _LISTS[origin](_elements(hint, value))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        make: Callable[..., Any] = hint  # type: ignore[assignment]
        return make(**{name: from_json(hints.get(name, Any), inner) for name, inner in _known(hint, hints, value)})
    if typing.is_typeddict(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        return {name: from_json(hints[name], inner) for name, inner in _known(hint, hints, value)}
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool, types.NoneType):
        if type(value) is hint:
            return value
        raise _wrong(value, hint)
    return _scalar(hint, value)


def _elements(hint: Any, values: list[Any]) -> list[Any]:
    kinds = typing.get_args(hint) or (Any, ...)
    if (typing.get_origin(hint) or hint) is tuple and kinds[1:] != (...,):
        if len(kinds) != len(values):
            raise ValueError(f"{len(kinds)} values are wanted, and {len(values)} are given")
        return [from_json(kind, value) for kind, value in zip(kinds, values, strict=True)]
    return [from_json(kinds[0], value) for value in values]


def _known(hint: Any, hints: Mapping[str, Any], value: dict[str, Any]) -> list[tuple[str, Any]]:
    unknown = [name for name in value if name not in hints]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no field of `{hint.__name__}`, which has {', '.join(hints)}")
    required = getattr(hint, "__required_keys__", None)
    if required is None:
        missing = (dataclasses.MISSING, dataclasses.MISSING)
        required = [one.name for one in dataclasses.fields(hint) if (one.default, one.default_factory) == missing]
    absent = [name for name in required if name not in value]
    if absent:
        raise ValueError(f"`{hint.__name__}` wants the field `{absent[0]}`")
    return list(value.items())


def _scalar(hint: Any, value: Any) -> Any:
    """Read a value that JSON has as a text or a number only."""
    if typing.get_origin(hint) is typing.Literal:
        for choice in typing.get_args(hint):
            if choice == value or str(choice) == value:
                return choice
        raise ValueError(f"`{value}` is none of {', '.join(map(repr, typing.get_args(hint)))}")
    if not isinstance(hint, type):
        raise _wrong(value, hint)
    if issubclass(hint, enum.Enum):
        for member in hint:
            if value in (member.name, member.name.lower(), member.value, str(member.value)):
                return member
        raise ValueError(f"`{value}` is none of {', '.join(member.name for member in hint)}")
    if not isinstance(value, str):
        raise _wrong(value, hint)
    try:
        return hint.fromisoformat(value) if issubclass(hint, _DATES) else hint(value)  # type: ignore[call-arg]
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{_wrong(value, hint)}: {error}") from error


def _number(hint: Callable[[str], Any], text: str) -> Any:
    value = number_or_text(text)
    if hint is int and type(value) is int:
        return value
    try:
        return hint(text) if isinstance(value, str) else value if hint is complex else hint(_whole(hint, value))
    except (ValueError, TypeError, OverflowError):
        raise _wrong(text, hint) from None


def _whole(hint: Any, value: Any) -> Any:
    if hint is int and value != int(value):  # `2.5`; `1e6` is whole
        raise ValueError
    return value


def _truth(text: str) -> bool:
    known = {**dict.fromkeys(("true", "yes", "y", "1"), True), **dict.fromkeys(("false", "no", "n", "0"), False)}
    if text.lower() not in known:
        raise _wrong(text, bool)
    return known[text.lower()]


def _json(hint: Any, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{_wrong(text, hint)}: {error}") from error


def _first(members: tuple[Any, ...], read: Callable[[Any, Any], Any], value: Any, hint: Any) -> Any:
    """Return the value as the first member that takes it; a text is the last resort."""
    ordered = sorted(members, key=lambda member: (plain(member) is str, plain(member) is not types.NoneType))
    for member in ordered:
        try:
            return read(member, value)
        except ValueError:
            continue
    raise _wrong(value, hint)


def _wrong(value: Any, hint: Any) -> ValueError:
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    wanted = form(hint)
    if wanted.startswith("a JSON object"):
        wanted += """, such as '{"key": 1}'"""
    elif wanted.startswith("a JSON list"):
        wanted += ", such as '[1, 2]'"
    return ValueError(f"`{shown}` is not {wanted}")
