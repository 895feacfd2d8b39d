"""Revisions are removed that nothing needs, by name or all together; a user has bounds of them."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from atoll import Host, errors, isolated
from atoll.server.accounts import rows as accounts
from atoll.server.apps import bodies, removal
from atoll.server.apps import rows as app_rows
from atoll.server.apps.bodies import CALLED
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.bodies import Options
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.bodies import Rule

from ..waiting import until
from . import postgresql
from .process import Server, running
from .queue_app import PROGRAM, App, Front
from .test_schedules import command


@pytest.fixture
def database(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """A database of each kind with users `ann` and `bob`."""
    tmp_path.chmod(0o700)
    postgresql.empty(database_url)
    with Database(tmp_path, database_url) as found:
        with found.writing() as connection:
            for name in ("ann", "bob"):
                accounts.add_user(connection, name)
        yield found


def _revision(connection: Any, user: str, alias: str = "", size: int = 10) -> str:
    name = str(uuid4())
    rows.add(connection, user, rows.plain(name, "f", size), alias)
    return name


def test_what_is_needed_stays(database: Database) -> None:
    """Revisions of aliases, schedules (also cancelled ones) and deployments stay; those of others are unknown."""
    with database.writing() as connection:
        ann, bob = (accounts.find_user(connection, name).id for name in ("ann", "bob"))
        first, second = _revision(connection, ann, "page"), _revision(connection, ann, "page")
        loose, scheduled, cancelled = (_revision(connection, ann) for _ in range(3))
        schedule_rows.add(connection, ann, scheduled, Rule("@daily"))
        over = schedule_rows.add(connection, ann, cancelled, Rule("@daily"))
        schedule_rows.set_state(connection, ann, over, schedule_rows.CANCELLED)
        function = bodies.NewFunction("price", CALLED, 10, 0, "", "private", Options(), None)
        deployed = str(uuid4())
        app_rows.deploy(connection, ann, bodies.NewDeployment("shop", [function]), {"price": (deployed, 10)})
        others = _revision(connection, bob)
    with database.writing() as connection:
        for name, text in (
            (second, "alias `page`"),
            (scheduled, "schedule"),
            (cancelled, "schedule"),
            (deployed, "shop"),
        ):
            with pytest.raises(errors.CallerError, match=text) as caught:
                removal.remove(connection, ann, name)
            assert caught.value.details["status"] == 409
            assert ("crons cancel" in (caught.value.hint or "")) == (text == "schedule"), (
                "its history stays: no dead end"
            )
        for name in (others, str(uuid4()), "page"):
            with pytest.raises(errors.CallerError, match="no revision") as caught:
                removal.remove(connection, ann, name)
            assert caught.value.details["status"] == 404
        assert removal.remove(connection, ann, "") == [loose], "the one before the alias's stays to go back to"
        assert removal.remove(connection, ann, "") == []
        assert removal.remove(connection, ann, first) == [first], "by name it goes"
        assert removal.remove(connection, bob, "") == [others]
        assert {one.id for one in rows.all_of(connection, ann)} == {second, scheduled, cancelled, deployed}


def test_a_user_has_bounds_of_revisions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number and the bytes of their files; what is removed makes room."""
    monkeypatch.setattr(rows, "MOST_REVISIONS", 3)
    monkeypatch.setattr(rows, "MOST_REVISIONS_BYTES", 1000)
    with database.writing() as connection:
        ann = accounts.find_user(connection, "ann").id
        _revision(connection, ann, size=900)
        with pytest.raises(errors.QuotaExceeded, match="delete --unused") as caught:
            _revision(connection, ann, size=101)
        assert "GiB" in str(caught.value)
        for _ in range(2):
            _revision(connection, ann)
        with pytest.raises(errors.QuotaExceeded):
            _revision(connection, ann)
        assert len(removal.remove(connection, ann, "")) == 3
        _revision(connection, ann, size=1000)


@pytest.fixture
def made() -> Iterator[Front]:
    """A server with an app, without webhooks."""
    app = App()
    try:
        with running(tls=False, program=PROGRAM, ATOLL_TEST_APP=str(app.port)) as server:
            yield Front(server, app)
    finally:
        app.close()


