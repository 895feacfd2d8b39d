"""Attacks on keys: forged, guessed, replayed, of the wrong scope, of others; and places where a secret could be read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from atoll import errors
from atoll.server.accounts import rows, tokens
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.bodies import MadeKey, NewKey, NewUser
from atoll.server.accounts.direct import Direct
from atoll.server.accounts.limiter import ATTEMPTS, Limiter
from atoll.server.accounts.sessions import COOKIE
from atoll.server.addresses import source
from atoll.server.database.tables import keys, page_sessions
from atoll.server.pages import guard
from atoll.server.principal import ADMIN, API, Principal

from ..server.process import Server, running
from ..server.raw_line import RawLine, connect
from ..waiting import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose failed attempts are this module's; afterwards no secret is found in its state or log."""
    with running(tls=False) as found:
        yield found
        secrets = [secret.encode() for secret in _secrets]
        for path in found.home.path.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert [secret for secret in secrets if secret in content] == [], path


_secrets: list[str] = []


def made(server: Server, name: str, scope: str = ADMIN) -> tuple[str, MadeKey]:
    """Return the id of a user, who is added when new, and a new key."""
    with Direct(server.home.path) as direct:
        found = [user.id for user in direct.list_users().users if user.name == name]
        user = found[0] if found else direct.add_user(NewUser(name, key=False)).user.id
        key = direct.make_key(name, NewKey(scope))
    _secrets.append(key.secret)
    return user, key


def with_key(key: MadeKey) -> dict[str, str]:
    return {"Authorization": f"Key {key.id}:{key.secret}"}


def status(server: Server, headers: dict[str, str], path: str = "/v1/whoami") -> int:
    return server.ask("GET", path, headers=headers)[0]


# --- forged keys ------------------------------------------------------------------------------------------------------


def forgeries(key: MadeKey, other: MadeKey) -> dict[str, str]:
    """Return headers that are like a valid one."""
    pair = f"{key.id}:{key.secret}"
    return {
        "the scheme alone": "Key",
        "an empty key": "Key ",
        "a colon": "Key :",
        "an id alone": f"Key {key.id}",
        "an id and a colon": f"Key {key.id}:",
        "a secret alone": f"Key :{key.secret}",
        "the key without its scheme": pair,
        "another scheme": f"Bearer {pair}",
        "Basic, as it was once": f"Basic {pair}",
        "Basic in base64": f"Basic {base64.b64encode(pair.encode()).decode()}",
        "the secret of another key": f"Key {key.id}:{other.secret}",
        "a prefix of the secret": f"Key {pair[:-1]}",
        "the secret and more": f"Key {pair}x",
        "the secret in capitals": f"Key {key.id}:{key.secret.upper()}",
        "the id in capitals": f"Key {key.id.upper()}:{key.secret}",
        "a wrong secret": f"Key {key.id}:atoll_{'A' * 43}",
        "an id that was made up": f"Key {'0' * 32}:{key.secret}",
        "an id with one digit changed": f"Key {_turned(key.id)}:{key.secret}",
        "the digest for the secret": f"Key {key.id}:{'0' * 64}",
        "two keys": f"Key {pair}, Key {pair}",
        "two keys with a semicolon": f"Key {pair};{pair}",
        "a space within": f"Key {key.id}: {key.secret}",
        "a tab": f"Key\t{pair}",
        "two spaces": f"Key  {pair}",
        "an escape of a colon": f"Key {key.id}%3A{key.secret}",
        "a statement": f"Key {key.id}' OR '1'='1:{key.secret}",
        "a wildcard": f"Key %:{key.secret}",
        "a letter of Latin-1": f"Key {key.id}:{key.secret}\xe9",
        "a look-alike": f"Key {key.id}:{key.secret[:-1]}\xd0\xb0",
        "a long secret": f"Key {key.id}:{key.secret}{'x' * 50_000}",
        "a long id": f"Key {key.id * 1500}:{key.secret}",
        "JSON": json.dumps({"id": key.id, "secret": key.secret}),
    }


def _turned(key_id: str) -> str:
    return f"{(int(key_id[0], 16) + 1) % 16:x}{key_id[1:]}"


