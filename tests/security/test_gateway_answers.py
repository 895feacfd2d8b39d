"""Functions whose servers answer with anything: their clients get one answer or an error, and no other client any of it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..waiting import PATIENCE_SECONDS, until
from .raw_app import Attacked, Peer, attacked, statuses

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def made() -> Iterator[Attacked]:
    """A server with an endpoint of Ann's, which Bob may call, with one runner."""
    with attacked("--domain", "lab.example") as found:
        found.serve("ann", "fn", "shared", max_concurrency=1, request_timeout=30)
        yield found


def asked(
    made: Attacked, path: str, user: str = "bob", method: str = "GET", body: bytes = b"", more: bytes = b""
) -> bytes:
    """Return the answer to a request below the endpoint."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    key = f"Authorization: Key {made.key(user)}\r\n".encode()
    return made.said(
        f"{method} /ann/fn/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode()
        + key
        + length
        + more
        + b"\r\n"
        + body
    )


def test_a_second_answer_is_nobodys(made: Attacked) -> None:
    """Bytes behind an answer, at once or later, are not the beginning of the next client's."""
    second = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    sent = threading.Event()

    def later(peer: Peer) -> bool:
        peer.send(OK)
        sent.wait(PATIENCE_SECONDS)
        peer.send(second[:20])
        return True

    made.app.scripts["twice"] = lambda peer: peer.send(OK + second)
    made.app.scripts["half"] = lambda peer: peer.send(OK + second[:20])
    made.app.scripts["later"] = later
    for path in ("twice", "half", "later"):
        before = made.app.peers
        answer = asked(made, path, "ann")
        assert answer.endswith(b"\r\n\r\nok")
        sent.set()
        if path == "later":
            until(lambda: made.app.open == 0)  # the server has seen the bytes, and dropped the connection
        found = json.loads(asked(made, "clean").partition(b"\r\n\r\n")[2])
        assert found["head"].startswith("GET /clean ")
        assert made.app.peers > before, "the connection was used again"


NO_ANSWERS = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: a\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: a\r\n y\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx\0y: a\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 O\rK: x\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 000 Odd\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nok",
    b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * (600 << 10) + b"\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nx: y\r\n\r\n" * 20_000,
    b"SSH-2.0-x\r\n\r\n",
    b"\r\n\r\n",
]


def test_an_answer_that_is_none_is_502(made: Attacked) -> None:
    """Two lengths, line ends in fields, unknown statuses, heads without an end: 502, and the request is sent once."""
    for answer in NO_ANSWERS:

        def send(peer: Peer, answer: bytes = answer) -> bool:
            peer.send(answer)
            return False

        made.app.scripts["bad"] = send
        assert statuses(asked(made, "clean")) == [200], answer[:70]  # and a connection that has been used
        before = len(made.app.seen)
        assert statuses(asked(made, "bad", method="POST", body=b"x")) == [502], answer[:70]
        assert len(made.app.seen) == before + 1, answer[:70]


def test_an_answer_that_is_cut_off_is_no_whole_one(made: Attacked) -> None:
    """A client sees that the rest is missing: its own answer's framing has no end."""
    for framing, sent in (
        (b"content-length: 20", b"0123456789"),
        (b"transfer-encoding: chunked", b"5\r\n01234\r\n"),
        (b"transfer-encoding: chunked", b"zz\r\n"),
    ):

        def cut(peer: Peer, data: bytes = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (framing, sent)) -> bool:
            peer.send(data)
            return False

        made.app.scripts["cut"] = cut
        answer = asked(made, "cut")
        assert not answer.endswith(b"0\r\n\r\n"), answer
        assert statuses(answer) in ([200], [502]), answer
        assert b"content-length: 10" not in answer
        assert statuses(asked(made, "clean")) == [200]


def test_a_body_that_may_not_be_is_nobodys(made: Attacked) -> None:
    """A body behind an answer that has none is not the next client's answer."""
    poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)):
        odd = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(poison)) + poison
        made.app.scripts["odd"] = lambda peer, odd=odd: peer.send(odd)  # type: ignore[misc]
        answer = asked(made, "odd", "ann", method)
        assert statuses(answer)[:1] == [status]
        assert b"poison" not in answer
        found = json.loads(asked(made, "clean").partition(b"\r\n\r\n")[2])
        assert found["head"].startswith("GET /clean ")


