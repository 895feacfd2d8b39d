"""The pace of small messages, and the shares of connections: one client takes not all of a server."""

from __future__ import annotations

from atoll.server.http import Connections
from atoll.server.line.paces import BURST_PIECES, PIECES_A_SECOND, Paces
from atoll.wire.line import HEADER_PRICE, Line

from .process import Server
from .raw_line import RawLine


def test_a_user_who_sends_too_many_messages_waits_alone() -> None:
    """Past a burst the wait is that of the pace; it is over when the bucket has filled, and others never have it."""
    now = 0.0
    paces = Paces(lambda: now)
    assert paces.pay("a", BURST_PIECES) == 0
    assert paces.pay("a", PIECES_A_SECOND) == 1.0
    assert paces.pay("b", 1) == 0
    now = 1.0
    assert paces.pay("a", 0) == 0
    assert paces.pay("a", PIECES_A_SECOND // 2) == 0.5


def test_headers_cost_more_than_pieces() -> None:
    """Each header is read as JSON, so that its price is that of many pieces."""
    client, server = Line(client=True), Line(client=False)
    server.feed(b"".join(client.send(0, b"x")))
    assert server.price == 1
    server.feed(b"".join(client.say({"type": "kill"})))
    assert server.price == 1 + HEADER_PRICE


def test_the_last_of_many_pings_is_answered() -> None:
    """A flood of pings gets one pong for each read, and the order of the other messages stays."""
    client, server = Line(client=True), Line(client=False)
    events = server.feed(client.ping() + b"".join(client.send(0, b"x")) + 2000 * client.ping())
    assert [kind for kind, _ in events] == [0, -2]
    assert server.price == 2002


def test_a_flood_of_pings_is_answered_by_few_pongs(server: Server) -> None:
    """The line goes on behind it."""
    line = RawLine(server, None)
    try:
        line.socket.sendall(5000 * (b"\x89\xfd" + bytes(4) + b"p" * 125))
        line.say({"type": "request", "name": "capacity", "arguments": {}})
        got = b""
        while b'"answer"' not in got:
            got += line.socket.recv(1 << 16)
        assert got.count(b"p" * 125) < 500
    finally:
        line.drop()


def test_one_source_has_a_share_of_the_connections() -> None:
    """Addresses of one IPv6 network are one source; another one still gets in, until all are taken."""
    connections = Connections(8)
    left = [connections.enter(f"2001:db8::{number}") for number in range(3)]
    assert [one is not None for one in left] == [True, True, False]
    assert connections.enter("2001:db8:0:100::1") is not None
    assert connections.enter("10.0.0.1") is not None
    assert left[0] is not None
    left[0]()
    assert connections.enter("2001:db8::9") is not None
    assert connections.refused == 1
