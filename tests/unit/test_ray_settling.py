"""Decisions on holders of a Ray cluster: asked for, withdrawn, given back. Pure, with a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.server.cluster.contract import Place, Wish
from atoll.server.ray.amounts import NOTHING, Amount
from atoll.server.ray.ledger import ASKED, HELD, LEAVING, Holder, Ledger, NodeType, RayNode
from atoll.server.ray.settling import UNJOINED_SECONDS, Rules, Settling

CORE = Amount(1000)


class World:
    """A ledger with two machines, `a` with GPUs and `b`, on which Atoll nodes of these names run, and a Ray that lends."""

    def __init__(self, **rules: object) -> None:
        self.ledger = Ledger()
        self.now = 0.0
        self.settling = Settling(self.ledger, Rules(**{"warm": {}, **rules}))  # type: ignore[arg-type]
        self.free = {"ray-a": Amount(4000, 1 << 33, 2), "ray-b": Amount(2000, 1 << 32)}
        self.totals = dict(self.free)
        self.numbers = 0
        self.draining = ""
        self.see()
        for node in ("a", "b"):
            self.ledger.joined(node, f"ray-{node}", volumes=f"disk-{node}")

    def see(self) -> list[str]:
        labels = {"ray-a": {"zone": "1"}, "ray-b": {"zone": "2"}}
        return self.ledger.see(
            RayNode(ray, ray, self.totals[ray], free, labels[ray], draining=ray == self.draining)
            for ray, free in self.free.items()
        )

    def settle(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.settling.settle(self.now)
        for holder in self.of(LEAVING):
            self.free[holder.node] += holder.amount
            self.ledger.drop(holder.name)

    def lend(self) -> None:
        """Meet what is asked for, as Ray does, where it fits."""
        for holder in self.of(ASKED):
            for ray, free in self.free.items():
                fits = free.covers(holder.amount) and ray not in holder.besides and holder.pinned in ("", ray)
                labels = self.ledger.nodes[ray].labels
                if fits and holder.labels.items() <= labels.items():
                    self.free[ray] -= holder.amount
                    cards = tuple(str(self.numbers + index) for index in range(holder.amount.gpus))
                    self.numbers += holder.amount.gpus
                    self.ledger.held(holder.name, holder.amount, ray, cards, self.now)
                    break
        self.see()

    def of(self, state: str) -> list[Holder]:
        return [one for one in self.ledger.holders.values() if one.state == state]

    def ask(self, *wishes: Wish) -> None:
        self.ledger.await_room(wishes, {})
        self.settle()

    def place(self, node: str, wish: Wish) -> Place:
        place = Place(wish, node)
        assert self.ledger.room(node, wish)
        self.ledger.take(place)
        return place


def wish(name: str = "1", cores: float = 1, **more: object) -> Wish:
    return Wish(name, "u", millicores=int(cores * 1000), **more)  # type: ignore[arg-type]


def test_a_wish_without_room_is_asked_for_once() -> None:
    """The same waiting wish asks for one holder, however often it is looked at; when it no longer waits, for none."""
    world = World()
    world.ask(wish())
    world.ask(wish())
    assert [one.amount for one in world.of(ASKED)] == [CORE]
    world.ask()
    assert world.ledger.holders == {}


def test_what_is_held_has_room_until_it_is_taken() -> None:
    """Room is the sum of holders without the placements in it, by node; GPUs count apart."""
    world = World()
    world.ask(wish("1", 1), wish("2", 2, gpus=1))
    world.lend()
    assert world.ledger.gpus("a") == ("0",)
    assert not world.ledger.room("a", wish("x", 4))
    assert not world.ledger.room("b", wish("x", 1, gpus=1))
    place = world.place("a", wish("2", 2, gpus=1))
    assert not world.ledger.room("a", wish("x", 1, gpus=1))
    world.ledger.give(place)
    world.ledger.give(place)
    assert world.ledger.room("a", wish("x", 1, gpus=1))


def test_idle_holders_go_back_after_a_while() -> None:
    """What was free all the time of a window goes back at its end, what was used stays."""
    world = World(idle_seconds=10.0)
    world.ask(wish("1"), wish("2"))
    world.lend()
    node = "a" if world.ledger.share("a") != NOTHING else "b"
    place = world.place(node, wish("1"))
    world.ask()
    world.settle(5.0)
    assert len(world.of(HELD)) == 2
    world.settle(6.0)
    world.settle(11.0)
    assert len(world.of(HELD)) == 1
    world.ledger.give(place)
    world.settle(5.0)
    world.ledger.take(place)
    world.settle(6.0)
    assert len(world.of(HELD)) == 1
    world.ledger.give(place)
    world.settle(11.0)
    world.ledger.take(place)
    world.ledger.give(place)
    world.settle(11.0)
    assert len(world.of(HELD)) == 1
    world.settle(11.0)
    assert world.of(HELD) == []
    assert world.free == world.totals


def test_warm_holders_are_kept_ahead_on_each_machine() -> None:
    """Each machine has a free holder ahead, a used one is replaced, and a full machine is not asked."""
    world = World(warm={CORE: 1}, idle_seconds=10.0)
    world.settle()
    assert {one.pinned for one in world.of(ASKED)} == {"ray-a", "ray-b"}
    world.lend()
    world.settle(30.0)
    assert len(world.of(HELD)) == 2
    world.place("b", wish("1"))
    world.settle()
    world.lend()
    world.place("b", wish("2"))
    world.settle()
    assert world.of(ASKED) == []
    assert len(world.of(HELD)) == 3


def test_a_machine_that_ends_gets_nothing_more() -> None:
    """Ray drains it and would refuse: nothing is asked for there, and what is held takes no further call."""
    world = World(warm={CORE: 2})
    world.settle()
    world.lend()
    place = world.place("a", wish())
    world.draining = "ray-a"
    world.see()
    assert not world.ledger.room("a", wish("2"))
    assert world.ledger.room("b", wish("2"))
    world.settle()
    assert not [one for one in world.of(ASKED) if one.pinned == "ray-a"]
    world.ask(wish("3", cores=2), wish("4", cores=2))
    world.settle()
    assert {one.besides for one in world.of(ASKED)} == {frozenset({"ray-a"})}
    world.ledger.give(place)
    assert not world.ledger.room("a", wish("2"))


def test_an_autoscalers_idle_machine_holds_nothing() -> None:
    """Warm holders would keep an idle machine from its autoscaler."""
    world = World(warm={CORE: 1})
    world.ledger.scales = True
    world.settle()
    assert world.ledger.holders == {}


def test_others_get_what_is_free_at_once() -> None:
    """While another program waits, free holders go back, warm ones too, and no new ones are kept ahead."""
    world = World(warm={CORE: 1}, turn_seconds=60.0)
    world.settle()
    world.lend()
    world.ledger.others_wait = True
    world.settle()
    assert world.ledger.holders == {}


@pytest.mark.parametrize(("seconds", "kept"), [(5.0, 1), (20.0, 0)])
def test_a_turn_ends_when_others_wait(seconds: float, kept: int) -> None:
    """A holder that becomes free goes back after its turn, though the own queue could use it, which asks again."""
    world = World(turn_seconds=10.0)
    world.ask(wish("1"))
    world.lend()
    node = "a" if world.ledger.share("a") != NOTHING else "b"
    place = world.place(node, wish("1"))
    world.ask(wish("2"))
    world.ledger.others_wait = True
    world.settle(seconds)
    world.ledger.give(place)
    world.settle()
    assert len(world.of(HELD)) == kept
    world.settle()
    assert len(world.of(ASKED)) == 1 - kept


def test_a_large_holder_is_given_back_though_small_calls_use_it() -> None:
    """While others wait, nothing more is placed in a holder whose turn is over, until it is free and goes back."""
    world = World(turn_seconds=10.0)
    world.ask(wish("1", 4))
    world.lend()
    places = [world.place("a", wish(str(number), 1)) for number in range(2, 5)]
    world.ask(wish("9", 1))
    world.ledger.others_wait = True
    world.settle(20.0)
    for place in places:
        assert not world.ledger.room("a", wish("9", 1))
        world.ledger.give(place)
        world.settle()
    assert world.of(HELD) == []
    world.ledger.others_wait = False
    world.settle()
    assert [one.amount for one in world.of(ASKED)] == [CORE]


def test_free_holders_make_room_for_one_of_another_size() -> None:
    """A holder that waits at Ray gets what own free ones have, warm ones too; else it would wait for itself."""
    world = World(warm={CORE: 1}, idle_seconds=3600.0)
    world.settle()
    world.lend()
    assert len(world.of(HELD)) == 2
    world.ask(wish("1", 4))
    world.lend()
    assert not world.ledger.room("a", wish("1", 4))
    assert world.settling.next_due() is not None
    world.settle(1.0)
    world.lend()
    assert world.ledger.room("a", wish("1", 4))
    world.ask()
    world.settle()
    world.lend()
    assert world.ledger.share("b") == CORE


def test_lost_holders_are_asked_for_again_where_their_calls_run() -> None:
    """Calls go on when their holder ends; the same amount is asked for on that machine, and nothing more is placed."""
    world = World()
    world.ask(wish("1", 2))
    world.lend()
    node = "a" if world.ledger.share("a") != NOTHING else "b"
    world.place(node, wish("1", 2))
    world.ask()
    (holder,) = world.of(HELD)
    world.ledger.drop(holder.name)
    assert not world.ledger.room(node, wish("x", 0.1))
    world.settle()
    world.settle()
    assert [(one.amount, one.pinned) for one in world.of(ASKED)] == [(Amount(2000), f"ray-{node}")]


def test_holders_end_with_their_machine() -> None:
    """A machine that is gone takes its holders along, and they are named."""
    world = World()
    world.ask(wish("1", labels={"zone": "2"}))
    world.lend()
    (holder,) = world.of(HELD)
    assert holder.node == "ray-b"
    del world.free["ray-b"]
    assert world.see() == [holder.name]
    assert world.ledger.share("b") == NOTHING


def test_machines_that_cannot_serve_a_wish_are_left_out() -> None:
    """Ray does not know who shares a file system, is drained or has not joined: it is told which nodes will not do."""
    world = World()
    world.ledger.open("a", takes_new=False)
    world.ask(wish("1"), wish("2", volumes="disk-b"), wish("3", volumes="disk-a"))
    assert [sorted(one.besides) for one in world.of(ASKED)] == [["ray-a"], ["ray-a"], ["ray-a", "ray-b"]]
    world.ledger.unfit.add("ray-b")
    world.ask(wish("1"))
    assert [sorted(one.besides) for one in world.of(ASKED)] == [["ray-a", "ray-b"]]


def test_holders_of_a_machine_that_has_not_joined_wait_for_it() -> None:
    """After a restart of the server, holders stay until their node has said what runs there, within a limit."""
    world = World(idle_seconds=1.0)
    world.ask(wish("1", labels={"zone": "2"}))
    world.lend()
    world.ledger.left("b")
    world.ask()
    world.settle(10.0)
    world.settle(10.0)
    assert len(world.of(HELD)) == 1
    world.settle(UNJOINED_SECONDS)
    assert world.of(HELD) == []


def test_a_node_that_still_uses_its_share_keeps_it() -> None:
    """A holder whose node does not agree counts again."""
    world = World()
    world.ask(wish("1", labels={"zone": "2"}))
    world.lend()
    (holder,) = world.of(HELD)
    world.ledger.leave(holder)
    assert world.ledger.share("b") == NOTHING
    world.ledger.keep(holder.name, world.now)
    assert world.ledger.share("b") == CORE


def test_refusals() -> None:
    """A wish is refused when no machine and no type of the autoscaler's can hold it, if these are known."""
    world = World()
    assert world.ledger.refusal(wish("1", 4)) == ""
    assert world.ledger.refusal(wish("1", 5)) == (
        "it needs 5 CPUs, and the largest machine of the Ray cluster has 4 CPUs, 8.0 GiB of memory, 2 GPUs"
    )
    assert "labels `zone=3`" in world.ledger.refusal(wish("1", labels={"zone": "3"}))
    world.ledger.types = (NodeType(Amount(8000)),)
    assert world.ledger.refusal(wish("1", 5)) == ""
    assert world.ledger.refusal(wish("1", 9)) != ""
    world.ledger.types, world.ledger.scales = (), True
    assert world.ledger.refusal(wish("1", 9)) == ""


