"""Options of a command from a function's signature.

cyclopts parses the command line. This module tells it how each parameter is read, where its own rules would lose the
type of a value (in JSON), round a number, or make a text of every value without an annotation.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import functools
import inspect
import pathlib
import typing
from collections.abc import Callable
from typing import Annotated, Any

import cyclopts

from atoll.cli.programs import parameter_values as values


def parser(function: Callable[..., Any], name: str) -> cyclopts.App:
    """Return the parser for the arguments of a function.

    Args:
        name: of the command, for its help.
    """
    app = cyclopts.App(
        name=name,
        help=function.__doc__ or "",
        help_format="plaintext",
        version_flags=[],
        result_action="return_value",
    )
    app.default(_described(function))
    return app


def _described(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in with the function's parameters, whose annotations say how they are read."""
    signature = inspect.signature(function)
    hints = _hints(function)
    words = _descriptions(function)
    parameters = []
    for parameter in signature.parameters.values():
        hint = _annotation(parameter, hints.get(parameter.name), words.get(parameter.name, ""))
        parameters.append(parameter.replace(annotation=hint))
    return _stand_in(function, parameters)


def _stand_in(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    def described(*_args: Any, **_kwargs: Any) -> None:
        """Stand for the function: it is not called."""

    described.__doc__ = function.__doc__
    described.__name__ = getattr(function, "__name__", "function")
    described.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    described.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return described


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations; those that name what is not there are left out."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name for type checkers only: each by itself
        found = {}
        for name, hint in getattr(function, "__annotations__", {}).items():
            single = type("Single", (), {"__annotations__": {name: hint}})
            space = getattr(inspect.unwrap(function), "__globals__", {})
            with contextlib.suppress(Exception):
                found[name] = typing.get_type_hints(single, space, include_extras=True)[name]
        return found


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return the words of the docstring for each parameter, as cyclopts finds them."""
    parameters = [
        one.replace(annotation=str, default=None)
        for one in inspect.signature(function).parameters.values()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    app = cyclopts.App(version_flags=[])
    app.default(_stand_in(function, parameters))
    return {
        one.field_info.name: one.parameter.help or "" for one in app.assemble_argument_collection(parse_docstring=True)
    }


def _annotation(parameter: inspect.Parameter, hint: Any, words: str) -> Any:
    if values.plain(hint) in values.ANYTHING:
        hint = _of_default(parameter)
    kind = values.plain(hint)
    given = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, cyclopts.Parameter)]
    if any(extra.converter is not None for extra in given):
        return hint
    options: dict[str, Any] = {}
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not _has_dict(kind):
        if not _is_ours(kind):
            return Any if hint in values.ANYTHING else hint
        base = _base(kind)
    else:
        base, options = kind, {"json_dict": False}
    if values.is_list(kind):
        base, options = list[str], {"json_list": False, "negative": ""}
    if not any(extra.help for extra in given):
        options["help"] = f"{words} ({_form(kind)})" if words else f"{_form(kind)[0].upper()}{_form(kind)[1:]}."
    converter = functools.partial(_converted, parameter.name, kind)
    return Annotated[base, *given, cyclopts.Parameter(converter=converter, **options)]


def _of_default(parameter: inspect.Parameter) -> Any:
    """Return what a default says of a parameter without annotation; a number takes any number."""
    default = parameter.default
    if default is parameter.empty or default is None:
        return Any
    if type(default) in (int, float, complex):
        return int | float | complex
    known = (str, bool, list, tuple, set, frozenset, dict, enum.Enum, pathlib.PurePath, dt.date)
    return type(default) if isinstance(default, known) else Any


def _is_ours(kind: Any) -> bool:
    return (
        kind in values.ANYTHING
        or kind in (int, float, complex)
        or values.is_list(kind)
        or (values.is_union(kind) and not any(_is_left_to_parser(member) for member in typing.get_args(kind)))
    )


def _is_left_to_parser(member: Any) -> bool:
    return values.plain(member) is bool or hasattr(member, "__dataclass_fields__") or typing.is_typeddict(member)


def _has_dict(kind: Any) -> bool:
    members = typing.get_args(kind) if values.is_union(kind) else (kind,)
    return any(values.is_dict(values.plain(member)) for member in members)


def _base(kind: Any) -> Any:
    """Return a type by which the parser takes one text."""
    return Any if kind in values.ANYTHING else str


def _form(kind: Any) -> str:
    if values.is_list(kind):
        return f"{values.form(kind)}, or one value each time"
    return values.form(kind)


def _converted(name: str, kind: Any, _: Any, tokens: Any) -> Any:
    """Return the value of the texts that were given for one parameter, or for the keys of a dict."""
    if isinstance(tokens, dict):
        try:
            return _keyed(tokens, kind)
        except ValueError as error:
            raise ValueError(f"Invalid value for --{name.replace('_', '-')}: {error}") from error
    try:
        return _read(kind, [token.value for token in tokens])
    except ValueError as error:
        if tokens[0].keyword is not None:
            raise  # cyclopts names the option
        raise ValueError(f"Invalid value for {name.upper()}: {error}") from error


def _read(kind: Any, texts: list[str]) -> Any:
    if values.is_list(kind) and not (len(texts) == 1 and texts[0].lstrip().startswith("[")):
        element = (typing.get_args(kind) or (Any,))[0]
        return values.from_json(_container(kind), [values.from_text(element, text) for text in texts])
    return values.from_text(kind, texts[-1])


def _container(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _keyed(tokens: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Return the dict of `--name.key value`, at any depth."""
    members = [values.plain(member) for member in (typing.get_args(kind) if values.is_union(kind) else (kind,))]
    inner = next((typing.get_args(member)[1:] for member in members if values.is_dict(member)), ()) or (Any,)
    return {
        key: _keyed(found, inner[0]) if isinstance(found, dict) else values.from_text(inner[0], found[-1].value)
        for key, found in tokens.items()
    }
