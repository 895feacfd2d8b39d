"""The server's process: health, requests, one for each state directory."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from atoll import errors
from atoll.server import addresses
from atoll.server.options import address
from atoll.server.process.tls import Certificates

from ..waiting import PATIENCE_SECONDS, until
from .process import Server, running
from .raw_line import connect


def test_health_needs_no_key(server: Server) -> None:
    """`/healthz` and `/readyz` answer anybody."""
    assert server.ask("GET", "/healthz", headers={}) == (200, {"status": "ok"})
    assert server.ask("GET", "/readyz", headers={}) == (200, {"status": "ok"})


def test_requests_reach_the_node(server: Server) -> None:
    """A request is answered by the node, in the name of the key's user."""
    status, value = server.ask("POST", "/v1/requests/status", json.dumps({}).encode())
    assert status == 200
    assert "capacity" in value


def test_the_server_writes_no_core_file(server: Server) -> None:
    """A crash leaves no keys and secrets on the disk: the hard limit of core files is 0."""
    limits = Path(f"/proc/{server.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


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


def _serial(server: Server) -> int:
    """Return the number of the certificate that the server shows."""
    with connect(server) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_renewed_certificates_are_used(server: Server) -> None:
    """New files of TLS count at SIGHUP without a restart; a faulty key changes nothing."""
    before = _serial(server)
    certificate, key = server.authority.issue("server")
    os.kill(server.pid, signal.SIGHUP)
    renewed = until(lambda: (serial := _serial(server)) != before and serial)
    whole = key.read_bytes()
    key.write_bytes(b"nothing")
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: "certificate_not_renewed" in server.log.read_text())
    assert _serial(server) == renewed
    key.write_bytes(whole)
    assert certificate.exists()


def test_logs_are_json_without_secrets(server: Server) -> None:
    """Each line of the log is an object; keys and queries are in none."""
    secret = server.key[1]
    assert server.ask("GET", "/healthz?token=query-secret")[0] == 200
    assert server.ask("POST", "/v1/requests/nothing?key=query-secret", b'{"a": "body-secret"}')[0] == 426

    def found() -> list[dict[str, Any]]:
        lines = server.log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in events if one["event"] == "request" and one["path"].endswith("/nothing")]

    until(found)  # lines of requests are written together, a moment later
    text, request = server.log.read_text(), found()[-1]
    assert request["status"] == 426
    assert request["user"]
    assert request["request"]
    for hidden in (secret, "query-secret", "body-secret"):
        assert hidden not in text


def test_wrong_options_are_named(tmp_path: Path) -> None:
    """A server that cannot start says what to change."""
    for text in ("nowhere", "127.0.0.1:99999", "[::1:80", "a/b:1"):
        with pytest.raises(errors.StateUnusable, match="is no address to listen on"):
            address(text)
    assert str(address("[::1]:80")) == "[::1]:80"
    assert address(":80").host == "0.0.0.0"
    with pytest.raises(errors.StateUnusable, match="is no address or network"):
        addresses.check_proxies(("everybody",))
    with pytest.raises(errors.StateUnusable, match="cannot use the certificate"):
        Certificates(tmp_path / "none.pem", tmp_path / "none.key")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "<script>, 10.0.0.2", "10.0.0.2"),
    ],
)
def test_forwarded_addresses_count_from_trusted_proxies(peer: str, forwarded: str, expected: str) -> None:
    """The client is the last address that no trusted proxy has; a client's own claims before it are ignored."""
    assert addresses.client_address((peer, 1), forwarded, ("10.0.0.0/8",)) == expected


def test_behind_a_proxy_under_systemd(tmp_path: Path) -> None:
    """A unit of `Type=notify` learns that the server is ready; `--metrics` has a listener; a proxy's word counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(PATIENCE_SECONDS)
        options = "--metrics", "127.0.0.1:0", "--trusted-proxy", "127.0.0.1"
        with running(*options, tls=False, NOTIFY_SOCKET=str(tmp_path / "notify")) as server:
            assert told.recv(100) == b"READY=1"
            assert server.ask("GET", "/metrics")[0] == 404
            forwarded = {"X-Forwarded-For": "198.51.100.7, 127.0.0.1", "X-Request-Id": "mine"}
            assert server.ask("GET", "/healthz", headers=forwarded)[0] == 200
            until(lambda: '"address":"198.51.100.7"' in server.log.read_text())
            assert '"request":"mine"' in server.log.read_text()
            assert server.end() == 0
        assert told.recv(100) == b"STOPPING=1"
