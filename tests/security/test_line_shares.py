"""One user's lines and the bytes in them: they leave memory and lines of the server to others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.server.line.early import Early
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.line.shares import Bytes
from atoll.server.line.socket_end import SocketEnd
from atoll.server.line.terms import OPENING_SECONDS
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire.line import DATA, Line
from atoll.wire.websocket import CONTROL, PIECE, LineError

ANN, BOB = (Principal(name, name, "key", "", operator=False) for name in ("ann", "bob"))
SHARE = 4 << 20
"""A user's part of the memory."""


class _Wire:
    """A client's end without a connection."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.line = Line(client=True)
        self.headers: list[dict[str, Any]] = []
        self.closed = -1
        session.attach(self, 0)

    def write(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self.headers += [value for kind, value in self.line.feed(bytes(piece)) if kind == CONTROL]

    def end(self, code: int) -> None:
        self.closed = code

    def say(self, header: dict[str, Any]) -> None:
        for piece in self.line.say(header):
            self.session.feed(self, bytes(piece))

    def send(self, count: int) -> None:
        for _ in range(0, count, PIECE):
            self.session.feed(self, b"".join(bytes(one) for one in self.line.send(DATA, bytes(PIECE))))


@contextlib.asynccontextmanager
async def _sessions(most: int = 1 << 16) -> AsyncIterator[Sessions]:
    made = Sessions(Node(Settings(Path("/nowhere"))), most)
    made._shares = Bytes(4 * SHARE)
    try:
        yield made
    finally:
        for session in made.all():
            session.end()
    assert made._shares.held == 0


def _announcing(sessions: Sessions, who: Principal) -> _Wire:
    wire = _Wire(sessions.open(who))
    wire.say({"type": "request", "name": "detached.accept", "arguments": {"spool": "x"}, "bytes": 256 << 20})
    return wire


async def _announced() -> None:
    """Bytes beside messages are bounded for each user, over all lines; the user's other requests go on."""
    async with _sessions() as sessions:
        first = _announcing(sessions, BOB)
        first.send(SHARE // 2)
        second = _announcing(sessions, BOB)
        second.send(SHARE // 2 + PIECE)
        assert not first.headers
        assert [one["type"] for one in second.headers] == ["failed", "over"]
        assert second.headers[0]["error"]["code"] == "resources_unavailable"
        assert sessions._shares.held == SHARE // 2
        second.send(SHARE)  # on its way already: dropped
        assert sessions._shares.held == SHARE // 2
        others = _announcing(sessions, ANN)
        others.send(SHARE)
        assert not others.headers
        first.session.end()
        assert sessions._shares.held == SHARE


async def _unopened() -> None:
    """A line whose opening message, or the next of the bytes beside it, does not come is ended."""
    async with _sessions() as sessions:
        silent, waits = _Wire(sessions.open(BOB)), _announcing(sessions, BOB)
        with pytest.raises(LineError):
            silent.send(PIECE)
        now = asyncio.get_running_loop().time()
        sessions._end_unopened(now)
        assert len(sessions) == 2
        sessions._end_unopened(now + OPENING_SECONDS + 1)
        assert (silent.closed, waits.closed, len(sessions)) == (1000, 1000, 0)


async def _unread() -> None:
    """A user who reads no answers loses the fullest lines; others lose none."""
    async with _sessions() as sessions:
        small, large, others = (sessions.open(who) for who in (BOB, BOB, ANN))
        small.send(DATA, bytes(PIECE))
        others.send(DATA, bytes(SHARE - PIECE))
        large.send(DATA, bytes(SHARE))
        sessions._end_hoards()
        assert (small.ended, large.ended, others.ended) == (False, True, False)


async def _unread_tiny() -> None:
    """Unread pieces of one byte count with the memory that they take."""
    async with _sessions() as sessions:
        tiny, others = sessions.open(BOB), sessions.open(ANN)
        for _ in range(SHARE // 100):
            tiny.send(DATA, b"x")
        others.send(DATA, bytes(SHARE // 100))
        sessions._end_hoards()
        assert (tiny.ended, others.ended) == (True, False)


def _open_all(sessions: Sessions, who: Principal) -> None:
    while True:
        sessions.open(who)


async def _lines() -> None:
    """A user who opens as many lines as possible leaves some to each other user."""
    async with _sessions(64) as sessions:
        for who in (BOB, ANN):
            with pytest.raises(errors.NotAuthorized, match="open lines"):
                _open_all(sessions, who)
        counts = [sum(one.principal is who for one in sessions.all()) for who in (BOB, ANN)]
        assert counts == [48, 12]
        sessions.open(Principal("eve", "eve", "key", "", operator=False))


@pytest.mark.parametrize(
    "check", [_announced, _unopened, _unread, _unread_tiny, _lines], ids=lambda check: check.__name__[1:]
)
def test_a_users_lines_leave_room_for_others(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """See the docstring of each check."""
    asyncio.run(check())


def _tiny(number: int) -> bytes:
    return b"%c" % (number % 251)


def _views(number: int) -> memoryview:
    """Return a small part of what came at once; the rest was for others."""
    return memoryview(bytes((number % 251,)) * (256 << 10))[:4096]


@contextlib.asynccontextmanager
async def _early() -> AsyncIterator[tuple[Callable[[Any], object], Callable[[], bytes]]]:
    made = Early(Bytes(1 << 30), "bob")
    yield made.take, lambda: b"".join(made.release())


@contextlib.asynccontextmanager
async def _unsent() -> AsyncIterator[tuple[Callable[[Any], object], Callable[[], bytes]]]:
    ours, theirs = socket.socketpair()
    with theirs:
        end = SocketEnd(ours, lambda _data: None, lambda: None, lambda: None)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while ours.send(bytes(1 << 16)):
                pass
        yield end.write, lambda: b"".join(end.unsent)
        end.close()


async def _keep(place: Any, cut: Callable[[int], Any], count: int) -> None:
    async with place() as (keep, kept):
        whole = b"".join(bytes(cut(number)) for number in range(count))
        tracemalloc.start()
        try:
            for number in range(count):
                keep(cut(number))
            assert tracemalloc.get_traced_memory()[0] < 2 * len(whole) + (64 << 10)
        finally:
            tracemalloc.stop()
        assert kept() == whole


@pytest.mark.parametrize("place", [_early, _unsent], ids=["early", "unsent"])
@pytest.mark.parametrize(("cut", "count"), [(_tiny, 50_000), (_views, 200)], ids=["one byte", "parts of reads"])
def test_waiting_pieces_take_the_memory_of_their_bytes(place: Any, cut: Callable[[int], Any], count: int) -> None:
    """However a client cuts its bytes, those that wait take about as much memory as is counted for them."""
    asyncio.run(_keep(place, cut, count))
