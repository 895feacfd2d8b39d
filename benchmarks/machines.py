"""A light model of a node, and the simulation of many: events in order of time, without a clock.

A machine runs a call in a sandbox of its function. One that is idle serves the next call of the function at once (warm);
else a new one is started (cold), which takes `COLD_SECONDS` with the cores held. Idle sandboxes keep their memory for
`keep_alive` seconds; the one that has idled longest goes first where memory is short, as in the node's own schedule. A
machine says its figures `WORD_SECONDS` after a change. Not in the model: builds of environments (they are counted), the
time on the network, and machines that fail.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workload import Call

from atoll.server.cluster.contract import NodeLoad
from atoll.server.cluster.placing.sizes import TYPES, Size

if TYPE_CHECKING:
    from policies import Policy, Started

COLD_SECONDS = 0.3
"""A new sandbox, and the imports of its function's packages."""
WORD_SECONDS = 0.05
LOOK_SECONDS = 1.0
GIB = 1 << 30


class Machine:
    """One machine.

    Args:
        free: of what calls do not take; idle sandboxes count as free.
        keep_alive: seconds for which a sandbox idles.
    """

    def __init__(self, name: str, cores: int, memory: int, gpus: int, keep_alive: float) -> None:
        self.name = name
        self.total = Size(cores * 1000, memory * GIB, gpus)
        self.free = list(self.total)
        self.keep_alive = keep_alive
        self.taken = self.running = 0
        self.waiting: deque[tuple[int, Call]] = deque()
        self.waiting_millicores = 0
        self.environments: set[str] = set()
        self._idle: OrderedDict[int, tuple[int, int, float]] = OrderedDict()  # sandbox -> function, memory, expires
        self._of: dict[int, list[int]] = {}
        self._idle_bytes = 0
        self._sandboxes = 0

    def holds(self, machine_type: str) -> bool:
        """Return whether the empty machine has room for one call of this type."""
        return all(mine <= has for mine, has in zip(TYPES[machine_type], self.total, strict=True))

    def has_room(self, machine_type: str) -> bool:
        """Return whether a call of this type would run at once."""
        return not self.waiting and all(mine <= has for mine, has in zip(TYPES[machine_type], self.free, strict=True))

    def load(self) -> NodeLoad:
        """Return the figures as a node says them."""
        millicores, memory, gpus = self.free
        fits = {}
        for name, size in TYPES.items():
            count = min(millicores // size[0], memory // size[1] if size[1] else 512)
            fits[name] = min(count, gpus // size[2]) if size[2] else count
        return NodeLoad(self.taken, fits, millicores, memory, gpus, self.running)

    def start(self, call: Call, now: float) -> bool:
        """Run a call, which has room; return whether its sandbox is new."""
        size = TYPES[call.function.machine_type]
        self.free = [has - mine for has, mine in zip(self.free, size, strict=True)]
        self.running += 1
        own = self._of.get(call.function.number)
        while own:
            sandbox = own.pop()
            _, memory, expires = self._idle.pop(sandbox)
            self._idle_bytes -= memory
            if expires >= now:
                return False
        while self._idle and self._idle_bytes > self.free[1]:
            sandbox, (function, memory, _) = self._idle.popitem(last=False)
            self._of[function].remove(sandbox)
            self._idle_bytes -= memory
        return True

    def end(self, call: Call, now: float) -> None:
        """End a call: its sandbox idles."""
        size = TYPES[call.function.machine_type]
        self.free = [has + mine for has, mine in zip(self.free, size, strict=True)]
        self.running -= 1
        self._sandboxes += 1
        self._idle[self._sandboxes] = call.function.number, size[1], now + self.keep_alive
        self._of.setdefault(call.function.number, []).append(self._sandboxes)
        self._idle_bytes += size[1]


@dataclass
class Result:
    """What a simulation has measured, after its warm-up.

    Args:
        waits: seconds from each call's coming to its start.
        cold: calls with a new sandbox.
        unbuilt: calls whose environment the machine did not have.
        large: waits of calls of the type `L` or with a GPU.
        never: calls that wait at the end.
    """

    name: str
    waits: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    cold: int = 0
    unbuilt: int = 0
    never: int = 0
    costs: list[float] = field(default_factory=list)

    @property
    def cold_share(self) -> float:
        return self.cold / max(len(self.waits), 1)

    @property
    def unbuilt_share(self) -> float:
        return self.unbuilt / max(len(self.waits), 1)

    def wait(self, share: float) -> float:
        """Return the wait that this share of calls stays below; those that have not started wait for ever."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Simulation:
    """One policy with its machines."""

    def __init__(self, policy: Policy, machines: list[Machine], warm_up: float) -> None:
        self.policy = policy
        self.result = Result(policy.name)
        self._machines = {machine.name: machine for machine in machines}
        self._warm_up = warm_up
        self._calls: dict[int, Call] = {}
        self._events: list[tuple[float, int, Machine, int]] = []  # number 0: the machine says its figures
        self._telling: set[str] = set()
        self._number = 0
        self._order = 0

    def run(self, running: list[Call], coming: Iterator[Call], seconds: float) -> Result:
        """Begin with calls that run, and let others come for so long."""
        for call in running:
            self._arrive(call, 0.0)
        look = LOOK_SECONDS
        for call in coming:
            while self._events and self._events[0][0] <= call.at:
                self._happen(*heapq.heappop(self._events))
            if call.at >= seconds:
                break
            if call.at >= look:
                look = call.at + LOOK_SECONDS
                if (policy_look := getattr(self.policy, "look", None)) is not None:
                    self._send(policy_look(call.at), call.at)
            self._arrive(call, call.at)
        running_now = {number for _, _, _, number in self._events}
        self.result.never = sum(
            one.at >= self._warm_up and number not in running_now for number, one in self._calls.items()
        )
        self.result.costs = self.policy.costs
        return self.result

    def _arrive(self, call: Call, now: float) -> None:
        self._number += 1
        self._calls[self._number] = call
        self._send(self.policy.arrive(self._number, call, now), now)

    def _happen(self, now: float, _: int, machine: Machine, number: int) -> None:
        if number == 0:
            self._telling.discard(machine.name)
            self._send(self.policy.told(machine, now), now)
            return
        machine.end(self._calls.pop(number), now)
        while machine.waiting and self._fits(machine, machine.waiting[0][1]):
            waiting, call = machine.waiting.popleft()
            machine.waiting_millicores -= TYPES[call.function.machine_type][0]
            self._start(machine, waiting, call, now)
        self._tell(machine, now)
        self._send(self.policy.ended(number, machine, now), now)

    def _send(self, started: Started, now: float) -> None:
        for name, number in started:
            machine, call = self._machines[name], self._calls[number]
            machine.taken += 1
            self._tell(machine, now)
            if machine.waiting or not self._fits(machine, call):
                machine.waiting.append((number, call))
                machine.waiting_millicores += TYPES[call.function.machine_type][0]
            else:
                self._start(machine, number, call, now)

    def _fits(self, machine: Machine, call: Call) -> bool:
        size, free = TYPES[call.function.machine_type], machine.free
        return size[0] <= free[0] and size[1] <= free[1] and size[2] <= free[2]

    def _start(self, machine: Machine, number: int, call: Call, now: float) -> None:
        cold = machine.start(call, now)
        self._push(now + call.seconds + COLD_SECONDS * cold, machine, number)
        unbuilt = call.function.user not in machine.environments
        machine.environments.add(call.function.user)
        if call.at >= self._warm_up:
            self.result.waits.append(now - call.at)
            self.result.cold += cold
            self.result.unbuilt += unbuilt
            if call.function.machine_type in ("L", "GPU-T4"):
                self.result.large.append(now - call.at)

    def _tell(self, machine: Machine, now: float) -> None:
        if machine.name not in self._telling:
            self._telling.add(machine.name)
            self._push(now + WORD_SECONDS, machine, 0)

    def _push(self, at: float, machine: Machine, number: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, machine, number))
