"""Leases that pass from call to call within one process."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from atoll.host.lease_pool import Leases, Waiter


class Held:
    """Stands for a lease."""

    def __init__(self) -> None:
        self.usable = True
        self.closed = False
        self.users = 0

    @property
    def spent(self) -> bool:
        return not self.usable

    def close(self) -> None:
        self.closed = True


def test_a_lease_goes_to_the_one_that_has_waited_longest() -> None:
    """Whoever ends a call serves the first in line; what nobody wants rests."""
    leases: Any = Leases()
    first, second = leases.line_up("kind"), leases.line_up("kind")
    one, two, three = Held(), Held(), Held()
    for lease in (one, two, three):
        leases.rest("kind", lease)
    assert (first.lease, second.lease) == (one, two)
    assert leases.take("kind") is three
    assert leases.take("kind") is None
    assert leases.take("other") is None


def test_one_of_those_that_wait_asks_at_a_time() -> None:
    """When it has done so, the last in line that has nothing is the next."""
    leases: Any = Leases()
    waiters = [leases.line_up("kind") for _ in range(3)]
    assert [leases.asks("kind", waiter) for waiter in waiters] == [True, False, False]
    leases.leave("kind", waiters[0], taken=False)
    assert not waiters[1]._stirred.is_set()
    assert waiters[2]._stirred.is_set()
    assert leases.asks("kind", waiters[2])


def test_who_was_told_to_ask_and_leaves_instead_tells_the_next() -> None:
    """When the one that asks and the last in line are cancelled together, the one between them asks."""
    leases: Any = Leases()
    first, middle, last = (leases.line_up("kind") for _ in range(3))
    assert leases.asks("kind", first)
    leases.leave("kind", first, taken=False)
    assert last._stirred.is_set()
    leases.leave("kind", last, taken=False)
    assert middle._stirred.is_set()
    assert leases.asks("kind", middle)


def test_a_lease_that_comes_to_rest_just_before_one_lines_up_is_not_missed() -> None:
    """Between looking for a resting lease and standing in line, nothing is lost."""
    leases: Any = Leases()
    assert leases.take("kind") is None
    lease = Held()
    leases.rest("kind", lease)
    assert leases.line_up("kind").lease is lease


def test_a_lease_that_was_given_and_not_taken_goes_on() -> None:
    """A call that is cancelled just as it gets a lease does not keep it."""
    leases: Any = Leases()
    cancelled, other = leases.line_up("kind"), leases.line_up("kind")
    lease = Held()
    leases.rest("kind", lease)
    assert cancelled.lease is lease
    leases.leave("kind", cancelled, taken=False)
    assert other.lease is lease


def test_a_request_that_is_no_longer_needed_is_ended() -> None:
    """Who gets a lease from another call gives its own request up, also where it is only just asking."""
    stops: list[str] = []
    leases: Any = Leases()
    waiter = leases.line_up("kind")
    waiter.begin_to_ask(lambda: stops.append("waiting"))
    leases.rest("kind", Held())
    assert stops == ["waiting"]
    assert not waiter.end_to_ask()
    late = Waiter()
    late.lease = waiter.lease
    late.begin_to_ask(lambda: stops.append("late"))
    assert stops == ["waiting", "late"]
    assert not late.end_to_ask()


def test_spent_leases_are_closed() -> None:
    """A lease that its worker has given up is not given to anyone."""
    leases: Any = Leases()
    spent, good = Held(), Held()
    leases.rest("kind", good)
    leases.rest("kind", spent)
    spent.usable = False
    assert leases.take("kind") is good
    assert spent.closed
    leases.rest("kind", spent)
    leases.drop_spent()
    assert leases.take("kind") is None


def acquire(leases: Any, ask: Any) -> Held:
    """Do as `LocalHost.acquire` does."""
    lease = leases.take("kind")
    if lease is not None:
        return lease  # type: ignore[no-any-return]
    waiter = leases.line_up("kind")
    taken = False
    try:
        while True:
            if waiter.lease is not None:
                lease, waiter.lease, taken = waiter.lease, None, True
                return lease  # type: ignore[no-any-return]
            if leases.asks("kind", waiter):
                lease = ask(waiter)
                leases.asked("kind", waiter)
                if lease is not None:
                    leases.rest("kind", lease)
            else:
                waiter.wait()
    finally:
        leases.leave("kind", waiter, taken=taken)


def test_many_threads_share_few_leases_and_none_waits_for_ever() -> None:
    """Forty threads with four leases: each is served, no lease is used by two at once, and requests are few."""
    leases: Any = Leases()
    free = threading.Semaphore(4)
    served: list[int] = []
    asked = 0
    chance = random.Random(7)

    def ask(waiter: Waiter) -> Held | None:
        nonlocal asked
        asked += 1
        stopped = threading.Event()
        waiter.begin_to_ask(stopped.set)
        while not stopped.is_set():
            if free.acquire(timeout=0.001):
                if waiter.end_to_ask():
                    return Held()
                free.release()
                return None
        waiter.end_to_ask()
        return None

    def work(number: int) -> None:
        for _ in range(25):
            lease = acquire(leases, ask)
            lease.users += 1
            assert lease.users == 1
            if chance.random() < 0.2:
                time.sleep(0)
            lease.users -= 1
            if chance.random() < 0.05:  # revoked
                free.release()
            else:
                leases.rest("kind", lease)
            served.append(number)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(served) == 40 * 25
    assert asked < len(served) / 2
