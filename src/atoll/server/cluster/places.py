"""The places of lines: what happens to machines goes to the placement, and what it decides to those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from atoll import errors
from atoll.server.cluster.bounds import Bound, Bounds
from atoll.server.cluster.contract import NodeFacts, NodeLoad, Place, SharesOfNodes, Wish
from atoll.server.cluster.links.arrival import Arrival
from atoll.server.cluster.placement import Placement

POSITION_SECONDS = 0.5
"""Seconds between looks at what a wish waits for."""


class Places:
    """The placement of one server, in the running event loop."""

    def __init__(self) -> None:
        self.placement = Placement(None)
        self.shares: SharesOfNodes | None = None
        self.bounds = Bounds()
        self._waiting: dict[str, asyncio.Future[str]] = {}

    def use(self, shares: SharesOfNodes) -> None:
        """Place within shares that another scheduler gives; before any node is there."""
        self.shares, self.placement = shares, Placement(shares)
        shares.on_change = self.look

    # --- machines ----------------------------------------------------------------------------------------------------

    def expect(self, facts: NodeFacts) -> None:
        """Count a node as away that was there before."""
        self.placement.expect(facts, _now())

    def join(self, facts: NodeFacts, *, accepting: bool) -> None:
        """Place on a node from here on, if it is `accepting`."""
        if self.shares is not None:
            self.shares.joined(facts)
            self.shares.open(facts.name, takes_new=accepting)
        self._settle(self.placement.join(facts, _now()))
        self._settle(self.placement.accept(facts.name, accepting, _now()))

    def leave(self, node: str) -> None:
        """Place on a node no more."""
        if self.shares is not None:
            self.shares.left(node)
        self._settle(self.placement.leave(node, _now()))

    def accept(self, node: str, *, accepting: bool) -> None:
        """Give a node new lines again, or none."""
        if self.shares is not None:
            self.shares.open(node, takes_new=accepting)
        self._settle(self.placement.accept(node, accepting, _now()))

    def load(self, node: str, load: NodeLoad) -> None:
        """Take a node's word about its load."""
        self._settle(self.placement.load(node, load, _now()))

    def crowded(self) -> list[str]:
        """Return the nodes whose leases are to be asked back: others wait for them."""
        return self.placement.crowded(_now())

    def look(self) -> None:
        """Look at those who wait again: time has passed, or shares have changed."""
        self._settle(self.placement.look(_now()))
        for wish, reason in self.placement.refused():
            future = self._waiting.get(wish.id)
            self._settle(self.placement.withdraw(wish.id, _now()))
            if future is not None and not future.done():
                future.set_exception(_never(reason))

    # --- lines -------------------------------------------------------------------------------------------------------

    async def place_bounded(
        self, wish: Wish, arrival: Arrival, bound: Bound, nodes: Callable[[], Sequence[str]]
    ) -> tuple[str, int]:
        """Return the node for a wish of a bounded function, and how many of its calls that node may make at a time.

        Args:
            nodes: returns those that can serve it at present.

        Raises:
            ResourcesUnavailable: as `place`.
        """
        while True:
            allowed = self.bounds.allowed(bound, nodes())
            node = await self.place(
                replace(wish, nodes=allowed),
                arrival,
                lambda: self.bounds.allowed(bound, nodes()) != allowed,  # noqa: B023 - asked until `place` is over
            )
            if node:
                self.bounds.placed(wish.id, bound, node)
                return node, self.bounds.shares(bound, nodes()).get(node, 1)

    async def place(self, wish: Wish, arrival: Arrival, is_other: Callable[[], bool] = lambda: False) -> str:
        """Return the node for a wish; the client is told why it waits.

        Args:
            is_other: returns whether it waits for the wrong nodes; then it waits no more, and has none.

        Raises:
            ResourcesUnavailable: no machine can ever hold it.
        """
        if reason := self.placement.refusal(wish):
            raise _never(reason)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[wish.id] = future
        try:
            self._settle(self.placement.ask(wish, _now()))
            told = None
            while not future.done():
                await asyncio.wait({future}, timeout=POSITION_SECONDS)
                if not future.done() and is_other():
                    self._settle(self.placement.withdraw(wish.id, _now()))
                    return ""
                said = max(self.placement.position(wish.id), 0), self.placement.reason(wish.id)
                if not future.done() and said != told and said[1]:
                    told = arrival.waits = said
                    arrival.say({"type": "waiting", "position": said[0], "reason": said[1]})
            return future.result()
        except BaseException:
            placed = future.done() and not future.cancelled() and future.exception() is None
            change = self.placement.over if placed else self.placement.withdraw
            self._settle(change(wish.id, _now()))
            raise
        finally:
            del self._waiting[wish.id]

    def over(self, wish: str) -> None:
        """Note that a placed wish is over."""
        self.bounds.over(wish)
        self._settle(self.placement.over(wish, _now()))

    def _settle(self, places: list[Place]) -> None:
        while places:
            more: list[Place] = []
            for place in places:
                future = self._waiting.get(place.wish.id)
                if future is None or future.done():
                    more += self.placement.over(place.wish.id, _now())
                else:
                    future.set_result(place.node)
            places = more


def _now() -> float:
    return asyncio.get_running_loop().time()


def _never(reason: str) -> errors.ResourcesUnavailable:
    return errors.ResourcesUnavailable(
        reason, hint="ask for less, or add a machine: `atoll nodes list` says what is there"
    )
