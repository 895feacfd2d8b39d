"""A byte stream to a port inside a sandbox, through the daemon and the sandbox's agent, or over a server's line."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from atoll import errors
from atoll.sdk.futures import CallFuture

from ..waiting import until
from .conftest import Place

PORTS = iter(range(8137, 9000))
"""One for each test: sandboxes of a user may share a network."""


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


def exchange(port: int, how: str) -> int:
    """Accept one stream, and do with it as a test has asked; return how many bytes came."""
    import socket
    import struct

    with socket.create_server(("127.0.0.1", port)) as listener:
        stream, _ = listener.accept()
    with stream:
        if how == "reset":
            stream.sendall(b"a part")
            stream.recv(1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return 0
        if how == "end first":
            stream.sendall(b"all")
            stream.shutdown(socket.SHUT_WR)
        count = 0
        while data := stream.recv(1 << 16):
            count += len(data)
        if how == "count":
            stream.sendall(b"%d" % count)
    return count


def dial_from_inside(worker: str, port: int) -> None:
    from atoll import LocalHost

    LocalHost().dial(worker, port)


@contextlib.contextmanager
def running(place: Place, function: Any, *arguments: Any) -> Iterator[tuple[Future[int], str]]:
    """Run a function; yield its future and its worker's id."""
    future: Future[int] = place.isolated(function, network="none", timeout=60, keep_alive=0).submit(*arguments)

    def found() -> str:
        rows = place.host.request("status", {})["workers"]
        mine = [row for row in rows if row["function"].endswith(function.__name__) and row["state"] == "busy"]
        return str(mine[0]["id"]) if mine else ""

    yield future, until(found)
    future.result()
    until(lambda: not found())


def dialled(place: Place, worker: str, port: int) -> socket.socket:
    """Dial until something listens."""

    def attempt() -> list[socket.socket]:
        with contextlib.suppress(errors.PortUnreachable):
            return [place.host.dial(worker, port)]
        return []

    stream: socket.socket = until(attempt)[0]
    stream.settimeout(60)
    return stream


def post(stream: socket.socket, body: bytes) -> bytes:
    with stream, stream.makefile("rb") as answer:
        stream.sendall(b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return answer.read().partition(b"\r\n\r\n")[2]


def test_a_client_speaks_http_to_a_function_without_a_network(place: Place) -> None:
    """Several streams carry bytes both ways, 20 of them at a time; the function's own call goes on and returns."""
    port = next(PORTS)
    answers: dict[int, bytes] = {}
    with running(place, serve, port, 23) as (future, worker):
        bodies = [b"small", b"x" * 3_000_000, b""]
        assert [post(dialled(place, worker, port), body) for body in bodies] == [body[::-1] for body in bodies]

        def ask(number: int) -> None:
            answers[number] = post(dialled(place, worker, port), b"%d" % number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {number: (b"%d" % number)[::-1] for number in range(10, 30)}
        assert future.result() == 23


def test_a_port_without_a_listener_is_a_named_error(place: Place) -> None:
    """So is a worker that is gone, or never was; the call that runs is not disturbed."""
    port, host = next(PORTS), place.host
    with running(place, serve, port, 1) as (_, worker):
        with pytest.raises(errors.PortUnreachable, match="port 9001: Connection refused"):
            host.dial(worker, 9001)
        with pytest.raises(errors.WorkerDied, match="`w999` has ended"):
            host.dial("w999", port)
        for wrong in (65536, 0, -1, True, "4000"):
            with pytest.raises(ValueError, match="a port is a number from 1 to 65535"):
                host.dial(worker, wrong)
        with pytest.raises(errors.ResourcesUnavailable, match="a function cannot dial"):
            place.isolated(dial_from_inside, network="none")(worker, port)
        assert post(dialled(place, worker, port), b"ab") == b"ba"
    with pytest.raises(errors.WorkerDied):
        dialled(place, worker, 9001)  # until the daemon has handled the end of its lease


def test_each_direction_of_a_stream_ends_by_itself(place: Place) -> None:
    """The caller's end is told to the function, which answers behind it; and the other way round."""
    port = next(PORTS)
    with running(place, exchange, port, "count") as (_, worker), dialled(place, worker, port) as stream:
        stream.sendall(b"x" * 700_001)
        stream.shutdown(socket.SHUT_WR)
        assert stream.makefile("rb").read() == b"700001"
    port = next(PORTS)
    with running(place, exchange, port, "end first") as (future, worker), dialled(place, worker, port) as stream:
        assert stream.recv(100) == b"all"
        assert stream.recv(100) == b""
        stream.sendall(b"more")
        stream.shutdown(socket.SHUT_WR)
        assert future.result() == 4


def test_a_stream_that_was_cut_off_is_no_end(place: Place) -> None:
    """A function that resets the connection is an error of the caller's socket; one that is closed ends the stream."""
    port = next(PORTS)
    with running(place, exchange, port, "reset") as (_, worker), dialled(place, worker, port) as stream:
        assert stream.recv(6, socket.MSG_WAITALL) == b"a part"
        stream.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            stream.recv(100)
    port = next(PORTS)
    with running(place, exchange, port, "count") as (future, worker):
        dialled(place, worker, port).close()
        assert future.result() == 0


def test_a_caller_that_does_not_read_holds_up_the_function(place: Place) -> None:
    """Bytes that nobody takes wait at the function's end; all of them come when they are read."""
    port, size = next(PORTS), 24 << 20
    sent = os.urandom(1 << 16)

    def pour(port: int, piece: bytes, size: int) -> int:
        import socket

        with socket.create_server(("127.0.0.1", port)) as listener:
            stream, _ = listener.accept()
        stream.settimeout(0.5)
        count = 0
        with stream:
            view = memoryview(piece * (size // len(piece)))
            try:
                while count < size:
                    count += stream.send(view[count:])
            except TimeoutError:
                held = count
            print("is held up", flush=True)
            stream.settimeout(60)
            stream.sendall(view[count:])
        return held

    with running(place, pour, port, sent, size) as (future, worker), dialled(place, worker, port) as stream:
        assert isinstance(future, CallFuture)
        until(lambda: "is held up" in printed(place, future.call_id))
        assert stream.makefile("rb").read() == sent * (size // len(sent))
        assert future.result() < size


def printed(place: Place, call: str) -> str:
    """Return what a call has printed that runs."""
    rows = place.host.request("calls.output", {"call": call, "seen": 0})["unfinished"]
    return str(rows[0]["output"]) if rows else ""
