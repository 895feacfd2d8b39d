"""Endpoints of two users: hosts, keys and tokens of one are no way to the other, and functions see no credentials."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from atoll.server.accounts.bodies import NewUser

from ..waiting import until
from .raw_app import Attacked, Peer, attacked, rest, statuses

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"


@pytest.fixture(scope="module")
def made() -> Iterator[Attacked]:
    """A server with endpoints of Ann and Bob."""
    with attacked("--domain", "lab.example") as found:
        for user in ("ann", "bob"):
            found.serve(user, "priv")
            found.serve(user, "shared", "shared")
            found.serve(user, "open", "public")
        found.app.scripts["ws"] = _socket
        yield found


def _socket(peer: Peer) -> bool:
    """Answer a handshake, and then each line by itself."""
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    while line := peer.until(b"\n"):
        peer.send(line + b"\n")
    return False


def user_id(made: Attacked, user: str) -> str:
    """Return a user's id."""
    return str(made.server.ask("GET", "/v1/whoami", headers=made.front.user(user))[1]["user"])


def ask(made: Attacked, target: str, *fields: str, host: str = "lab.example", method: str = "GET") -> bytes:
    """Return the answer to a request with these fields."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    return made.said("\r\n".join(lines).encode() + b"\r\n\r\n")


def key(made: Attacked, user: str) -> str:
    """Return the field with a user's key."""
    return f"Authorization: Key {made.key(user)}"


def body(answer: bytes) -> bytes:
    """Return the body of an answer, and no part of its head that is of one request."""
    return answer.partition(b"\r\n\r\n")[2]


def test_an_address_tells_nobody_whether_it_is_one(made: Attacked) -> None:
    """Private endpoints, unknown ones and unknown owners answer alike: without a key, with a bad one, and with another's."""
    places = ("/ann/priv", "/ann/none", "/nobody/priv", "/run/ann/priv", "/run/ann/none")
    for fields in (
        [],
        ["Authorization: Key a:b"],
        ["Accept: text/html"],
        [key(made, "bob")],
        ["Authorization: Bearer x.y.z"],
    ):
        answers = [ask(made, place, *fields) for place in places]
        assert len({statuses(one)[0] for one in answers}) == 1, fields
        assert statuses(answers[0])[0] in (401, 404)
        assert len({body(one).replace(place.encode(), b"") for one, place in zip(answers, places, strict=True)}) == 1, (
            fields
        )
    for place in ("/applications/ann/priv/queue", "/applications/ann/none/queue"):
        assert statuses(ask(made, place)) == [401]
        assert statuses(ask(made, place, key(made, "bob"))) == [404]
        assert statuses(ask(made, place, key(made, "bob"), method="DELETE")) == [404]


def test_hosts_name_one_endpoint_or_none(made: Attacked) -> None:
    """The head's host alone decides, without its port and in any case; no host below the domain shows the server's pages."""
    ann = user_id(made, "ann")
    for host in (
        f"{ann}-priv.gateway.lab.example",
        f"{ann}-PRIV.Gateway.LAB.example:443",
        f"{ann}-priv.gateway.lab.example.",
    ):
        assert statuses(ask(made, "/v1/whoami", key(made, "ann"), host=host)) == [200], host
        assert made.app.seen[-1].startswith(b"GET /v1/whoami HTTP/1.1\r\n")
        assert statuses(ask(made, "/v1/whoami", key(made, "bob"), host=host)) == [404], host
    before = len(made.app.seen)
    for host in (
        *("gateway.lab.example", "x.gateway.lab.example", ".gateway.lab.example", "-priv.gateway.lab.example"),
        *(f"{ann}-.gateway.lab.example", f"x.{ann}-priv.gateway.lab.example", f"{ann}-none.gateway.lab.example"),
        *(f"{ann}-priv.gateway.lab.example.evil", f"{ann}-priv.gateway.lab.example@evil"),
    ):
        found = statuses(ask(made, "/priv", key(made, "ann"), host=host))
        assert found in ([404], [400]), host
        if host.endswith(".gateway.lab.example"):
            for page in ("/login", "/v1/whoami", "/queue/ann/priv", "/files/list"):
                assert statuses(ask(made, page, key(made, "ann"), host=host)) == [404], (host, page)
    assert len(made.app.seen) == before
    for other in ("X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-URL", "X-Rewrite-URL"):
        value = f"host={ann}-priv.gateway.lab.example" if other == "Forwarded" else f"{ann}-priv.gateway.lab.example"
        assert b'"name":"bob"' in ask(made, "/v1/whoami", key(made, "bob"), f"{other}: {value}").replace(b" ", b"")


