"""The API's description in OpenAPI 3.1, made from the routes and the types of their bodies and answers.

A route says what it takes by attributes of its endpoint: `typed` (`server.typed`), with the types of body and answer; or
`described`, operations by method as OpenAPI has them. Of others, method, path and the docstring's first paragraph are told.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from atoll import __version__
from atoll.server.state import ServerState, state_of

PATH = "/v1/openapi.json"
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")
_COMPONENTS = "#/components/schemas/{name}"


class ErrorFacts(msgspec.Struct, frozen=True):
    """A named error: what happened, and the next step."""

    code: str
    message: str
    hint: str
    details: dict[str, Any]


class Failure(msgspec.Struct, frozen=True):
    """The answer to a request that failed."""

    error: ErrorFacts


_LINE: dict[str, Any] = {
    "get": {
        "operationId": "line",
        "summary": "Open a line: a WebSocket for one lease, request or storage channel.",
        "description": "Subprotocol `atoll.1`. A request that asks for no upgrade is refused.",
        "responses": {
            "101": {"description": "the line is open"},
            "default": {"$ref": "#/components/responses/failure"},
        },
    }
}
"""Told by hand: lines are no route, but a protocol below them (`server.upgrade`)."""


def install(state: ServerState) -> None:
    """Add the route; a part of the server."""
    state.routes.append(Route(PATH, _answer, methods=["GET"]))


async def _answer(request: Request) -> Response:
    """Tell this description; no key is needed."""
    state = state_of(request)
    data: bytes | None = state.parts.get("description")
    if data is None:  # the parts have added their routes by now
        data = state.parts["description"] = msgspec.json.encode(describe(state.routes))
    return Response(data, media_type="application/json")


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the description of those routes that programs use: health, and all below `/v1/`."""
    shown = [route for route in routes if isinstance(route, Route) and _is_shown(route.path)]
    kinds = [kind for route in shown for kind in _kinds(route)]
    _, components = msgspec.json.schema_components([Failure, *kinds], ref_template=_COMPONENTS)
    paths: dict[str, dict[str, Any]] = {"/v1/line": _LINE}
    for route in shown:
        path = _PARAMETER.sub(r"{\1}", re.sub(r"(?<=[^/])(?={\w+:path})", "/", route.path))
        paths.setdefault(path, {}).update(_operations(route))
    failure = {
        "description": "it failed; `error` names the reason and the next step",
        "content": {"application/json": {"schema": {"$ref": _COMPONENTS.format(name=Failure.__name__)}}},
    }
    key = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`Key ID:SECRET`"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Atoll",
            "version": __version__,
            "description": "Functions in sandboxes, each user with a `/data`. Errors are JSON, with `error.code` as a name.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "responses": {"failure": failure},
            "securitySchemes": {"key": key},
        },
        "security": [{"key": []}],
    }


def _is_shown(path: str) -> bool:
    return path.startswith("/v1/") or path in ("/healthz", "/readyz")


def _kinds(route: Route) -> Iterator[Any]:
    typed = getattr(route.endpoint, "typed", None)
    if typed is not None:
        yield from (kind for kind in (typed.body, typed.answer) if kind is not None)


def _operations(route: Route) -> Mapping[str, Any]:
    described: Mapping[str, Any] | None = getattr(route.endpoint, "described", None)
    methods = sorted(method.lower() for method in route.methods or () if method != "HEAD")
    return {method: _operation(route, method, (described or {}).get(method, {})) for method in methods}


def _operation(route: Route, method: str, more: Mapping[str, Any]) -> dict[str, Any]:
    summary, _, text = (inspect.getdoc(route.endpoint) or "").partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": f"{method}_{re.sub(r'[^a-z0-9]+', '_', route.path.lower()).strip('_')}",
        "summary": " ".join(summary.split()),
        "responses": {"200": {"description": "the answer"}, "default": {"$ref": "#/components/responses/failure"}},
    }
    if text:
        operation["description"] = text
    if not route.path.startswith("/v1/") or route.path == PATH:
        operation["security"] = []  # for those who watch the server, and have no key
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(route.path)
    ]
    typed = getattr(route.endpoint, "typed", None)
    if typed is not None:
        if typed.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(typed.body)}
        answer = {"description": "the answer", "content": _content(typed.answer)}
        operation["responses"] = {str(typed.status): answer, "default": operation["responses"]["default"]}
    operation.update(more)
    if parameters:
        operation["parameters"] = parameters + list(more.get("parameters", ()))
    return operation


def _content(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_COMPONENTS)
    return {"application/json": {"schema": schema}}
