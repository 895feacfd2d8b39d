"""Many idle connections beside a call, and their memory."""

from __future__ import annotations

import contextlib
import resource
import socket

from ..conftest import needs_outbound
from ..waiting import soak
from .functions import Leased
from .process import Server, memory, running

PLAIN_BYTES = 8 << 10
"""Memory of the server for an idle connection without TLS."""


def _answered(server: Server, connection: socket.socket) -> None:
    """Send a small request and read its answer; the connection stays."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    got = b""
    while b'{"status":"ok"}' not in got:
        data = connection.recv(4096)
        assert data, got
        got += data


def _double(value: int) -> int:
    return 2 * value


@needs_outbound
def test_idle_connections_are_cheap_and_delay_nobody() -> None:
    """A thousand idle connections, each with an answered request, cost little memory; a call goes on beside them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(soak(1000, 10_000), soft - 300)
    with running(tls=False) as server, contextlib.ExitStack() as stack:
        assert server.key

        def open_all(number: int) -> None:
            for _ in range(number):
                connection = socket.create_connection(("127.0.0.1", server.port), 60)
                stack.callback(connection.close)
                _answered(server, connection)

        open_all(100)  # what the first ones need is there for all
        before = memory(server.pid)
        open_all(count)
        each = (memory(server.pid) - before) / count
        print(f"{each:.0f} bytes for each of {count} idle connections")
        assert each < PLAIN_BYTES
        leased = Leased(server, _double, 21)
        with contextlib.closing(leased.line):
            assert leased.call() == 42
