"""The schedule with cores, memory, GPUs and `max_concurrency` to share out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine.actions import (
    Action,
    EndSandbox,
    EndWorker,
    ForkWorker,
    Grant,
    Reclaim,
    Refuse,
    Request,
)
from atoll.engine.schedule import Schedule
from atoll.model.resources import Allowance, Bounds, Needs
from atoll.model.specs import SandboxKey, WorkerKey

GPUS = ("g0", "g1")
KINDS = {
    "default": Needs(1000),
    "xs": Needs(250, 1),
    "small": Needs(500, 2),
    "large": Needs(2000, 8),
    "gpu": Needs(1000, 4, 1),
    "pair": Needs(500, 1, 2),
    "card": Needs(500, 1, 1, ("g1",)),
    "hoard": Needs(100, 2),
    "greedy": Needs(100, 9),
    "wide": Needs(4000),
}


def request(name: str, kind: str = "default", parent: str | None = None, bound: int = 0, key: str = "a") -> Request:
    worker_key = WorkerKey(SandboxKey("u", key), machine_type=kind)
    return Request(name, worker_key, 10, parent, KINDS[kind], f"f-{key}-{bound}" if bound else "", bound)


def grants(actions: list[Action]) -> list[str]:
    return [action.request for action in actions if isinstance(action, Grant)]


def grant(actions: list[Action]) -> Grant:
    return next(action for action in actions if isinstance(action, Grant))


def refusals(actions: list[Action]) -> list[str]:
    return [action.request for action in actions if isinstance(action, Refuse)]


def finish(schedule: Schedule, found: Grant, now: float = 1.0) -> list[Action]:
    return schedule.withdraw(found.request) + schedule.worker_idle(now, found.worker, found.epoch)


def test_four_quarters_share_a_core() -> None:
    """On one core four calls of a quarter run at a time, and the fifth waits."""
    schedule = Schedule(Bounds(1, 16, 16, 100))
    assert all(grants(schedule.ask(request(f"r{number}", "xs"))) for number in range(4))
    assert not grants(schedule.ask(request("r4", "xs")))
    assert schedule.ledger.millicores() == 1000


def test_a_large_call_is_not_starved_by_small_ones() -> None:
    """Small calls that come after a large one wait for it, though they would fit before."""
    schedule = Schedule(Bounds(2, 16, 16, 100))
    first = grant(schedule.ask(request("s0", "small")))
    schedule.ask(request("large", "large"))
    assert not grants(schedule.ask(request("s1", "small")))
    assert grants(finish(schedule, first)) == ["large"]


def test_a_call_that_waits_for_memory_is_overtaken_by_calls_that_reserve_none() -> None:
    """What is behind a call that lacks memory may go when it takes no memory, and may not when it does."""
    schedule = Schedule(Bounds(8, 16, 16, 9))
    first = grant(schedule.ask(request("l0", "large")))
    assert not grants(schedule.ask(request("l1", "large")))
    assert not grants(schedule.ask(request("x", "xs")))
    assert grants(schedule.ask(request("d", "default"))) == ["d"]
    actions = finish(schedule, first)
    assert grants(actions) == ["l1", "x"], "the warm worker of the same key is used"


def test_an_idle_worker_gives_its_memory_when_its_process_is_gone() -> None:
    """An idle worker of another key is ended for its memory, which is free when it says that it has ended."""
    schedule = Schedule(Bounds(8, 16, 16, 9))
    first = grant(schedule.ask(request("l0", "large")))
    finish(schedule, first)
    actions = schedule.ask(request("l1", "large", key="b"))
    assert EndWorker(first.worker) in actions
    assert not grants(actions)
    assert schedule.ledger.reserved_bytes() == 8
    assert grants(schedule.worker_ended(2.0, first.worker)) == ["l1"]


def test_gpus_are_exclusive_and_named_by_the_sandbox() -> None:
    """Each GPU belongs to one worker; a third call waits, and a call without GPUs does not."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    forks = []
    for number in range(2):
        actions = schedule.ask(request(f"g{number}", "gpu"))
        forks += [action.key.sandbox.gpus for action in actions if isinstance(action, ForkWorker)]
    assert sorted(forks) == [("g0",), ("g1",)]
    assert not grants(schedule.ask(request("g2", "gpu")))
    assert grants(schedule.ask(request("d"))) == ["d"]


