"""Shares of every scheduler keep the contract: what is lent is lent once, and waiting requests get room in the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from atoll.server.cluster.contract import Wish
from atoll.server.cluster.placement import Placement
from tests.conformance.lenders import GPUS, LENDERS, Lender
from tests.unit.placing import Cluster, Machine, wish

SECONDS = 30.0
Scenario = Callable[[Lender, Cluster], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]


@pytest.fixture(params=sorted(LENDERS))
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario with fresh shares, and two machines that have more room than is lent."""

    async def on_shares(scenario: Scenario) -> None:
        async with LENDERS[request.param]() as lender:
            cluster = Cluster(placement=Placement(lender.shares))
            lender.shares.on_change = lambda: look(cluster)
            for name, gpus in GPUS.items():
                machine = Machine(name, 32, 256, gpus, labels=lender.labels[name])
                lender.joined(machine.facts)
                cluster.join(machine)
            await asyncio.wait_for(scenario(lender, cluster), 2 * SECONDS)

    return lambda scenario: asyncio.run(on_shares(scenario))


def look(cluster: Cluster) -> None:
    """Look again, as the server does when shares change, and each second."""
    cluster.now += 1.0
    cluster.note(cluster.placement.look(cluster.now))


async def until(cluster: Cluster, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)
            look(cluster)


async def stay(cluster: Cluster, condition: Callable[[], bool]) -> None:
    for _ in range(10):
        assert condition()
        await asyncio.sleep(0.02)
        look(cluster)


def test_the_same_room_is_lent_once(run: Run) -> None:
    """Of twelve requests of a core eight are placed, four on each machine; the others follow when some end."""

    async def scenario(lender: Lender, cluster: Cluster) -> None:
        for number in range(12):
            cluster.ask(wish(f"w{number}", f"user {number % 3}"))
        await until(cluster, lambda: len(cluster.where) == 8)
        await stay(cluster, lambda: Counter(cluster.where.values()) == {"a": 4, "b": 4})
        for name in list(cluster.where)[:4]:
            cluster.over(name)
        await until(cluster, lambda: len(cluster.where) == 8)
        assert not cluster.placement.waiting()

    run(scenario)


def test_gpus_are_lent_once(run: Run) -> None:
    """The one GPU goes from the first request to the second; a request without one does not wait for it."""

    async def scenario(lender: Lender, cluster: Cluster) -> None:
        for name in ("first", "second"):
            cluster.ask(wish(name, gpus=1))
        await until(cluster, lambda: "first" in cluster.where)
        cluster.ask(wish("plain"))
        await until(cluster, lambda: "plain" in cluster.where)
        await stay(cluster, lambda: "second" not in cluster.where)
        cluster.over("first")
        await until(cluster, lambda: cluster.where.get("second") == "a")

    run(scenario)


def test_a_request_that_no_machine_holds_is_refused(run: Run) -> None:
    """Before it waits, in one line; others are not refused, and neither is one that has to wait."""

    async def scenario(lender: Lender, cluster: Cluster) -> None:
        refusal = cluster.placement.refusal
        for impossible in (Wish("2", "u", gpus=2), Wish("3", "u", millicores=64_000)):
            text = refusal(impossible)
            assert text
            assert "\n" not in text
        assert not refusal(Wish("1", "u", millicores=4000))
        for number in range(12):
            cluster.ask(wish(f"w{number}"))
        assert not refusal(Wish("4", "u", gpus=1))

    run(scenario)


def test_a_scheduler_that_is_away_holds_up_nothing(run: Run) -> None:
    """What is lent goes on from request to request, and is compared when the scheduler is there again."""

    async def scenario(lender: Lender, cluster: Cluster) -> None:
        for number in range(8):
            cluster.ask(wish(f"w{number}"))
        await until(cluster, lambda: len(cluster.where) == 8)
        cluster.ask(wish("next"))
        lender.lose()
        cluster.over("w0")
        await until(cluster, lambda: "next" in cluster.where)
        cluster.ask(wish("last"))
        await stay(cluster, lambda: len(cluster.where) == 8)
        lender.find()
        await stay(cluster, lambda: len(cluster.where) == 8)
        for name in list(cluster.where):
            cluster.over(name)
        await until(cluster, lambda: list(cluster.where) == ["last"])

    run(scenario)
