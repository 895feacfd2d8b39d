"""The server's process: health, requests, one for each state directory."""

from __future__ import annotations

import json

from .process import Server


def test_health_needs_no_key(server: Server) -> None:
    """`/healthz` and `/readyz` answer anybody."""
    assert server.ask("GET", "/healthz", headers={}) == (200, {"status": "ok"})
    assert server.ask("GET", "/readyz", headers={}) == (200, {"status": "ok"})


def test_requests_reach_the_node(server: Server) -> None:
    """A request is answered by the node, in the name of the key's user."""
    status, value = server.ask("POST", "/v1/requests/status", json.dumps({}).encode())
    assert status == 200
    assert value["daemon"]["home"] == str(server.home.path)


def test_requests_without_a_key_are_refused(server: Server) -> None:
    """Without a valid key nothing reaches the node, and the answer names the error."""
    for headers in ({}, {"Authorization": "Key a:b"}, {"Authorization": "Basic YTpi"}):
        status, value = server.ask("POST", "/v1/requests/status", b"{}", headers)
        assert status == 401
        assert value["error"]["code"] == "not_authorized"


def test_state_directory_has_one_server(server: Server) -> None:
    """A second server of the same state directory says so and ends."""
    done = server.home.atoll("server", "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 1
    assert "has a running server" in done.stderr