def test_an_answer_before_the_body_is_whole_ends_its_connection(made: Attacked) -> None:
    """The rest of the body is not read as the next client's request."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: a\r\nx-fal-caller-user-id: nobody\r\n\r\n"

    def early(peer: Peer) -> None:
        peer.until(b"\r\n")
        peer.send(OK)

    made.app.scripts["early"] = early
    before = len(made.app.seen)
    key = f"Authorization: Key {made.key('bob')}\r\n".encode()
    begun = (
        b"POST /ann/fn/early HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        + key
        + b"\r\n1\r\nx\r\n"
    )
    with made.raw(begun) as one:
        assert one.recv(15) == b"HTTP/1.1 200 OK"
        one.sendall(b"%x\r\n" % len(smuggled) + smuggled + b"\r\n0\r\n\r\n")
    found = json.loads(asked(made, "clean").partition(b"\r\n\r\n")[2])
    assert found["head"].startswith("GET /clean ")
    assert not any(b"/smuggled" in one.split(b"\r\n")[0] for one in made.app.seen[before:])


def test_a_function_has_no_power_over_other_pages_of_the_host(made: Attacked) -> None:
    """Headers that a browser heeds for a whole host stop at the server; at the endpoint's own host they are its own."""
    names = [
        "Alt-Svc",
        "NEL",
        "Report-To",
        "Reporting-Endpoints",
        "Clear-Site-Data",
        "Service-Worker-Allowed",
        "Strict-Transport-Security",
        "Accept-CH",
        "Origin-Agent-Cluster",
        "Set-Login",
        "Use-As-Dictionary",
        "Set-Cookie",
    ]
    fields = "".join(f"{name}: mine\r\n" for name in names).encode()
    policy = b"content-security-policy: default-src *\r\n"
    made.app.scripts["power"] = lambda peer: peer.send(
        b"HTTP/1.1 200 OK\r\n"
        + fields
        + policy
        + b"set-cookie: a=b; Path=/;\tDomain\t= lab.example\r\ncontent-length: 0\r\n\r\n"
    )
    answer = asked(made, "power").decode().lower()
    found = {line.partition(":")[0] for line in answer.split("\r\n")}
    assert not found & {name.lower() for name in names}
    policies = re.findall(r"content-security-policy: (.*)", answer)
    assert any(one.startswith("sandbox ") and "allow-same-origin" not in one for one in policies)
    user = made.server.ask("GET", "/v1/whoami", headers=made.front.user("ann"))[1]["user"]
    key = f"Authorization: Key {made.key('ann')}"
    own = made.said(
        f"GET /power HTTP/1.1\r\nHost: {user}-fn.gateway.lab.example\r\nConnection: close\r\n{key}\r\n\r\n".encode()
    )
    cookies = re.findall(rb"set-cookie: (.*)\r", own.lower())
    assert cookies == [b"mine"]
    assert b"alt-svc: mine" in own.lower()


def test_a_slow_reader_holds_a_bounded_part_of_an_answer(made: Attacked) -> None:
    """A function that sends without an end to a client that reads nothing is stopped."""
    sent = [0]

    def endless(peer: Peer) -> bool:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 34))
        peer.connection.settimeout(1.0)
        try:
            while sent[0] < 1 << 30:
                sent[0] += peer.connection.send(bytes(1 << 16))
        except OSError:
            return False
        return False

    made.app.scripts["endless"] = endless
    key = f"Authorization: Key {made.key('bob')}\r\n".encode()
    with made.raw(b"GET /ann/fn/endless HTTP/1.1\r\nHost: a\r\n" + key + b"\r\n"):
        until(lambda: sent[0] and not made.app.open)
    assert sent[0] < 64 << 20
    assert statuses(asked(made, "clean")) == [200]


def test_a_request_that_was_read_is_asked_once(made: Attacked) -> None:
    """A function's server that has read a request and ends its connection, kept or new, has it once: 502."""
    gate = threading.Barrier(2)

    def together(peer: Peer) -> bool:
        gate.wait(PATIENCE_SECONDS)
        peer.send(OK)
        return True

    made.app.scripts["together"] = together
    made.app.scripts["drop"] = lambda peer: False
    made.serve("ann", "wide", "shared", max_concurrency=1, max_multiplexing=4)
    key = f"Authorization: Key {made.key('ann')}\r\n".encode()

    def ask(path: str, method: str) -> bytes:
        line = f"{method} /ann/wide/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode()
        return made.said(line + key + b"Content-Length: 0\r\n\r\n")

    for method in ("GET", "POST"):
        with ThreadPoolExecutor(2) as threads:  # leaves two connections that could be used again
            answers = list(threads.map(lambda _: ask("together", "GET"), range(2)))
        assert [statuses(one) for one in answers] == [[200], [200]]
        before = len(made.app.seen)
        assert statuses(ask("drop", method)) == [502]
        assert [one.split(b" ")[1] for one in made.app.seen[before:]] == [b"/drop"]


def test_a_connection_that_was_closed_while_idle_is_not_used(made: Attacked) -> None:
    """A kept connection that the function's server has closed serves nobody, and no request is lost on it."""
    made.app.scripts["last"] = lambda peer: peer.send(OK)  # and ends
    for _ in range(20):
        assert asked(made, "last", "ann").endswith(b"\r\n\r\nok")
        assert statuses(asked(made, "clean", "ann", "POST")) == [200]


@pytest.mark.parametrize("method", ["GET", "HEAD"])  # the short way, and the usual one
def test_headers_of_the_server_and_of_one_connection_are_not_the_functions(made: Attacked, method: str) -> None:
    """An answer has one date and one id, the server's, and nothing that its function has for the connection alone."""
    fields = b"date: never\r\nx-request-id: mine\r\nconnection: X-Hop , keep-alive\r\nx-hop: 1\r\nx-end: 2\r\n"
    made.app.scripts["own"] = lambda peer: peer.send(b"HTTP/1.1 200 OK\r\n" + fields + b"content-length: 0\r\n\r\n")
    answer = asked(made, "own", "ann", method).decode().lower()
    names = [line.partition(":")[0] for line in answer.split("\r\n")[1:]]
    assert [names.count(one) for one in ("date", "x-request-id", "x-hop", "x-end")] == [1, 1, 0, 1]
    assert "never" not in answer
    assert "mine" not in answer
