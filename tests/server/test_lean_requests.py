"""Requests for endpoints answered by the short way: nothing of an answer tells it from the usual one."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pytest

from atoll import Host, isolated
from atoll.server.endpoints.request_body import WATCHED_SECONDS

from ..waiting import PATIENCE_SECONDS, until
from .process import Server, running
from .queue_app import front

KINDS = {
    "/plain": (200, b"text"),
    "/empty": (200, b""),
    "/chunked": (200, b"one two"),
    "/nothing": (204, b""),
    "/unchanged": (304, b""),
    "/failed": (500, b"failed"),
    "/close": (200, b"closed"),
    "/broken": (502, b""),
    "/late": (504, b""),
}
"""Status and body by path; the gateway answers the last two itself."""


def server_of_kinds() -> None:
    """Serve an answer of each kind."""
    import http.server
    import os
    import time

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind = self.path.partition("?")[0]
            if kind == "/broken":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-le")
                self.close_connection = True
                return
            if kind == "/end":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
                os._exit(1)
            if kind == "/late":
                time.sleep(3600)
            if kind == "/open":
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
                time.sleep(3600)
            status = {"/nothing": 204, "/unchanged": 304, "/failed": 500}.get(kind, 200)
            self.send_response(status)
            self.send_header("x-own", "1")
            self.send_header("x-method", self.command)
            self.send_header("set-cookie", "a=1")
            if kind == "/chunked":
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")
                return
            bodies = {"/plain": b"text", "/failed": b"failed", "/close": b"closed"}
            body = bodies.get(kind, b"")
            if kind == "/close":
                self.send_header("connection", "close")
            elif status not in (204, 304):
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                self.rfile.read(int(self.headers.get("content-length", "0")))
            self.do_GET()

        do_PUT = do_PATCH = do_DELETE = do_POST

        def log_message(self, *_: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.client_variables.items():
            patch.setenv(name, value)
        host = Host(found.url, key_id=found.key[0], key_secret=found.key[1], ca_file=str(found.ca_file))
        function = isolated(host=host, exposed_port=8080, keep_alive=600, network="none")(server_of_kinds)
        function.serve("kinds", request_timeout=3, max_concurrency=1, max_multiplexing=20)
        yield found


def ask(
    connection: http.client.HTTPConnection, server: Server, method: str, path: str, *, lean: bool
) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Make a request with a body that is whole, or else in chunks: such a one goes the usual way.

    The answer's headers are without those that differ from one request to the next.
    """
    headers = {"authorization": f"Key {server.key[0]}:{server.key[1]}"}
    if not lean:
        headers["transfer-encoding"] = "chunked"
    connection.request(
        method, f"/operator/kinds{path}", b"body" if lean else iter([b"bo", b"dy"]), headers, encode_chunked=not lean
    )
    answer = connection.getresponse()
    body = answer.read()
    kept = [(name.lower(), value) for name, value in answer.getheaders()]
    coding = {"date", "x-request-id", "transfer-encoding", "content-length"}
    return answer.status, body, [one for one in kept if one[0] not in coding]


@pytest.mark.parametrize("path", KINDS)
def test_both_ways_answer_alike(server: Server, path: str) -> None:
    """Status, body and headers are the same, over one connection as well."""
    connection = server.connection()
    connection.timeout = PATIENCE_SECONDS
    try:
        ask(connection, server, "POST", "/plain", lean=False)  # the runner is there, and the endpoint known
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            short = ask(connection, server, method, path, lean=True)
            usual = ask(connection, server, method, path, lean=False)
            assert short == usual
            status, body = KINDS[path]
            assert short[0] == status
            if status < 502:
                assert short[1] == body
                assert ("x-method", method) in short[2]
            if path == "/late":
                break
    finally:
        connection.close()