def test_functions_see_no_credentials(made: Attacked) -> None:
    """Keys and tokens in each form reach no function, a public one neither; what is its own does."""
    pair, identity = made.key("bob"), made.key("bob").partition(":")[0]
    secret = pair.partition(":")[2]
    token = made.server.ask("POST", "/v1/tokens", b'{"allowed_apps": ["open", "shared"]}', made.front.user("bob"))[1][
        "token"
    ]
    referer = f"Referer: https://lab.example/ann/open?x=1&fal_key_secret={secret}&fal_jwt_token={token}"
    for place in ("/ann/open", "/ann/shared"):
        for target, fields in (
            (place, [f"Authorization: Key {pair}"]),
            (place, [f"authorization: kEY  {pair}"]),
            (place, [f"Authorization: Basic {pair}"]),
            (place, [f"Authorization: Bearer {pair}"]),
            (place, [f"Authorization: Bearer {token}"]),
            (place, [f"X-Fal-Key-Id: {identity}", f"X-Fal-Key-Secret: {secret}"]),
            (f"{place}?a=1&fal_key_id={identity}&fal_key_secret={secret}", []),
            (f"{place}?%66al_key_id={identity}&fal%5fkey_secret={secret}", []),
            (f"{place}?fal_jwt_token={token}", []),
        ):
            before = len(made.app.seen)
            ask(made, target, *fields, referer, "Cookie: atoll_session=x")
            for seen in made.app.seen[before:]:
                assert secret.encode() not in seen, (target, fields)
                assert token.encode() not in seen, (target, fields)
                assert b"atoll_session" not in seen
    for own in ("Basic " + base64.b64encode(b"me:mine").decode(), "Bearer its.own.token", "Digest x"):
        ask(made, "/ann/open", f"Authorization: {own}")
        assert f"authorization: {own}".encode() in made.app.seen[-1]


def test_queued_requests_keep_no_credentials(made: Attacked) -> None:
    """The database has no key of a request that waits, and its function gets none."""
    pair = made.key("bob")
    answer = ask(
        made,
        "/queue/ann/open/x",
        f"Authorization: Key {pair}",
        "X_Fal_Caller_User_Id: forged",
        f"Referer: http://a/?fal_key_id={pair}",
        method="POST",
    )
    name = json.loads(body(answer))["request_id"]
    until(lambda: any(name.encode() in one for one in made.app.seen))
    (seen,) = [one for one in made.app.seen if name.encode() in one]
    secret = pair.partition(":")[2].encode()
    assert secret not in seen
    assert b"forged" not in seen
    for file in (made.server.home.path / "server").glob("*.db*"):
        assert secret not in file.read_bytes()


def test_tokens_are_for_their_endpoints_until_they_end(made: Attacked) -> None:
    """Altered tokens, those of another algorithm, key, time or endpoint open nothing, and none does more than call."""

    def token(**asked: object) -> str:
        data = json.dumps({"allowed_apps": ["shared"], **asked}).encode()
        return str(made.server.ask("POST", "/v1/tokens", data, made.front.user("bob"))[1]["token"])

    def status(text: str, place: str = "/ann/shared") -> int:
        found = statuses(ask(made, f"{place}?fal_jwt_token={text}"))
        assert found == statuses(ask(made, place, f"Authorization: Bearer {text}"))
        return found[0]

    good = token()
    assert status(good) == 200
    for place in ("/ann/priv", "/bob/priv", "/ann/open2"):
        assert status(good, place) == 401, place
    assert status(token(allowed_apps=["ann/shared"])) == 200
    assert status(token(allowed_apps=["ann/shared"]), "/bob/shared") == 401
    head, claims, signature = good.split(".")
    plain = json.loads(base64.urlsafe_b64decode(claims + "=="))

    def encoded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    for forged in (
        *(
            f"{head}.{claims}.",
            f"{head}.{claims}",
            f"{head}.{claims}.{signature[:-2]}AA",
            f"{head}.{claims}.{signature}.x",
        ),
        *(
            f"{encoded({'alg': alg})}.{claims}.{tail}"
            for alg in ("none", "None", "HS512", "")
            for tail in ("", signature)
        ),
        f"{head}.{encoded({**plain, 'apps': ['priv']})}.{signature}",
        f"{head}.{encoded({**plain, 'exp': time.time() + 9999})}.{signature}",
        *(jwt.encode({"alg": "HS256"}, plain, OctKey.import_key(bytes(32))), "x" * 9000, "..", "a.b.c"),
    ):
        assert status(forged) == 401, forged[:80]
    short = token(token_expiration=1)
    until(lambda: statuses(ask(made, "/ann/shared", f"Authorization: Bearer {short}")) == [401])
    assert status(short) == 401
    bobs = token(allowed_apps=["priv", "bob/priv"])
    assert status(bobs, "/bob/priv") == 200
    for method, place in (
        ("DELETE", "/applications/bob/priv/queue"),
        ("GET", "/v1/whoami"),
        ("GET", "/files/list"),
    ):
        assert statuses(ask(made, place, f"Authorization: Bearer {bobs}", method=method))[0] in (401, 403), place
    again = {"Authorization": f"Bearer {bobs}"}
    assert made.server.ask("POST", "/v1/tokens", b'{"allowed_apps": ["open"]}', again)[0] == 401


