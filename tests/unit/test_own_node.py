"""The server's own machine as a node: what its daemon tells, and what the server counts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.server.cluster import part
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL, NodeFacts, NodeLoad
from atoll.server.cluster.places import Places
from tests.unit.placing import wish


class Daemon:
    """The daemon's end of the connection that tells a load: it speaks when that changes, and not again."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def connect(self, *_: object) -> Daemon:
        return self

    async def receive(self) -> Any:
        return SimpleNamespace(header={"load": await self.words.get()})

    def close(self) -> None: ...


def test_a_word_that_holds_a_line_already_takes_no_room_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that was counted after a line had come, and is passed on with the count from before, is mended while all is quiet."""
    monkeypatch.setattr(part, "LOOK_SECONDS", 0.01)

    async def scene() -> None:
        daemon, places, handing = Daemon(), Places(), SimpleNamespace(given=0)
        state = SimpleNamespace(node=daemon)
        is_told = asyncio.Event()

        def hear(load: NodeLoad) -> None:
            places.load(LOCAL, load)
            if load.running:
                is_told.set()

        cluster = cast("Cluster", SimpleNamespace(hear_local=hear))
        arrival: Any = SimpleNamespace(say=lambda _: None)
        places.join(NodeFacts(LOCAL, "", 2000, 1 << 34, (), {}, "own"), accepting=True)
        hearing = asyncio.ensure_future(part._hear(cast("Any", state), cluster, cast("Any", handing)))
        room = {"fits": {}, "memory_bytes": 1 << 34, "gpus": 0, "waiting": 0}
        daemon.words.put_nowait({**room, "millicores": 2000, "running": 0})
        assert await places.place(wish("first", millicores=1000), arrival) == LOCAL
        handing.given += 1
        daemon.words.put_nowait({**room, "millicores": 1000, "running": 1})
        async with asyncio.timeout(60):
            await is_told.wait()
            assert await places.place(wish("second", millicores=1000), arrival) == LOCAL
        hearing.cancel()
        await asyncio.wait({hearing})

    asyncio.run(scene())
