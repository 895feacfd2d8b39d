"""The API's description: of every route, and kept by the server whatever is sent by it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from ..waiting import soak
from .process import Server, running

schemathesis: Any = pytest.importorskip("schemathesis")

EXAMPLES = 5, 300
"""Requests to each operation: as is, and with `SOAK`."""


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server of these tests alone: what they send may stop its node and remove its users."""
    with running(tls=False) as found:
        yield found


def described(server: Server) -> dict[str, Any]:
    status, found = server.ask("GET", "/v1/openapi.json", headers={})
    assert status == 200
    return dict(found)


def test_all_routes_are_described(own: Server) -> None:
    """Each has an operation with a summary; errors have one form."""
    found = described(own)
    assert {
        "/healthz",
        "/v1/line",
        "/v1/openapi.json",
        "/v1/requests/{name}",
        "/v1/files/{rest}",
        "/v1/packages/{key}",
    } <= set(found["paths"])
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], f"{method} {path}"
            assert operation["responses"]["default"] == {"$ref": "#/components/responses/failure"}, f"{method} {path}"
    assert found["components"]["schemas"]["Failure"]["required"] == ["error"]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_server_answers_what_it_describes(own: Server, mode: str) -> None:
    """Requests that the description allows, and such that it does not, are answered by none of the server's own faults."""
    schema = schemathesis.openapi.from_dict(described(own))
    chosen = schemathesis.GenerationMode(mode)
    failures = dict[str, str]()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/v1/line":
            continue
        strategy = operation.as_strategy(generation_mode=chosen)

        @settings(
            max_examples=soak(*EXAMPLES),
            deadline=None,
            database=None,
            derandomize=not soak(False, True),
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def check(case: Any) -> None:
            _check(own, case)

        try:
            with contextlib.suppress(_nothing_to_send()):
                check()
        except AssertionError as error:
            failures[operation.label] = str(error)
    assert not failures


def _nothing_to_send() -> type[Exception]:
    from hypothesis.errors import Unsatisfiable

    return Unsatisfiable  # of an operation without parameters, which nothing can be wrong with


def _check(server: Server, case: Any) -> None:
    """Send a request; its answer is of no other status, type or form than described."""
    sent = case.as_transport_kwargs(base_url=server.url)
    sent["headers"] = {**sent.get("headers", {}), **server.headers()}
    import requests

    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.request(**sent, timeout=60, allow_redirects=False)
        except (requests.exceptions.InvalidHeader, UnicodeError):
            return  # no client can send it
    told = f"{sent['method']} {answer.request.url} {sent['headers']} {str(sent.get('data') or sent.get('json'))[:300]}"
    assert answer.status_code < 500, f"{answer.status_code} {answer.text[:500]}\n{told}"
    if answer.status_code >= 400 and sent["method"] != "HEAD":
        assert set(json.loads(answer.text)["error"]) == {"code", "message", "hint", "details"}, f"{answer.text}\n{told}"