def test_a_removed_revision_takes_no_requests(made: Front, tmp_path: Path) -> None:
    """Its file goes, its address is unknown, and its runner ends when the request that it has is over."""
    server: Server = made.server
    made.serve("page", keep_alive=3600)
    assert made.ask("POST", "/operator/page/echo", b"{}")[0] == 200
    found = server.ask("GET", "/v1/revisions", headers=made.user("operator"))[1]["revisions"]
    name = found[0]["id"]
    refused = command(server, tmp_path, "function", "delete", name)
    assert (refused.returncode, "the alias `page`" in refused.stderr) == (1, True)
    assert command(server, tmp_path, "alias", "delete", "page").returncode == 0
    file = server.home.path / "server" / "revisions" / name
    assert file.exists()
    assert made.ask("DELETE", f"/v1/revisions/{name}", user="bob")[0] == 404
    assert made.ask("DELETE", "/v1/revisions")[0] == 400
    done = command(server, tmp_path, "function", "delete", name)
    assert done.stdout == f"deleted {name}\n"
    until(lambda: not file.exists())  # it stays until its runner has ended
    assert made.ask("POST", f"/operator/{name}/echo", b"{}")[0] == 404
    until(lambda: not made.app.connections)
    assert "nothing is unused" in command(server, tmp_path, "function", "delete", "--unused").stderr
    assert command(server, tmp_path, "function", "delete").returncode == 2


def test_what_was_served_for_a_listener_ends_with_the_server(made: Front) -> None:
    """The next process removes it, and no other revision; an alias makes it one like others."""
    server: Server = made.server

    def registered(**options: object) -> str:
        facts = {"function": "app", "port": 8080, "options": options}
        body = json.dumps(facts).encode() + b"\nnothing that runs"
        status, data = server.ask("POST", "/v1/revisions", body, made.user("operator"))
        assert status == 201, data
        return str(data["id"])

    over, plain, kept = registered(ephemeral=True), registered(), registered(ephemeral=True)
    unused = registered()
    removed = server.ask("DELETE", "/v1/revisions?unused=1", headers=made.user("operator"))[1]["revisions"]
    assert set(removed) == {plain, unused}
    plain = registered()
    assert made.ask("POST", f"/operator/{over}/echo", b"{}")[0] == 200
    pointed = json.dumps({"revision": kept}).encode()
    assert server.ask("PUT", "/v1/aliases/kept", pointed, made.user("operator"))[0] == 200
    server.end(signal.SIGKILL)
    server.start()

    def left() -> set[str]:
        found = server.ask("GET", "/v1/revisions", headers=made.user("operator"))[1]["revisions"]
        return {one["id"] for one in found}

    until(lambda: left() == {plain, kept})
    assert made.ask("POST", f"/operator/{over}/echo", b"{}")[0] == 404


def _holds() -> None:
    """Serve, and answer nothing but health checks."""
    import http.server
    import time

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(3600)

    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


def test_runners_of_a_removed_revision_end_with_a_killed_server(tmp_path: Path) -> None:
    """The next process knows whose they are, and ends them; the file of the revision goes with them."""
    with running(tls=False) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_variables.items():
            patch.setenv(name, value)
        host = Host(server.url, key_id=server.key[0], key_secret=server.key[1])
        function = isolated(host=host, exposed_port=8080, keep_alive=600, network="none")(_holds)
        revision = function.serve().revision
        file = server.home.path / "server" / "revisions" / revision

        def states() -> list[str]:
            found = command(server, tmp_path, "calls", "list", "--json").stdout
            return [str(one["state"]) for one in json.loads(found or "[]")]

        with contextlib.closing(server.connection()) as waiting:
            waiting.request("GET", f"/operator/{revision}/", headers=server.headers())
            until(lambda: states() == ["running"])
            assert server.ask("DELETE", f"/v1/revisions/{revision}")[0] == 200
            assert states() == ["running"]
            server.end(signal.SIGKILL)
        server.start()
        until(lambda: "running" not in states())
        until(lambda: not file.exists())
