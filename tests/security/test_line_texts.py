"""Texts and frames that cost the server's loop or memory more than their bytes: each is bounded, and paid by its user."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.server.line import outputs
from atoll.server.line.ends import FREE_FRAMES, Ends, Owner
from atoll.server.line.frames import MOST_FRAMES, Follower
from atoll.server.line.outputs import Outputs
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.line.shares import Bytes
from atoll.server.line.terms import LATER_BYTES, LEAST_RATE, MOST_PARTS, OPENING_SECONDS
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire.frames import encode
from atoll.wire.line import DATA, Line
from atoll.wire.websocket import PIECE, LineError

BOB = Principal("bob", "bob", "key", "", operator=False)
SHARE = 1 << 20
"""A user's part of the memory."""


class _Wire:
    """A client's end that takes what comes."""

    def __init__(self, session: Session) -> None:
        self.session, self.line = session, Line(client=True)
        session.attach(self, 0)

    def write(self, pieces: list[Any]) -> None:
        """Drop it."""

    def end(self, code: int) -> None:
        """Drop it."""

    def say(self, header: dict[str, Any], part: slice = slice(None)) -> None:
        """Send a part of a header's message."""
        self.session.feed(self, b"".join(bytes(piece) for piece in self.line.say(header))[part])


@contextlib.asynccontextmanager
async def _session() -> AsyncIterator[tuple[Sessions, Session]]:
    sessions = Sessions(Node(Settings(Path("/nowhere"))))
    sessions._shares = Bytes(4 * SHARE)
    session = sessions.open(BOB)
    try:
        yield sessions, session
    finally:
        session.end()
    assert sessions._shares.held == 0


async def _parts() -> None:
    """A text with more values than an honest client sends is not read; a long one with few is."""
    async with _session() as (_, session):
        wire = _Wire(session)
        with pytest.raises(LineError, match="parts"):
            wire.say({"type": "request", "name": "status", "arguments": {"x": [[]] * MOST_PARTS}})
    async with _session() as (_, session):
        _Wire(session).say({"type": "none", "x": "y" * (1 << 20)})
        assert session.kind == "refused"


async def _later() -> None:
    """A text behind the opening one is short."""
    async with _session() as (_, session):
        wire = _Wire(session)
        wire.say({"type": "none"})
        wire.say({"type": "kill", "x": "y" * (LATER_BYTES // 2)})
        with pytest.raises(LineError, match="may have"):
            wire.say({"type": "kill", "x": "y" * LATER_BYTES})


async def _gathered() -> None:
    """A text that does not come whole counts among its user's bytes, and no longer when it has come."""
    async with _session() as (sessions, session):
        wire = _Wire(session)
        wire.say({"type": "none", "x": "y" * (3 * SHARE)}, slice(SHARE // 2))
        assert SHARE // 2 - 100 < sessions._shares.held <= SHARE // 2
        with pytest.raises(LineError, match="no room"):
            wire.session.feed(wire, b"y" * SHARE)
    async with _session() as (sessions, session):
        wire = _Wire(session)
        text = b"".join(bytes(one) for one in wire.line.say({"type": "none", "x": "y" * 1000}))
        for at in range(0, len(text), 7):
            session.feed(wire, text[at : at + 7])
        assert (session.kind, sessions._shares.held) == ("refused", 0)


async def _slow() -> None:
    """Bytes beside an opening message come at a least rate, however short the pauses between them are."""
    now = asyncio.get_running_loop().time()
    async with _session() as (sessions, session):
        session.early._loop = cast("Any", SimpleNamespace(time=lambda: now))
        wire = _Wire(session)
        wire.say({"type": "request", "name": "x", "arguments": {}, "bytes": 256 << 20})
        began = now
        while session.early.until > now and now < began + 10 * OPENING_SECONDS:
            now += OPENING_SECONDS / 2
            session.feed(wire, b"".join(wire.line.send(DATA, b"x")))
        assert now <= began + 2 * OPENING_SECONDS
        sessions._end_unopened(now + 1)
        assert session.ended
    now = asyncio.get_running_loop().time()
    async with _session() as (_, session):
        session.early._loop = cast("Any", SimpleNamespace(time=lambda: now))
        wire = _Wire(session)
        wire.say({"type": "request", "name": "x", "arguments": {}, "bytes": 256 << 20})
        for _ in range(3):
            now += PIECE / LEAST_RATE
            session.feed(wire, b"".join(bytes(one) for one in wire.line.send(DATA, bytes(PIECE))))
            assert session.early.until > now + OPENING_SECONDS / 2


@pytest.mark.parametrize("check", [_parts, _later, _gathered, _slow], ids=lambda check: check.__name__[1:])
def test_texts_of_a_client_are_bounded(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """See the docstring of each check."""
    asyncio.run(check())


# --- frames -----------------------------------------------------------------------------------------------------------

TINY = b"".join(bytes(piece) for piece in encode({"type": "x"}))


def test_tiny_frames_without_end_are_followed_no_further() -> None:
    """Small frames of clients and workers are followed; a piece that is full of smaller ones ends that."""
    small = b"".join(bytes(piece) for piece in encode({"type": "yield", "call": "c" * 30}, [b"item"]))
    follower = Follower()
    assert len(follower.feed(small * (PIECE // len(small)))) == PIECE // len(small)
    assert follower.feed(TINY * (PIECE // len(TINY))) == []
    assert PIECE // len(TINY) > MOST_FRAMES
    assert follower.feed(small) == []


def test_frames_of_a_worker_are_paid_by_its_user() -> None:
    """A worker that sends more than its user's pace is not read for a while; the next bytes come after it."""

    async def main() -> None:
        prices: list[int] = []
        came = asyncio.Event()
        got: list[bytes] = []

        def pay(price: int) -> float:
            prices.append(price)
            return 3600.0 if len(prices) == 1 else 0.0

        def send(_channel: int, piece: bytes) -> None:
            got.append(piece)
            came.set()

        owner = cast("Owner", SimpleNamespace(kind="lease", send=send, taken=int, post=print, data_over=print))
        ends = Ends(owner, pay)
        ours, theirs = socket.socketpair()
        ends.connect(ours.detach(), {})
        ends.hold(hold=True)
        ends.hold(hold=False)
        theirs.sendall(TINY * 100)
        await asyncio.wait_for(came.wait(), 30)
        theirs.sendall(TINY)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (b"".join(got), prices) == (TINY * 100, [100 - FREE_FRAMES])
        ends.hold(hold=True)
        ends.hold(hold=False)  # as when the client takes more
        for _ in range(20):
            await asyncio.sleep(0)
        assert prices == [100 - FREE_FRAMES]
        assert ends._resting is not None
        ends._resting.cancel()
        came.clear()
        ends._rested()
        await asyncio.wait_for(came.wait(), 30)
        assert prices == [100 - FREE_FRAMES, 0]
        ends.write(TINY * 30)
        assert prices == [100 - FREE_FRAMES, 0, 30 - FREE_FRAMES]
        ends.close()
        theirs.close()

    asyncio.run(main())


def test_calls_without_an_answer_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that begins calls and ignores their answers fills no memory."""
    monkeypatch.setattr(outputs, "MOST_CALLS", 3)

    async def main() -> None:
        kept = Outputs({}, lambda *_: None, None)
        for number in range(5):
            kept.begun(str(number))
        assert list(kept.calls) == ["0", "1", "2"]
        kept.close()

    asyncio.run(main())
