"""Runners of an earlier process of the server: each is used once, and no user waits for another's node."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll import errors
from atoll.server.endpoints.bodies import Options
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners import pool as pools
from atoll.server.endpoints.runners import runners as module
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.principal import Principal


class _Adopted:
    """A runner as its pool knows it, without a call."""

    def __init__(self, _state: Any, _owner: Any, call: str, *_: object) -> None:
        self.call, self.busy, self.over = call, 0, False
        self.since = self.born = time.monotonic()

    async def adopt(self) -> None:
        """Be there."""

    def let_go(self) -> None:
        """Have no connections."""


def _revision(user: str) -> Revision:
    return Revision(f"revision-{user}", user, user, "f", 8080, Options(), "private", 0.0)


class _Node:
    """Tells of one runner of each user, and fails for some."""

    def __init__(self, failing: set[str]) -> None:
        self.failing = failing
        self.asked = list[str]()
        self.changed = asyncio.Condition()

    async def ask(self, user: Principal, _name: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        async with self.changed:
            self.asked.append(user.user)
            self.changed.notify_all()
        if user.user in self.failing:
            raise errors.SandboxUnavailable("not ready for this user", hint="none")
        return {"calls": [{"call": f"call-{user.user}", "batch": f"revision-{user.user}"}] * 2}

    async def ask_counted(self, *_: Any) -> dict[str, Any]:
        return {"calls": [], "away": ["all"]}


def test_a_user_whose_node_fails_keeps_no_runners_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other users' runners are used again, each once, and end as they should; this user's are when the node is ready."""
    monkeypatch.setattr(pools, "Runner", _Adopted)
    monkeypatch.setattr(module, "ALIVE_SECONDS", 0.01)

    async def run() -> None:
        node = _Node({"bob"})

        async def read(*_: Any, **__: Any) -> list[Revision]:
            return [_revision(user) for user in ("ann", "bob", "eve")]

        state = SimpleNamespace(asks=node)
        runners = Runners(cast("Any", state), tmp_path, cast("Any", SimpleNamespace(run=read)))
        looked = {user: asyncio.Event() for user in ("ann", "bob", "eve")}

        def look(pool: pools.Pool, _now: float) -> None:
            if pool.runners:
                looked[pool.revision.user].set()

        monkeypatch.setattr(pools.Pool, "look", look)
        async with runners.serving():
            async with node.changed:
                await node.changed.wait_for(lambda: node.asked.count("bob") >= 3)
            await looked["ann"].wait()
            await looked["eve"].wait()
            found = {name: [one.call for one in pool.runners] for name, pool in runners.pools.items()}
            assert found == {"revision-ann": ["call-ann"], "revision-eve": ["call-eve"]}
            node.failing.clear()
            await looked["bob"].wait()
            assert (node.asked.count("ann"), node.asked.count("eve")) == (1, 1)

    asyncio.run(asyncio.wait_for(run(), 60))
