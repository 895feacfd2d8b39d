"""Idle connections to a server, its memory for them and for many users, and heads that are large or slow."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
from servers import memory_of
from table import Comparison, Figure, Row, Samples, say

from atoll.server.accounts import bodies
from atoll.server.accounts.direct import Direct
from atoll.settings import Settings

OF_ADDRESS = 2000
"""Connections from one address of loopback: the server bounds those of each."""
DESCRIPTORS = 65_536
SPARE = 50
"""Connections besides those that are idle; the server takes half as many as it may have descriptors."""
AT_A_TIME = 100
"""Connections whose first requests are under way at a time."""
SLOW_HEADS = 200
LARGE_HEADS = 50
HEAD_BYTES = 1 << 20
ANSWER_SECONDS = 30.0


def raise_descriptors() -> None:
    """Let this process, and the servers that it starts, have many descriptors, as far as its user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), max(hard, DESCRIPTORS)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open(address: str, number: int) -> socket.socket:
    parts = urlsplit(address)
    source = (f"127.0.{1 + number // OF_ADDRESS // 250}.{2 + number // OF_ADDRESS % 250}", 0)
    return socket.create_connection((parts.hostname or "", parts.port or 0), source_address=source)


@contextlib.contextmanager
def _connections(address: str, number: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_open(address, place)) for place in range(number)]


def _answers(connections: list[socket.socket], seconds: float) -> list[bytes]:
    """Return the beginnings of what comes on connections within some seconds; empty for those that are cut."""
    poll, left = select.poll(), {one.fileno(): one for one in connections}
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    found, end = [], time.monotonic() + seconds
    while left and time.monotonic() < end:
        for descriptor, _ in poll.poll(1000):
            try:
                found.append(left.pop(descriptor).recv(4096))
            except OSError:
                found.append(b"")
            poll.unregister(descriptor)
    return found


def measure_connections(
    address: str, options: Settings, pids: tuple[int, int], users: int, most: int, *, heads: bool
) -> list[Row]:
    """Memory of server and node, with many users who have asked once, and many connections that stay.

    Args:
        options: of the server's state directory.
        pids: of the server and its node.
        users: to add.
        most: connections that made one request.
        heads: also measure heads that are refused.
    """
    server = pids[0]
    say(f"{users:,} users")
    with Direct(options.home) as accounts:
        keys = [accounts.add_user(bodies.NewUser(f"user{number}")).key for number in range(users)]
    with httpx.Client() as client:
        for key in keys:
            assert key is not None
            client.get(f"{address}/v1/whoami", headers={"Authorization": f"Key {key.id}:{key.secret}"})
    say(f"{most:,} idle connections")
    before = memory_of(server)
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - SPARE
    with _connections(address, min(most, room)) as opened:
        answered = 0
        for first in range(0, len(opened), AT_A_TIME):
            some = opened[first : first + AT_A_TIME]
            for connection in some:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
            answered += sum(b"200 OK" in text for text in _answers(some, ANSWER_SECONDS))
        grown = (memory_of(server) - before) * 1024 / len(opened)
        whole = memory_of(*pids)
        samples, alone = Samples(f"/healthz beside {answered:,} idle connections"), Samples("/healthz alone")
        _healthz(address, samples)
        rows: list[Row] = [
            Figure(f"memory for each of {answered:,} idle connections", grown, "KiB", aim=8.0),
            Figure(f"server and node, {users:,} users, these connections", whole, "MiB", aim=1024.0),
        ]
    time.sleep(1.0)  # the server closes them
    _healthz(address, alone)
    return [*rows, Comparison(samples, alone), *(_measure_heads(address, server) if heads else [])]


def _healthz(address: str, samples: Samples) -> None:
    with httpx.Client() as client:
        client.get(f"{address}/healthz")
        for _ in range(50):
            with samples.time():
                client.get(f"{address}/healthz")


def _measure_heads(address: str, server: int) -> list[Row]:
    """The server's memory while heads are too large, or do not end; all are refused or cut."""
    say("large and slow heads")
    before = most = memory_of(server)
    with _connections(address, LARGE_HEADS) as opened:
        for connection in opened:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.send(b"GET /healthz HTTP/1.1\r\nHost: bench\r\nX: " + b"x" * HEAD_BYTES)
        refused = _answers(opened, ANSWER_SECONDS)
        most = max(most, memory_of(server))
    with _connections(address, SLOW_HEADS) as opened:
        for connection in opened:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: bench\r\nX: " + b"x" * 60_000)
        time.sleep(1.0)
        most = max(most, memory_of(server))
        cut = _answers(opened, ANSWER_SECONDS)
    answered = sum(text == b"" or b" 431 " in text for text in refused)
    ended = sum(text == b"" or b" 408 " in text for text in cut)
    names = f"{answered} of {LARGE_HEADS} heads of 1 MiB refused, {ended} of {SLOW_HEADS} slow ones ended"
    return [Figure(f"{names}: the server's growth", most - before, "MiB", aim=32.0)]
