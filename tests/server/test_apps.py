"""Apps at a real server: functions of a file deployed together, called from other programs, scaled and rolled back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import Function, errors, isolated
from atoll.sdk.apps.deploying import deploy

from ..waiting import until
from .process import Server
from .test_schedules import command, host, host_of, server  # noqa: F401 - fixtures

PROGRAM = """
from atoll import isolated
from helpers import RATE

@isolated(network="none")
def price(count: int, factor: int = 1) -> int:
    print("pricing", count)
    return count * RATE * factor

@isolated(network="none")
def numbers(n):
    yield from range(n)

@isolated(network="none", schedule="* * * * * *", overlap="allow")
def tick():
    print("tick")

@isolated(network="none", exposed_port=8080, keep_alive=60)
def web_page():
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"version {RATE} of {self.path}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    print("listens", flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
CALLER = """
from atoll import Function

price = Function.lookup("shop/price")
print(price.remote(2), price.submit(3, factor=2).result(), list(price.map([1, 2])), price.spawn(5).result())
print(list(Function.lookup("shop/numbers").remote(3)), price)
"""


def written(directory: Path, rate: int, program: str = PROGRAM) -> str:
    """Write the program; return its path."""
    directory.mkdir(exist_ok=True)
    (directory / "helpers.py").write_text(f"RATE = {rate}\n")
    (directory / "shop.py").write_text(program)
    return str(directory / "shop.py")


def test_a_file_is_deployed_called_scaled_and_rolled_back(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """All of its functions are there at once, from other programs too; an app is a name and goes back in one step."""

    def run(*arguments: str) -> str:
        done = command(server, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def page() -> bytes:
        status, body = server.ask("GET", "/operator/web-page/x")
        assert status == 200, body
        return bytes(body)

    shown = run("deploy", written(tmp_path / "one", 3))
    assert "/operator/web-page" in shown
    assert 'Function.lookup("shop/price")' in shown
    caller = tmp_path / "caller.py"
    caller.write_text(CALLER)
    (key_id, secret), ca_file = server.key, str(server.ca_file)
    own = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret, "ATOLL_CA_FILE": ca_file}
    env = {"PATH": "/usr/bin:/bin", "ATOLL_HOME": str(tmp_path), **server.client_variables, **own}
    given = [sys.executable, str(caller)]
    found = subprocess.run(given, env=env, capture_output=True, text=True, timeout=300, cwd="/", check=False)
    assert found.returncode == 0, found.stderr
    lines = [line for line in found.stdout.splitlines() if not line.startswith("pricing")]
    assert lines == ["6 18 [3, 6] 15", "[0, 1, 2] <deployed shop/price>"]
    assert page() == b"version 3 of /x"

    before = schedule_of(host)
    until(lambda: host.server.ask("GET", "/v1/apps/shop/functions/tick/logs", most=1000) == b"tick\n")
    assert "scaled shop" in run("apps", "scale", "shop", "--max-concurrency", "5")
    run("deploy", written(tmp_path / "two", 4, PROGRAM.replace("* * * * * *", "0 7 * * *")))
    assert page() == b"version 4 of /x"
    options = {one["name"]: one["options"] for one in host.server.ask("GET", "/v1/apps/shop")["functions"]}
    assert options["web_page"]["max_concurrency"] == 5
    after = schedule_of(host)
    assert (after["id"], after["rule"]["cron"]) == (before["id"], "0 7 * * *")
    price = Function.lookup("shop/price", host)
    assert price.remote(2) == 8

    assert "/operator/web-page" in run("apps", "rollback", "shop")
    assert page() == b"version 3 of /x"
    assert Function.lookup("shop/price", host).remote(2) == 6
    assert price.remote(2) == 8  # the one that was looked up
    assert b"listens" in host.server.ask("GET", "/v1/apps/shop/functions/web_page/logs", most=10_000)
    with pytest.raises(errors.CallerError, match="no earlier deployment"):
        host.server.ask("POST", "/v1/apps/shop/rollback", {})

    run("deploy", written(tmp_path / "three", 5, PROGRAM[: PROGRAM.index('@isolated(network="none", schedule')]))
    assert server.ask("GET", "/operator/web-page/x")[0] == 404
    assert schedule_of(host)["state"] == "cancelled"
    assert run("apps", "delete", "shop") == "deleted shop\n"
    assert host.server.ask("GET", "/v1/apps")["apps"] == []
    with pytest.raises(errors.CallerError, match="no app `shop`"):
        Function.lookup("shop/price", host)


def schedule_of(host: Any) -> dict[str, Any]:  # noqa: F811
    """Return the one schedule of the app."""
    (found,) = [one for one in host.server.ask("GET", "/v1/schedules")["schedules"] if one["app"] == "shop"]
    return dict(found)


def plain(count: int = 1) -> int:
    return 2 * count


def needs(count: int) -> int:
    return count


def test_an_app_is_deployed_whole_or_not_at_all(server: Server, host: Any, tmp_path: Path) -> None:  # noqa: F811
    """A function that the server refuses leaves nothing of the others; mistakes name the next step."""
    files = set(server.home.path.glob("server/revisions/*"))
    good = isolated(host=host)(plain)

    def refused(kind: type[Exception], reason: str, app: str = "shop", alias: str = "", **options: Any) -> None:
        function = good.on(**options)
        with pytest.raises(kind, match=reason):
            deploy(host.server, app, {"good": good, "bad": function}, aliases={"bad": alias} if alias else {})

    refused(errors.CallerError, "bad hour", schedule="0 25 * * *")
    refused(errors.CallerError, "cannot be an alias", exposed_port=8080, alias="No_Name")
    refused(errors.CallerError, "cannot be the name of an app", app="a b")
    refused(ValueError, "both served and scheduled", exposed_port=8080, schedule="@daily")
    refused(ValueError, "has no alias", alias="name")
    with pytest.raises(TypeError, match="it needs `count`"):
        deploy(host.server, "shop", {"good": good, "bad": isolated(host=host, schedule="@daily")(needs)})
    with pytest.raises(ValueError, match="no function to deploy"):
        deploy(host.server, "shop", {})
    assert host.server.ask("GET", "/v1/apps")["apps"] == []
    assert set(server.home.path.glob("server/revisions/*")) == files
    for name in ("shop", "/x", "a/b/c"):
        with pytest.raises(ValueError, match="app/name"):
            Function.lookup(name, host)
    (empty := tmp_path / "empty.py").write_text("x = 1\n")
    assert "defines no isolated function" in command(server, tmp_path, "deploy", str(empty)).stderr


def test_apps_are_their_owners(server: Server, host: Any) -> None:  # noqa: F811
    """Another user sees, calls and deletes none of them; a key for calls looks functions up, and deploys none."""
    deploy(host.server, "shop", {"price": isolated(host=host)(plain)})
    other = host_of(server, "dora")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback"), ("GET", "/functions/price/call")):
        with pytest.raises(errors.CallerError, match="no app `shop`"):
            other.server.ask(method, f"/v1/apps/shop{path}", {} if method == "POST" else None)
    key = host.server.ask("POST", "/v1/keys", {"scope": "API"})
    calls_only = type(host)(server.url, key_id=key["id"], key_secret=key["secret"], ca_file=str(server.ca_file))
    assert Function.lookup("shop/price", calls_only).remote(2) == 4
    with pytest.raises(errors.NotAuthorized, match="insufficient permissions"):
        calls_only.server.ask("DELETE", "/v1/apps/shop")
    host.server.ask("DELETE", "/v1/apps/shop")