def test_a_gpu_is_free_when_the_process_that_had_it_is_gone() -> None:
    """An idle worker is ended for its GPU, which nobody gets before its process has ended, whatever happens meanwhile."""
    schedule = Schedule(Bounds(8, 16, 16, 100, ("g0",)))
    first = grant(schedule.ask(request("a", "gpu")))
    finish(schedule, first)
    assert EndWorker(first.worker) in schedule.ask(request("b", "gpu", key="b"))
    assert grants(schedule.ask(request("d"))) == ["d"]
    assert grants(schedule.worker_ended(2.0, first.worker)) == ["b"]


def of(one: Request, client: str, user: str = "u") -> Request:
    """Return the request as one of another program, or of another user."""
    return replace(one, client=client, key=replace(one.key, sandbox=replace(one.key.sandbox, user=user)))


@pytest.mark.parametrize(("held", "wanted", "late"), [("hoard", "greedy", "xs"), ("default", "wide", "default")])
@pytest.mark.parametrize("first", [True, False])
def test_a_call_that_waits_for_its_own_family_holds_up_no_other(held: str, wanted: str, late: str, first: bool) -> None:
    """A function whose one nested call keeps another waiting stops its own calls alone, until they fit beside one another."""
    schedule = Schedule(Bounds(4, 16, 16, 10, GPUS))
    root = grant(schedule.ask(of(request("root", "default"), "p")))
    holder = grant(schedule.ask(request("held", held, root.worker, key="b")))
    other = grant(schedule.ask(request("between", "default", root.worker, key="d")))
    caller = other.worker if first else root.worker
    assert not [
        one for one in schedule.ask(request("wanted", wanted, caller, key="c")) if isinstance(one, Grant | Refuse)
    ]
    assert grants(schedule.ask(of(request("late", late), "p"))) == ["late"], "another call of the same program"
    assert not grants(schedule.ask(request("own", late, root.worker, key="e"))), "a call of its own family"
    schedule.withdraw("own")
    for one in [holder] if first else [holder, other]:
        finish(schedule, one)
        schedule.worker_ended(1.0, one.worker)
    assert not grants(schedule.ask(of(request("later", late), "p"))), "it waits for others now, and is not starved"


@pytest.mark.parametrize(("client", "user"), [("q", "u"), ("q", "v"), ("p", "v")])
def test_a_program_or_user_that_waits_for_its_own_calls_holds_up_no_other(client: str, user: str) -> None:
    """A call that does not fit beside its own program's calls holds up that program, and one of several users its user."""
    schedule = Schedule(Bounds(8, 16, 16, 10))
    first = grant(schedule.ask(of(request("held", "small"), "p")))
    schedule.ask(of(request("wanted", "greedy", key="b"), "p"))
    assert grants(schedule.ask(of(request("late", "xs", key="c"), client, user))) == ["late"]
    assert not grants(schedule.ask(of(request("own", "xs", key="d"), "p"))), "the first come is the first served"
    finish(schedule, first)
    schedule.worker_ended(1.0, first.worker)
    assert not grants(schedule.ask(of(request("later", "xs", key="e"), client, user)))


def test_a_user_s_programs_together_hold_up_no_other_user() -> None:
    """Two programs of a user that do not fit beside one another wait in turn, and stop no other user."""
    schedule = Schedule(Bounds(8, 16, 16, 10))
    schedule.ask(of(request("held", "small"), "p"))
    schedule.ask(of(request("wanted", "greedy", key="b"), "q"))
    assert not grants(schedule.ask(of(request("own", "xs", key="c"), "r")))
    assert grants(schedule.ask(of(request("late", "xs", key="d"), "r", "v"))) == ["late"]


@pytest.mark.parametrize("again", [False, True])
def test_a_nested_call_that_waits_for_others_holds_them_up_by_turns(again: bool) -> None:
    """It holds others up for five seconds, and then not for as long, also when it asks anew in between."""
    schedule = Schedule(Bounds(8, 16, 16, 10))
    schedule.ask(of(request("long", "small"), "q"))
    root = grant(schedule.ask(of(request("root", "default", key="b"), "p")))
    schedule.ask(request("wanted", "greedy", root.worker, key="c"), 100.0)
    assert not grants(schedule.ask(of(request("late", "xs", key="d"), "p"), 101.0))
    if again:
        assert grants(schedule.withdraw("wanted")) == ["late"]
        schedule.ask(request("wanted2", "greedy", root.worker, key="c"), 104.0)
        assert not grants(schedule.ask(of(request("late2", "xs", key="d"), "r"), 104.0))
    assert schedule.next_deadline() == 105.0
    assert not grants(schedule.tick(104.9))
    assert grants(schedule.tick(105.0)) == ["late2" if again else "late"]
    assert grants(schedule.ask(of(request("later", "xs", key="e"), "r"), 109.0)) == ["later"]
    assert not grants(schedule.tick(110.0))
    assert not grants(schedule.ask(of(request("last", "xs", key="g"), "r"), 111.0))


