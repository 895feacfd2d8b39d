"""Many machines, simulated: cold starts, waiting, and the cost of a decision, with 1,000 nodes and 100,000 functions.

    make bench SUITE=scale
    make bench SUITE=scale BENCH="--long --charts docs/screens"

The placement is the real one; machines and their calls are models (`machines`, `workload`), and time is a number. Three
other ways of choosing a machine get the same calls in the same run (`policies`). Costs of decisions are times of this
machine, so they are larger where others use its processors: the median tells more than the 99th of 100.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import workload
from machines import Machine, Result, Simulation
from policies import Atoll, HomeAndProbing, LeastLoaded, Policy, Random, wish_of
from table import Figure, Row, command_line, finish, say

from atoll.server.cluster.contract import Place
from atoll.server.cluster.placing.sizes import TYPES

NODES = (10, 100, 1000, 5000)
KEEP_ALIVE = 600.0
"""Seconds: the fixed time that the paper gives for large clouds is 10 to 20 minutes."""
AIM_MICROSECONDS = 20.0
SEED = 2020
CORES = {name: size[0] / 1000 for name, size in TYPES.items()}
POLICIES: tuple[Callable[[list[Machine]], Policy], ...] = (Atoll, HomeAndProbing, LeastLoaded, Random)


def fleet(count: int) -> list[Machine]:
    """Return machines of four cores; every twentieth has sixteen and two GPUs."""
    sizes = [(16, 64, 2) if number % 20 == 0 else (4, 32, 0) for number in range(count)]
    return [Machine(f"n{number}", *size, KEEP_ALIVE) for number, size in enumerate(sizes)]


def simulate(nodes: int, functions: int, load: float, seconds: float) -> list[Result]:
    """Let each policy serve the same calls, which take this share of the cores; two fifths of the time are warm-up."""
    cores = sum(machine.total.millicores for machine in fleet(nodes)) / 1000
    found = workload.functions(functions, cores * load, SEED, CORES)
    running = workload.running(found, SEED)
    popular = workload.share_of_popular(found)
    say(f"{functions:,} functions; the most popular 18.6 % have {popular:.1%} of the calls")
    results = []
    for policy in POLICIES:
        machines = fleet(nodes)
        simulation = Simulation(policy(machines), machines, seconds * 0.4)
        began = time.perf_counter()
        results.append(simulation.run(running, workload.calls(found, SEED), seconds))
        took = time.perf_counter() - began
        say(f"load {load:.0%}, {results[-1].name}: {len(results[-1].waits):,} calls, {took:.0f} s")
    return results


class Costs:
    """What events of the placement cost, in microseconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, event: str, happen: Callable[[], list[Place]], places: int = 1) -> list[Place]:
        """Let an event happen; one that places several wishes counts as several decisions."""
        began = time.perf_counter()
        placed = happen()
        self.seconds.setdefault(event, []).append((time.perf_counter() - began) / max(len(placed), places))
        return placed

    def at(self, event: str, share: float) -> float:
        """Return the microseconds that this share of the events stays below."""
        ordered = sorted(self.seconds[event])
        return 1e6 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Load:
    """Calls that keep a number of machines in use, without time: one ends, one comes."""

    def __init__(self, nodes: int, found: list[workload.Function]) -> None:
        self._machines = {machine.name: machine for machine in fleet(nodes)}
        self.placement = Atoll(self._machines.values()).placement
        self._found = found
        self._rates = [function.rate for function in found]
        self._random = random.Random(SEED)
        self._calls: dict[str, workload.Call] = {}
        self._where: list[tuple[str, str]] = []
        self._number = 0

    def call(self) -> workload.Call:
        """Return a call of any function, popular ones more often."""
        function = self._random.choices(self._found, cum_weights=self._rates)[0]
        return workload.Call(0.0, function, 1.0)

    def fill(self, share: float) -> None:
        """Let calls come until so much of the cores is taken."""
        total = sum(machine.total.millicores for machine in self._machines.values())
        self._rates = list(_sums(self._rates))
        while sum(machine.free[0] for machine in self._machines.values()) > total * (1 - share):
            for _ in range(max(1, len(self._machines) // 4)):
                self.come(Costs())
        for machine in self._machines.values():
            self.note(self.placement.load(machine.name, machine.load(), 0.0))

    def come(self, costs: Costs) -> None:
        """Let a call come."""
        self._number += 1
        call = self.call()
        asked = wish_of(self._number, call)
        self._calls[asked.id] = call
        self.note(costs.time("a call comes", lambda: self.placement.ask(asked, 0.0)))

    def end(self, costs: Costs) -> None:
        """End any call, and let its machine say so."""
        at = self._random.randrange(len(self._where))
        self._where[at], self._where[-1] = self._where[-1], self._where[at]
        name, node = self._where.pop()
        machine = self._machines[node]
        machine.end(self._calls.pop(name), 0.0)
        self.note(costs.time("a call ends", lambda: self.placement.over(name, 0.0)))
        load = machine.load()
        self.note(costs.time("a machine says its figures", lambda: self.placement.load(node, load, 0.0)))

    def note(self, places: list[Place]) -> None:
        """Run what is placed."""
        for place in places:
            machine = self._machines[place.node]
            machine.taken += 1
            machine.start(self._calls[place.wish.id], 0.0)
            self._where.append((place.wish.id, place.node))


def _sums(values: list[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


def cost(nodes: int, found: list[workload.Function], decisions: int, waiting: int = 0) -> Costs:
    """Measure events with machines that are in use for seven tenths, or are full while so many calls wait."""
    load = Load(nodes, found)
    load.fill(0.7)
    while len(load.placement.waiting()) < waiting:
        for _ in range(1000):
            load.come(Costs())
    costs = Costs()
    gc.collect()
    gc.freeze()
    for _ in range(decisions):
        load.come(costs)
        load.end(costs)
    gc.unfreeze()
    return costs


def rows_of(results: list[Result], load: float) -> list[Row]:
    """Return the lines of one load: Atoll's figures, each beside the others'."""
    ours, *others = results
    rows: list[Row] = []
    for other in others:
        name = f"load {load:.0%}: "
        rows += [
            Figure(f"{name}cold starts", 100 * ours.cold_share, "%", (other.name, 100 * other.cold_share)),
            Figure(
                "… calls on a machine without the environment",
                100 * ours.unbuilt_share,
                "%",
                (other.name, 100 * other.unbuilt_share),
            ),
            Figure("… waiting, p50", ours.wait(0.5), "s", (other.name, other.wait(0.5))),
            Figure("… waiting, p99", ours.wait(0.99), "s", (other.name, other.wait(0.99))),
        ]
    return rows


def draw(place: Path, results: dict[float, list[Result]], costs: dict[int, Costs]) -> None:
    """Write the charts of the page on scale."""
    load, found = next(iter(results.items()))
    write = {
        "scale-cold-starts.svg": drawing.bars(
            f"Calls that start a new sandbox, at a load of {load:.0%}",
            " %",
            [(one.name, 100 * one.cold_share) for one in found],
        ),
        "scale-environments.svg": drawing.bars(
            f"Calls on a machine that lacks their environment, at a load of {load:.0%}",
            " %",
            [(one.name, 100 * one.unbuilt_share) for one in found],
        ),
        "scale-decisions.svg": drawing.lines(
            "Cost of one event of the placement, median",
            "machines",
            " µs",
            [
                (event, [(nodes, one.at(event, 0.5)) for nodes, one in costs.items()])
                for event in ("a call comes", "a call ends")
            ]
            + [("figures come", [(nodes, one.at("a machine says its figures", 0.5)) for nodes, one in costs.items()])],
            most=1.5 * AIM_MICROSECONDS,
        ),
    }
    load, found = list(results.items())[-1]
    write["scale-waiting.svg"] = drawing.bars(
        f"Waiting before a call starts, 99 of 100 stay below, at a load of {load:.0%}",
        " s",
        [(one.name, one.wait(0.99)) for one in found],
    )
    for name, text in write.items():
        (place / name).write_text(text, encoding="utf-8")


def main() -> int:
    parser: argparse.ArgumentParser = command_line(__doc__.partition("\n")[0], 1)
    parser.add_argument(
        "--long",
        action="store_true",
        help="two minutes of simulated time at two loads, instead of half of one at one load",
    )
    parser.add_argument("--charts", metavar="DIRECTORY", type=Path, help="also write the charts of docs/scale.md there")
    options = parser.parse_args()
    nodes, functions = (20, 1000) if options.tiny else (1000, 100_000)
    seconds = 10.0 if options.tiny else 120.0 if options.long else 30.0
    results = {load: simulate(nodes, functions, load, seconds) for load in ((0.7, 0.9) if options.long else (0.8,))}
    found = workload.functions(functions, 1000.0, SEED, CORES)
    sizes = NODES[:2] if options.tiny else NODES
    costs = {}
    for count in sizes:
        say(f"cost of decisions with {count:,} machines")
        costs[count] = cost(count, found, 1000 if options.tiny else 20_000 if options.long else 8000)
    waiting = 1000 if options.tiny else 100_000
    say(f"cost of decisions while {waiting:,} calls wait")
    queued = cost(sizes[-2], found, 1000 if options.tiny else 8000, waiting)
    rows = [row for load, one in results.items() for row in rows_of(one, load)]
    for event in costs[sizes[0]].seconds:
        for count, one in costs.items():
            beside = ("… p99", one.at(event, 0.99))
            rows.append(Figure(f"{event}, {count:,} machines: p50", one.at(event, 0.5), "us", beside, AIM_MICROSECONDS))
        beside = ("… p99", queued.at(event, 0.99))
        rows.append(Figure(f"… and {waiting:,} that wait: p50", queued.at(event, 0.5), "us", beside, AIM_MICROSECONDS))
    if options.charts:
        draw(options.charts, results, costs)
    notes = [
        f"{nodes:,} machines, {functions:,} functions; sandboxes idle for {KEEP_ALIVE:.0f} s at most.",
        "A decision is one event for each wish that it places. Times in microseconds are of this machine, as it is used now.",
        *(
            f"load {load:.0%}: {one.name}: {one.never:,} calls of {len(one.waits) + one.never:,} did not start"
            for load, found_ in results.items()
            for one in found_
            if one.never
        ),
    ]
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
