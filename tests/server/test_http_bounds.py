"""Bounds of HTTP connections: hostile bytes over real sockets, and answers' headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from atoll.server.http import Connections, bound
from atoll.server.line.terms import MOST_PARTS
from atoll.server.process.handshake import secured

from .certificates import Authority
from .process import Server
from .raw_line import Refused, connect, upgrade


@pytest.fixture
def raw(server: Server) -> Iterator[socket.socket]:
    """A connection to the server."""
    with connect(server) as found:
        yield found


def _rest(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    pieces = []
    try:
        while data := connection.recv(65536):
            pieces.append(data)
    except OSError:
        pass
    return b"".join(pieces)


def test_answers_have_security_headers(server: Server) -> None:
    """An answer names its request and the protocol's version, and lets no page embed or sniff it."""
    connection = server.connection()
    try:
        connection.request("POST", "/v1/requests/status", b"{}", server.headers())
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    assert answer.getheader("x-content-type-options") == "nosniff"
    assert answer.getheader("x-frame-options") == "DENY"
    assert "default-src 'none'" in str(answer.getheader("content-security-policy"))
    assert answer.getheader("atoll-protocol") == "1"
    assert len(str(answer.getheader("x-request-id"))) == 16
    assert answer.getheader("server") is None


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (80 << 10) + b"\r\n\r\n",
        b"GET /" + b"x" * (80 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20),
    ],
    ids=["field", "target", "many fields", "endless field"],
)
def test_large_heads_are_refused(raw: socket.socket, head: bytes) -> None:
    """A head above 64 KiB is refused by 431, also while it has no end."""
    try:
        raw.sendall(head)
    except OSError:  # it does not read the rest
        return
    answer = _rest(raw)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def test_no_http_is_refused(raw: socket.socket) -> None:
    """Bytes that are no HTTP/1.1 are refused by 400."""
    raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert _rest(raw).startswith(b"HTTP/1.1 400 ")