def test_forged_keys_are_refused_alike(server: Server) -> None:
    """Each forgery gets the same answer, so that none tells whether an id exists or how near a secret is."""
    _, key = made(server, "ada")
    _, other = made(server, "bob")
    assert status(server, with_key(key)) == 200
    answers = {}
    for name, value in forgeries(key, other).items():
        found = server.ask("GET", "/v1/whoami", headers={"Authorization": value})
        answers[name] = found[0], found[1]["error"]["message"]
    refused = 401, "the key is not valid"
    too_large = 431, "the head of the request is too large"  # of several pieces, as TLS has them
    assert {answers.pop(name) for name in ("a long secret", "a long id")} <= {refused, too_large}
    assert set(answers.values()) == {refused}, answers
    assert status(server, {}) == 401


@pytest.mark.parametrize(
    "lines",
    [
        "Authorization: {ada}\r\nAuthorization: {bob}",
        "Authorization: {bob}\r\nAuthorization: {ada}",
        "Authorization: {ada}\r\nAuthorization: Key x",
        "Authorization: Key x\r\n {ada}",
        "Authorization : {ada}",
        "X-Authorization: {ada}",
        "Proxy-Authorization: {ada}",
        "Authorization: {ada}\x00",
        "Authorization: {ada}\x0b",
        "Authorization: \x00{ada}",
    ],
)
def test_heads_that_two_programs_read_differently_name_nobody(server: Server, lines: str) -> None:
    """Two keys, folded lines and control characters are refused: a proxy may have read another key than the server."""
    _, ada = made(server, "ada")
    _, bob = made(server, "bob")
    head = lines.format(ada=with_key(ada)["Authorization"], bob=with_key(bob)["Authorization"])
    with contextlib.closing(connect(server)) as connection:
        connection.sendall(
            f"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n{head}\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert re.match(rb"HTTP/1.1 (401|400) ", answer), answer[:200]
    assert b'"name"' not in answer


def test_headers_of_a_request_name_no_user(server: Server) -> None:
    """Headers that a proxy could set for the server count for nothing, beside a key or without one."""
    _, key = made(server, "ada")
    claims = {"X-User": "operator", "X-Forwarded-User": "operator", "Remote-User": "operator", "Atoll-User": "operator"}
    assert status(server, claims) == 401
    assert server.ask("GET", "/v1/whoami", headers=with_key(key) | claims)[1]["name"] == "ada"


# --- revoked keys -----------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_of_no_use_to_the_next_request(server: Server) -> None:
    """Whoever revokes it, the server itself or a command on its machine, the very next request is refused."""
    _, key = made(server, "ada")
    for end in (lambda one: server.ask("DELETE", f"/v1/keys/{one.id}", headers=with_key(key)), _revoke_here(server)):
        _, one = made(server, "ada", API)
        assert [status(server, with_key(one)) for _ in range(3)] == [200, 200, 200]
        end(one)
        assert status(server, with_key(one)) == 401
    assert status(server, with_key(key)) == 200


def _revoke_here(server: Server) -> Any:
    def revoke(key: MadeKey) -> None:
        with Direct(server.home.path) as direct:
            direct.revoke_key(key.id)

    return revoke


def test_lines_end_with_their_key(server: Server) -> None:
    """A line that is open ends when its key is revoked or its user removed, and cannot be resumed; others go on."""
    _, key = made(server, "ada")
    lines = {}
    for name in ("revoked", "carol", "stays"):
        _, lines[name] = made(server, "carol" if name == "carol" else "ada")
    opened = {name: RawLine(server, {"type": "storage"}, key=f"{one.id}:{one.secret}") for name, one in lines.items()}
    try:
        for line in opened.values():
            line.header("granted")
        server.ask("DELETE", f"/v1/keys/{lines['revoked'].id}", headers=with_key(key))
        with Direct(server.home.path) as direct:
            direct.remove_user("carol")
        for name in ("revoked", "carol"):
            until(lambda: _has_ended(opened[name]))
        opened["stays"].send_frames({"type": "hello"})
        assert opened["stays"].message().type
    finally:
        for line in opened.values():
            line.socket.close()


def _has_ended(line: RawLine) -> bool:
    line.socket.settimeout(0.5)
    try:
        return line.socket.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_removed_user_leaves_nothing_to_a_successor(server: Server) -> None:
    """Somebody who gets the name of a user who is gone gets another id, and the old keys stay refused."""
    first, old = made(server, "dave")
    with Direct(server.home.path) as direct:
        direct.remove_user("dave")
    second, new = made(server, "dave")
    assert first != second
    assert status(server, with_key(old)) == 401
    assert server.ask("GET", "/v1/whoami", headers=with_key(new))[1]["user"] == second


# --- rights -----------------------------------------------------------------------------------------------------------

ADMINISTRATION: list[tuple[str, str, Any]] = [
    ("GET", "/v1/users", None),
    ("POST", "/v1/users", {"name": "mallory", "operator": True}),
    ("DELETE", "/v1/users/operator", None),
    ("PUT", "/v1/users/operator/quota", {"workers": 0}),
]
KEYS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/keys", None),
    ("POST", "/v1/keys", {"scope": "ADMIN"}),
    ("POST", "/v1/keys", {"scope": "API"}),
    ("DELETE", "/v1/keys/ID", None),
]


