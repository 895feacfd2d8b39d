"""Forms from descriptions: the operations of an app's OpenAPI document as fields, and filled fields as a request. Pure.

The document is a function's, so nothing in it is believed: sizes are bounded, and what is not understood is a field for JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import quote, urlencode

from atoll import errors
from atoll.terminal_text import cell

MOST_OPERATIONS, MOST_FIELDS, MOST_CHOICES = 40, 48, 100
MOST_OF_ALL = 400
"""Fields of all operations together: references make a small document large."""
METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE")
PARTS = ("path", "query", "body")
"""Places of a request that a field's value goes to."""
WHOLE = "body"
"""The name of the field that has all of the body."""
_MOST_REFERENCES = 8
_LINE = 200
"""Characters of a text that has a field of one line."""
_PATH = "/%:@!$&'()*+,;=-._~"


@dataclass(frozen=True)
class Field:
    """A value that a request needs.

    Args:
        name: of the form's field: the part of the request, a dot, and the value's name; `WHOLE` alone for all of the body.
        kind: `line` or `text`; `choice` of texts, or `any` of JSON values; `integer`, `number` or `json`.
        value: at first.
        note: the document's description.
        choices: of these kinds.
    """

    name: str
    label: str
    kind: str = "json"
    required: bool = False
    value: str = ""
    note: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """A kind of request that an app answers.

    Args:
        path: as the document has it, with `{name}` for values.
        fields: empty for none.
    """

    method: str
    path: str
    title: str = ""
    note: str = ""
    fields: tuple[Field, ...] = ()

    @property
    def key(self) -> str:
        """The operation as addresses and forms name it."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Call:
    """A request that a form has asked for.

    Args:
        target: path and query.
        body: JSON; empty for none.
    """

    method: str
    target: str
    body: bytes = b""


PLAIN = Operation("POST", "/", fields=(Field(WHOLE, "Body, as JSON", required=False, value="{}"),))
"""The operation of an app without a description: path and method are fields of their own."""


def operations(document: bytes) -> list[Operation]:
    """Return the operations of an OpenAPI document; none for another text."""
    try:
        root = json.loads(document)
        return _operations(root) if isinstance(root, dict) else []
    except (ValueError, RecursionError):
        return []


def _operations(root: dict[str, Any]) -> list[Operation]:
    found: list[Operation] = []
    left = MOST_OF_ALL
    for path, methods in _pairs(root.get("paths"), MOST_OPERATIONS):
        for method, operation in _pairs(methods, 2 * len(METHODS)):
            if method.upper() not in METHODS or not isinstance(operation, dict) or len(found) >= MOST_OPERATIONS:
                continue
            if not path.startswith("/") or len(path) > 300 or left <= 0:
                continue
            shared = methods.get("parameters")
            fields = [
                *_parameters(root, [*_list(shared), *_list(operation.get("parameters"))]),
                *_body(root, operation.get("requestBody")),
            ]
            title, note = _text(operation.get("summary"), 100), _text(operation.get("description"), 400)
            found.append(Operation(method.upper(), path, title, note, tuple(fields[:MOST_FIELDS])))
            left -= len(fields)
    return sorted(found, key=lambda one: (one.path != "/", one.method != "POST"))


def _pairs(value: Any, most: int = MOST_FIELDS) -> list[tuple[str, Any]]:
    return [(str(key), one) for key, one in islice(value.items(), most)] if isinstance(value, dict) else []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any, most: int) -> str:
    return cell(value, most) if isinstance(value, str) else ""


def _resolved(root: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Return a schema without references, and without the choice of nothing."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        several = _list(schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"))[:MOST_CHOICES]
        several = [one for one in several if one and not (isinstance(one, dict) and one.get("type") == "null")]
        if isinstance(reference, str) and reference.startswith("#/"):
            target: Any = root
            for part in reference[2:].split("/"):
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        elif len(several) == 1:
            target = several[0]
        else:
            return schema
        rest = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "oneOf", "allOf")}
        schema = {**target, **rest} if isinstance(target, dict) else rest
    return {}


def _parameters(root: dict[str, Any], parameters: list[Any]) -> list[Field]:
    found = []
    for one in parameters[:MOST_FIELDS]:
        given = _resolved(root, one)
        place, name = given.get("in"), given.get("name")
        if place in ("path", "query") and isinstance(name, str) and 0 < len(name) <= 100:
            required = place == "path" or given.get("required") is True
            note = given.get("description")
            found.append(_field(root, place, name, given.get("schema"), required=required, note=note))
    return found


def _body(root: dict[str, Any], body: Any) -> list[Field]:
    content = _resolved(root, body).get("content")
    kind = content.get("application/json") if isinstance(content, dict) else None
    if not isinstance(kind, dict):
        return [Field(WHOLE, "Body")] if isinstance(content, dict) else []
    schema = _resolved(root, kind.get("schema"))
    properties = _pairs(schema.get("properties"))
    fits = schema.get("type", "object") == "object" and not any(len(name) > 100 for name, _ in properties)
    if not fits or (not properties and schema.get("additionalProperties") is not False):
        example = schema.get("default", schema.get("example", {}))
        return [Field(WHOLE, "Body, as JSON", value=json.dumps(example))]
    required = _list(schema.get("required"))
    return [_field(root, "body", name, one, required=name in required) for name, one in properties]


def _field(root: dict[str, Any], place: str, name: str, schema: Any, *, required: bool, note: Any = "") -> Field:
    found = _resolved(root, schema)
    choices = [one for one in _list(found.get("enum"))[:MOST_CHOICES] if isinstance(one, str | int | float | bool)]
    kind = {"string": "line", "integer": "integer", "number": "number", "boolean": "choice"}.get(
        str(found.get("type")), "json"
    )
    texts = tuple(_shown(kind, one) for one in choices)
    if texts:
        kind = "choice" if found.get("type") == "string" else "any"
    elif kind == "choice":
        kind, texts = "any", ("true", "false")
    elif kind == "line" and not (isinstance(most := found.get("maxLength"), int) and most <= _LINE):
        kind = "text"
    default = found.get("default")
    value = "" if default is None else _shown(kind, default)
    note = _text(note or found.get("description"), 300)
    return Field(f"{place}.{name}", name, kind, required, value[:10_000], note, texts)


def _shown(kind: str, value: Any) -> str:
    return value if isinstance(value, str) and kind in ("line", "text", "choice") else json.dumps(value)


def request(operation: Operation, form: Mapping[str, str]) -> Call:
    """Return the request that a filled form asks for; optional fields that are empty are left out.

    Raises:
        CallerError: a value is missing, or is none of its kind.
    """
    values: dict[str, dict[str, Any]] = {place: {} for place in PARTS}
    for field in operation.fields:
        text = form.get(field.name, "").replace("\r\n", "\n")
        if field.name == WHOLE:
            return Call(operation.method, _target(operation.path, values), _json(field, text) if text.strip() else b"")
        place, _, name = field.name.partition(".")
        is_text = field.kind in ("line", "text", "choice")
        if not (text if is_text else text.strip()):
            if field.required and not (is_text and place == "body"):
                raise errors.CallerError(f"`{field.label}` is missing", hint="fill its field in")
            if not field.required:
                continue
        values[place][name] = text if is_text else json.loads(_json(field, text))
    has_body = any(one.name.startswith("body.") for one in operation.fields)
    body = json.dumps(values["body"]).encode() if has_body else b""
    return Call(operation.method, _target(operation.path, values), body)


def _json(field: Field, text: str) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = {"integer": "no whole number", "number": "no number"}.get(field.kind, "no JSON")
        hint = f"{error}; texts need double quotes" if kind == "no JSON" else "write it as `12`"
        raise errors.CallerError(f"`{field.label}` is {kind}", hint=hint) from error
    if field.kind in ("integer", "number") and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise errors.CallerError(f"`{field.label}` is no number", hint="write it as `12`")
    return text.encode()


def _target(path: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    for name, value in values["path"].items():
        text = value if isinstance(value, str) else json.dumps(value)
        path = path.replace("{" + name + "}", quote(text, safe=""))
    pairs = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values["query"].items()]
    return target(path + (f"?{urlencode(pairs)}" if pairs else ""))


def target(text: str) -> str:
    """Return a path and query as a request has them, with escapes for all else.

    Raises:
        CallerError: it is none.
    """
    if not text.startswith("/") or len(text) > 4000:
        raise errors.CallerError("a path begins with `/`", hint="such as `/`")
    path, mark, query = text.partition("?")
    return quote(path, safe=_PATH) + mark + quote(query, safe=_PATH + "?")


def plain(form: Mapping[str, str]) -> Call:
    """Return the request of the form without a description.

    Raises:
        CallerError: method, path or body are none.
    """
    method = form.get("method", "POST")
    if method not in METHODS:
        raise errors.CallerError("there is no such method", hint=f"choose one of {', '.join(METHODS)}")
    text = form.get(WHOLE, "").replace("\r\n", "\n")
    body = _json(PLAIN.fields[0], text) if text.strip() and method != "GET" else b""
    return Call(method, target(form.get("path", "/") or "/"), body)