def test_large_bodies_are_refused(server: Server) -> None:
    """A body above its route's bound is refused by 413, announced or in chunks."""
    body = b"{}" + b" " * (2 << 20)
    status, value = server.ask("POST", "/v1/requests/status", body)
    assert status == 413
    assert "bytes" in value["error"]["message"]
    fields = "".join(f"{name}: {value}\r\n" for name, value in server.headers().items())
    with connect(server) as raw:  # before a byte of it comes
        raw.sendall(f"POST /v1/requests/status HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 2000000\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")
    with connect(server) as raw:
        raw.sendall(
            f"POST /v1/requests/status HTTP/1.1\r\nHost: a\r\n{fields}Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for _ in range(32):
                raw.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            raw.sendall(b"0\r\n\r\n")
        except OSError:
            return
        assert raw.recv(65536).startswith(b"HTTP/1.1 413 ")


def _chunked(headers: dict[str, str], trailers: str) -> bytes:
    """Return a request whose body comes in chunks."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST /v1/requests/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{fields}"
    )
    return f"{head}\r\n2\r\n{{}}\r\n0\r\n{trailers}".encode()


def test_trailers_are_no_headers(server: Server) -> None:
    """A field behind a body's chunks gives no key and no name to its request, whose answer it leaves alone."""
    key = server.headers()["Authorization"]
    with connect(server) as raw:
        raw.sendall(_chunked({}, f"Authorization: {key}\r\n\r\n"))
        assert _rest(raw).startswith(b"HTTP/1.1 401 ")
    with connect(server) as raw:
        raw.sendall(_chunked(server.headers(), "X-Request-Id: trailing\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"))
        answer = _rest(raw)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"trailing" not in answer


@pytest.mark.parametrize("piece", ["X: " + "y" * 4000 + "\r\n", "y" * 4000], ids=["many", "endless"])
def test_large_trailers_are_refused(server: Server, piece: str) -> None:
    """Trailers are bounded as heads are, whole or without an end."""
    with connect(server) as raw:
        raw.sendall(_chunked(server.headers(), "X: "))
        raw.settimeout(0.05)
        for _ in range(40):
            raw.sendall(piece.encode())
            with contextlib.suppress(TimeoutError):
                assert raw.recv(65536).startswith(b"HTTP/1.1 431 ")
                return
    pytest.fail("the server takes trailers without an end")


def test_floods_of_pipelined_requests_are_cut(raw: socket.socket) -> None:
    """Thousands of requests in one write are not all kept: the connection ends."""
    try:
        raw.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n" * 5000)
    except OSError:
        return
    assert _rest(raw).count(b"HTTP/1.1 200") < 1000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Key a:b"}, 401),
        ({"Atoll-Protocol": "2"}, 426),
        ({"Atoll-Protocol": "many"}, 426),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Sec-WebSocket-Version": "8"}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Protocol": "chat"}, 426),
        ({"Atoll-Resume": "x" * 32 + " 0"}, 410),
        ({"Atoll-Resume": "short 0"}, 400),
        ({"Atoll-Resume": "x" * 32 + " -1"}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_upgrades_that_are_refused(server: Server, raw: socket.socket, headers: dict[str, str], status: int) -> None:
    """Each fault of an upgrade has its status and a named error."""
    with pytest.raises(Refused) as caught:
        upgrade(raw, {**server.headers(), **headers})
    assert caught.value.status == status
    assert b'"code":' in caught.value.body


@pytest.mark.parametrize("code", [1, 2], ids=["text", "binary"])
def test_oversized_messages_end_their_line(server: Server, raw: socket.socket, code: int) -> None:
    """One whose head announces more than may be ends its line, before its bytes come; others are answered."""
    upgrade(raw, server.headers())
    raw.sendall(bytes((0x80 | code, 0xFF)) + (1 << 40).to_bytes(8, "big") + bytes(4))
    assert _rest(raw)[-2:] == (1002).to_bytes(2, "big")
    assert server.ask("POST", "/v1/requests/status", b"{}")[0] == 200


def test_other_places_take_no_upgrade(server: Server, raw: socket.socket) -> None:
    """A WebSocket is for lines alone."""
    with pytest.raises(Refused) as caught:
        upgrade(raw, server.headers(), "/healthz")
    assert caught.value.status == 404


def test_newer_clients_learn_who_upgrades(server: Server) -> None:
    """A client of a later protocol is told to have the server upgraded, by 426."""
    status, value = server.ask("POST", "/v1/requests/status", b"{}", {**server.headers(), "Atoll-Protocol": "2-3"})
    assert status == 426
    assert "on the server" in value["error"]["hint"]
    assert server.ask("POST", "/v1/requests/status", b"{}", {**server.headers(), "Atoll-Protocol": "1-3"})[0] == 200


def test_metrics_are_for_operators(server: Server) -> None:
    """`/metrics` needs an operator's key, and counts requests, lines and the node."""
    assert server.ask("GET", "/metrics", headers={})[0] == 401
    status, text = server.ask("GET", "/metrics")
    assert status == 200
    for name in (
        b"atoll_node_up 1.0",
        b"atoll_http_requests_total",
        b"atoll_connections ",
        b"atoll_lines_opened_total",
    ):
        assert name in text, name


@pytest.mark.parametrize(
    ("value", "reason"), [([[]] * MOST_PARTS, "parts"), (int("9" * 641), "digits")], ids=["parts", "digits"]
)
def test_bodies_that_take_long_to_read_are_refused(server: Server, value: Any, reason: str) -> None:
    """JSON of very many values, or of numbers of very many digits, is the caller's mistake."""
    status, answer = server.ask("POST", "/v1/requests/status", json.dumps({"x": value}).encode())
    assert (status, answer["error"]["code"]) == (400, "caller_error")
    assert reason in answer["error"]["message"]
    assert server.ask("POST", "/v1/requests/status", b"{}")[0] == 200


def test_handshakes_count_as_connections(tmp_path: Path) -> None:
    """Connections that say nothing take their source's share alone, and their time is that of a request's head."""
    certificate, key = Authority(tmp_path).issue("server")
    bounds, context = Connections(8), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    state = ServerState()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(lambda *_: None, log_config=None)
        config.load()
        begin = secured(bound(bounds), context)
        server = await loop.create_server(
            lambda: begin(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        silent = [await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(8)]
        async with asyncio.timeout(60):
            while bounds.refused < 6:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert len(bounds) == len(state.connections) == 2
        assert bounds.enter("10.0.0.1") is not None
        for one in list(state.connections):
            one.shutdown()
        async with asyncio.timeout(60):
            while len(bounds) > 1:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        assert not state.connections
        for _, writer in silent:
            writer.close()
        server.close()

    asyncio.run(serve())