def attempt(server: Server, key: dict[str, str], method: str, path: str, body: Any) -> tuple[int, Any]:
    return server.ask(method, path, None if body is None else json.dumps(body).encode(), key)


@pytest.mark.parametrize(("method", "path", "body"), ADMINISTRATION + KEYS)
def test_a_key_of_the_wrong_scope_does_nothing(server: Server, method: str, path: str, body: Any) -> None:
    """An API key neither administers nor handles keys, not even an operator's."""
    with Direct(server.home.path) as direct:
        assert server.key
        operators = direct.make_key("operator", NewKey(API))
        _secrets.append(operators.secret)
    _, victim = made(server, "ada")
    code, answer = attempt(server, with_key(operators), method, path.replace("ID", victim.id), body)
    assert code == 403
    assert "insufficient permissions" in answer["error"]["message"]
    assert status(server, with_key(victim)) == 200


@pytest.mark.parametrize(("method", "path", "body"), ADMINISTRATION)
def test_a_user_administers_nothing(server: Server, method: str, path: str, body: Any) -> None:
    """An ADMIN key of somebody who is no operator is for their own keys."""
    assert server.key
    _, key = made(server, "ada")
    assert attempt(server, with_key(key), method, path, body)[0] == 403
    assert attempt(server, {}, method, path, body)[0] == 401
    with Direct(server.home.path) as direct:
        assert "mallory" not in [user.name for user in direct.list_users().users]


def test_keys_of_others_do_not_exist(server: Server) -> None:
    """Who revokes another user's key hears the same as of an id that was made up, and changes nothing."""
    _, ada = made(server, "ada")
    _, bob = made(server, "bob")
    answers = [attempt(server, with_key(ada), "DELETE", f"/v1/keys/{one}", None) for one in (bob.id, _turned(bob.id))]
    assert [code for code, _ in answers] == [404, 404]
    assert len({re.sub("`.*`", "", answer["error"]["message"]) for _, answer in answers}) == 1
    assert status(server, with_key(bob)) == 200
    assert bob.id not in json.dumps(attempt(server, with_key(ada), "GET", "/v1/keys", None)[1])


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{",
        b"[" * 60_000,
        b'{"scope": "ROOT"}',
        b'{"scope": "ADMIN\\u0000"}',
        b'{"scope": ["ADMIN"]}',
        b'{"user": "operator"}',
        b'{"operator": true}',
        b'{"alias": "\\u001b[2J"}',
        b'{"alias": "\\u0430lias"}',
        b'{"alias": "' + b"x" * 65 + b'"}',
        b'{"expires_seconds": -1}',
        b'{"expires_seconds": 1e400}',
        b'{"expires_seconds": NaN}',
        b'{"alias": "\xff"}',
        b'{"alias": "' + b"x" * 100_000 + b'"}',
    ],
)
def test_bodies_of_another_form_are_refused(server: Server, body: bytes) -> None:
    """A body that is not as the route needs it makes no key, and the answer has nothing that acts on a terminal."""
    _, key = made(server, "ada")
    code, answer = server.ask("POST", "/v1/keys", body, with_key(key))
    assert code in (400, 413)
    assert all(char.isprintable() for char in answer["error"]["message"])


# --- sessions of the page ---------------------------------------------------------------------------------------------


