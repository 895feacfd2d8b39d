"""Requests that wait at the node for as long as a client likes: they hold up nobody else, and end with their client."""

from __future__ import annotations

import contextlib
import json
import os
import socket

from atoll import Host, isolated
from atoll.server.accounts.bodies import NewUser
from atoll.server.node import MOST_OF_USER

from ..waiting import until
from .process import Server
from .raw_line import connect


def _one() -> int:
    return 1


def _post(server: Server, headers: dict[str, str], name: str, arguments: dict[str, object]) -> socket.socket:
    """Return a connection with a request whose answer nobody has read."""
    found = connect(server)
    body = json.dumps(arguments).encode()
    fields = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    found.sendall(f"POST /v1/requests/{name} HTTP/1.1\r\nHost: a\r\n{fields}".encode())
    found.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return found


def _descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def test_waiting_requests_hold_up_nobody(server: Server) -> None:
    """A user's waiting requests leave all others their answers, are bounded, and end at the node with their client."""
    key = server.add_user(NewUser("waits")).key
    assert key is not None
    headers = {"Authorization": f"Key {key.id}:{key.secret}", "Atoll-Protocol": "1"}
    host = Host(server.url, key_id=key.id, key_secret=key.secret, ca_file=str(server.ca_file))
    job = isolated(host=host, network="none")(_one).spawn()
    assert job.result() == 1
    status, value = server.ask("POST", "/v1/requests/detached.show", json.dumps({"call": job.id}).encode(), headers)
    assert status == 200
    asked = {"call": job.id, "revision": value["call"]["revision"], "seconds": 3600}
    with contextlib.ExitStack() as stack:

        def refusal() -> str | None:
            """Return the code of a refusal; a question that found a place may have taken that of a waiting request."""
            status, value = server.ask("POST", "/v1/requests/status", b"{}", headers)
            if status != 429:
                stack.enter_context(_post(server, headers, "detached.wait", asked))
                return None
            return str(value["error"]["code"])

        for _ in range(MOST_OF_USER):
            stack.enter_context(_post(server, headers, "detached.wait", asked))
        assert until(refusal) == "not_authorized"
        held = _descriptors(server)
        assert server.ask("POST", "/v1/requests/capacity", b"{}")[0] == 200
        assert server.ask("GET", "/readyz")[0] == 200
        assert server.ask("PUT", "/v1/files/beside", b"beside")[0] in (200, 201, 204)
    until(lambda: _descriptors(server) < held - MOST_OF_USER * 3 // 2)  # each held one of the node's besides its own
    assert server.ask("POST", "/v1/requests/status", b"{}", headers)[0] == 200
