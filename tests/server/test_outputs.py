"""Outputs of an endpoint's runners: what is shown of which, as it comes, and to whom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, errors, isolated
from atoll.sdk.apps.deploying import deploy

from ..waiting import until
from .process import Server
from .test_schedules import command, host, host_of, server  # noqa: F401 - fixtures

_MAIN = "import sys; from atoll.cli.main import main; sys.exit(main())"


def serves() -> None:
    """Print each path that is asked for."""
    import http.server
    import os

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/exit":
                os._exit(3)
            print("asked for", self.path, flush=True)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for number in range(100):
        print("line", number, flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


def fails() -> None:
    print("loading")
    raise ValueError("no model")


def ask(server: Server, path: str) -> int:  # noqa: F811
    return server.ask("GET", path)[0]


def said(server: Server, home: Path, *arguments: str) -> str:  # noqa: F811
    done = command(server, home, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_output_of_runners_is_shown(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """By alias, by revision and by address: the last lines of those that run with their state; all with `--all`."""
    made = isolated(host=host, exposed_port=8080, keep_alive=600, network="none", machine_type="XS")(serves).serve(
        "loud"
    )
    assert "has had no runner" in command(server, tmp_path, "function", "logs", "loud").stderr
    assert ask(server, "/operator/loud/first") == 200
    until(lambda: "asked for /first" in said(server, tmp_path, "function", "logs", "loud"))
    for given in (["loud"], [made.revision], ["--url", made.url, "--all"]):
        lines = said(server, tmp_path, "fn", "logs", *given, "-n", "2").splitlines()
        assert lines[:2] == ["line 99", "asked for /first"]
        assert "serves: running for" in lines[2]
    assert ask(server, "/operator/loud/exit") == 502
    until(lambda: "asked for /second" in _second(server, tmp_path))
    shown = said(server, tmp_path, "function", "logs", "loud", "-n", "1")
    assert "/first" not in shown
    everything = said(server, tmp_path, "function", "logs", "loud", "--all", "-n", "1")
    assert everything.index("/first") < everything.index("exited after") < everything.index("/second")
    found = json.loads(said(server, tmp_path, "function", "logs", "loud", "--json"))
    assert [one["state"] for one in found["runners"]] == ["running"]
    assert found["alias"] == "loud"


def _second(server: Server, home: Path) -> str:  # noqa: F811
    ask(server, "/operator/loud/second")
    return said(server, home, "function", "logs", "loud")


def test_outputs_are_followed_from_runner_to_runner(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """`-f` goes on to runners that start later; each is named when the output changes to it."""
    isolated(host=host, exposed_port=8080, keep_alive=600, network="none", machine_type="XS")(serves).serve("followed")
    key_id, secret = server.key
    own = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret, "ATOLL_HOME": str(tmp_path)}
    env = {**os.environ, **server.client_variables, **own, "ATOLL_CA_FILE": str(server.ca_file)}
    given = [sys.executable, "-c", _MAIN, "function", "logs", "followed", "-f"]
    with subprocess.Popen(given, env=env, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            for path, status in (("one", 200), ("exit", 502), ("two", 200)):
                until(lambda path=path, status=status: ask(server, f"/operator/followed/{path}") == status)  # type: ignore[misc]
                if status == 200:
                    assert "serves <==" in next(line for line in follower.stdout if line.startswith("==> "))
                    assert next(line for line in follower.stdout if "asked" in line) == f"asked for /{path}\n"
                else:
                    assert "exited after" in next(line for line in follower.stdout if line.startswith("-- "))
        finally:
            follower.kill()


def test_a_runner_that_fails_names_the_command_that_tells_why(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """The hint's command shows the output of the runner that is over, and its error."""
    isolated(host=host, exposed_port=8080, network="none", machine_type="XS")(fails).serve("broken")
    status, body = server.ask("GET", "/operator/broken")
    assert status == 503
    assert "ended before its server listened: ValueError: no model" in body["detail"]
    assert "`atoll function logs broken`" in body["hint"]
    shown = until(lambda: _of_failed(said(server, tmp_path, "function", "logs", "broken")))
    assert shown[0] == "loading"
    assert "fails: error after" in shown[1]
    assert shown[2] == "ValueError: no model"
    assert "loading" in said(server, tmp_path, "function", "logs")  # of all


def _of_failed(text: str) -> list[str]:
    lines = text.splitlines()
    return lines if len(lines) == 3 else []


def test_apps_show_the_same(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """`atoll apps logs` shows runners of a served function, and the last run of a scheduled one; others say where to look."""
    served = isolated(host=host, exposed_port=8080, keep_alive=600, network="none", machine_type="XS")(serves)
    ticks = isolated(host=host, network="none", schedule="* * * * * *", machine_type="XS")(_tick)
    deploy(host.server, "loudly", {"web": served, "tick": ticks, "price": isolated(host=host)(_price)})
    try:
        assert ask(server, "/operator/web/x") == 200
        until(lambda: "asked for /x" in said(server, tmp_path, "apps", "logs", "loudly", "web", "-n", "3"))
        assert json.loads(said(server, tmp_path, "apps", "logs", "loudly", "web", "--json"))["alias"] == "web"
        until(lambda: "ticks" in command(server, tmp_path, "apps", "logs", "loudly", "tick").stdout)
        refused = command(server, tmp_path, "apps", "logs", "loudly", "price")
        assert refused.returncode == 1
        assert "goes to the programs that call it" in refused.stderr
        revisions = host.server.ask("GET", "/v1/revisions")["revisions"]
        plain = next(one["id"] for one in revisions if one["function"] == "price")
        with pytest.raises(errors.CallerError, match="is not served"):
            host.server.ask("GET", f"/v1/revisions/{plain}/logs")
    finally:
        host.server.ask("DELETE", "/v1/apps/loudly")


def _tick() -> None:
    print("ticks")


def _price() -> int:
    return 1


def test_outputs_are_their_owners(server: Server, host: Host) -> None:  # noqa: F811
    """Another user hears that there is no such revision; a wrong `seen` is refused."""
    made = isolated(host=host, exposed_port=8080, network="none", machine_type="XS")(serves).serve("mine")
    other = host_of(server, "lena")
    for name in ("mine", made.revision):
        with pytest.raises(errors.CallerError, match="no alias or revision"):
            other.server.ask("GET", f"/v1/revisions/{name}/logs")
    status, answer = server.ask("GET", "/v1/revisions/mine/logs?seen=x")
    assert (status, answer["error"]["code"]) == (400, "caller_error")
