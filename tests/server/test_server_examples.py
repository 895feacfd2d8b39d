"""The programs in `examples/server/` at one real server, by the names of 2023; the long form has today's names, too.

They follow the pages of 2023 on serving, queue, webhooks, cron, secrets and keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import Host, isolated
from atoll.sdk.apps.output import endpoint_of

from .example_programs import EXAMPLES, NAMES, Examples, needs_curl
from .process import Server, running

LOOPBACK = '[webhooks]\nallowed_networks = ["127.0.0.0/8"]\n'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may tell programs of this machine of answers."""
    with running(tls=False, settings=LOOPBACK) as found:
        yield found


@pytest.fixture(params=NAMES)
def examples(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Examples:
    """The programs by the names of one generation."""
    return Examples(server, tmp_path, request.param)


@needs_curl
def test_functions_are_served(examples: Examples, server: Server) -> None:
    """A function is called at its alias and by its revision; what it printed can be read."""
    lines = examples.run("serve.sh")
    assert re.fullmatch(r"Registered a new revision for function 'shout' \(revision='[0-9a-f-]{36}'\)\.", lines[0])
    assert lines[1] == f"URL: {server.url}/operator/shout"
    assert lines[2] == ('"HELLO"' if examples.name == "atoll" else '{"result":"HELLO"}')
    revision = re.fullmatch(r"Registered anonymous function '([0-9a-f-]{36})'\.", lines[3])
    assert revision
    assert lines[4:6] == [f"URL: {server.url}/operator/{revision[1]}", '{"result":"HELLO"}']
    assert "shouting hello" in lines[6:]
    assert lines[-1].split()[0] == "shout"


def test_requests_wait_in_the_queue(examples: Examples) -> None:
    """Of two requests the first is answered, and the second is cancelled while it waits."""
    status, *lines = examples.run("queued.py")
    assert re.fullmatch(r"the second request: IN_QUEUE behind [01] others", status)  # the first one may have begun
    assert lines == [
        "cancelled: CANCELLATION_REQUESTED",
        "the first request: {'words': 5}",
        "the second request: 499 client_cancelled",
    ]


def test_answers_are_told(examples: Examples) -> None:
    """A program of this machine is told of an answer, with a signature that it checks."""
    assert examples.run("webhook.py") == ["told: OK {'words': 5}"]


def test_functions_run_by_the_clock(examples: Examples) -> None:
    """A schedule is listed, its runs too, with what they printed; then it is cancelled."""
    lines = examples.run("schedule.sh")
    assert "Active" in lines[1]
    joke = lines.index("The joke of the day:")
    assert lines[joke + 1].startswith("> ")
    assert re.fullmatch(r"cancelled [0-9a-f-]{36}", lines[-1])


def test_secrets_are_variables(examples: Examples) -> None:
    """A secret is listed without its value, a function has it, and has it no more when it is deleted."""
    lines = examples.run("secrets.sh")
    assert "SECRET_NAME" in "".join(lines[:3])
    assert "swordfish" not in "".join(lines)
    assert lines[-3:] == ["a secret of 9 characters", "deleted SECRET_NAME", "no secret"]


@needs_curl
def test_keys_have_scopes(examples: Examples) -> None:
    """A key of the scope API calls endpoints and makes no keys; it is listed, and revoked."""
    lines = examples.run("keys.sh")
    assert "WITH A KEY OF MY OWN" in lines[0]
    assert lines[1] == "a key of the scope API makes no keys"
    assert any("a-colleague" in line for line in lines[2:])


def half(number: int) -> int:
    if number % 2:
        raise ValueError("it is odd")
    return number // 2


def test_failures_have_the_form_of_2023(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is an object with `result`, or with `error` and status 400 or 500."""
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    host = Host(server.url, key_id=server.key[0], key_secret=server.key[1])
    isolated(host=host, serve=True, keep_alive=60)(half).serve("half", enveloped=True)
    assert server.ask("POST", "/operator/half", b'{"number": 4}') == (200, {"result": 2})
    status, wrong = server.ask("POST", "/operator/half", b'{"number": "four"}')
    assert (status, list(wrong)) == (400, ["error"])
    assert wrong["error"].startswith("number: ")
    assert server.ask("POST", "/operator/half", b'{"number": 3}') == (500, {"error": "ValueError: it is odd"})


def test_next_steps_are_those_of_callers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a key hears how one is sent; an alias with one revision goes back to none."""
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    host = Host(server.url, key_id=server.key[0], key_secret=server.key[1])
    isolated(host=host, serve=True)(half).serve("alone")
    status, found = server.ask("POST", "/operator/alone", b"{}", {"accept": "*/*"})
    assert (status, found["hint"]) == (401, "send it as `Authorization: Key ID:SECRET`")
    status, found = server.ask("PUT", "/v1/aliases/alone", b"{}")
    assert status == 400
    assert found["error"]["message"] == "`alone` has pointed to no revision before"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("", ""),
        ("hello", "hello"),
        ("https://lab.example/ada/hello", "hello"),
        ("https://lab.example/ada/hello/", "hello"),
        ("https://17-hello.gateway.lab.example:8443", "hello"),
        ("17-hello.gateway.lab.example", "hello"),
        ("lab.example", ""),
        ("http://localhost:8000", ""),
    ],
)
def test_addresses_name_endpoints(url: str, name: str) -> None:
    """An address, a host name or a name alone is one endpoint; a server's own address is all of them."""
    assert endpoint_of(url) == name


def test_every_example_is_run_here() -> None:
    """No program of `examples/server/` is without a test."""
    tests = [Path(__file__), Path(__file__).with_name("test_language_model.py")]
    run = set(re.findall(r'\.run\("([^"]+)"', "".join(path.read_text() for path in tests)))
    scripts = "".join((EXAMPLES / name).read_text() for name in run)
    for path in EXAMPLES.glob("*.*"):
        assert path.name in run or path.name in scripts, path.name