def test_a_program_s_call_holds_up_other_programs_by_turns_and_its_own_always() -> None:
    """A program's call may hold up others for half a minute; its own program's calls stay behind it."""
    schedule = Schedule(Bounds(2, 16, 16))
    schedule.ask(of(request("long"), "q"))
    wide = replace(request("wide", key="b"), needs=Needs(2000))
    schedule.ask(of(wide, "p"), 100.0)
    assert not grants(schedule.ask(of(request("own", key="c"), "p"), 101.0))
    assert not grants(schedule.ask(of(request("late", key="d"), "r"), 102.0))
    assert not grants(schedule.tick(129.0))
    assert grants(schedule.tick(130.0)) == ["late"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_call_gets_in_among_long_small_ones(nested: bool) -> None:
    """Calls of 40 s that come all the time starve no larger one, and none of them waits for much longer than its turn."""
    schedule = Schedule(Bounds(64, 64, 64, 10))
    root = grant(schedule.ask(of(request("root", "default", key="b"), "p")))
    ends: list[tuple[float, Grant]] = []
    asked = {"wanted": 50}
    for now in range(0, 400, 2):
        actions = schedule.tick(now)
        while ends and ends[0][0] <= now:
            actions += finish(schedule, ends.pop(0)[1], now)
        if now == asked["wanted"]:
            wanted = request("wanted", "greedy", root.worker if nested else None, key="c")
            actions += schedule.ask(wanted if nested else of(wanted, "p"), now)
        asked[f"r{now}"] = now
        actions += schedule.ask(of(request(f"r{now}", "xs", key="d"), f"q{now}"), now)
        for ended in [one.worker for one in actions if isinstance(one, EndWorker)]:
            actions += schedule.worker_ended(now, ended)
        for found in [one for one in actions if isinstance(one, Grant)]:
            if found.request == "wanted":
                return
            assert now - asked[found.request] <= 90
            ends.append((now + 40, found))
    raise AssertionError("it has starved")


def test_a_first_nested_call_over_its_bound_holds_up_nobody() -> None:
    """One that waits for its own `max_concurrency` keeps its memory from no other call, and asks for that function's leases."""
    schedule = Schedule(Bounds(8, 16, 16, 10))
    held = grant(schedule.ask(request("held", "small", bound=1)))
    root = grant(schedule.ask(request("root", "default", key="b")))
    actions = schedule.ask(replace(request("wanted", "greedy", root.worker, bound=1), key=held_key("c")))
    assert Reclaim(held.worker, held.epoch) in actions
    assert grants(schedule.ask(request("late", "xs", key="d"))) == ["late"]


def held_key(name: str) -> WorkerKey:
    return WorkerKey(SandboxKey("u", name), machine_type="greedy")


def test_a_named_card_is_waited_for_and_others_are_not_held_up() -> None:
    """A call that waits for one card is overtaken by calls for other cards only; any call behind it that would take
    its card waits."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    first = grant(schedule.ask(request("a", "card")))
    assert not grants(schedule.ask(request("b", "card", key="b")))
    other = replace(request("o", "card", key="o"), needs=Needs(500, 1, 1, ("g0",)))
    assert grants(schedule.ask(other)) == ["o"], "its card is free"
    assert not grants(schedule.ask(request("any", "gpu", key="d")))
    actions = finish(schedule, first)
    assert EndWorker(first.worker) in actions
    assert grants(schedule.worker_ended(2.0, first.worker)) == ["b"]


def test_the_idle_worker_that_has_the_card_is_ended_for_it() -> None:
    """Of two idle workers with a GPU each, the one whose GPU will do gives way, though the other has idled longer."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    found = [grant(schedule.ask(request(name, "gpu", key=name))) for name in ("a", "b")]
    for one in found:
        finish(schedule, one)
    assert [one.worker for one in schedule.ask(request("c", "card", key="c")) if isinstance(one, EndWorker)] == [
        found[1].worker
    ]


def test_a_call_that_needs_two_gpus_is_not_starved_by_calls_of_one() -> None:
    """A free GPU is kept for the earlier call that needs it together with another one."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    first = grant(schedule.ask(request("a", "gpu")))
    assert not grants(schedule.ask(request("two", "pair", key="b")))
    assert not grants(schedule.ask(request("one", "gpu", key="c")))
    finish(schedule, first)
    assert grants(schedule.worker_ended(2.0, first.worker)) == ["two"]


def test_a_card_that_does_not_exist_is_refused() -> None:
    """More GPUs than there are of the cards that will do can never be granted."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    wish = replace(request("a", "card"), needs=Needs(500, 1, 2, ("g1",)))
    assert refusals(schedule.ask(wish)) == ["a"]


def test_a_waiting_function_holds_up_nobody_but_itself() -> None:
    """Calls over their function's bound wait in order, others pass them, and its leases alone are asked back."""
    schedule = Schedule(Bounds(8, 16, 16))
    first = grant(schedule.ask(request("a", bound=1)))
    other = grant(schedule.ask(request("o", key="b")))
    actions = schedule.ask(request("b", bound=1))
    assert actions == [Reclaim(first.worker, first.epoch)]
    assert not grants(schedule.ask(request("c", bound=1)))
    assert grants(schedule.ask(request("d"))) == ["d"]
    assert other.worker not in {action.worker for action in actions if isinstance(action, Reclaim)}
    second = grant(finish(schedule, first))
    assert second.request == "b"
    assert grants(finish(schedule, second)) == ["c"]


def test_a_chain_lends_its_cores_and_not_its_memory() -> None:
    """A nested call rides on its caller's cores; memory that its caller holds makes it impossible."""
    schedule = Schedule(Bounds(2, 16, 16, 9))
    outer = grant(schedule.ask(request("outer", "large")))
    inner = grant(schedule.ask(request("inner", "default", outer.worker)))
    assert schedule.ledger.millicores() == 2000, "as much as the largest of its links"
    assert refusals(schedule.ask(request("never", "small", inner.worker))) == ["never"]
    assert grants(schedule.ask(request("fits", "xs", inner.worker))) == ["fits"]


def test_a_function_that_waits_for_itself_is_refused() -> None:
    """With every permitted call waiting for one more of the same function, that one is refused at once."""
    schedule = Schedule(Bounds(8, 16, 16))
    outer = grant(schedule.ask(request("outer", bound=1)))
    actions = schedule.ask(request("inner", parent=outer.worker, bound=1))
    assert refusals(actions) == ["inner"]


def test_two_calls_that_wait_for_one_another_s_place_are_told_apart() -> None:
    """Two calls of a function with a bound of two that both call it again: one is refused, and the other served then."""
    schedule = Schedule(Bounds(8, 16, 16))
    first, second = (grant(schedule.ask(request(name, bound=2))) for name in ("a", "b"))
    assert not refusals(schedule.ask(request("na", parent=first.worker, bound=2)))
    assert refusals(schedule.ask(request("nb", parent=second.worker, bound=2))) == ["na"]
    assert grants(finish(schedule, first)) == ["nb"]


def test_a_spent_worker_is_ended_between_two_calls() -> None:
    """A worker that is to serve no more is asked for its lease and ended when it has given it up."""
    schedule = Schedule(Bounds(8, 16, 16))
    first = grant(schedule.ask(request("a")))
    assert schedule.worker_spent(first.worker) == [Reclaim(first.worker, first.epoch)]
    assert EndWorker(first.worker) in schedule.worker_idle(1.0, first.worker, first.epoch)
    assert grant(schedule.ask(request("b"))).worker != first.worker


class _World:
    """Performs actions with every answer delayed at random, and checks what must hold at every moment."""

    def __init__(self, bounds: Bounds, seed: int) -> None:
        self.bounds, self.schedule, self.random = bounds, Schedule(bounds), random.Random(seed)
        self.requests: dict[str, Request] = {}
        self.held: dict[str, Grant] = {}
        self.alive: dict[str, ForkWorker] = {}
        self.ending: list[str] = []
        self.answered: list[str] = []

    def ask(self, one: Request) -> None:
        self.requests[one.id] = one
        self.perform(self.schedule.ask(one))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, ForkWorker):
                self.alive[action.worker] = action
            elif isinstance(action, EndWorker):
                self.ending.append(action.worker)
            elif isinstance(action, EndSandbox):
                for name in [name for name, fork in self.alive.items() if fork.sandbox == action.sandbox]:
                    del self.alive[name]
                self.perform(self.schedule.sandbox_ended(action.sandbox))
            elif isinstance(action, Grant):
                assert action.worker not in {one.worker for one in self.held.values()}
                self.held[action.request] = action
                self.answered.append(action.request)
            elif isinstance(action, Refuse):
                self.answered.append(action.request)
        forks = [self.alive[name] for name in self.alive]
        gpus = [gpu for fork in forks for gpu in fork.key.sandbox.gpus]
        assert len(gpus) == len(set(gpus)), "a GPU belongs to one living process at most"
        for fork in forks:
            needs = KINDS[fork.key.machine_type]
            assert len(fork.key.sandbox.gpus) == needs.gpus
            assert not needs.cards or set(fork.key.sandbox.gpus) <= set(needs.cards)
        assert sum(KINDS[fork.key.machine_type].memory_bytes for fork in forks) <= self.bounds.memory_bytes
        assert self.schedule.ledger.millicores() <= 1000 * self.bounds.slots
        for one in self.requests.values():
            same = [name for name in self.held if self.requests[name].identity == one.identity]
            assert not one.max_concurrency or len(same) <= one.max_concurrency

    def step(self, now: float) -> bool:
        """Let one thing happen that a machine may do; return whether there was any."""
        waiting = [one for name, one in self.requests.items() if name not in self.answered]
        for one in waiting:
            assert self.schedule.wait_of(one.id) is not None, "each that waits knows what for"
        parents = {one.parent for one in waiting} | {self.requests[name].parent for name in self.held}
        free = [name for name, one in self.held.items() if one.worker not in parents]
        if self.ending and (not free or self.random.random() < 0.5):
            name = self.ending.pop(0)
            if self.alive.pop(name, None) is not None:
                self.perform(self.schedule.worker_ended(now, name))
            return True
        if not free:
            return False
        found = self.held.pop(self.random.choice(free))
        if self.random.random() < 0.2:
            self.alive.pop(found.worker)
            self.perform(self.schedule.worker_ended(now, found.worker))
        else:
            self.perform(self.schedule.worker_idle(now, found.worker, found.epoch))
        return True


