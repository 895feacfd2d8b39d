"""Endpoints of a server whose functions run on another machine: requests go there over lines of the server's own."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest

from atoll import Host, isolated

from .members import cluster
from .test_endpoints import ask, key, raw_connection, raw_server

LARGE = os.urandom(3 << 20) * 4


def test_requests_reach_a_runner_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, large bodies and WebSockets pass; the machine's removal ends the connection and says so."""
    with cluster("one", options=("--no-local",)) as (server, _):
        for name, value in server.client_variables.items():
            monkeypatch.setenv(name, value)
        host = Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))
        function = isolated(host=host, exposed_port=8080, keep_alive=60, network="none", max_concurrency=1)(raw_server)
        function.serve("raw")
        first = json.loads(ask(server, "/operator/raw/x")[2])
        assert first["path"] == "/x"
        for _ in range(3):
            answer = json.loads(ask(server, "/operator/raw", LARGE)[2])
            assert answer == {"size": len(LARGE), "digest": hashlib.sha256(LARGE).hexdigest()}
        assert json.loads(ask(server, "/operator/raw/x")[2])["pid"] == first["pid"]
        with raw_connection(server) as connection:
            nonce = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(
                f"GET /operator/raw/ws HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                f"sec-websocket-version: 13\r\nsec-websocket-key: {nonce}\r\nauthorization: Key {key(server)}\r\n\r\n".encode()
            )
            file = connection.makefile("rb")
            assert file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
            while file.readline() != b"\r\n":
                pass
            connection.sendall(b"hello there\n")
            assert file.readline() == b"hello there\n"
            assert file.read() == b""
            file.close()