def test_a_cookie_is_of_no_use_to_another_site(server: Server) -> None:
    """Requests that a browser sends for another site's page are refused although they have the user's cookie."""
    user, key = made(server, "ada")

    async def opened() -> str:
        accounts = Accounts(server.home.path)
        try:
            return await accounts.sessions.open(Principal(user, "ada", key.id, ADMIN))
        finally:
            accounts.close()

    cookie = asyncio.run(opened())
    _secrets.append(cookie)
    host = f"127.0.0.1:{server.port}"
    jar = {"Cookie": f"{COOKIE}={cookie}", "Host": host}
    own = {**jar, "Sec-Fetch-Site": "same-origin"}
    assert status(server, own) == 200
    for foreign in (
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{host}.evil.example"},
        {"Origin": f"http://{host}@evil.example"},
    ):
        assert status(server, jar | foreign) == 403, foreign
    for wrong in (f"{COOKIE}={cookie}x", f"{COOKIE}=", f"{COOKIE}={cookie}; {COOKIE}={cookie}", f"other={cookie}"):
        assert status(server, own | {"Cookie": wrong}) == 401, wrong
    _revoke_here(server)(key)
    assert status(server, own) == 401


def test_no_key_outlives_the_one_that_has_made_it(server: Server) -> None:
    """By the API and by the page, for its user and for one that it adds: it ends with the key that asks, or before."""
    with Direct(server.home.path) as direct:
        user = direct.add_user(NewUser("leaving", operator=True, key=False)).user.id
        key = direct.make_key(user, NewKey(ADMIN, expires_seconds=1000))
    assert key.expires is not None

    def ask(body: dict[str, Any], path: str = "/v1/keys", by: MadeKey = key) -> Any:
        found = server.ask("POST", path, json.dumps(body).encode(), with_key(by))
        assert found[0] == 201
        return found[1]

    child = ask({"scope": ADMIN})
    assert child["expires"] == key.expires
    assert ask({"expires_seconds": 100_000})["expires"] == key.expires
    assert time.time() < ask({"expires_seconds": 50})["expires"] < key.expires
    assert ask({}, by=MadeKey(child["id"], child["secret"], ADMIN, "", None))["expires"] == key.expires
    assert ask({"name": "added-by-leaving"}, "/v1/users")["key"]["expires"] == key.expires
    cookie = asyncio.run(_session(server.home.path, Principal(user, "leaving", key.id, ADMIN)))
    form = {"Cookie": f"{COOKIE}={cookie}", "Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    token = guard.form_token(cookie)
    fields = {"Content-Type": "application/x-www-form-urlencoded", **form}
    assert server.ask("POST", "/keys", f"token={token}&alias=page&days=365".encode(), fields)[0] == 200
    listed = server.ask("GET", "/v1/keys", headers=with_key(key))[1]["keys"]
    assert {one["expires"] for one in listed if one["alias"] == "page"} == {key.expires}


async def _session(home: Path, principal: Principal) -> str:
    accounts = Accounts(home)
    try:
        return await accounts.sessions.open(principal)
    finally:
        accounts.close()


def test_a_key_that_ends_while_it_asks_makes_none(tmp_path: Path) -> None:
    """Its end comes first, or its new key: no key of a maker that nobody knows is made."""
    tmp_path.chmod(0o700)
    accounts = Accounts(tmp_path)
    try:
        with accounts.database.writing() as connection:
            user = rows.add_user(connection, "ada")
        with accounts.database.writing() as connection, pytest.raises(errors.NotAuthorized):
            rows.add_key(connection, accounts.pepper, user, scope=API, maker="gone")
    finally:
        accounts.close()


def test_a_session_of_the_page_ends_with_the_key_that_expires(server: Server) -> None:
    """The cookie is refused when the key is, for pages and for the API: it makes no other key then."""
    user, key = made(server, "ada")

    async def opened() -> str:
        accounts = Accounts(server.home.path)
        try:
            return await accounts.sessions.open(Principal(user, "ada", key.id, ADMIN))
        finally:
            accounts.close()

    async def expire(seconds: float) -> None:
        accounts = Accounts(server.home.path)
        try:
            change = keys.update().where(keys.c.id == key.id).values(expires=time.time() + seconds)
            await accounts.database.run(lambda connection: connection.execute(change).rowcount)
        finally:
            accounts.close()

    async def ends() -> float:
        accounts = Accounts(server.home.path)
        try:
            question = select(page_sessions.c.expires).order_by(page_sessions.c.created.desc())
            found = await accounts.database.run(lambda connection: connection.execute(question).scalar(), writes=False)
            return float(found or 0)
        finally:
            accounts.close()

    early = asyncio.run(opened())
    asyncio.run(expire(3600))
    late = asyncio.run(opened())
    assert asyncio.run(ends()) <= time.time() + 3600
    _secrets.extend((early, late))
    host = f"127.0.0.1:{server.port}"
    for cookie in (early, late):
        headers = {"Cookie": f"{COOKIE}={cookie}", "Host": host, "Sec-Fetch-Site": "same-origin"}
        assert server.ask("GET", "/v1/whoami", headers=headers)[0] == 200
    asyncio.run(expire(-1))
    for cookie in (early, late):
        headers = {"Cookie": f"{COOKIE}={cookie}", "Host": host, "Sec-Fetch-Site": "same-origin"}
        assert server.ask("GET", "/v1/whoami", headers=headers)[0] == 401
        assert server.ask("POST", "/v1/keys", b'{"scope":"ADMIN","alias":"immortal"}', headers)[0] == 401


# --- guesses ----------------------------------------------------------------------------------------------------------


def test_guessing_is_slowed_down_and_locks_nobody_out(server: Server) -> None:
    """Failed attempts are answered 429 after a while; the right key is taken from the same address all the time."""
    _, key = made(server, "ada")
    wrong = {"Authorization": f"Key {key.id}:atoll_{'A' * 43}"}
    answers = []
    for _ in range(3 * ATTEMPTS):
        answers.append(server.ask("GET", "/v1/whoami", headers=wrong))
        if answers[-1][0] == 429:
            break
    code, answer = answers[-1]
    assert code == 429
    assert answer["error"]["details"]["retry_after"] >= 1
    assert status(server, with_key(key)) == 200
    connection = server.connection()
    with contextlib.closing(connection):
        connection.request("GET", "/v1/whoami", headers=wrong)
        found = connection.getresponse()
        found.read()
        assert int(found.headers["Retry-After"]) >= 1


def test_attempts_are_counted_by_key_and_by_network() -> None:
    """Guesses at one key from everywhere count together, and those from one network of IPv6; others are not meant."""
    now = [0.0]
    limiter = Limiter(3, 10, 1000, lambda: now[0])
    for number in range(3):
        limiter.failed(source(f"192.0.2.{number}"), "key a")
    with pytest.raises(errors.NotAuthorized) as caught:
        limiter.failed(source("192.0.2.77"), "key a")
    assert (caught.value.status, caught.value.details["retry_after"]) == (429, 11)
    limiter.failed(source("192.0.2.77"), "key b")
    now[0] = 10.0
    limiter.failed("key a")
    for number in range(3):
        limiter.failed(source(f"2001:db8:0:1::{number:x}"))
    with pytest.raises(errors.NotAuthorized):
        limiter.failed(source("2001:db8:0:ff:ffff::1"))
    limiter.failed(source("2001:db8:0:100::1"))
    assert source("::ffff:192.0.2.1") == source("192.0.2.1")


def test_the_memory_of_attempts_is_bounded() -> None:
    """A flood from ever new addresses keeps no more than so many counts, and forgets no recent one."""
    limiter = Limiter(2, 10, 1000)
    for number in range(20_000):
        limiter.failed(source(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), "")
    assert len(limiter) == 1000
    limiter.failed(source("x" * 100_000))
    assert max(map(len, limiter._buckets)) < 100


def test_made_up_ids_ask_the_database_nothing(tmp_path: Path) -> None:
    """An id without this server's tag is refused by its tag; ids of keys that are gone and wrong secrets cost alike."""
    tmp_path.chmod(0o700)

    async def scenario() -> None:
        accounts = Accounts(tmp_path)
        try:
            with accounts.database.writing() as connection:
                user = rows.add_user(connection, "ada")
                key, secret = rows.add_key(connection, accounts.pepper, user, scope=API)
                gone, _ = rows.add_key(connection, accounts.pepper, user, scope=API)
                rows.revoke(connection, gone.id)
            asked, digested = [], []
            run, digest = accounts.database.run, accounts.pepper.digest

            async def counted_run(*arguments: Any, **options: Any) -> Any:
                asked.append(1)
                return await run(*arguments, **options)

            def counted_digest(purpose: bytes, secret: str) -> bytes:
                digested.append(purpose)
                return digest(purpose, secret)

            accounts.database.run = counted_run  # type: ignore[method-assign]
            accounts.pepper.digest = counted_digest  # type: ignore[method-assign]
            costs = []
            wrong = "atoll_" + "A" * 43
            for pair in (f"{'0' * 32}:{secret}", f"{gone.id}:{wrong}", f"{key.id}:{wrong}"):
                asked.clear()
                digested.clear()
                with pytest.raises(errors.NotAuthorized):
                    await accounts.authenticate({"authorization": f"Key {pair}"}, "192.0.2.1")
                costs.append((len(asked), digested.count(rows.KEY_PURPOSE)))
            assert costs == [(0, 0), (1, 1), (1, 1)]
        finally:
            accounts.close()

    asyncio.run(scenario())


def test_a_copy_of_the_database_lets_nobody_in(tmp_path: Path) -> None:
    """Without the pepper the digests prove nothing: a key made for a copy is none for the original, and the other way."""
    tmp_path.chmod(0o700)
    with Direct(tmp_path) as direct:
        added = direct.add_user(NewUser("ada"))
        assert added.key is not None
    (tmp_path / "server" / "pepper").write_bytes(b"x" * 32)

    async def scenario() -> None:
        accounts = Accounts(tmp_path)
        try:
            assert added.key is not None
            with pytest.raises(errors.NotAuthorized):
                await accounts.authenticate({"authorization": f"Key {added.key.id}:{added.key.secret}"}, "192.0.2.1")
        finally:
            accounts.close()

    asyncio.run(scenario())


def test_a_key_that_expires_is_refused_and_its_lines_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time a key is refused, also where it was remembered, and who serves it is told."""
    tmp_path.chmod(0o700)

    async def scenario() -> None:
        accounts = Accounts(tmp_path)
        ended = []

        class Lines:
            def held(self) -> list[tuple[str, str]]:
                return [(user.id, key.id), (user.id, "")]

            def end_of(self, user: str, key: str) -> None:
                ended.append((user, key))

        try:
            with accounts.database.writing() as connection:
                user = rows.add_user(connection, "ada")
                key, secret = rows.add_key(connection, accounts.pepper, user, scope=API, seconds=100)
            accounts.holders.append(Lines())
            headers = {"authorization": f"Key {key.id}:{secret}"}
            await accounts.authenticate(headers, "192.0.2.1")
            await accounts.tell_ended()
            assert ended == []
            late = time.time() + 101
            monkeypatch.setattr(time, "time", lambda: late)
            with pytest.raises(errors.NotAuthorized):
                await accounts.authenticate(headers, "192.0.2.1")
            await accounts.tell_ended()
            assert ended == [(user.id, key.id)]
            ended.clear()
            await accounts.change(lambda connection: rows.remove_user(connection, user))
            assert sorted(ended) == [(user.id, ""), (user.id, key.id)]
        finally:
            accounts.close()

    asyncio.run(scenario())


def test_secrets_are_in_no_representation(tmp_path: Path) -> None:
    """Objects that a traceback may show have neither the pepper nor a secret."""
    tmp_path.chmod(0o700)
    pepper = tokens.read_pepper(tmp_path)
    value = (tmp_path / "server" / "pepper").read_bytes()
    assert repr(value)[2:-1] not in repr(pepper)
    assert pepper.digest(b"a", "x") != pepper.digest(b"b", "x")


@pytest.mark.parametrize(
    ("content", "mode", "message"), [(b"short", 0o600, "damaged"), (b"x" * 32, 0o644, "by others")]
)
def test_a_pepper_that_others_know_is_refused(content: bytes, mode: int, message: str, tmp_path: Path) -> None:
    """A pepper that others can read, or that is damaged, is named and not used."""
    tmp_path.chmod(0o700)
    path = tmp_path / "server" / "pepper"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(errors.StateUnusable, match=message):
        tokens.read_pepper(tmp_path)