_CLIENTS = st.sampled_from(["u1", "u2", "v1"])


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.builds(Bounds, st.integers(2, 3), st.integers(1, 5), st.integers(1, 4), st.integers(8, 16), st.just(GPUS)),
    st.lists(
        st.tuples(st.sampled_from(sorted(KINDS)), st.booleans(), st.integers(0, 2), st.sampled_from("ab"), _CLIENTS),
        min_size=1,
        max_size=30,
    ),
)
def test_every_request_is_answered_and_nothing_is_given_twice(
    seed: int, bounds: Bounds, wishes: list[tuple[str, bool, int, str, str]]
) -> None:
    """Whatever comes, every request is granted or refused, and cores, memory, GPUs and bounds hold at every moment."""
    world = _World(bounds, seed)
    for number, (kind, nested, bound, key, client) in enumerate(wishes):
        parents = [one.worker for one in world.held.values()]
        parent = world.random.choice(parents) if nested and parents else None
        one = request(f"r{number}", kind, parent, bound, key)
        world.ask(one if parent else of(one, client, client[0]))
        if world.random.random() < 0.5:
            world.step(number)
    moment = 100.0
    while world.step(moment):
        moment += 1
    assert sorted(world.answered) == sorted(world.requests)


def test_a_smaller_allowance_lets_calls_end_and_begins_nothing_beyond_it() -> None:
    """Calls that run keep what they have; the next one begins only when all of them fit, and waits for more else."""
    schedule = Schedule(Bounds(4, 16, 16, 100))
    first, second = (grant(schedule.ask(request(name, "large"))) for name in ("r1", "r2"))
    assert not schedule.allow(1.0, Allowance(2000, 8))
    assert not schedule.ledger.within_allowance
    assert not grants(schedule.ask(request("r3", "small")))
    actions = finish(schedule, first)
    assert not grants(actions)
    assert EndWorker(first.worker) in actions
    assert not grants(schedule.worker_ended(1.0, first.worker)), "the other has all of the cores still"
    assert not grants(finish(schedule, second)), "a warm worker keeps its memory"
    assert grants(schedule.worker_ended(1.0, second.worker)) == ["r3"]
    assert schedule.ledger.within_allowance
    assert not grants(schedule.ask(request("r4", "wide"))), "the whole machine has room for it, so it waits"
    assert not refusals(schedule.allow(2.0, Allowance(0, 0)))
    schedule.withdraw("r3")
    assert grants(schedule.allow(3.0, None)) == []
    assert schedule.position("r4") == 0


