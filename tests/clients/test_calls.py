"""Calls by the published clients: results, output, exceptions, environments, workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..server.process import Server
from ..waiting import soak, until
from .published import HERE, OLD, client, serving


@pytest.fixture(scope="module", params=soak([False], [False, True]), ids=lambda tls: "tls" if tls else "plain")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server in plain text on loopback, or over TLS by names; the long form has both."""
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


def test_call_ends_with_its_client(server: Server) -> None:
    """A client that is killed drops the stream, and the call ends; one that waits longer than its pings goes on."""
    with client(OLD, server) as program:
        long = HERE / "programs" / "long_2023.py"
        with program.started("python", "-u", long, "600") as process:
            assert process.stdout is not None
            until(lambda: "has begun" in process.stdout.readline())  # type: ignore[union-attr]
            assert server.ask("POST", "/v1/requests/calls.running")[1]["calls"]
        until(lambda: not server.ask("POST", "/v1/requests/calls.running")[1]["calls"])
        assert "result" in program.run("python", long, str(soak(0, 100)))
