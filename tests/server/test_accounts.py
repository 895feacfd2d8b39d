"""Users, keys and authentication of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.bodies import NewUser
from atoll.server.accounts.direct import Direct

from ..waiting import until
from . import postgresql
from .process import Server, running
from .shell import Shell


def headers(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Key {key['id']}:{key['secret']}", "Atoll-Protocol": "1"}


def post(server: Server, path: str, body: Any, key: dict[str, str], method: str = "POST") -> tuple[int, Any]:
    return server.ask(method, path, json.dumps(body).encode(), key)


@pytest.fixture(scope="module")
def ada(server: Server) -> dict[str, str]:
    """The headers of a user without rights of an operator."""
    added = server.add_user(NewUser("ada"))
    assert added.key is not None
    return {"Authorization": f"Key {added.key.id}:{added.key.secret}", "Atoll-Protocol": "1"}


def test_a_key_names_its_user(server: Server, ada: dict[str, str]) -> None:
    """`/v1/whoami` tells user, key and rights; the user's id is not made of the name."""
    status, found = server.ask("GET", "/v1/whoami", headers=ada)
    assert (status, found["name"], found["scope"], found["operator"]) == (200, "ada", "ADMIN", False)
    assert "ada" not in found["user"]
    assert server.ask("GET", "/v1/whoami")[1]["operator"] is True


def test_keys_are_made_listed_and_revoked_at_once(server: Server, ada: dict[str, str]) -> None:
    """A new key works until it is revoked, and its secret is in no list."""
    status, made = post(server, "/v1/keys", {"scope": "API", "alias": "laptop"}, ada)
    assert status == 201
    assert server.ask("GET", "/v1/whoami", headers=headers(made))[1]["scope"] == "API"
    _, listed = server.ask("GET", "/v1/keys", headers=ada)
    assert made["secret"] not in json.dumps(listed)
    assert [(one["id"], one["alias"]) for one in listed["keys"]][-1] == (made["id"], "laptop")
    assert server.ask("DELETE", f"/v1/keys/{made['id']}", headers=ada)[0] == 200
    status, answer = server.ask("GET", "/v1/whoami", headers=headers(made))
    assert (status, answer["error"]["code"]) == (401, "not_authorized")


def test_operators_revoke_keys_of_others(server: Server, ada: dict[str, str]) -> None:
    """An operator's ADMIN key lists and revokes anybody's keys, which is in the audit; others neither."""
    status, made = post(server, "/v1/keys", {"scope": "ADMIN", "alias": "lost"}, ada)
    assert status == 201
    _, weak = post(server, "/v1/keys", {"scope": "API"}, server.headers())
    for other in (ada, headers(weak)):
        assert server.ask("GET", "/v1/users/operator/keys", headers=other)[0] == 403
        assert server.ask("DELETE", f"/v1/keys/{server.key[0]}", headers=other)[0] in (403, 404)
    assert server.ask("DELETE", f"/v1/keys/{made['id']}", headers=headers(weak))[0] == 403
    status, listed = server.ask("GET", "/v1/users/ada/keys")
    assert status == 200
    assert made["id"] in [key["id"] for key in listed["keys"]]
    assert made["secret"] not in json.dumps(listed)
    assert server.ask("GET", "/v1/users/nobody/keys")[0] == 404
    assert server.ask("DELETE", f"/v1/keys/{made['id']}")[0] == 200
    assert server.ask("GET", "/v1/whoami", headers=headers(made))[0] == 401
    assert server.ask("GET", "/v1/audit?act=key.revoke")[1]["acts"][0]["target"] == made["id"]


