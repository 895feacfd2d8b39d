"""Ways of choosing a node for a call: Atoll's placement, and three others that it is compared with.

All choose for the same machines (`machines`). The others send a call to a machine at once, and it waits there if there is no
room; they know at any time how much every machine has free. Atoll's placement has the machines' words alone, and calls
wait at the server.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from machines import Machine
from workload import Call

from atoll.server.cluster.contract import NodeFacts, Place, Wish
from atoll.server.cluster.placement import Placement
from atoll.server.cluster.placing.sizes import TYPES

Started = list[tuple[str, int]]
"""Machines, and the numbers of calls that they are given."""


class Policy(Protocol):
    """A way of choosing.

    Args:
        name: for the table.
        costs: seconds that decisions took.
    """

    name: str
    costs: list[float]

    def arrive(self, number: int, call: Call, now: float) -> Started:
        """A call has come."""

    def ended(self, number: int, machine: Machine, now: float) -> Started:
        """A call has ended."""

    def told(self, machine: Machine, now: float) -> Started:
        """A machine says its figures."""


class Atoll:
    """The placement of this package."""

    name = "Atoll"

    def __init__(self, machines: Iterable[Machine]) -> None:
        self.costs: list[float] = []
        self.placement = Placement()
        for machine in machines:
            self.placement.join(NodeFacts(machine.name, "", *machine.total[:2], ("card",) * machine.total[2]), 0.0)
            self.placement.load(machine.name, machine.load(), 0.0)

    def arrive(self, number: int, call: Call, now: float) -> Started:
        asked = wish_of(number, call)
        began = time.perf_counter()
        places = self.placement.ask(asked, now)
        self.costs.append(time.perf_counter() - began)
        return _started(places)

    def ended(self, number: int, machine: Machine, now: float) -> Started:  # noqa: ARG002 - of the protocol
        return _started(self.placement.over(str(number), now))

    def told(self, machine: Machine, now: float) -> Started:
        return _started(self.placement.load(machine.name, machine.load(), now))

    def look(self, now: float) -> Started:
        """Time has passed."""
        return _started(self.placement.look(now))


def wish_of(number: int, call: Call) -> Wish:
    """Return what a call asks of the placement; functions of a user share an environment."""
    function = call.function
    size = TYPES[function.machine_type]
    return Wish(
        str(number),
        function.user,
        function.machine_type,
        *size,
        warm=f"{function.number:x}",
        built=function.user,
    )


def _started(places: list[Place]) -> Started:
    return [(place.node, int(place.wish.id)) for place in places]


class _AtOnce:
    """What the others share: nothing happens but arrivals."""

    def __init__(self, machines: Iterable[Machine]) -> None:
        self.costs: list[float] = []
        self.machines = list(machines)
        self.random = random.Random(7)

    def arrive(self, number: int, call: Call, now: float) -> Started:  # noqa: ARG002
        began = time.perf_counter()
        machine = self.choose(call)
        self.costs.append(time.perf_counter() - began)
        return [(machine.name, number)]

    def ended(self, number: int, machine: Machine, now: float) -> Started:  # noqa: ARG002
        self.changed(machine)
        return []

    def told(self, machine: Machine, now: float) -> Started:  # noqa: ARG002
        return []

    def choose(self, call: Call) -> Machine:
        """Return the machine of a call."""
        raise NotImplementedError

    def changed(self, machine: Machine) -> None:
        """A machine's room differs."""


class Random(_AtOnce):
    """Any machine that is large enough."""

    name = "random"

    def choose(self, call: Call) -> Machine:
        while True:
            machine = self.random.choice(self.machines)
            if machine.holds(call.function.machine_type):
                return machine


class LeastLoaded(_AtOnce):
    """The machine with the most free cores, less those of the calls that wait there."""

    name = "least loaded"

    def __init__(self, machines: Iterable[Machine]) -> None:
        super().__init__(machines)
        self._where: dict[str, int] = {}
        self._buckets: dict[int, OrderedDict[str, Machine]] = {}
        for machine in self.machines:
            self.changed(machine)

    def choose(self, call: Call) -> Machine:
        for bucket in sorted(self._buckets, reverse=True):
            for machine in self._buckets[bucket].values():
                if machine.holds(call.function.machine_type):
                    self._move(machine, bucket - TYPES[call.function.machine_type][0] // 250)
                    return machine
        raise AssertionError("no machine is large enough")

    def changed(self, machine: Machine) -> None:
        self._move(machine, (machine.free[0] - machine.waiting_millicores) // 250)

    def _move(self, machine: Machine, bucket: int) -> None:
        old = self._where.get(machine.name)
        if old is not None:
            del self._buckets[old][machine.name]
            if not self._buckets[old]:
                del self._buckets[old]
        self._where[machine.name] = bucket
        self._buckets.setdefault(bucket, OrderedDict())[machine.name] = machine


class HomeAndProbing(_AtOnce):
    """As OpenWhisk's balancer: a function has a home by its hash; if that is full, machines follow in equal steps."""

    name = "hash and probing"

    def __init__(self, machines: Iterable[Machine]) -> None:
        super().__init__(machines)
        count = len(self.machines)
        self._steps = [step for step in range(1, count + 1) if _coprime(step, count)] or [1]

    def choose(self, call: Call) -> Machine:
        count = len(self.machines)
        digest = random.Random(call.function.number).getrandbits(60)
        at, step = digest % count, self._steps[digest % len(self._steps)]
        for _ in range(count):
            machine = self.machines[at]
            if machine.has_room(call.function.machine_type):
                return machine
            at = (at + step) % count
        while True:  # all are full: any one
            machine = self.random.choice(self.machines)
            if machine.holds(call.function.machine_type):
                return machine


def _coprime(one: int, other: int) -> bool:
    while other:
        one, other = other, one % other
    return one == 1
