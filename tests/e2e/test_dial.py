"""A byte stream to a port inside a sandbox, through the daemon and the sandbox's agent."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from atoll import LocalHost, errors, isolated
from tests.conftest import Home

PORT = 8137


@isolated(network="none", timeout=60, keep_alive=0)
def serve(port: int, requests: int) -> int:
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[::-1])

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", port), Handler) as server:
        for _ in range(requests):
            server.handle_request()
    return requests


@isolated(network="none")
def dial_from_inside(worker: str) -> None:
    LocalHost().dial(worker, PORT)


def worker_of(host: LocalHost, function: str) -> str:
    """Wait until a worker serves a function; return its id."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rows: list[dict[str, Any]] = (host.request_running("status", {}) or {}).get("workers", [])
        for row in rows:
            if row["function"].endswith(function) and row["state"] == "busy":
                return str(row["id"])
        time.sleep(0.02)
    raise AssertionError(f"no worker serves `{function}`")


def dialled(host: LocalHost, worker: str, port: int) -> socket.socket:
    """Dial until something listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return host.dial(worker, port)
        except errors.PortUnreachable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def post(stream: socket.socket, body: bytes) -> bytes:
    with stream, stream.makefile("rb") as answer:
        stream.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return answer.read().partition(b"\r\n\r\n")[2]


def test_a_client_speaks_http_to_a_function_without_a_network(atoll_home: Home) -> None:
    """Several streams carry bytes both ways; the function's own call goes on and returns."""
    host = LocalHost()
    running = serve.submit(PORT, 3)
    worker = worker_of(host, "serve")
    bodies = [b"small", b"x" * 3_000_000, b""]
    assert [post(dialled(host, worker, PORT), body) for body in bodies] == [body[::-1] for body in bodies]
    assert running.result() == 3


def test_a_port_without_a_listener_is_a_named_error(atoll_home: Home) -> None:
    """So is a worker that is gone, or never was; the call that runs is not disturbed."""
    host = LocalHost()
    running = serve.submit(PORT, 1)
    worker = worker_of(host, "serve")
    with pytest.raises(errors.PortUnreachable, match=f"port {PORT + 1}: Connection refused"):
        host.dial(worker, PORT + 1)
    with pytest.raises(errors.WorkerDied, match="`w999` has ended"):
        host.dial("w999", PORT)
    for port in (65536, 0, -1, True, "4000"):
        with pytest.raises(ValueError, match="a port is a number from 1 to 65535"):
            host.dial(worker, port)  # type: ignore[arg-type]
    with pytest.raises(errors.ResourcesUnavailable, match="a function cannot dial"):
        dial_from_inside(worker)
    assert post(dialled(host, worker, PORT), b"ab") == b"ba"
    assert running.result() == 1
    with pytest.raises(errors.WorkerDied):
        dialled(host, worker, PORT + 1)  # until the daemon has handled the end of its lease


def test_many_streams_at_a_time(atoll_home: Home) -> None:
    """Each of 20 clients gets the answer to its own request."""
    host = LocalHost()
    running = serve.submit(PORT, 20)
    worker = worker_of(host, "serve")
    answers: dict[int, bytes] = {}

    def ask(number: int) -> None:
        answers[number] = post(dialled(host, worker, PORT), b"%d" % number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: (b"%d" % number)[::-1] for number in range(10, 30)}
    assert running.result() == 20
