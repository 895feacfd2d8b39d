"""The command line of the client of 2023: keys, secrets, functions that are served or scheduled."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..server.process import Server
from ..waiting import soak, until
from .published import HERE, OLD, Client, client, serving


@pytest.fixture(scope="module", params=soak([True], [False, True]), ids=lambda tls: "tls" if tls else "plain")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server in plain text on loopback, or over TLS by names; the long form has both."""
    with serving(tls=request.param) as found:
        yield found


@pytest.fixture
def user(server: Server) -> Iterator[Client]:
    """A user with a published client."""
    with client(OLD, server) as found:
        yield found


def command(user: Client, group: str, *words: str | Path) -> str:
    """Run a command; the text tells how it went, since the status is 0 for errors, too."""
    host, _, port = user.variables["FAL_HOST"].partition(":")
    return user.run("fal-serverless", group, "--host", host, "--port", port, *words)


def request(server: Server, path: str, key: tuple[str, str], body: bytes | None = None) -> tuple[int, bytes]:
    """Return status and body of a request."""
    headers = {"Authorization": f"Key {key[0]}:{key[1]}", "Content-Type": "application/json"}
    asked = urllib.request.Request(server.url + path, body, headers)
    context = server.context() if server.tls else None
    try:
        with urllib.request.urlopen(asked, context=context, timeout=300) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_keys(user: Client) -> None:
    """Keys are made with their scope, listed and revoked; one of the scope API calls no functions."""
    made = command(user, "key", "generate", "--scope", "API", "--alias", "mine")
    found = re.search(r"FAL_KEY_ID='(.+?)'\s+FAL_KEY_SECRET='(.+?)'", made)
    assert found, made
    assert "mine" in command(user, "key", "list")
    own, user.key = user.key, (found[1], found[2])
    assert "Insufficient permissions" in command(user, "secrets", "list")
    user.key = own
    command(user, "key", "revoke", found[1])
    assert found[1] not in command(user, "key", "list")


def test_served_functions_secrets_and_logs(user: Client, server: Server) -> None:
    """Functions are served below their alias and by their revision; secrets are variables in them."""
    program = HERE / "programs" / "served_2023.py"
    command(user, "secrets", "set", "FROM_SECRET", "hidden")
    assert "FROM_SECRET" in (listed := command(user, "secrets", "list"))
    assert "hidden" not in listed
    served = command(user, "function", "serve", program, "greet", "--alias", "greet")
    assert "Registered a new revision for function 'greet'" in served, served
    name = user.server.ask("GET", "/v1/whoami")[1]["name"]
    status, body = request(server, f"/{name}/greet?name=ann&times=2", user.key, b"{}")
    assert (status, body) == (200, b'"hello annhello ann"'), body
    served = command(user, "function", "serve", program, "server", "--auth", "public")
    assert "Registered anonymous function" in served, served
    revision = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", served)
    assert revision, served
    # The function before this one is still served, at the same port of another network.
    assert request(server, f"/{name}/{revision[0]}/x?y=1", ("", "")) == (200, b"/x?y=1 hidden")
    aliases = command(user, "alias", "list")
    assert "greet" in aliases
    assert "private" in aliases
    assert "serves" in command(user, "function", "logs")
    command(user, "secrets", "delete", "FROM_SECRET")
    assert "FROM_SECRET" not in command(user, "secrets", "list")


def test_scheduled_functions(user: Client, server: Server) -> None:
    """A function is scheduled, listed with its next run and cancelled; its activations have logs."""
    program = HERE / "programs" / "served_2023.py"
    made = command(user, "function", "schedule", "* * * * *", program, "tick")
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", made)
    assert found, made
    assert "Active" in command(user, "crons", "list")
    schedule = found[0]

    def finished() -> str:
        runs = server.ask("GET", f"/v1/schedules/{schedule}/activations")[1]["activations"]
        return str(next((one["id"] for one in runs if one["state"] == "finished"), ""))

    activation = until(finished)
    assert activation[:8] in command(user, "crons", "activations", schedule)
    assert "ticks" in command(user, "crons", "logs", schedule, activation)
    command(user, "crons", "cancel", schedule)
    assert "Not Active" in command(user, "crons", "list")
    assert "Worker ID" in command(user, "usage", "workers")


def test_directories_are_synced(user: Client) -> None:
    """`sync_dir` brings a directory, and what it returns is a path in functions; an unchanged one is not sent again."""
    output = user.program("files_2023")
    assert "WRONG" not in output
    assert output.count("ok ") == 2