def test_leases_are_asked_back_for_others_elsewhere() -> None:
    """Each once, whatever waits here; those whose lease was given up already are left alone."""
    schedule = Schedule(Bounds(4, 16, 16, 100))
    first, second = (grant(schedule.ask(request(name, "small"))) for name in ("r1", "r2"))
    finish(schedule, second)
    assert schedule.others_wait() == [Reclaim(first.worker, first.epoch)]
    assert schedule.others_wait() == []
    finish(schedule, first)
    again = grant(schedule.ask(request("r3", "small")))
    assert Reclaim(again.worker, again.epoch) in schedule.others_wait()


def test_workers_that_others_wait_for_are_told() -> None:
    """Also one whose own client waits for the same use, which is asked for nothing: its call may never end by itself."""
    schedule = Schedule(Bounds(4, 16, 16, 1000))
    asked = [replace(request(name, "wide"), client="keeper") for name in ("r1", "r2")]
    first = grant(schedule.ask(asked[0]))
    assert schedule.wanted == set()
    assert schedule.ask(asked[1]) == []
    assert schedule.wanted == {first.worker}
    assert schedule.leased() == [first.worker]
    schedule.withdraw("r2")
    assert schedule.wanted == set()
    assert Reclaim(first.worker, first.epoch) in schedule.ask(request("r3", "wide", key="b"))
    assert schedule.wanted == {first.worker}
    finish(schedule, first)
    assert schedule.wanted == set()


