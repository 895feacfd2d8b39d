"""Shares of the machines of a Ray cluster: what Atoll may use of each node, asked of Ray through the driver.

The server's side alone: answers come from the ledger, at once, with or without a driver.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.server.cluster.contract import LOCAL, NodeFacts, Place, Wish
from atoll.server.ray import amounts
from atoll.server.ray.ledger import HELD, LEAVING, Holder, Ledger, NodeType, RayNode
from atoll.server.ray.settling import Rules, Settling

SOON_SECONDS = 0.02
AGAIN_SECONDS = 1.0
"""Pause after Ray refused a holder, or lost one."""
RAY_LABEL = "ray"
"""The label by which an Atoll node names its Ray node."""

_log = logging.getLogger("atoll.server")


@dataclass(frozen=True)
class Share:
    """All that Atoll may use of a node at present.

    Args:
        gpus: names of its devices, as the node's facts have them.
    """

    millicores: int
    memory_bytes: int
    gpus: tuple[str, ...]


async def _keeps(_node: str, _share: Share) -> bool:
    return True


class RayShares:
    """Implements `cluster.contract.Shares`; see there. For the event loop's own thread.

    Args:
        send: sends a message to the driver.
        types: machines that the autoscaler can add, beside those that Ray says.
        local: the server's own node is on the driver's machine.
    """

    def __init__(
        self, rules: Rules, send: Callable[..., None], types: Sequence[NodeType] = (), *, local: bool = True
    ) -> None:
        self.ledger = Ledger()
        self._settling = Settling(self.ledger, rules)
        self._send = send
        self._types = tuple(types)
        self._has_local = local
        self._timer: asyncio.TimerHandle | None = None
        self._sent: set[str] = set()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._gpu_names: dict[str, tuple[str, ...]] = {}
        self._local = ""
        self.on_change: Callable[[], None] = lambda: None
        self.preferred: Callable[[Wish], str] = lambda _wish: ""
        """Names the node that is best for a waiting wish: a holder is asked for there first; empty for none."""
        self.keep_to: Callable[[str, Share], Awaitable[bool]] = _keeps
        """Tells a node its new share, and returns whether it keeps to it. A smaller one is given back to Ray after that;
        a node that still uses more answers False, and is asked again later."""

    # --- the contract -----------------------------------------------------------------------------------------------

    def room(self, node: str, wish: Wish) -> bool:
        return self.ledger.room(node, wish)

    def taken(self, place: Place) -> None:
        self.ledger.take(place)
        self._settle_soon()

    def given_back(self, place: Place) -> None:
        self.ledger.give(place)
        if self.ledger.others_wait:
            self._settle()  # before the queue looks: this place may be another program's turn
        else:
            self._settle_soon()

    def wanted(self, wishes: Sequence[Wish]) -> None:
        self.ledger.await_room(wishes, {wish.id: self.preferred(wish) for wish in wishes})
        self._settle_soon()

    def refusal(self, wish: Wish) -> str:
        return self.ledger.refusal(wish)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def joined(self, facts: NodeFacts) -> None:
        """Note that a node has joined; its label `ray` says where it is, and the server's own is where the driver is."""
        ray = self._local if facts.name == LOCAL else facts.labels.get(RAY_LABEL, "")
        self._gpu_names[facts.name] = facts.gpus
        self.ledger.joined(facts.name, ray, facts.volumes)
        self.ledger.unfit.discard(ray)
        self._changed(facts.name)

    def left(self, node: str) -> None:
        """Note that a node is gone."""
        self.ledger.left(node)
        self._settle_soon()

    def open(self, node: str, *, takes_new: bool) -> None:
        """Note whether a node takes new calls: one that is drained or cordoned does not."""
        self.ledger.open(node, takes_new=takes_new)
        self._settle_soon()

    def share(self, node: str) -> Share:
        """Return what Atoll may use of a node."""
        amount = self.ledger.share(node)
        return Share(amount.millicores, amount.memory_bytes, self.gpus(node))

    def gpus(self, node: str) -> tuple[str, ...]:
        """Return the names of the GPUs that Ray gave to Atoll on a node, as the node's facts have them."""
        names = self._gpu_names.get(node, ())
        return tuple(_gpu_name(gpu, names) for gpu in self.ledger.gpus(node))

    # --- the driver -------------------------------------------------------------------------------------------------

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take a message of the driver's."""
        match message["event"]:
            case "ready":
                self._take_over(message["local"], message["holders"])
            case "cluster":
                self._see(message)
            case "held":
                self._held(message["holder"], message["facts"])
            case "over":
                self._over(message["holder"], message["why"])

    def _take_over(self, local: str, found: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Compare with what a new driver has found; holders of an earlier server are taken over."""
        self._local = local
        if self._has_local and self.ledger.ray_of(LOCAL) != local:
            self.ledger.joined(LOCAL, local)
        for name, holder in list(self.ledger.holders.items()):
            if name not in found and holder.state == HELD:
                self._lost(name, "it ended while there was no driver")
        for name, facts in found.items():
            if facts is not None:
                self._held(name, facts)
        self._sent = set()
        self._settle(send=True)

    def _see(self, facts: Mapping[str, Any]) -> None:
        nodes = [
            RayNode(
                one["id"],
                one["host"],
                amounts.of_data(one["total"]),
                amounts.of_data(one["free"]),
                one["labels"],
                one.get("address", ""),
                one.get("draining", False),
            )
            for one in facts["nodes"]
        ]
        before = self.ledger.nodes.keys()
        for name in self.ledger.see(nodes):
            _log.warning("ray.holder_lost", extra={"fields": {"holder": name, "cause": "its Ray node is gone"}})
        found = [NodeType(amounts.of_data(one["total"]), one["labels"]) for one in facts["types"]]
        self.ledger.types = (*self._types, *found)
        self.ledger.scales = bool(facts["scales"] or self._types)
        self.ledger.others_wait = facts["others_wait"]
        self._settle()
        if self.ledger.nodes.keys() != before:
            self.on_change()

    def _held(self, name: str, facts: Mapping[str, Any]) -> None:
        if name in self.ledger.holders and self.ledger.holders[name].state != "asked":
            return
        self.ledger.held(name, amounts.of_data(facts), facts["node"], facts["gpu_ids"], self._now())
        self._changed(self.ledger.node_of(facts["node"]))

    def _over(self, name: str, why: str) -> None:
        holder = self.ledger.holders.get(name)
        self._sent.discard(name)
        if holder is None or holder.state == LEAVING:
            return
        self._lost(name, why)
        self._settle_soon(AGAIN_SECONDS)

    def _lost(self, name: str, why: str) -> None:
        holder = self.ledger.drop(name)
        assert holder is not None
        _log.warning("ray.holder_lost", extra={"fields": {"holder": name, "cause": why, "amount": str(holder.amount)}})
        if node := self.ledger.node_of(holder.node):
            self._changed(node)

    def _changed(self, node: str) -> None:
        if node:
            self._leave_soon(self.ledger.ray_of(node))
        self._settle_soon()
        self.on_change()

    # --- decisions --------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _settle_soon(self, seconds: float = SOON_SECONDS) -> None:
        due = self._now() + seconds
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self._settle)

    def _settle(self, *, send: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settling.settle(self._now())
        for ray in {one.node for one in self.ledger.holders.values() if one.state == LEAVING}:
            self._leave_soon(ray)
        self._send_holders(always=send)
        due = self._settling.next_due()
        if due is not None:
            self._settle_soon(max(due - self._now(), AGAIN_SECONDS))

    def _send_holders(self, *, always: bool = False) -> None:
        names = set(self.ledger.holders)
        if names != self._sent or always:
            self._sent = names
            self._send(do="hold", holders={one.name: _to_data(one) for one in self.ledger.holders.values()})

    def _leave_soon(self, ray: str) -> None:
        """Tell the node its share, and give back what leaves; one word to a node at a time."""
        if ray not in self._leaving:
            task = asyncio.ensure_future(self._tell_node(ray))
            self._leaving[ray] = task
            task.add_done_callback(lambda _: self._leaving.pop(ray, None))

    async def _tell_node(self, ray: str) -> None:
        told: Share | None = None
        while True:
            node = self.ledger.node_of(ray)
            share = self.share(node) if node else None
            leaving = [one for one in self.ledger.holders.values() if one.node == ray and one.state == LEAVING]
            if share == told and not leaving:
                return
            told = share
            kept = share is None or await self._kept(node, share)
            for holder in leaving:
                if kept:
                    self.ledger.drop(holder.name)
                else:
                    self.ledger.keep(holder.name, self._now())
            self._send_holders()
            if not kept:
                if leaving:  # it has the larger one again
                    await self._kept(node, self.share(node))
                return

    async def _kept(self, node: str, share: Share) -> bool:
        try:
            return await self.keep_to(node, share)
        except Exception as error:
            _log.warning("ray.share_not_told", extra={"fields": {"node": node, "cause": str(error)[:300]}})
            return False

    async def close(self) -> None:
        """Stop work in the background."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._leaving.values()):
            task.cancel()
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)


def _to_data(holder: Holder) -> dict[str, Any]:
    return {
        **amounts.to_data(holder.amount),
        "pinned": holder.pinned,
        "preferred": holder.preferred,
        "labels": dict(holder.labels),
        "besides": sorted(holder.besides),
    }


def _gpu_name(gpu: str, names: Sequence[str]) -> str:
    """Return a node's name for the GPU that Ray calls by its number: the device with it, else the one at that place."""
    if f"nvidia{gpu}" in names:
        return f"nvidia{gpu}"
    return names[int(gpu)] if gpu.isdigit() and int(gpu) < len(names) else gpu