def test_a_client_that_goes_frees_the_runners_place(server: Server) -> None:
    """A client that leaves before its answer is whole ends the request at the runner, too."""
    connections = [server.connection() for _ in range(20)]
    for connection in connections:
        ask(connection, server, "POST", "/plain", lean=True)
        headers = {"authorization": f"Key {server.key[0]}:{server.key[1]}", "content-length": "0"}
        connection.request("GET", "/operator/kinds/open", headers=headers)
    for connection in connections:
        assert connection.getresponse().read(2) == b"ab"
        connection.close()
    fresh = server.connection()
    fresh.timeout = PATIENCE_SECONDS
    try:
        assert ask(fresh, server, "POST", "/plain", lean=True)[:2] == (200, b"text")
    finally:
        fresh.close()


@pytest.mark.parametrize("lean", [True, False])
def test_a_runner_that_has_just_ended_takes_no_request_along(server: Server, *, lean: bool) -> None:
    """A request that comes before the end of a runner is noted is answered by the next one."""
    for _ in range(3):
        for path, wanted in (("/plain", b"text"), ("/end", b""), ("/plain", b"text")):
            connection = server.connection()
            connection.timeout = PATIENCE_SECONDS
            with contextlib.closing(connection):
                if path == "/end":
                    with pytest.raises(http.client.IncompleteRead):
                        ask(connection, server, "POST", path, lean=lean)
                else:
                    assert ask(connection, server, "POST", path, lean=lean)[:2] == (200, wanted)


class _Reads:
    """A socket whose reader stays open from one answer to the next."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.readline, self.read, self.readinto = stream.readline, stream.read, stream.readinto  # type: ignore[attr-defined]
        self.closed = False

    def makefile(self, _mode: str) -> _Reads:
        return self

    def close(self) -> None:
        """Leave the stream open."""
        self.closed = True

    def flush(self) -> None:
        """Do nothing."""


def test_requests_behind_each_other_are_answered_in_order(server: Server) -> None:
    """A client that does not wait for answers gets them in the order of its requests, each with its own."""
    connection = server.connection()
    connection.timeout = PATIENCE_SECONDS
    ask(connection, server, "POST", "/plain", lean=True)
    assert connection.sock is not None
    key = f"authorization: Key {server.key[0]}:{server.key[1]}"
    paths = ["plain", "chunked", "failed", "nothing", "plain"]
    heads = [f"GET /operator/kinds/{path} HTTP/1.1\r\nhost: h\r\n{key}\r\n\r\n".encode() for path in paths]
    connection.sock.sendall(b"".join(heads))
    with connection.sock.makefile("rb") as stream:
        found = []
        for _ in paths:
            answer = http.client.HTTPResponse(_Reads(stream))  # type: ignore[arg-type]  # its reader alone is used
            answer.begin()
            found.append((answer.status, answer.read()))
    assert [status for status, _ in found] == [200, 200, 500, 204, 200]
    connection.close()


def test_each_request_has_a_line_in_the_log(server: Server) -> None:
    """The lines of many requests at once are whole, and none is missing."""
    connection = server.connection()
    connection.timeout = PATIENCE_SECONDS
    ids = []
    headers = {"authorization": f"Key {server.key[0]}:{server.key[1]}"}
    for _ in range(50):
        connection.request("POST", "/operator/kinds/plain?secret=hidden", b"body", headers)
        answer = connection.getresponse()
        answer.read()
        ids.append(answer.headers["x-request-id"])
    connection.close()
    until(lambda: all(server.log.read_text().count(one) == 1 for one in ids))
    assert "hidden" not in server.log.read_text()


def test_a_body_waits_with_its_request() -> None:
    """A request that waits for a runner is watched for its client's end meanwhile, and has its body afterwards."""
    with front() as made, ThreadPoolExecutor(2) as threads:
        made.serve("one", max_concurrency=1, max_multiplexing=1)
        first = threads.submit(made.ask, "POST", "/operator/one/wait", b'{"first": 1}')
        until(lambda: made.app.order)
        second = threads.submit(made.ask, "POST", "/operator/one/echo", b'{"second": 2}')
        time.sleep(5 * WATCHED_SECONDS)  # nobody tells that it is watched now
        made.app.release()
        assert [one.result() for one in (first, second)] == [(200, {"first": 1}), (200, {"second": 2})]
