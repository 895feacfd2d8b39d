"""Machines as numbers, for tests of placement: each has a capacity, says its room, and counts the sessions it was given."""

from __future__ import annotations

from collections.abc import Mapping

from atoll.server.cluster.contract import NodeFacts, NodeLoad, Place, Wish
from atoll.server.cluster.placement import Placement
from atoll.server.cluster.placing.sizes import TYPES, Size

GIB = 1 << 30


def wish(name: str, user: str = "ann", type: str = "", **more: object) -> Wish:  # noqa: A002
    """Return a wish of a machine type."""
    millicores, memory, gpus = TYPES[type]
    given = {"millicores": millicores, "memory_bytes": memory, "gpus": gpus, **more}
    return Wish(name, user, type, **given)  # type: ignore[arg-type]


class Machine:
    """One machine: placed wishes that have arrived take its room until they are over."""

    def __init__(self, name: str, cores: int = 4, memory: int = 16, gpus: int = 0, **facts: object) -> None:
        self.name = name
        self.size = Size(cores * 1000, memory * GIB, gpus)
        cards = tuple(f"card-{number}" for number in range(gpus))
        self.facts = NodeFacts(name, "1", self.size.millicores, self.size.memory_bytes, cards, **facts)  # type: ignore[arg-type]
        self.taken = 0
        self.arriving: dict[str, Wish] = {}
        self.running: dict[str, Wish] = {}

    def free(self, wishes: Mapping[str, Wish]) -> Size:
        """Return what these leave of the machine."""
        taken = [self._cut(Size(one.millicores, one.memory_bytes, one.gpus)) for one in wishes.values()]
        return Size(*(has - sum(column) for has, *column in zip(self.size, *taken, strict=True)))

    def arrive(self) -> None:
        """Take the sessions that were dialled."""
        self.taken += len(self.arriving)
        self.running |= self.arriving
        self.arriving.clear()

    def load(self) -> NodeLoad:
        """Return figures as a node says them."""
        free = self.free(self.running)
        fits = {name: self._fits(size, free) for name, size in TYPES.items()}
        return NodeLoad(self.taken, fits, *free)

    def _fits(self, size: Size, free: Size) -> int:
        needed = self._cut(size)
        return max(0, min([64, *(has // needs for has, needs in zip(free, needed, strict=True) if needs)]))

    def _cut(self, size: Size) -> Size:
        return Size(min(size[0], self.size[0]), min(size[1], self.size[1]), size[2])


class Cluster:
    """A placement with machines that obey it."""

    def __init__(self, *machines: Machine, placement: Placement | None = None) -> None:
        self.placement = placement or Placement()
        self.machines: dict[str, Machine] = {}
        self.now = 0.0
        self.where: dict[str, str] = {}
        self.order: list[str] = []
        for machine in machines:
            self.join(machine)

    def join(self, machine: Machine) -> None:
        """Let a machine join and say its figures."""
        self.machines[machine.name] = machine
        self.note(self.placement.join(machine.facts, self.now))
        self.say(machine)

    def note(self, places: list[Place]) -> list[str]:
        """Send placed wishes to their machines; return their ids."""
        for place in places:
            assert place.wish.id not in self.where
            self.where[place.wish.id] = place.node
            self.order.append(place.wish.id)
            self.machines[place.node].arriving[place.wish.id] = place.wish
        return [place.wish.id for place in places]

    def ask(self, asked: Wish) -> str:
        """Ask for a node; return its name, or nothing."""
        self.note(self.placement.ask(asked, self.now))
        return self.where.get(asked.id, "")

    def over(self, name: str, *, say: bool = True) -> list[str]:
        """End a placed wish, on its machine too; return what is placed then.

        Args:
            say: the session has arrived, and the machine says its figures; else it may never have arrived.
        """
        machine = self.machines[self.where.pop(name)]
        if say:
            machine.arrive()
        machine.running.pop(name, None)
        machine.arriving.pop(name, None)
        placed = self.note(self.placement.over(name, self.now))
        return placed + (self.say(machine) if say else [])

    def say(self, machine: Machine) -> list[str]:
        """Let what was dialled arrive, and the machine say its figures."""
        placed = []
        while True:
            machine.arrive()
            more = self.note(self.placement.load(machine.name, machine.load(), self.now))
            placed += more
            if not more:
                return placed
