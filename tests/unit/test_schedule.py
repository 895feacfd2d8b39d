"""The schedule: events in, actions out."""

from __future__ import annotations

import random

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
    Release,
    Request,
    StartSandbox,
)
from atoll.engine.schedule import Schedule
from atoll.model.resources import Bounds
from atoll.model.specs import SandboxKey, WorkerKey


def key(name: str = "a", user: str = "u") -> WorkerKey:
    return WorkerKey(SandboxKey(user, name))


def names(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def granted(actions: list[Action]) -> list[str]:
    return [action.request for action in actions if isinstance(action, Grant)]


def test_first_request_starts_a_sandbox_forks_and_grants() -> None:
    """A request on an empty machine gets a sandbox, a worker and its lease at once."""
    schedule = Schedule(Bounds(2, 8, 8))
    actions = schedule.ask(Request("r1", key(), 10))
    assert names(actions) == ["StartSandbox", "ForkWorker", "Grant"]


def test_second_request_of_the_same_key_forks_in_the_live_sandbox() -> None:
    """A live sandbox gets another worker instead of a second sandbox being started."""
    schedule = Schedule(Bounds(2, 8, 8))
    schedule.ask(Request("r1", key(), 10))
    assert names(schedule.ask(Request("r2", key(), 10))) == ["ForkWorker", "Grant"]


def test_idle_worker_is_granted_again_without_a_fork() -> None:
    """A warm worker of the same key is taken before anything is started."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(first, Grant)
    assert schedule.withdraw("r1") == [Release(first.worker, first.epoch)]
    assert schedule.worker_idle(1, first.worker, first.epoch) == []
    (again,) = schedule.ask(Request("r2", key(), 10))
    assert isinstance(again, Grant)
    assert again.worker == first.worker
    assert not again.fresh
    assert again.epoch > first.epoch


def test_requests_beyond_the_slots_wait_in_order_and_leases_are_asked_back() -> None:
    """With every slot taken a request waits, and each lease is asked back exactly once."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(first, Grant)
    assert schedule.ask(Request("r2", key("b"), 10)) == [Reclaim(first.worker, first.epoch)]
    assert schedule.ask(Request("r3", key(), 10)) == []
    assert (schedule.position("r2"), schedule.position("r3")) == (0, 1)
    assert granted(schedule.worker_idle(1, first.worker, first.epoch)) == ["r2"]


def test_a_lease_stays_with_the_one_client_that_waits_for_more_of_the_same() -> None:
    """It would come back to who gave it up; as soon as anyone else waits, it is asked back."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10, client="one"))[-1]
    assert isinstance(first, Grant)
    assert schedule.ask(Request("r2", key(), 10, client="one")) == []
    assert schedule.ask(Request("r3", key(), 10, client="two")) == [Reclaim(first.worker, first.epoch)]
    assert granted(schedule.worker_idle(1, first.worker, first.epoch)) == ["r2"]


def test_a_lease_of_another_kind_is_asked_back_from_the_client_that_waits() -> None:
    """A client that wants something else gives up what it does not need now."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10, client="one"))[-1]
    assert isinstance(first, Grant)
    assert schedule.ask(Request("r2", key("b"), 10, client="one")) == [Reclaim(first.worker, first.epoch)]


def test_a_generator_that_waits_for_its_consumer_lends_its_core() -> None:
    """Another request is served meanwhile; when it goes on it has its core at once, and no further one is served."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(first, Grant)
    schedule.ask(Request("r2", key("b"), 10))
    assert schedule.worker_paused(first.worker, first.epoch + 1, paused=True) == []
    assert granted(schedule.worker_paused(first.worker, first.epoch, paused=True)) == ["r2"]
    assert schedule.worker_paused(first.worker, first.epoch, paused=False) == []
    assert granted(schedule.ask(Request("r3", key("c"), 10))) == []
    assert schedule.ledger.millicores() == 2000
    assert granted(schedule.worker_ended(1, first.worker)) == []


def test_a_late_word_of_an_old_epoch_changes_nothing() -> None:
    """A worker that says that an earlier lease is over does not end the present one."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(first, Grant)
    schedule.withdraw("r1")
    schedule.worker_idle(0, first.worker, first.epoch)
    second = schedule.ask(Request("r2", key(), 10))[-1]
    assert isinstance(second, Grant)
    assert schedule.worker_idle(0, first.worker, first.epoch) == []
    assert schedule.ledger.millicores() == 1000


def test_a_chain_of_nested_requests_runs_in_one_slot() -> None:
    """Each nested request is granted at once in the slot of the call that waits for it."""
    schedule = Schedule(Bounds(1, 64, 64))
    parent = None
    for depth in range(20):
        grant = schedule.ask(Request(f"r{depth}", key(str(depth)), 10, parent))[-1]
        assert isinstance(grant, Grant)
        parent = grant.worker
        assert schedule.ledger.millicores() == 1000
    assert schedule.ledger.depth(parent) == 20


def test_a_second_nested_request_needs_a_slot_of_its_own() -> None:
    """A call that starts two nested calls at a time lends its one slot to the first only."""
    schedule = Schedule(Bounds(1, 64, 64))
    root = schedule.ask(Request("root", key(), 10))[-1]
    assert isinstance(root, Grant)
    assert granted(schedule.ask(Request("n1", key("b"), 10, root.worker))) == ["n1"]
    assert granted(schedule.ask(Request("n2", key("c"), 10, root.worker))) == []


def test_a_chain_longer_than_the_bound_of_workers_is_refused() -> None:
    """A nested request that no worker is left for is refused instead of waiting for ever."""
    schedule = Schedule(Bounds(1, 3, 8))
    parent = None
    for depth in range(3):
        grant = schedule.ask(Request(f"r{depth}", key(str(depth)), 10, parent))[-1]
        assert isinstance(grant, Grant)
        parent = grant.worker
    assert names(schedule.ask(Request("r3", key("3"), 10, parent))) == ["Refuse"]


def test_two_chains_that_block_one_another_are_broken() -> None:
    """When every worker waits for a nested call and none can be placed, the request at the head is refused."""
    schedule = Schedule(Bounds(2, 2, 8))
    roots = [schedule.ask(Request(name, key(name), 10))[-1] for name in ("a", "b")]
    assert all(isinstance(root, Grant) for root in roots)
    first, second = (root.worker for root in roots if isinstance(root, Grant))
    assert "Refuse" not in names(schedule.ask(Request("na", key("na"), 10, first)))
    actions = schedule.ask(Request("nb", key("nb"), 10, second))
    assert [action.request for action in actions if isinstance(action, Refuse)] == ["na"]


def test_the_longest_idle_worker_makes_room() -> None:
    """At the bound of workers the one that has idled longest is ended."""
    schedule = Schedule(Bounds(4, 2, 8))
    for name, moment in (("a", 1.0), ("b", 2.0)):
        grant = schedule.ask(Request(name, key(name), 10))[-1]
        assert isinstance(grant, Grant)
        schedule.withdraw(name)
        schedule.worker_idle(moment, grant.worker, grant.epoch)
        if name == "a":
            oldest = grant.worker
    actions = schedule.ask(Request("c", key("c"), 10))
    assert EndWorker(oldest) in actions
    assert granted(actions) == ["c"]


def test_a_sandbox_ends_when_its_last_worker_has_expired() -> None:
    """Keep-alive of the last worker is keep-alive of the sandbox."""
    schedule = Schedule(Bounds(1, 8, 8))
    grant = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(grant, Grant)
    schedule.withdraw("r1")
    schedule.worker_idle(1, grant.worker, grant.epoch)
    assert names(schedule.worker_ended(11, grant.worker, expired=True)) == ["EndSandbox"]
    assert schedule.idle


def test_the_cores_of_a_worker_that_ends_serve_others() -> None:
    """A worker whose keep-alive has passed may take a while to end: a call of another worker need not wait for it."""
    schedule = Schedule(Bounds(1, 8, 8))
    first = schedule.ask(Request("r1", key(), 0))[-1]
    assert isinstance(first, Grant)
    assert schedule.worker_expired(1, first.worker, first.epoch - 1) == []
    schedule.ask(Request("r2", key(), 0))
    actions = schedule.worker_expired(1, first.worker, first.epoch)
    assert names(actions) == ["ForkWorker", "Grant"]
    second = actions[-1]
    assert isinstance(second, Grant)
    assert second.worker != first.worker
    assert schedule.withdraw("r1") == []
    assert schedule.worker_ended(2, first.worker, expired=True) == []
    assert granted(schedule.ask(Request("r3", key(), 0))) == []
    assert granted(schedule.worker_expired(3, second.worker, second.epoch)) == ["r3"]


def test_an_end_keeps_the_bound_of_its_function() -> None:
    """Of a function with `max_concurrency` no call begins before the process of the last one is gone."""
    schedule = Schedule(Bounds(4, 8, 8))
    first = schedule.ask(Request("r1", key(), 0, identity="f", max_concurrency=1))[-1]
    assert isinstance(first, Grant)
    schedule.ask(Request("r2", key(), 0, identity="f", max_concurrency=1))
    assert schedule.worker_expired(1, first.worker, first.epoch) == []
    assert granted(schedule.worker_ended(2, first.worker, expired=True)) == ["r2"]


def test_a_sandbox_outlives_a_crashed_worker_for_keep_alive() -> None:
    """A crash does not cost the next call a cold start."""
    schedule = Schedule(Bounds(1, 8, 8))
    grant = schedule.ask(Request("r1", key(), 10))[-1]
    assert isinstance(grant, Grant)
    assert schedule.worker_ended(1, grant.worker) == []
    assert schedule.next_deadline() == 11
    assert names(schedule.ask(Request("r2", key(), 10))) == ["ForkWorker", "Grant"]


def test_a_worn_sandbox_gets_no_further_worker_and_ends_with_its_last_call() -> None:
    """Running calls finish, idle workers end at once, and the next request starts a sandbox of its own."""
    schedule = Schedule(Bounds(3, 8, 8))
    first, idle = schedule.ask(Request("r1", key(), 10))[-1], schedule.ask(Request("r2", key(), 10))[-1]
    assert isinstance(first, Grant)
    assert isinstance(idle, Grant)
    schedule.withdraw("r2")
    schedule.worker_idle(1, idle.worker, idle.epoch)
    assert schedule.sandbox_worn(2, "s1") == [Reclaim(first.worker, first.epoch), EndWorker(idle.worker)]
    assert schedule.sandbox_worn(2, "s1") == []
    assert names(schedule.ask(Request("r3", key(), 10))) == ["StartSandbox", "ForkWorker", "Grant"]
    schedule.withdraw("r1")
    assert schedule.worker_idle(3, first.worker, first.epoch) == [EndWorker(first.worker)]
    assert [action for action in schedule.tick(4) if isinstance(action, EndSandbox)] == [EndSandbox("s1")]


def test_users_never_share_a_sandbox() -> None:
    """The same environment for another user is another sandbox."""
    schedule = Schedule(Bounds(4, 8, 8))
    schedule.ask(Request("r1", key(user="u"), 10))
    assert "StartSandbox" in names(schedule.ask(Request("r2", key(user="v"), 10)))


class _Machine:
    """Performs actions as the pool would, with every answer delayed at random."""

    def __init__(self, bounds: Bounds, seed: int) -> None:
        self.schedule = Schedule(bounds)
        self.bounds = bounds
        self.random = random.Random(seed)
        self.held: dict[str, tuple[str, int]] = {}
        self.workers: dict[str, tuple[WorkerKey, str]] = {}
        self.sandboxes: dict[str, SandboxKey] = {}
        self.waiting: list[str] = []
        self.refused: set[str] = set()
        self.parents: dict[str, str | None] = {}
        self.granted: list[str] = []

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, StartSandbox):
                self.sandboxes[action.sandbox] = action.key
            elif isinstance(action, EndSandbox):
                del self.sandboxes[action.sandbox]
                self.workers = {name: value for name, value in self.workers.items() if value[1] != action.sandbox}
            elif isinstance(action, ForkWorker):
                assert self.sandboxes[action.sandbox] == action.key.sandbox
                self.workers[action.worker] = (action.key, action.sandbox)
            elif isinstance(action, EndWorker):
                assert action.worker not in {worker for worker, _ in self.held.values()}
                del self.workers[action.worker]
            elif isinstance(action, Grant):
                assert action.worker in self.workers
                assert action.worker not in {worker for worker, _ in self.held.values()}
                self.held[action.request] = (action.worker, action.epoch)
                self.waiting.remove(action.request)
                self.granted.append(action.request)
            elif isinstance(action, Refuse):
                self.waiting.remove(action.request)
                self.refused.add(action.request)
        assert len(self.workers) <= self.bounds.workers
        assert len(self.sandboxes) <= self.bounds.sandboxes
        assert self.schedule.ledger.millicores() <= 1000 * self.bounds.slots

    def finish(self, now: float) -> None:
        """End one lease that has no nested ones, as a worker or a client may."""
        parents = {self.parents[name] for name in (*self.held, *self.waiting)}
        ready = [name for name, (worker, _) in self.held.items() if worker not in parents]
        if not ready:
            return
        name = self.random.choice(ready)
        worker, epoch = self.held.pop(name)
        kind = self.random.randrange(4)
        if kind == 0:
            del self.workers[worker]
            self.perform(self.schedule.worker_ended(now, worker))
        elif kind == 3:
            self.perform(self.schedule.worker_expired(now, worker, epoch))
            self.workers.pop(worker, None)
            self.perform(self.schedule.worker_ended(now, worker, expired=True))
        elif kind == 1:
            self.perform(self.schedule.withdraw(name))
            self.perform(self.schedule.worker_idle(now, worker, epoch))
        else:
            self.perform(self.schedule.worker_idle(now, worker, epoch))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.builds(Bounds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=40),
)
def test_every_request_is_granted_or_refused_and_no_bound_is_ever_passed(
    seed: int, bounds: Bounds, wishes: list[tuple[int, bool]]
) -> None:
    """Whatever comes in whatever order, all requests get an answer and the bounds hold at every moment."""
    machine = _Machine(bounds, seed)
    for number, (which, nested) in enumerate(wishes):
        parents = [worker for worker, _ in machine.held.values()]
        parent = machine.random.choice(parents) if nested and parents else None
        name = f"r{number}"
        machine.waiting.append(name)
        machine.parents[name] = parent
        machine.perform(machine.schedule.ask(Request(name, key(str(which)), 10, parent)))
        if machine.random.random() < 0.5:
            machine.finish(number)
    for moment in range(10_000):
        if not machine.held and not machine.waiting:
            break
        machine.finish(100 + moment)
    assert not machine.waiting
    assert len(machine.granted) + len(machine.refused) == len(wishes)


def test_requests_of_one_kind_are_served_in_the_order_in_which_they_came() -> None:
    """First come, first served."""
    machine = _Machine(Bounds(1, 4, 4), 1)
    for number in range(10):
        machine.waiting.append(f"r{number}")
        machine.parents[f"r{number}"] = None
        machine.perform(machine.schedule.ask(Request(f"r{number}", key(str(number % 3)), 10)))
    for moment in range(50):
        machine.finish(10 + moment)
    assert machine.granted == [f"r{number}" for number in range(10)]


@pytest.mark.parametrize("bounds", [Bounds(1, 1, 1), Bounds(2, 2, 1)])
def test_a_full_machine_of_idle_sandboxes_still_takes_new_keys(bounds: Bounds) -> None:
    """An idle sandbox gives way to a request for another environment."""
    schedule = Schedule(bounds)
    grant = schedule.ask(Request("r1", key("a"), 10))[-1]
    assert isinstance(grant, Grant)
    schedule.withdraw("r1")
    schedule.worker_idle(0, grant.worker, grant.epoch)
    assert granted(schedule.ask(Request("r2", key("b"), 10))) == ["r2"]
