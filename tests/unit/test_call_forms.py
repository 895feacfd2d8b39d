"""Forms from OpenAPI documents: fields by their schemas, requests by their values, and documents of any kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll import errors
from atoll.server.pages.serving import forms


def document(schema: dict[str, Any], **more: Any) -> bytes:
    body = {"content": {"application/json": {"schema": schema}}}
    return json.dumps({"paths": {"/": {"post": {"requestBody": body}}}, **more}).encode()


@pytest.mark.parametrize(
    ("schema", "kind", "value"),
    [
        ({"type": "string"}, "text", ""),
        ({"type": "string", "maxLength": 20, "default": "x"}, "line", "x"),
        ({"type": "integer", "default": 3}, "integer", "3"),
        ({"type": "number", "default": 0.5}, "number", "0.5"),
        ({"type": "boolean", "default": True}, "any", "true"),
        ({"enum": ["a", "b"], "type": "string", "default": "b"}, "choice", "b"),
        ({"enum": [1, 2]}, "any", ""),
        ({"type": "array", "default": [1]}, "json", "[1]"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer", ""),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "json", ""),
        ({"$ref": "#/components/schemas/Part"}, "number", ""),
        ({"$ref": "#/components/schemas/Circle"}, "json", ""),
        ({"$ref": "elsewhere"}, "json", ""),
        (True, "json", ""),
    ],
)
def test_a_schema_is_a_field(schema: Any, kind: str, value: str) -> None:
    """Each kind of value has its field, with its default."""
    parts = {"Part": {"type": "number"}, "Circle": {"$ref": "#/components/schemas/Circle"}}
    whole = {"type": "object", "properties": {"x": schema}}
    (operation,) = forms.operations(document(whole, components={"schemas": parts}))
    (field,) = operation.fields
    assert (field.name, field.kind, field.value) == ("body.x", kind, value)


def test_a_body_of_another_kind_is_json() -> None:
    """What is no object with known values is one field for all of it."""
    for schema in ({"type": "array"}, {"type": "object"}, {}):
        (operation,) = forms.operations(document(schema))
        assert [field.name for field in operation.fields] == [forms.WHOLE]
        assert forms.request(operation, {"body": "[1]"}).body == b"[1]"


def test_optional_values_are_left_out() -> None:
    """An empty field is no value, unless it is a text that the function needs."""
    properties = {"text": {"type": "string"}, "count": {"type": "integer"}}
    (operation,) = forms.operations(document({"type": "object", "properties": properties, "required": ["text"]}))
    assert json.loads(forms.request(operation, {}).body) == {"text": ""}
    assert json.loads(forms.request(operation, {"body.text": "a\r\nb", "body.count": "2"}).body) == {
        "text": "a\nb",
        "count": 2,
    }


_KEYS = st.sampled_from(
    [
        *("paths", "/", "/{x}", "post", "get", "parameters", "requestBody", "content", "application/json", "schema"),
        *("properties", "type", "$ref", "anyOf", "enum", "default", "name", "in", "required", "x", "object", "query"),
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(_JSON)
def test_any_document_is_read(found: Any) -> None:
    """A description that is wrong in any way breaks nothing, and its form makes a request or says why not."""
    for operation in forms.operations(json.dumps({"paths": {"/": {"post": found}, "/{x}": found}}).encode()):
        try:
            made = forms.request(operation, {field.name: field.value for field in operation.fields})
        except errors.CallerError:
            continue
        assert made.target.isascii()


def test_small_documents_do_not_become_large() -> None:
    """References to one large part cost no more than the fields that are shown."""
    part = {"type": "object", "properties": {f"x{number}": {"enum": list(range(1000))} for number in range(1000)}}
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Part"}}}}
    paths = {f"/{number}": {"post": {"requestBody": body}} for number in range(1000)}
    found = forms.operations(json.dumps({"paths": paths, "components": {"schemas": {"Part": part}}}).encode())
    assert sum(len(one.fields) for one in found) <= forms.MOST_OF_ALL + forms.MOST_FIELDS
    assert max(len(one.fields) for one in found) == forms.MOST_FIELDS
    assert {len(field.choices) for field in found[0].fields} == {forms.MOST_CHOICES}


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"paths": 3}', b'{"paths": {"/": []}}'])
def test_other_texts_have_no_operations(text: bytes) -> None:
    """What is no description has no form."""
    assert forms.operations(text) == []


@pytest.mark.parametrize(
    ("given_target", "made"),
    [
        ("/", "/"),
        ("/a b?c=d e", "/a%20b?c=d%20e"),
        ("/x\r\ny: z", "/x%0D%0Ay:%20z"),
        ("/ä", "/%C3%A4"),
        ("/a%2fb", "/a%2fb"),
        ("/#x", "/%23x"),
    ],
)
def test_targets_are_of_one_line(given_target: str, made: str) -> None:
    """Nothing in a path begins another line of a request."""
    assert forms.target(given_target) == made