def test_queued_requests_of_others_do_not_exist(made: Attacked) -> None:
    """An id of another's, and one that there is not, answer alike: with a key, with a bad one and without."""
    name = json.loads(body(ask(made, "/queue/ann/shared/x", key(made, "bob"), method="POST")))["request_id"]
    until(lambda: b'"COMPLETED"' in ask(made, f"/queue/ann/shared/requests/{name}/status", key(made, "bob")))
    for place in ("/queue/ann/shared", "/queue/ann/open", "/queue/bob/shared", "/queue/ann/none"):
        for rest_ in ("", "/status", "/status/stream", "/cancel"):
            for fields in ([], [key(made, "ann")], ["Authorization: Key a:b"], ["Authorization: Bearer x"]):
                method = "PUT" if rest_ == "/cancel" else "GET"
                answers = [
                    ask(made, f"{place}/requests/{one}{rest_}", *fields, method=method) for one in (name, uuid4())
                ]
                assert statuses(answers[0]) == statuses(answers[1]), (place, rest_, fields)
                assert statuses(answers[0])[0] in (401, 404)
                assert body(answers[0]) == body(answers[1])


def test_idempotency_keys_and_lines_of_others_stay_theirs(made: Attacked) -> None:
    """The same key of another caller, or without a key, is another request."""
    field = "Idempotency-Key: guessed"
    names = [
        json.loads(body(ask(made, place, *who, field, method="POST")))["request_id"]
        for place in ("/queue/ann/shared/x", "/queue/ann/open/x")
        for who in ([key(made, "ann")], [key(made, "bob")])
    ]
    assert len(set(names)) == 4