@pytest.fixture
def atoll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_the_command_line_logs_in_and_handles_keys(server: Server, atoll: Shell) -> None:
    """A key on the standard input logs in; `key` and `users` then ask the server with it."""
    login = ("auth", "login", "--host", server.url, "--ca-file", str(server.ca_file))
    status, out, told = atoll(*login, typed=":".join(server.key))
    assert (status, out) == (0, ""), told
    assert server.key[1] not in told
    assert "operator at https://" in atoll("auth", "whoami")[1]
    made = atoll("key", "generate", "--scope", "API", "--alias", "two words")[1]
    found = re.fullmatch(r"export ATOLL_KEY_ID='(\w+)'\nexport ATOLL_KEY_SECRET='(\S+)'\n", made)
    assert found is not None
    listed = json.loads(atoll("key", "list", "--json")[1])
    assert [one["alias"] for one in listed if one["id"] == found[1]] == ["two words"]
    assert found[2] not in json.dumps(listed)
    variables = {"ATOLL_KEY_ID": found[1], "ATOLL_KEY_SECRET": found[2]}
    assert f"key {found[1]}, scope API" in atoll("auth", "whoami", **variables)[1]
    status, _, told = atoll("users", "list", **variables)
    assert (status, "insufficient permissions" in told) == (1, True)
    assert atoll("key", "revoke", found[1])[0] == 0
    assert "the key is not valid" in atoll("auth", "whoami", **variables)[2]
    assert atoll("users", "add", "bob", "--no-key", "--workers", "3")[0] == 0
    (bob,) = [user for user in json.loads(atoll("users", "list", "--json")[1]) if user["name"] == "bob"]
    assert (bob["workers"], bob["operator"]) == (3, False)
    assert (
        atoll("users", "set-quota", "bob", "--volume", "10GiB", "--workers", "1")[1]
        == "bob: volume 10.0 GiB, 1 worker\n"
    )
    assert atoll("users", "remove", "bob")[0] == 2
    assert "no user is called `nobody`" in atoll("users", "remove", "nobody")[2]
    theirs = json.loads(atoll("users", "add", "cat", "--json")[1])["key"]["id"]
    assert theirs in atoll("key", "list", "--user", "cat")[1]
    assert "made on the server's machine" in atoll("key", "generate", "--user", "cat")[2]
    assert atoll("key", "revoke", theirs)[0] == 0
    assert theirs not in atoll("key", "list", "--user", "cat")[1]
    assert atoll("users", "remove", "bob", "--yes")[2] == "removed the user bob; there was no volume\n"
    made = atoll("key", "generate", "--scope", "API")[1]
    status, _, told = atoll("auth", "login", "--host", server.url, typed=made)  # as printed, with the known authority
    assert status == 0, told
    assert "scope API" in atoll("auth", "whoami")[1]
    assert atoll(*login, typed=":".join(server.key))[0] == 0
    assert atoll("auth", "logout")[0] == 0
    known = atoll("auth", "login", "--host", server.url, typed=made, ATOLL_CA_FILE=str(server.ca_file))
    assert known[0] == 0, known[2]
    for path in ("/foo", "/foo/bar"):
        told = atoll("auth", "login", "--host", server.url + path, *login[4:], typed=":".join(server.key))[2]
        assert "answers 404 as no server of Atoll does" in told
        assert f"leave `{path}` out" in told
    plain = server.url.replace("https", "http")
    assert f"`{server.url}`" in atoll("auth", "login", "--host", plain, typed=":".join(server.key))[2]
    status, _, told = atoll("auth", "logout")
    assert (status, "another key ends it: `atoll key revoke " in told) == (0, True)
    told = atoll("key", "list", ATOLL_HOME=str(server.home.path))[2]
    assert "has keys of all users" in told
    assert "`--user NAME`" in told
    assert "not logged in" in atoll("auth", "whoami")[2]


def test_the_other_name_of_the_program_names_its_variables(server: Server, atoll: Shell) -> None:
    """`fal-serverless key generate` prints the variables that programs of then read, and reads them."""
    atoll.monkeypatch.setattr(sys, "argv", ["/usr/bin/fal-serverless"])
    variables = {"FAL_HOST": server.url, "FAL_KEY_ID": server.key[0], "FAL_KEY_SECRET": server.key[1]}
    found = atoll("key", "generate", "--scope", "API", ATOLL_CA_FILE=str(server.ca_file), **variables)
    assert re.fullmatch(r"export FAL_KEY_ID='\w+'\nexport FAL_KEY_SECRET='\S+'\n", found[1]), found


