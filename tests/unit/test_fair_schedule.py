"""Fairness between users: whose request is next, caps, places in a user's own line, and that nobody starves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from atoll.engine.actions import Action, EndSandbox, EndWorker, Grant, Request, Share
from atoll.engine.schedule import Schedule
from atoll.engine.waits import Holder, reason
from atoll.model.resources import Bounds, Needs
from atoll.model.specs import SandboxKey, WorkerKey
from tests.waiting import soak


def request(name: str, user: str, *, share: Share | None = None, parent: str | None = None, cores: int = 1) -> Request:
    key = WorkerKey(SandboxKey(user, "environment", "none"))
    return Request(
        name, key, 0.0, parent=parent, client=f"of {user}", needs=Needs(cores * 1000), share=share or Share()
    )


def granted(actions: list[Action]) -> list[Grant]:
    return [one for one in actions if isinstance(one, Grant)]


def free(schedule: Schedule, grant: Grant) -> list[Grant]:
    """End a lease and its worker: the next in turn gets the place."""
    schedule.withdraw(grant.request)
    actions = schedule.worker_idle(1.0, grant.worker, grant.epoch)
    for action in list(actions):
        if isinstance(action, EndWorker):
            actions += schedule.worker_ended(1.0, action.worker)
        elif isinstance(action, EndSandbox):
            actions += schedule.sandbox_ended(action.sandbox)
    return granted(actions)


def test_ten_thousand_calls_hold_up_no_others_first() -> None:
    """With one core the other user's first call is the next, although 10,000 came before it."""
    schedule = Schedule(Bounds(slots=1, workers=32, sandboxes=16))
    (running,) = granted(schedule.ask(request("a0", "ann")))
    many = soak(1000, 10_000)
    for number in range(1, many):
        assert not granted(schedule.ask(request(f"a{number}", "ann")))
    schedule.ask(request("b0", "bob"))
    assert schedule.position("b0") == 0
    assert schedule.position(f"a{many - 1}") == many - 2
    assert free(schedule, running)[0].request == "b0"


def test_cores_are_shared_by_weight() -> None:
    """Of nine cores a user with twice the weight gets six, whoever came first."""
    schedule = Schedule(Bounds(slots=9, workers=32, sandboxes=16))
    (first,) = granted(schedule.ask(request("held", "ann", cores=9)))
    for number in range(20):
        schedule.ask(request(f"b{number}", "bob", share=Share(1.0)))
        schedule.ask(request(f"c{number}", "cid", share=Share(2.0)))
    got = Counter(one.request[0] for one in free(schedule, first))
    assert got == {"c": 6, "b": 3}


def test_a_user_at_the_cap_holds_up_nobody() -> None:
    """Further calls of theirs wait and say so; another user's run at once, and a nested call never waits for the cap."""
    schedule = Schedule(Bounds(slots=8, workers=32, sandboxes=16))
    two = Share(workers=2)
    held = [granted(schedule.ask(request(f"a{number}", "ann", share=two))) for number in range(4)]
    assert [len(one) for one in held] == [1, 1, 0, 0]
    wait = schedule.wait_of("a2")
    assert wait is not None
    assert reason(wait, "f", lambda _: None) == "the most calls of one user at a time: 2 running"
    assert (schedule.position("a2"), schedule.position("a3")) == (0, 1)
    assert granted(schedule.ask(request("b0", "bob", share=two)))
    worker = held[0][0].worker
    assert granted(schedule.ask(request("nested", "ann", share=two, parent=worker)))
    assert not granted(schedule.ask(request("more", "ann", share=two, parent=worker)))
    assert [one.request for one in free(schedule, held[1][0])] == []  # a0 and its nested call are two
    assert schedule.position("a2") >= 0


def test_a_reason_names_nothing_of_other_users() -> None:
    """A user who waits for another's call learns that there are others."""
    schedule = Schedule(Bounds(slots=1, workers=32, sandboxes=16))
    schedule.ask(request("secret", "ann"))
    schedule.ask(request("a1", "ann"))
    schedule.ask(request("b0", "bob"))
    wait = schedule.wait_of("b0")
    assert wait is not None
    text = reason(wait, "mine", lambda _: Holder("ann", "secret_function", "id-of-ann", 100.0))
    assert text == "1 CPU held by other users"


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.integers(1, 2)), min_size=1, max_size=40),
)
def test_everybody_is_served_and_nobody_far_ahead(slots: int, asked: list[tuple[str, int]]) -> None:
    """Every request is granted once, each user's in their order; while two wait, grants alternate between them."""
    schedule = Schedule(Bounds(slots=slots, workers=64, sandboxes=64))
    (running,) = granted(schedule.ask(request("first", "zed", cores=slots)))
    order: dict[str, list[str]] = {}
    for number, (user, _) in enumerate(asked):
        order.setdefault(user, []).append(f"{user}{number}")
        schedule.ask(request(f"{user}{number}", user))
    held = free(schedule, running)
    served = list(held)
    while held:
        new = free(schedule, held.pop(0))
        held += new
        served += new
    assert sorted(one.request for one in served) == sorted(name for names in order.values() for name in names)
    for names in order.values():
        assert [one.request for one in served if one.request in names] == names
    left = {user: len(names) for user, names in order.items()}
    counts: Counter[str] = Counter()
    for one in served:
        user = one.request.rstrip("0123456789")
        waiting = [other for other in order if counts[other] < left[other]]
        assert counts[user] <= min(counts[other] for other in waiting) + 1
        counts[user] += 1
    assert schedule.idle or not schedule.waiting
