"""Calls by the published clients: results, output, exceptions, environments, workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..server.process import Server
from .published import OLD, client, serving


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server in plain text on loopback, and one over TLS by names."""
    with serving(tls=request.param) as found:
        yield found


def test_client_of_2023_calls_functions(server: Server) -> None:
    """`@isolated` of fal-serverless 0.6.41 runs functions: each line of the program names an operation that held."""
    with client(OLD, server) as program:
        output = program.program("calls_2023")
    print(output)
    assert "WRONG" not in output
    assert output.count("ok ") == 17
    assert "adding 1 2" in output
    assert "to stderr" in output
