"""What a key's end stops, what a key of the scope API cannot do, and heads that programs read differently."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.server.accounts.bodies import MadeKey, NewKey
from atoll.server.accounts.direct import Direct
from atoll.server.line.connection import Connection
from atoll.server.line.outputs import Outputs
from atoll.server.paces import Paces
from atoll.wire.line import STDERR, STDOUT

from ..server.process import Server, running
from ..server.raw_line import RawLine, connect

SIZE = 16 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's own, without TLS, whose buffers would hold more."""
    with running(tls=False) as found:
        yield found


def made(server: Server, scope: str) -> MadeKey:
    """Return a new key of the server's user."""
    assert server.key  # the user is there
    with Direct(server.home.path) as direct:
        return direct.make_key(direct.list_users().users[0].name, NewKey(scope))


def fields(key: MadeKey) -> str:
    return f"Host: a\r\nAtoll-Protocol: 1\r\nAuthorization: Key {key.id}:{key.secret}\r\n"


def revoke(server: Server, key: MadeKey) -> None:
    assert server.ask("DELETE", f"/v1/keys/{key.id}")[0] in (200, 204)


def rest(connection: socket.socket) -> bytes:
    pieces = []
    try:
        while data := connection.recv(1 << 20):
            pieces.append(data)
    except OSError:
        pass
    return b"".join(pieces)


def test_a_download_ends_with_its_key(server: Server) -> None:
    """A reader whose key is revoked gets no more than what was under way."""
    key = made(server, "API")
    assert server.ask("PUT", "/v1/files/key-ends", bytes(SIZE))[0] in (200, 201)
    with connect(server, small=True) as connection:
        connection.sendall(f"GET /v1/files/key-ends HTTP/1.1\r\n{fields(key)}\r\n".encode())
        first = connection.recv(1000)
        assert b"200 OK" in first
        revoke(server, key)
        assert len(first) + len(rest(connection)) < SIZE


def test_an_upload_ends_with_its_key(server: Server) -> None:
    """A writer whose key is revoked is told so, and its file is not there."""
    key = made(server, "API")
    with connect(server) as connection:
        head = f"PUT /v1/files/never HTTP/1.1\r\n{fields(key)}Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert b"100 Continue" in connection.recv(1000)
        revoke(server, key)
        assert b" 401 " in connection.recv(1000)
    assert server.ask("GET", "/v1/files/never")[0] == 404


def test_a_key_for_functions_changes_no_secrets(server: Server) -> None:
    """By request and by line: the names of secrets can be listed, and nothing is set or deleted."""
    key = made(server, "API")
    headers = {"Authorization": f"Key {key.id}:{key.secret}"}
    for name in ("secrets.set", "secrets.delete"):
        arguments = {"name": "TOKEN", "value": "x"}
        status, answer = server.ask("POST", f"/v1/requests/{name}", json.dumps(arguments).encode(), headers)
        assert (status, answer["error"]["code"]) == (403, "not_authorized")
        line = RawLine(server, {"type": "request", "name": name, "arguments": arguments}, key=f"{key.id}:{key.secret}")
        assert line.header("failed", "answer")["error"]["code"] == "not_authorized"
        line.close()
    assert server.ask("POST", "/v1/requests/secrets.list", b"{}", headers) == (200, {"secrets": []})


UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ("GET /healthz", "Host: b\r\n"),
        ("POST /v1/line", UPGRADE),
        ("GET /v1/line", UPGRADE + "Content-Length: 5\r\n"),
        ("GET /v1/line", UPGRADE + "Transfer-Encoding: chunked\r\n"),
    ],
    ids=["two hosts", "post", "length", "chunked"],
)
def test_heads_that_programs_read_differently_are_refused(server: Server, first: str, more: str) -> None:
    """One host is named, and an upgrade is a GET without a body."""
    name, secret = server.key
    key = f"Atoll-Protocol: 1\r\nAuthorization: Key {name}:{secret}\r\n"
    with connect(server) as connection:
        connection.sendall(f"{first} HTTP/1.1\r\nHost: a\r\n{key}{more}\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_a_request_without_a_host_is_refused(server: Server) -> None:
    """HTTP/1.1 asks for one; HTTP/1.0 has none."""
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    with connect(server) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in connection.recv(1000)


@pytest.mark.parametrize("closed", [(STDERR,), (STDOUT, STDERR)])
def test_a_terminal_comes_after_the_worker_closed_its_output(closed: tuple[int, ...]) -> None:
    """A worker that has closed a stream gets a terminal, or none without any: the line goes on."""

    async def main() -> None:
        pairs = {channel: os.pipe() for channel in (STDOUT, STDERR)}
        outputs = Outputs({channel: pair[0] for channel, pair in pairs.items()}, lambda *_: None, lambda *_: None)
        for channel in closed:
            os.close(pairs[channel][1])
        outputs.drain()
        inner = outputs.show(24, 80)
        assert (inner >= 0) == (len(closed) == 1)
        if inner >= 0:
            os.close(inner)
        outputs.close()
        for channel in {STDOUT, STDERR} - set(closed):
            os.close(pairs[channel][1])

    asyncio.run(main())


def test_an_unknown_failure_ends_its_session(caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody has thought of ends the line in order, and holds nothing."""

    async def main() -> list[str]:
        done: list[str] = []

        def feed(*_: object) -> None:
            raise KeyError(2)

        session = SimpleNamespace(
            feed=feed,
            end=lambda: done.append("session"),
            line=SimpleNamespace(close=lambda code: done.append(str(code))),
            principal=SimpleNamespace(user="u"),
        )
        transport = SimpleNamespace(
            set_write_buffer_limits=lambda **_: None,
            write=lambda _: None,
            close=lambda: done.append("closed"),
            abort=lambda: None,
        )
        Connection(
            cast("Any", session), cast("Any", SimpleNamespace(paces=Paces())), cast("Any", transport), set()
        ).data_received(b"x")
        return done

    assert asyncio.run(main()) == ["1011", "closed", "session"]
    assert "line_failed" in caplog.text
