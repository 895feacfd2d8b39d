"""Sessions of a process that ends, and that no other process takes: their clients come back, and hear of no end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.server.line import handover
from atoll.server.line.sessions import Sessions
from atoll.server.paces import Paces
from atoll.server.principal import Principal
from atoll.wire.line import DRAINS


class Wire:
    """A client's connection, which notes how it was ended."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def end(self, code: int) -> None:
        """See `connection.Connection.end`."""
        self.codes.append(code)


def test_a_client_that_came_back_meanwhile_comes_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have found this process by a connection of before; its call is ended by the node, and may run until then."""

    async def nothing(*_: object) -> int:
        return 0

    monkeypatch.setattr(handover, "adopt", nothing)
    monkeypatch.setattr(handover, "give", nothing)

    async def run() -> list[int]:
        node: Any = SimpleNamespace(options=None, paces=Paces())
        sessions, wire = Sessions(node, 10), Wire()
        async with sessions.serving():
            session: Any = sessions.open(Principal("u1", "ann"))
            session._wire = wire
        return wire.codes

    assert asyncio.run(run()) == [DRAINS]