def test_a_websocket_is_one_or_its_connection_ends(made: Attacked) -> None:
    """Behind an answer that is no handshake nothing is passed on: neither more requests, nor bytes for another client."""
    for answer in (
        b"HTTP/1.1 426 Upgrade Required\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ):
        made.app.scripts["refused"] = lambda peer, answer=answer: peer.send(answer)  # type: ignore[misc]
        before = len(made.app.seen)
        head = f"GET /ann/shared/refused HTTP/1.1\r\nHost: a\r\n{key(made, 'bob')}\r\n{UPGRADE}\r\n".encode()
        with made.raw(head) as one:
            found = b""
            while not found.endswith(b"no"):
                found += one.recv(65536)
            assert b"connection: close" in found.lower()
            assert b"transfer-encoding" not in found.lower()
            with contextlib.suppress(OSError):
                one.sendall(b"GET /secret HTTP/1.1\r\nhost: a\r\nx-fal-caller-user-id: ann\r\n\r\n")
            assert rest(one) == b""
        assert len(made.app.seen) == before + 1
    for answer in (
        b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\nx: a\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
        b"HTTP/1.1 500 X\r\ncontent-length: 999999\r\n\r\n" + b"x" * 999_999,
        b"\r\n\r\n",
    ):
        made.app.scripts["odd"] = lambda peer, answer=answer: bool(peer.send(answer))  # type: ignore[misc]
        found = ask(
            made, "/ann/shared/odd", key(made, "bob"), *UPGRADE.rstrip().split("\r\n")[1:], "Connection: Upgrade"
        )
        assert 101 not in statuses(found), found
    until(lambda: made.app.open <= 2)


def test_a_websocket_needs_its_caller(made: Attacked) -> None:
    """A cookie, another's key, a token of another endpoint and an origin are no way in; what is passed has no key."""
    for field in (
        "Cookie: atoll_session=x",
        key(made, "bob"),
        "Authorization: Key a:b",
        "Origin: https://evil.example",
    ):
        with made.raw(f"GET /ann/priv/ws HTTP/1.1\r\nHost: a\r\n{field}\r\n{UPGRADE}\r\n".encode()) as one:
            assert statuses(rest(one))[0] in (401, 404), field
    with made.raw(
        f"GET /ann/priv/ws HTTP/1.1\r\nHost: a\r\n{key(made, 'ann')}\r\nX_Forwarded_For: forged\r\n{UPGRADE}\r\n".encode()
    ) as one:
        file = one.makefile("rb")
        assert file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        while file.readline() != b"\r\n":
            pass
        one.sendall(b"hello\n")
        assert file.readline() == b"hello\n"
        file.close()
    assert made.key("ann").encode() not in made.app.seen[-1]
    assert b"forged" not in made.app.seen[-1]


def test_streams_and_websockets_end_with_their_key(made: Attacked) -> None:
    """A key that is revoked ends what it has begun at an endpoint."""
    added = made.server.add_user(NewUser("carol")).key
    assert added is not None
    field = f"Authorization: Key {added.id}:{added.secret}"

    def stream(peer: Peer) -> bool:
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        return bool(peer.until(b"never"))

    made.app.scripts["stream"] = stream
    socket_head = f"GET /ann/shared/ws HTTP/1.1\r\nHost: a\r\n{field}\r\n{UPGRADE}\r\n".encode()
    with (
        made.raw(socket_head) as socket,
        made.raw(f"GET /ann/shared/stream HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode()) as answer,
    ):
        assert socket.recv(12) == b"HTTP/1.1 101"
        found = b""
        while b"hi" not in found:
            found += answer.recv(65536)
        asked = {"Authorization": field.partition(": ")[2]}
        assert made.server.ask("DELETE", f"/v1/keys/{added.id}", headers=asked)[0] in (200, 204)
        rest(socket)
        assert not rest(answer).endswith(b"0\r\n\r\n")


def test_pages_of_other_sites_read_what_they_may(made: Attacked) -> None:
    """`Access-Control-Allow-Origin` names an origin that the endpoint lists, exactly, and never with cookies."""
    made.serve("ann", "cors", "public", cors=["https://app.example"])
    for origin in (
        *(
            "null",
            "https://app.example.evil",
            "https://evil-app.example",
            "http://app.example",
            "https://APP.example:444",
        ),
        *("https://app.example/", "https://app.example, https://evil", "*", "https://app_example"),
    ):
        for method, more in (("GET", []), ("OPTIONS", ["Access-Control-Request-Method: GET"])):
            answer = ask(made, "/ann/cors", f"Origin: {origin}", *more, method=method).lower()
            assert b"access-control-allow" not in answer, origin
    made.app.scripts["loose"] = lambda peer: peer.send(
        b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\ncontent-length: 0\r\n\r\n"
    )
    answer = ask(made, "/ann/cors/loose", "Origin: https://app.example").lower()
    assert answer.count(b"access-control-allow-origin") == 1
    assert b"access-control-allow-origin: https://app.example\r\n" in answer
    assert b"access-control-allow-credentials" not in answer


def test_names_with_line_ends_are_refused(made: Attacked) -> None:
    """No alias, path or origin of an endpoint brings a line into a head."""
    for alias in ("a\r\nx: y", "a/b", "../x", "A", "a b", "-a", "a" * 64, "run\n", "a%2fb", "a\u0000"):
        facts = {"function": "app", "port": 8080, "alias": alias, "auth": "private", "options": {}}
        data = json.dumps(facts).encode() + b"\nx"
        assert made.server.ask("POST", "/v1/revisions", data, made.front.user("ann"))[0] == 400, alias
    facts = {"function": "f", "port": 8080, "alias": "ok", "auth": "private", "options": {"health_path": "/a\r\nb: c"}}
    assert (
        made.server.ask("POST", "/v1/revisions", json.dumps(facts).encode() + b"\nx", made.front.user("ann"))[0] == 400
    )
    for name in ("run", "trigger", "v1", "queue", "files", "gateway", "applications"):
        with pytest.raises(Exception, match="reserved"):
            made.server.add_user(NewUser(name))
