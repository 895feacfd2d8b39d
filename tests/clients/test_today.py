"""The clients of today: calls, deployments, and calls of endpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..server.process import Server
from .published import HERE, NEW, Client, client, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server over TLS by names."""
    with serving(tls=True) as found:
        yield found


@pytest.fixture
def user(server: Server) -> Iterator[Client]:
    """A user with a published client."""
    with client(NEW, server) as found:
        yield found


def test_calls(user: Client) -> None:
    """`fal.function` calls functions with cloudpickle: results, output and exceptions."""
    output = user.program("calls_today")
    assert "WRONG" not in output
    assert output.count("ok ") == 3
    assert "adding 1 2 0.6.0" in output


def test_apps(user: Client) -> None:
    """`fal run` calls a function, `fal deploy` deploys an app, and fal-client calls it."""
    program = HERE / "programs" / "app_today.py"
    output = user.run("fal", "run", f"{program}::shout")
    assert "printed in the function" in output
    output = user.run("fal", "deploy", f"{program}::Greeter", "--app-name", "greeter", "--auth", "private")
    assert "greeter" in output
    assert "greeter" in user.run("fal", "apps", "list")
    name = user.server.ask("GET", "/v1/whoami")[1]["name"]
    output = user.program("endpoint_today", f"{name}/greeter")
    assert "WRONG" not in output
    assert output.count("ok ") == 2
    assert "main" in user.run("fal", "environments", "list")
    assert name in user.run("fal", "auth", "whoami")
    user.run("fal", "apps", "delete", "greeter")
    assert "greeter" not in user.run("fal", "apps", "list")
