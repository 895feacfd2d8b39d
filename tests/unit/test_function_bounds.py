"""The division of `max_concurrency` over machines."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from atoll.server.cluster.bounds import Bound, Bounds, bound_of
from atoll.server.cluster.contract import NodeFacts, NodeLoad, Wish
from atoll.server.cluster.places import Places

NODES = ("a", "b", "c")


@pytest.mark.parametrize("most", [1, 2, 3, 4, 10])
def test_shares_add_up(most: int) -> None:
    """Each call has one machine's place, and machines that have no place for any serve none."""
    shares = Bounds().shares(Bound("f", most), NODES)
    assert sum(shares.values()) == most
    assert len(shares) == min(most, len(NODES))
    assert max(shares.values()) - min(shares.values()) <= 1


def test_functions_have_machines_of_their_own() -> None:
    """Not one machine serves all functions with a bound of one; a machine that joins takes few over."""
    keys = [f"f{number}" for number in range(200)]
    three = [min(Bounds().shares(Bound(key, 1), NODES)) for key in keys]
    assert min(Counter(three).values()) > 30
    four = [min(Bounds().shares(Bound(key, 1), (*NODES, "d"))) for key in keys]
    assert all(after in (before, "d") for before, after in zip(three, four, strict=True))


def test_a_machine_with_lines_goes_on_serving() -> None:
    """Of a function with lines no other machine takes over when it joins, or when none is left of them."""
    bounds = Bounds()
    bound = Bound("f", 1)
    (first,) = bounds.allowed(bound, NODES)
    others = tuple(f"n{number}" for number in range(50))
    bounds.placed("one", bound, first)
    assert bounds.allowed(bound, (*others, *NODES)) == (first,)
    bounds.over("one")
    assert bounds.allowed(bound, others)[0] in others
    assert bounds.allowed(bound, ()) == ()


@given(st.integers(1, 7), st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=60))
def test_no_more_run_than_the_bound_says(most: int, steps: list[tuple[bool, int]]) -> None:
    """Where each machine's daemon keeps the share that a line came with, all machines together keep the bound."""
    bounds, bound = Bounds(), Bound("f", most)
    running: dict[str, list[str]] = {node: [] for node in NODES}
    waiting: dict[str, list[tuple[str, int]]] = {node: [] for node in NODES}
    for number, (comes, choice) in enumerate(steps):
        if comes:
            allowed = bounds.allowed(bound, NODES)
            node = allowed[choice % len(allowed)]
            bounds.placed(f"w{number}", bound, node)
            waiting[node].append((f"w{number}", bounds.shares(bound, NODES)[node]))
        elif lines := [(node, line) for node, lines in running.items() for line in lines]:
            node, line = lines[choice % len(lines)]
            running[node].remove(line)
            bounds.over(line)
        for node in NODES:
            while waiting[node] and len(running[node]) < waiting[node][0][1]:
                running[node].append(waiting[node].pop(0)[0])
        count = sum(map(len, running.values()))
        assert count <= most
        assert count == most or not any(waiting[node] and not running[node] for node in NODES)


def test_a_spec_without_a_bound_has_none() -> None:
    """Claims of clients that no daemon would take have none, either."""
    assert bound_of("ann", {"max_concurrency": 2, "identity": "f.py:f"}) == Bound("ann:f.py:f", 2)
    for spec in (None, {}, {"max_concurrency": 0, "identity": "f"}, {"max_concurrency": True, "identity": "f"}):
        assert bound_of("ann", spec) is None
    assert bound_of("ann", {"max_concurrency": 1, "identity": 3}) is None


class Said:
    """Stands for a line that has no node yet."""

    def __init__(self) -> None:
        self.waits = -1, ""

    def say(self, message: dict[str, Any]) -> None:
        """Nobody listens."""


def test_lines_of_a_bounded_function_go_where_its_calls_run() -> None:
    """One beyond the bound goes to the machine with the calls, or waits for it, though another one has room."""

    async def run() -> None:
        places, bound = Places(), Bound("f", 1)
        for node in ("a", "b"):
            places.join(NodeFacts(node, millicores=2000, memory_bytes=1 << 30), accepting=True)
            places.load(node, NodeLoad(millicores=2000, memory_bytes=1 << 30))
        able = ["a", "b"]

        async def place(name: str, cores: int) -> tuple[str, int]:
            arrival: Any = Said()
            wish = Wish(name, "ann", millicores=1000 * cores)
            return await places.place_bounded(wish, arrival, bound, lambda: tuple(able))

        first, share = await place("one", 1)
        assert share == 1
        assert await place("two", 1) == (first, 1)
        waiting = asyncio.ensure_future(place("three", 2))
        await asyncio.sleep(0)  # it begins
        assert "has a bound" in places.placement.reason("three")
        able.remove(first)  # it is lost
        places.leave(first)
        for wish in ("one", "two"):
            places.over(wish)
        assert (await waiting)[0] == able[0]
        places.over("three")
        assert not places.bounds._lines

    asyncio.run(run())
