"""Placement under any order of events: no node over its room, no wish placed twice or forgotten, and nothing wedged."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.server.cluster.placing.node_room import SETTLED_SECONDS
from tests.unit.placing import GIB, Cluster, Machine, wish
from tests.waiting import soak

SIZES = [
    {"type": ""},
    {"type": "S"},
    {"type": "M"},
    {"type": "GPU-T4"},
    {"millicores": 3100, "memory_bytes": 5 * GIB},
    {"millicores": 0},
    {"gpus": 2},
]


class PlacementMachine(RuleBasedStateMachine):
    """Machines whose words come late, users who come and go; `where` is who has which machine."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster(Machine("a", 4, 32), Machine("b", 8, 64, 2))
        self.count = 0
        self.asked: dict[str, str] = {}  # those that are neither withdrawn nor over

    def running(self) -> list[str]:
        return sorted(self.cluster.where)

    @rule(size=st.sampled_from(SIZES), user=st.sampled_from("uvw"), warm=st.sampled_from(["", "x", "y"]))
    def ask(self, size: dict[str, object], user: str, warm: str) -> None:
        self.count += 1
        asked = wish(f"w{self.count}", user, warm=warm, built=warm, weight=2.0 if user == "w" else 1.0, **size)  # type: ignore[arg-type]
        if not self.cluster.placement.refusal(asked):
            self.asked[asked.id] = user
            self.cluster.ask(asked)

    @precondition(lambda self: self.cluster.where)
    @rule(data=st.data(), say=st.booleans())
    def over(self, data: st.DataObject, say: bool) -> None:
        name = data.draw(st.sampled_from(self.running()))
        del self.asked[name]
        self.cluster.over(name, say=say)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiting = sorted(set(self.asked) - set(self.cluster.where))
        if waiting:
            name = data.draw(st.sampled_from(waiting))
            del self.asked[name]
            self.cluster.note(self.cluster.placement.withdraw(name, self.cluster.now))

    @rule(data=st.data(), arrive=st.booleans())
    def say(self, data: st.DataObject, arrive: bool) -> None:
        machine = self.cluster.machines[data.draw(st.sampled_from(sorted(self.cluster.machines)))]
        if arrive:
            self.cluster.say(machine)
        else:
            self.cluster.note(self.cluster.placement.load(machine.name, machine.load(), self.cluster.now))

    @rule(data=st.data(), accepting=st.booleans())
    def accept(self, data: st.DataObject, accepting: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.cluster.machines)))
        self.cluster.note(self.cluster.placement.accept(name, accepting, self.cluster.now))

    @rule(cores=st.integers(1, 16), gpus=st.integers(0, 3))
    def join(self, cores: int, gpus: int) -> None:
        if len(self.cluster.machines) < 5:
            self.count += 1
            self.cluster.join(Machine(f"n{self.count}", cores, 4 * cores, gpus))

    @rule(data=st.data())
    def link_comes_again(self, data: st.DataObject) -> None:
        machine = self.cluster.machines[data.draw(st.sampled_from(sorted(self.cluster.machines)))]
        if data.draw(st.booleans()):  # else its loss is not noticed before
            self.cluster.note(self.cluster.placement.leave(machine.name, self.cluster.now))
        machine.arrive()
        self.cluster.join(machine)

    @rule(data=st.data())
    def node_dies(self, data: st.DataObject) -> None:
        if len(self.cluster.machines) > 1:
            name = data.draw(st.sampled_from(sorted(set(self.cluster.machines) - {"b"})))
            self.cluster.note(self.cluster.placement.leave(name, self.cluster.now))
            for lost in [one for one, where in self.cluster.where.items() if where == name]:
                del self.asked[lost]
                self.cluster.over(lost, say=False)
            del self.cluster.machines[name]

    @rule(data=st.data())
    def process_is_new(self, data: st.DataObject) -> None:
        """Its calls are lost; the server hears of that."""
        machine = self.cluster.machines[data.draw(st.sampled_from(sorted(self.cluster.machines)))]
        self.cluster.note(self.cluster.placement.leave(machine.name, self.cluster.now))
        for lost in [one for one, where in self.cluster.where.items() if where == machine.name]:
            del self.asked[lost]
            self.cluster.over(lost, say=False)
        machine.taken = 0
        self.cluster.join(machine)

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        """What was dialled has arrived long before it counts as arrived."""
        if seconds >= SETTLED_SECONDS / 2:
            for machine in self.cluster.machines.values():
                machine.arrive()
        self.cluster.now += (
            min(seconds, 1.0) if any(one.arriving for one in self.cluster.machines.values()) else seconds
        )
        if seconds < 1.0:
            return
        for machine in self.cluster.machines.values():
            self.cluster.say(machine)
        self.cluster.note(self.cluster.placement.look(self.cluster.now))

    @invariant()
    def no_node_has_more_than_it_holds(self) -> None:
        for machine in self.cluster.machines.values():
            assert min(machine.free(machine.running | machine.arriving)) >= 0

    @invariant()
    def each_wish_waits_or_is_placed(self) -> None:
        waiting = {one.id for one in self.cluster.placement.waiting()}
        assert not waiting & set(self.cluster.where)
        assert waiting | set(self.cluster.where) == set(self.asked)
        for user in "uvw":
            positions = sorted(self.cluster.placement.position(one) for one in waiting if self.asked[one] == user)
            assert positions == list(range(len(positions)))

    def teardown(self) -> None:
        """When calls end and machines say so, everything that can be held is placed in the end."""
        placement, cluster = self.cluster.placement, self.cluster
        for machine in cluster.machines.values():
            cluster.note(placement.accept(machine.name, True, cluster.now))
        cluster.now += 100.0
        while True:
            cluster.now += SETTLED_SECONDS
            for machine in cluster.machines.values():
                cluster.say(machine)
            cluster.note(placement.look(cluster.now))
            for refused, _ in placement.refused():
                cluster.note(placement.withdraw(refused.id, cluster.now))
            if not cluster.where:
                break
            cluster.over(self.running()[0])
        assert not placement.waiting()
        assert not any(row["held"] or row["placed"] for row in placement.nodes())


TestPlacementMachine = PlacementMachine.TestCase
TestPlacementMachine.settings = settings(
    max_examples=soak(60, 500), stateful_step_count=soak(40, 80), deadline=None, print_blob=True
)
