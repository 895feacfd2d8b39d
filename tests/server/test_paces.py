"""The pace of small messages, and the shares of connections: one client takes not all of a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from atoll.server import requests
from atoll.server.http import Connections
from atoll.server.line.connection import Connection
from atoll.server.node import Node
from atoll.server.paces import BURST_PIECES, PIECES_A_SECOND, Paces
from atoll.server.principal import Principal
from atoll.server.state import ServerState
from atoll.settings import Settings
from atoll.wire.line import BYTES_OF_PIECE, HEADER_PRICE, PARTS_OF_PIECE, Line
from atoll.wire.websocket import LineError

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
    server.feed(b"".join(client.say({"type": "kill", "x": [[]] * 4000})))
    assert server.price >= 8000 // PARTS_OF_PIECE  # each of them is read, checked and written again
    server.feed(b"".join(client.say({"type": "kill", "x": "y" * 65_536})))
    assert server.price >= 65_536 // BYTES_OF_PIECE


def test_requests_of_a_user_pay_for_their_parts_in_turn() -> None:
    """Bodies of many values are read at the user's pace, also many at a time; another user's are not held up."""
    many = json.dumps({"a": [[]] * 19_000}).encode()

    async def asked() -> None:
        node, now = Node(Settings(Path("/nowhere"))), 0.0
        node.paces = Paces(lambda: now)
        state = ServerState(node)
        read: list[str] = []

        async def ask(principal: Principal, _name: str, _arguments: object) -> dict[str, object]:
            read.append(principal.user)
            return {}

        with mock.patch.object(node, "ask_counted", ask):
            bob, ada = (Principal(name, name, "key", "", operator=False) for name in ("bob", "ada"))
            waiting = [asyncio.ensure_future(requests._ask(state, bob, "status", many)) for _ in range(64)]
            await asyncio.sleep(0)
            burst = len(read)
            assert 0 < burst <= BURST_PIECES // (38_000 // PARTS_OF_PIECE) + 1 < len(waiting)
            await requests._ask(state, ada, "status", b"{}")
            assert read[burst:] == ["ada"]
            assert node.paces.debt("bob") > 0 == node.paces.debt("ada")
            done, _ = await asyncio.wait(waiting[:burst])
            assert all(one.result() == {} for one in done)
            now = 1.0
            await waiting[burst]  # goes on by itself
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(asked())


def test_each_part_of_a_message_has_its_price() -> None:
    """Frames that complete no message cost as much as those that do; a message has a bounded number of them."""
    server = Line(client=False)
    part = b"\x00\x80" + bytes(4)
    assert server.feed(b"\x01\x81" + bytes(4) + b"{" + 1000 * part) == []
    assert server.price == 1001
    assert server.feed(10 * part) == []
    assert server.price == 10
    with pytest.raises(LineError, match="parts"):
        server.feed(100 * part)


def test_lines_of_a_user_in_debt_are_not_read() -> None:
    """What comes on another line of the user waits as well, in order, and is counted; another user's is read."""

    async def serve() -> None:
        read: list[tuple[str, bytes]] = []
        paces, whole = Paces(), asyncio.Event()

        def connection(user: str, price: int) -> tuple[Connection, SimpleNamespace]:
            def feed(_wire: Any, data: bytes) -> None:
                read.append((user, data))
                if data == b"3":
                    whole.set()

            session = SimpleNamespace(
                feed=feed, unread=0, line=SimpleNamespace(price=price), principal=SimpleNamespace(user=user)
            )
            sessions = SimpleNamespace(paces=paces, unsettled=mock.Mock())
            return Connection(
                cast("Any", session), cast("Any", sessions), mock.Mock(is_closing=lambda: False), set()
            ), session

        (flood, _), (second, waiting), (other, _) = (connection(*one) for one in (("a", 24_000), ("a", 1), ("b", 1)))
        flood.data_received(b"1")
        second.data_received(b"22")
        second.data_received(b"3")
        other.data_received(b"4")
        assert read == [("a", b"1"), ("b", b"4")]
        assert waiting.unread == 3
        async with asyncio.timeout(60):
            await whole.wait()
        assert read[2:] == [("a", b"22"), ("a", b"3")]
        assert waiting.unread == 0

    asyncio.run(serve())


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
