"""The operations on files and packages, as the API's description has them."""

from __future__ import annotations

from typing import Any

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FAILURE = {"$ref": "#/components/responses/failure"}
_TEXT: dict[str, Any] = {"type": "string"}


def _flag(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": [""]}
    return {"name": name, "in": "query", "description": description, "allowEmptyValue": True, "schema": schema}


def _value(name: str, description: str, schema: dict[str, Any] = _TEXT) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _answers(*statuses: int) -> dict[str, Any]:
    return {**{str(status): {"description": "done"} for status in statuses}, "default": _FAILURE}


_UPLOAD = _value("upload", "the id of an upload in parts")
OPERATIONS: dict[str, dict[str, Any]] = {
    "get": {
        "summary": "Read a file, or list a directory.",
        "description": "A path that ends in `/` is a directory. Ranges and conditions count, as in RFC 9110.",
        "parameters": [
            _flag("list", "list a directory whose path does not end in `/`"),
            _flag("stat", "tell the facts of a file"),
            _flag("nofollow", "with `stat`: of a symlink itself"),
            _flag("inline", "for a browser to show, where that is harmless"),
            _value("limit", "entries of a list", {"type": "integer", "minimum": 1, "maximum": 10_000}),
            _value("after", "the name behind which a list begins"),
            _UPLOAD,
            _header("Range", "a part of a file, such as `bytes=0-99`"),
            _header("If-None-Match", "an entity tag that is known"),
        ],
        "responses": {
            "200": {"description": "the file or the list", "content": {**_BINARY, "application/json": {"schema": {}}}},
            "206": {"description": "the range", "content": _BINARY},
            "304": {"description": "as it is known"},
            "default": _FAILURE,
        },
    },
    "put": {
        "summary": "Write a file: whole, or as a part of an upload.",
        "parameters": [_UPLOAD, _header("Content-Range", "of a part"), _header("If-Match", "the version to replace")],
        "requestBody": {"required": True, "content": _BINARY},
        "responses": _answers(200, 201, 202, 204),
    },
    "post": {
        "summary": "Make a directory, move or copy.",
        "parameters": [
            _flag("mkdir", "make a directory, and those above it"),
            _flag("exist_ok", "with `mkdir`: one that is there is in order"),
            _value("move", "the new path"),
            _flag("replace", "with `move`: replace what is there"),
            _value("copy", "the path of the copy"),
        ],
        "responses": _answers(200, 201),
    },
    "delete": {
        "summary": "Remove a file or an empty directory.",
        "parameters": [_flag("recursive", "with all that is below it"), _UPLOAD],
        "responses": _answers(204),
    },
}

_PRESENT = {"200": {"description": "whether it is there", "content": {"application/json": {"schema": {}}}}}
PACKAGE_OPERATIONS: dict[str, dict[str, Any]] = {
    "get": {"summary": "Tell whether a package is there.", "responses": {**_PRESENT, "default": _FAILURE}},
    "put": {
        "summary": "Upload a wheel or a source distribution, for environments of one's own.",
        "description": "`key` is its SHA-256 in hexadecimal digits, `name` that of its build.",
        "requestBody": {"required": True, "content": _BINARY},
        "responses": _answers(201),
    },
}
DIRECTORY_OPERATIONS: dict[str, dict[str, Any]] = {
    "get": {
        "summary": "Tell whether a directory of packages is there.",
        "responses": {**_PRESENT, "default": _FAILURE},
    },
    "put": {
        "summary": "Make a directory of packages that are there; the answer names those that are missing.",
        "description": "The body has a line `DIGEST NAME` for each package, and `key` is its SHA-256.",
        "requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}},
        "responses": _answers(201, 202),
    },
}