def test_the_count_of_what_waits_at_ray_is_bounded() -> None:
    """A long queue asks for so many holders at a time, and no more."""
    world = World(asked=3)
    world.ask(*(wish(str(number), 2) for number in range(10)))
    assert len(world.of(ASKED)) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "lend", "place", "give", "wait", "others"]),
            st.integers(0, 7),
            st.sampled_from([0.5, 1, 2]),
        ),
        max_size=40,
    )
)
def test_accounts_stay_right(steps: list[tuple[str, int, float]]) -> None:
    """Whatever happens in whatever order: no machine lends more than it has, no placement exceeds a share, GPUs of
    holders differ, and in the end all of it is given back."""
    world = World(idle_seconds=5.0, turn_seconds=3.0, warm={CORE: 1})
    waiting: dict[str, Wish] = {}
    placed: dict[str, Place] = {}
    for number, (step, choice, cores) in enumerate(steps):
        match step:
            case "ask":
                made = wish(str(number), cores, gpus=int(choice == 0))
                waiting[made.id] = made
                world.ask(*waiting.values())
            case "lend":
                world.lend()
            case "place":
                for one in list(waiting.values()):
                    node = next((node for node in ("a", "b") if world.ledger.room(node, one)), "")
                    if node:
                        placed[one.id] = world.place(node, waiting.pop(one.id))
            case "give" if placed:
                world.ledger.give(placed.pop(list(placed)[choice % len(placed)]))
                world.settle()
            case "others":
                world.ledger.others_wait = choice > 3
                world.settle()
            case _:
                world.settle(choice)
        world.ledger.await_room(list(waiting.values()), {})
        for ray, free in world.free.items():
            assert free.covers(NOTHING), (ray, free)
        for ray in ("ray-a", "ray-b"):
            for with_gpus in (False, True):
                assert world.ledger.free(ray, with_gpus=with_gpus).covers(NOTHING)
        cards = world.ledger.gpus("a")
        assert len(set(cards)) == len(cards)
    for place in placed.values():
        world.ledger.give(place)
    world.settling = Settling(world.ledger, Rules(warm={}, idle_seconds=0.0))
    world.ledger.others_wait = False
    world.ask()
    world.settle(1.0)
    world.settle(1.0)
    assert world.ledger.holders == {}
    assert world.free == world.totals
