"""Lines that end while a server hands its lines over: they cost no other user's line, and no descriptor goes astray."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atoll.daemon.handover import Handover
from atoll.host import daemon_start
from atoll.server.line import handover, terms
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Channel

EVE, ANN = (Principal(name, name, "key", "", operator=False) for name in ("eve", "ann"))
OPTIONS = Settings(Path("/nowhere"))


class _Wire:
    """A connection that is lost."""

    def write(self, pieces: list[Any]) -> None:
        pass

    def end(self, code: int) -> None:
        pass


@contextmanager
def _waiting(sessions: Sessions, who: Principal) -> Iterator[tuple[Session, socket.socket]]:
    """Yield a session that waits for a worker, and the node's end of its control socket."""
    ours, node = socket.socketpair()
    with node:
        node.settimeout(60)
        made = sessions.open(who)
        made.kind = "lease"
        made.control = AsyncChannel(ours)
        made.attach(_Wire(), 0)
        yield made, node


def _lose(line: Session) -> None:
    """Lose the connection of a line, whose grace is over at once."""
    wire = line._wire
    assert wire is not None
    line.detach(wire)


async def _handed_over(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    loop = asyncio.get_running_loop()
    sessions, kept = Sessions(Node(OPTIONS)), Handover()
    with _waiting(sessions, EVE) as (bad, _), _waiting(sessions, ANN) as (good, node):
        ours, theirs = socket.socketpair()
        strangers: list[socket.socket] = []

        async def end() -> None:
            """End the first line, and have other sockets get its numbers."""
            bad.end()
            strangers.extend(socket.socketpair())

        class Sending(Channel):
            def send(self, header: dict[str, Any], *rest: Any, **more: Any) -> None:
                if header["type"] == "line" and not bad.ended and moment == "sent":
                    asyncio.run_coroutine_threadsafe(end(), loop).result(60)
                super().send(header, *rest, **more)

        monkeypatch.setattr(daemon_start, "control_connection", lambda _options, _message: Sending(ours))
        channel = AsyncChannel(theirs)
        taking = loop.create_task(kept.take(channel))
        if moment == "grace":
            monkeypatch.setattr(terms, "GRACE_SECONDS", 0.0)
            _lose(bad)
        try:
            assert await handover.give(OPTIONS, sessions.all()) == 2
            await taking
            assert bad.ended is (moment == "sent")
            ends = [os.readlink(f"/proc/self/fd/{descriptors[1]}") for descriptors in kept._kept]
            assert not {os.readlink(f"/proc/self/fd/{one.fileno()}") for one in strangers} & set(ends)
            good.end()
            os.write(kept._kept[1][1], b"goes on")
            assert node.recv(7, socket.MSG_WAITALL) == b"goes on"
        finally:
            for one in strangers:
                one.close()
            for line in sessions.all():
                line.end()
            kept.close()
            channel.close()


@pytest.mark.parametrize("moment", ["sent", "grace"])
def test_lines_that_end_amid_a_handover_cost_no_other(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A line that ends as it is sent, or whose grace passes meanwhile, takes no other user's line with it."""
    before = set(os.listdir("/proc/self/fd"))
    asyncio.run(_handed_over(monkeypatch, moment))
    assert set(os.listdir("/proc/self/fd")) == before
