"""The implementations of `Shares` that `test_shares` runs against; another one adds its context manager to `LENDERS`.

Each lends two machines, `a` with a GPU and `b` without, of four cores each. Ray's shares are the server's own half, with a
driver that says what Ray would; `tests/ray_engine` has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from atoll.server.cluster.contract import NodeFacts, Place, Shares, Wish
from atoll.server.ray.settling import Rules
from atoll.server.ray.shares import RayShares

GIB = 1 << 30
GPUS = {"a": 1, "b": 0}


@dataclass(frozen=True)
class Lender:
    """Shares under test.

    Args:
        joined: tells them that a node has joined, with the labels that it must have.
        labels: those that each node needs.
        lose, find: end the link to the scheduler, and make it again.
    """

    shares: Shares
    joined: Callable[[NodeFacts], None]
    labels: Mapping[str, Mapping[str, str]]
    lose: Callable[[], None]
    find: Callable[[], None]


class Counted:
    """The simplest shares: so many cores and GPUs of each machine, counted."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._free = {name: [4000, 16 * GIB, gpus] for name, gpus in GPUS.items()}

    def room(self, node: str, wish: Wish) -> bool:
        return all(has >= needs for has, needs in zip(self._free[node], _size(wish), strict=True))

    def taken(self, place: Place) -> None:
        self._free[place.node] = [
            has - needs for has, needs in zip(self._free[place.node], _size(place.wish), strict=True)
        ]

    def given_back(self, place: Place) -> None:
        self._free[place.node] = [
            has + needs for has, needs in zip(self._free[place.node], _size(place.wish), strict=True)
        ]

    def wanted(self, wishes: Sequence[Wish]) -> None:
        """All of the machines is lent at any time."""

    def refusal(self, wish: Wish) -> str:
        return "" if wish.gpus <= 1 and wish.millicores <= 4000 else "it needs more than any machine has"


def _size(wish: Wish) -> tuple[int, int, int]:
    return wish.millicores, wish.memory_bytes, wish.gpus


@contextlib.asynccontextmanager
async def counted() -> AsyncIterator[Lender]:
    """Shares of a scheduler that lends everything."""
    yield Lender(Counted(), lambda _: None, {"a": {}, "b": {}}, lambda: None, lambda: None)


class FakeDriver:
    """What Ray would do: it places holders, and lets those wait that have no room."""

    def __init__(self) -> None:
        self.shares = RayShares(Rules(warm={}, idle_seconds=3600.0), self.send)
        self._free = {f"ray-{name}": [4000, 16 * GIB, gpus] for name, gpus in GPUS.items()}
        self._holders: dict[str, dict[str, Any]] = {}
        self._lost = False

    def see(self) -> None:
        """Say which machines there are."""
        nodes = [
            {"id": f"ray-{name}", "host": name, "labels": {}, "total": total, "free": total}
            for name, gpus in GPUS.items()
            for total in [{"millicores": 4000, "memory_bytes": 16 * GIB, "gpus": gpus}]
        ]
        self.shares.hear({"event": "cluster", "nodes": nodes, "types": [], "scales": False, "others_wait": False})

    def begin(self) -> None:
        """Say which holders live."""
        self._lost = False
        self.shares.hear({"event": "ready", "local": "", "holders": dict(self._holders)})
        self.see()

    def lose(self) -> None:
        """Hear nothing any more; holders live on."""
        self._lost = True

    def send(self, *, do: str, holders: Mapping[str, Mapping[str, Any]]) -> None:
        assert do == "hold"
        if self._lost:
            return
        for name in set(self._holders) - set(holders):
            held = self._holders.pop(name)
            self._count(held["node"], held, 1)
        for name, asked in holders.items():
            if name not in self._holders:
                asyncio.get_running_loop().call_soon(self._place, name, asked)

    def _place(self, name: str, asked: Mapping[str, Any]) -> None:
        if name in self._holders or name not in self.shares.ledger.holders:
            return
        needs = asked["millicores"], asked["memory_bytes"], asked["gpus"]
        for node in [asked["pinned"] or asked["preferred"], *self._free]:
            if node in self._free and all(h >= n for h, n in zip(self._free[node], needs, strict=True)):
                amount = {part: asked[part] for part in ("millicores", "memory_bytes", "gpus")}
                self._holders[name] = {**amount, "node": node, "gpu_ids": ["0"] * asked["gpus"]}
                self._count(node, asked, -1)
                self.shares.hear({"event": "held", "holder": name, "facts": self._holders[name]})
                return
        asyncio.get_running_loop().call_later(0.02, self._place, name, asked)

    def _count(self, node: str, amount: Mapping[str, Any], times: int) -> None:
        parts = ("millicores", "memory_bytes", "gpus")
        self._free[node] = [has + times * amount[part] for has, part in zip(self._free[node], parts, strict=True)]


@contextlib.asynccontextmanager
async def ray() -> AsyncIterator[Lender]:
    """The shares of a Ray cluster, with a driver that is none."""
    driver = FakeDriver()
    driver.begin()
    labels = {name: {"ray": f"ray-{name}"} for name in GPUS}
    try:
        yield Lender(driver.shares, driver.shares.joined, labels, driver.lose, driver.begin)
    finally:
        await driver.shares.close()


LENDERS: dict[str, Callable[[], AbstractAsyncContextManager[Lender]]] = {"counted": counted, "ray": ray}
