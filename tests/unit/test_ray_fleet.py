"""The fleet of Ray's machines: names of their nodes, without Ray."""

from __future__ import annotations

import asyncio
from typing import Any

from atoll.server.ray.amounts import Amount
from atoll.server.ray.fleet import Invitation, RayFleet
from atoll.server.ray.ledger import RayNode
from atoll.server.ray.settling import Rules
from atoll.server.ray.shares import RayShares


async def _order(node: str, nodes: list[RayNode]) -> dict[str, Any]:
    """Return what the driver is told when a machine is started."""
    sent: list[dict[str, Any]] = []

    def send(**message: Any) -> None:
        sent.append(message)
        fleet.hear({"event": "answer", "ask": message["ask"], "error": None})

    async def invite() -> Invitation:
        return Invitation("https://server.example", "token", "certificates")

    shares = RayShares(Rules(), send)
    shares.ledger.see(nodes)
    fleet = RayFleet(shares, send, invite, program=["atoll"], home="/state/{name}", rest_seconds=60.0)
    fleet.hear({"event": "ready", "local": "", "machines": {}})
    await fleet.start(node)
    (order,) = sent
    return order


def _node(id_: str, address: str) -> RayNode:
    return RayNode(id_, "Gpu.lab", Amount(1000), address=address)


def test_a_machine_that_is_started_again_keeps_its_name() -> None:
    """Ray has not missed yet what ran at the same address before; another machine of that host name is told apart."""
    before, now = _node("11111111aaaa", "10.0.0.1"), _node("22222222bbbb", "10.0.0.1")
    again = asyncio.run(_order(now.id, [before, now]))
    assert again["name"] == "gpu-lab"
    assert again["home"] == "/state/gpu-lab"
    other = asyncio.run(_order(now.id, [_node("33333333cccc", "10.0.0.2"), now]))
    assert other["name"] == "gpu-lab-22222222"


def test_a_machine_gets_the_certificates_that_it_trusts() -> None:
    """They are the input of the program that joins."""
    order = asyncio.run(_order("1", [_node("1", "10.0.0.1")]))
    assert order["join"][-2:] == ["--ca-file", "-"]
    assert order["given"] == "certificates"