def test_the_time_of_a_keys_last_use_is_written_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests write nothing; the watch does, once in a minute for each key, and at the end."""
    tmp_path.chmod(0o700)
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])

    async def scenario() -> None:
        accounts = Accounts(tmp_path)
        try:
            with accounts.database.writing() as connection:
                user = rows.add_user(connection, "ada")
                key, secret = rows.add_key(connection, accounts.pepper, user, scope="API")

            def used() -> float | None:
                with accounts.database.reading() as connection:
                    return rows.keys_of(connection, user)[0].used

            async def ask_after(seconds: float) -> None:
                now[0] += seconds
                await accounts.authenticate({"authorization": f"Key {key.id}:{secret}"}, "192.0.2.1")
                await accounts.write_used()

            assert used() is None
            await ask_after(0)
            first = used()
            assert first == now[0]
            await ask_after(30)
            assert used() == first
            await ask_after(31)
            assert used() == now[0]
            await ask_after(5)
            await accounts.write_used(at_least=0)
            assert used() == now[0]
        finally:
            accounts.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_key_that_ends_while_it_is_looked_up_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """What a revocation overtakes, in this process or another, is looked up again: no line begins by a key that ended."""
    tmp_path.chmod(0o700)

    async def scenario() -> None:
        accounts = Accounts(tmp_path)
        try:
            with accounts.database.writing() as connection:
                user = rows.add_user(connection, "ada")
                key, secret = rows.add_key(connection, accounts.pepper, user, scope="API")
            run = accounts.database.run

            async def overtaken(function: Any, **options: Any) -> Any:
                found = await run(function, **options)
                monkeypatch.undo()
                if place == "here":
                    await accounts.change(lambda connection: rows.revoke(connection, key.id))
                else:
                    with Direct(tmp_path) as direct:
                        direct.revoke_key(key.id)
                return found

            monkeypatch.setattr(accounts.database, "run", overtaken)
            with pytest.raises(errors.NotAuthorized):
                await accounts.authenticate({"authorization": f"Key {key.id}:{secret}"}, "192.0.2.1")
        finally:
            accounts.close()

    asyncio.run(scenario())


def test_administrative_acts_are_in_the_audit(server: Server) -> None:
    """Who added, changed and removed a user is written with the act, by id and by the name of that time."""
    key = server.headers()
    _, added = post(server, "/v1/users", {"name": "eve", "key": False}, key)
    assert added["key"] is None
    assert post(server, "/v1/users/eve/quota", {"workers": 2}, key, "PUT")[1]["workers"] == 2
    assert server.ask("DELETE", "/v1/users/eve", headers=key)[0] == 200
    with contextlib.closing(sqlite3.connect(server.home.path / "server" / "server.db")) as connection:
        found = connection.execute(
            "SELECT act, actor_name, details FROM audit WHERE target = ? ORDER BY id", (added["user"]["id"],)
        ).fetchall()
    assert [(act, actor, json.loads(details)) for act, actor, details in found] == [
        ("user.add", "operator", {"name": "eve", "operator": False}),
        ("user.set_quota", "operator", {"name": "eve", "workers": 2}),
        ("user.remove", "operator", {"name": "eve"}),
    ]


def test_a_server_keeps_its_users_in_postgresql() -> None:
    """`--database` takes PostgreSQL, and commands on the machine ask the same one; the first start names them."""
    with postgresql.running() as url, running("--database", url, tls=False) as server:
        assert "atoll users add NAME --operator`" in server.log.read_text()
        assert server.ask("GET", "/v1/whoami")[1]["name"] == "operator"
        assert not (server.home.path / "server" / "server.db").exists()
        listed = server.home.atoll("users", "list", "--json")
        assert [user["name"] for user in json.loads(listed.stdout)] == ["operator"], listed.stderr
        with Direct(server.home.path, url) as direct:
            direct.revoke_key(server.key[0])
        until(lambda: server.ask("GET", "/v1/whoami")[0] == 401)
