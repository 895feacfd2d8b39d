"""Waits of requests in words: what each waits for, who holds it, and nothing of other users."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.engine.actions import Grant, Request
from atoll.engine.ledger import Lack
from atoll.engine.schedule import Schedule
from atoll.engine.waits import Holder, Wait, reason
from atoll.model.resources import Bounds, Needs
from atoll.model.specs import SandboxKey, WorkerKey

GIB = 1 << 30
TRAIN = Holder("ann", "train", "88b2c1a0-1", 725)
OTHER = Holder("ann", "prepare", "77aa", 65)
YOUNG = Holder("ann", "train", "", 3)
FOREIGN = Holder("bob", "secret-name", "deadbeef", 10_000)


@pytest.mark.parametrize(
    ("lack", "holders", "said"),
    [
        (Lack.CPU, [(TRAIN, 2000)], "2 CPUs held by train (88b2c1a0, 12 min)"),
        (Lack.CPU, [(YOUNG, 1000)], "1 CPU held by train"),
        (Lack.CPU, [(OTHER, 250), (TRAIN, 2000)], "2.25 CPUs held by train (88b2c1a0, 12 min) and 1 other call"),
        (
            Lack.CPU,
            [(TRAIN, 1000), (OTHER, 1000), (YOUNG, 1000)],
            "3 CPUs held by train (88b2c1a0, 12 min) and 2 other calls",
        ),
        (Lack.GPUS, [(TRAIN, 1)], "1 GPU held by train (88b2c1a0, 12 min)"),
        (Lack.GPUS, [(FOREIGN, 2)], "2 GPUs held by other users"),
        (Lack.CPU, [(FOREIGN, 4000), (OTHER, 1000)], "5 CPUs held by prepare (77aa, 1 min) and other users"),
        (
            Lack.CPU,
            [(FOREIGN, 1000), (OTHER, 1000), (TRAIN, 1000)],
            "3 CPUs held by train (88b2c1a0, 12 min), 1 other call and other users",
        ),
        (Lack.MEMORY, [(TRAIN, 8 * GIB)], "8.0 GiB of memory held by train (88b2c1a0, 12 min)"),
        (Lack.MEMORY, [(TRAIN, 256 << 20)], "256 MiB of memory held by train (88b2c1a0, 12 min)"),
        (Lack.MEMORY, [(None, 256 << 20)], "256 MiB of memory about to be free"),
        (Lack.WORKERS, [(TRAIN, 1)], "all 1 workers held by train (88b2c1a0, 12 min)"),
        (Lack.CONCURRENCY, [(TRAIN, 1)], "max_concurrency of f: 1 running (88b2c1a0, 12 min)"),
        (Lack.CONCURRENCY, [(TRAIN, 1), (OTHER, 1)], "max_concurrency of f: 2 running"),
        (None, [], "its turn: next in line"),
    ],
)
def test_a_wait_names_the_resource_and_its_holders(
    lack: Lack | None, holders: list[tuple[Holder | None, int]], said: str
) -> None:
    """The share is the sum of all holders'; the user's own largest one is named, others are counted."""
    known = {str(number): holder for number, (holder, _) in enumerate(holders)}
    wait = Wait("ann", lack, tuple((str(number), share) for number, (_, share) in enumerate(holders)))
    assert reason(wait, "f", known.get) == said


def test_a_call_behind_others_is_told_their_number() -> None:
    """Only the first in turn is told of a resource."""
    assert reason(Wait("ann", None, (), 1), "f", lambda _: None) == "its turn: 1 call before it"
    assert reason(Wait("ann", None, (), 3), "f", lambda _: None) == "its turn: 3 calls before it"


@given(st.text(max_size=200), st.text(max_size=200))
def test_names_of_functions_cannot_act_on_a_terminal(function: str, call: str) -> None:
    """Whatever a worker claims, a reason is one short line of printable characters."""
    holder = Holder("ann", function, call, 10**9)
    for lack in (Lack.CPU, Lack.CONCURRENCY):
        found = reason(Wait("ann", lack, (("w", 1000),)), function, lambda _: holder)
        assert found.isprintable()
        assert len(found) < 700


def request(
    name: str, needs: Needs, key: str = "a", user: str = "ann", bound: int = 0, parent: str | None = None
) -> Request:
    return Request(name, WorkerKey(SandboxKey(user, key)), 10, parent, needs, f"f-{key}" if bound else "", bound)


def grant(schedule: Schedule, one: Request) -> str:
    return next(action.worker for action in schedule.ask(one) if isinstance(action, Grant))


def test_each_request_waits_for_its_own_reason() -> None:
    """The first in turn lacks cores, those behind it wait for it, and one over its own bound for that."""
    schedule = Schedule(Bounds(2, 16, 16))
    first = grant(schedule, request("first", Needs(1500), bound=1))
    small = grant(schedule, request("small", Needs(500), "b"))
    for one in ("second", "third", "fourth"):
        schedule.ask(request(one, Needs(1000), "c"))
    schedule.ask(request("own", Needs(100), bound=1))
    assert schedule.wait_of("second") == Wait("ann", Lack.CPU, ((first, 1500), (small, 500)))
    assert schedule.wait_of("third") == Wait("ann", None, (), 1)
    assert schedule.wait_of("fourth") == Wait("ann", None, (), 2)
    assert schedule.wait_of("own") == Wait("ann", Lack.CONCURRENCY, ((first, 1),), 3)
    assert schedule.wait_of("first") is None
    schedule.withdraw("second")
    third = schedule.wait_of("third")
    assert third is not None
    assert third.lack is Lack.CPU, "it is the first in turn now"


def test_holders_of_memory_and_gpus_are_those_that_keep_them() -> None:
    """A wait for memory names reservations, one for a card those GPUs alone, and ending workers count until they are gone."""
    schedule = Schedule(Bounds(8, 16, 16, 10, ("g0", "g1")))
    memory = grant(schedule, request("m", Needs(100, 8)))
    grant(schedule, request("none", Needs(100), "b"))
    schedule.ask(request("more", Needs(100, 8), "c"))
    assert schedule.wait_of("more") == Wait("ann", Lack.MEMORY, ((memory, 8),))
    schedule.withdraw("more")
    card = grant(schedule, request("g", Needs(100, 0, 1, ("g1",)), "d"))
    grant(schedule, request("h", Needs(100, 0, 1), "e"))
    schedule.ask(request("wants", Needs(100, 0, 1, ("g1",)), "f"))
    assert schedule.wait_of("wants") == Wait("ann", Lack.GPUS, ((card, 1),))


def test_a_nested_call_holds_its_caller_s_cores() -> None:
    """The chain's cores are held by its root, counted once."""
    schedule = Schedule(Bounds(1, 16, 16))
    outer = grant(schedule, request("outer", Needs(1000)))
    grant(schedule, request("inner", Needs(1000), "b", parent=outer))
    schedule.ask(request("waits", Needs(1000), "c"))
    assert schedule.wait_of("waits") == Wait("ann", Lack.CPU, ((outer, 1000),))