def test_idle_workers_beyond_the_allowance_end() -> None:
    """Those with other GPUs end with their sandboxes, and those whose memory is too much; a busy one after its call."""
    schedule = Schedule(Bounds(8, 16, 16, 100, GPUS))
    idle, busy = (grant(schedule.ask(request(name, "gpu", key=name))) for name in ("r1", "r2"))
    finish(schedule, idle)
    actions = schedule.allow(2.0, Allowance(8000, 100, ("g1",)))
    assert EndWorker(idle.worker) in actions
    assert any(isinstance(action, EndSandbox) for action in actions)
    actions = schedule.allow(3.0, Allowance(8000, 100, ("g0",)))
    assert actions == [Reclaim(busy.worker, busy.epoch)]
    actions = schedule.ask(request("r3", "gpu", key="r1"))
    assert not grants(actions), "the process that is ending may still use the GPU"
    assert grants(schedule.worker_ended(4.0, idle.worker)) == ["r3"]
    assert EndWorker(busy.worker) in finish(schedule, busy)
    other = grant(schedule.ask(request("r4", "hoard")))
    finish(schedule, other, 5.0)
    assert EndWorker(other.worker) in schedule.allow(6.0, Allowance(8000, 5, ("g0",)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_nothing_begins_beyond_an_allowance(seed: int) -> None:
    """Whatever happens in which order: a new worker is within the allowance, and all are served when it is the whole."""
    rng, schedule, running, count = random.Random(seed), Schedule(Bounds(4, 6, 5, 12, GPUS)), dict[str, Grant](), 0
    ended: list[str] = []

    def take(actions: list[Action]) -> None:
        allowed, ledger = schedule.ledger.allowed, schedule.ledger
        for action in actions:
            match action:
                case Grant():
                    running[action.request] = action
                    assert ledger.millicores() <= allowed.millicores
                case ForkWorker():
                    assert set(action.key.sandbox.gpus) <= set(allowed.gpus)
                    assert (
                        not KINDS[action.key.machine_type].memory_bytes
                        or ledger.reserved_bytes() <= allowed.memory_bytes
                    )
                case EndWorker():
                    ended.append(action.worker)

    for now in range(60):
        match rng.randrange(4):
            case 0:
                gpus = tuple(gpu for gpu in GPUS if rng.random() < 0.6)
                take(schedule.allow(now, Allowance(rng.choice([0, 1000, 4000]), rng.choice([0, 6, 12]), gpus)))
            case 1 if running:
                found = running.pop(rng.choice(sorted(running)))
                take(finish(schedule, found, now))
            case 2 if ended:
                take(schedule.worker_ended(now, ended.pop()))
            case _:
                count += 1
                take(schedule.ask(request(f"r{count}", rng.choice(["small", "gpu", "pair", "card", "xs"])), now))
    take(schedule.allow(99, None))
    for now in range(100, 400):
        if running:
            take(finish(schedule, running.pop(min(running)), now))
        while ended:
            take(schedule.worker_ended(now, ended.pop()))
    assert not schedule.waiting
