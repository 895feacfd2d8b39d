"""What a call costs on a machine behind the server, beside a server that runs it itself; many calls, beside Ray's tasks.

    make bench SUITE=cluster
    make bench SUITE=cluster BENCH="--rounds 8 --only calls map"

Needs root: machines are namespaces of this one, on one switch, each with processes, mounts and a network of its own. The
clients have a machine, too. All lines are TLS. What is compared takes turns in each round; the first one is not counted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the machines are those of the tests

from peers import stop_daemon
from ray_tasks import RayTasks, ray_tasks, ray_there
from table import Comparison, Figure, Row, Samples, command_line, finish, say
from tests.cluster.cluster import Cluster, cluster
from tests.cluster.machines import CPU_GROUPS, skip_reason

from atoll import Host, LocalHost, isolated

BLOCK = 50
PARTS = ["calls", "new", "map", "shared", "growth"]
NODES = ("one", "two", "three")
SLOTS = 2
"""Calls at a time on each node, and Ray's tasks."""
CPUS = 0.4
"""Processors of each node where throughput by nodes is measured: two nodes, the server and the clients share two."""
WORK_SECONDS = 0.02
"""Processor time of each of these calls."""


def add(a: int, b: int) -> int:
    """Return a sum: the smallest call."""
    return a + b


def work(seconds: float) -> int:
    """Use a processor for so many seconds; return how often it was looked at."""
    import time

    count, end = 0, time.process_time() + seconds
    while time.process_time() < end:
        count += 1
    return count


def timed(call: Callable[[], Any], samples: Samples, times: int) -> None:
    """Time a call several times, after two that are not counted."""
    for _ in range(2):
        call()
    for _ in range(times):
        with samples.time():
            call()


def host_of(made: Cluster) -> Host:
    """Return a host for the operator of a server."""
    found = made.variables
    return Host(
        found["ATOLL_HOST"],
        key_id=found["ATOLL_KEY_ID"],
        key_secret=found["ATOLL_KEY_SECRET"],
        ca_file=found["ATOLL_CA_FILE"],
    )


def measure_calls(nodes: Host, single: Host, rounds: int) -> list[Row]:
    """Warm calls, whole: pickling, TLS, relay or splice, a worker in its sandbox."""
    ours, peer = Samples("warm call, another node"), Samples("the same, the server's own machine")
    there, here = (isolated(host=host, keep_alive=600, local_modules=[])(add) for host in (nodes, single))
    for number in range(rounds + 1):
        say(f"warm calls: round {number} of {rounds}")
        timed(lambda: there(1, 2), ours, BLOCK)
        timed(lambda: here(1, 2), peer, BLOCK)
        if number == 0:
            ours.clear()
            peer.clear()
    return [Comparison(ours, peer, aim=1.3)]


def measure_new(nodes: Host, single: Host, local: LocalHost, rounds: int) -> list[Row]:
    """Calls that each begin with a new sandbox, which ends with them."""
    ours, peer = Samples("new sandbox, another node"), Samples("the same, local")
    behind = Samples("the same, the server's own machine")
    everything: list[tuple[Samples, Any]] = [(ours, nodes), (peer, local), (behind, single)]
    for number in range(rounds + 1):
        say(f"new sandboxes: round {number} of {rounds}")
        for samples, host in everything:
            passing = isolated(host=host, keep_alive=0, network="none", local_modules=[])(add)
            for _ in range(3):
                _wait_none(host)
                with samples.time():
                    passing(1, 2)
            if number == 0:
                samples.clear()
    return [Comparison(ours, peer, aim=1.5), Comparison(ours, behind)]


def _wait_none(host: Any) -> None:
    """Wait until a host has no sandbox without a network: those of warm calls have one."""
    while any(row["network"] == "none" for row in host.request("status", {})["sandboxes"]):
        time.sleep(0.01)


def measure_map(nodes: Host, tasks: RayTasks | None, rounds: int, count: int) -> list[Row]:
    """Many tiny calls over three nodes, beside Ray's tasks over three of its."""
    ours, peer = Samples(f"{count:,} calls, three nodes"), Samples(f"{count:,} Ray tasks, three nodes")
    absolute = isolated(host=nodes, keep_alive=600, local_modules=[])(abs)
    for number in range(rounds + 1):
        say(f"many calls: round {number} of {rounds}")
        with ours.time():
            assert list(absolute.map(range(count))) == list(range(count))
        if tasks is not None:
            peer.seconds.append(tasks.run(count))
        if number == 0:
            ours.clear()
            peer.clear()
    return [Comparison(ours, peer if tasks is not None else None, amount=count, unit="calls/s")]


def length(data: bytes) -> int:
    """Return the length of an argument that has to come first."""
    return len(data)


def sent_bytes() -> int:
    """Return the bytes that this thread's machine has sent."""
    rows = (line.partition(":") for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:])
    return sum(int(fields.split()[8]) for name, _, fields in rows if name.strip() != "lo")


def measure_shared(made: Cluster, nodes: Host, rounds: int, size: int) -> list[Row]:
    """Calls on one node with the same large argument, beside as many with another one each, as all were sent before."""
    same, others = Samples(f"20 calls, the same {size / 1e6:.0f} MB"), Samples("20 calls, another one each")
    counted: dict[str, list[float]] = {"same": [], "others": []}
    made.use_only(NODES[0])
    taking = isolated(host=nodes, keep_alive=600, local_modules=[])(length)
    for number in range(rounds + 1):
        say(f"large arguments: round {number} of {rounds}")
        for name, samples, values in (
            ("same", same, [os.urandom(size)] * 20),
            ("others", others, [os.urandom(size) for _ in range(20)]),
        ):
            before = sent_bytes()
            with samples.time():
                for value in values:
                    assert taking(value) == size
            counted[name].append((sent_bytes() - before) / size)
        if number == 0:
            same.clear()
            others.clear()
    made.use_only(*NODES)
    return [
        Comparison(same, others, aim=0.7),
        Figure("the same: sent, in arguments", max(counted["same"]), "", aim=1.2),
        Figure("another one each: sent, in arguments", max(counted["others"]), ""),
    ]


def measure_growth(rounds: int, count: int) -> list[Row]:
    """Calls that compute, on one node and on two, each with a part of a processor."""
    if not (CPU_GROUPS / "cpu.shares").exists():
        return []
    one, two = Samples("calls of 20 ms, one node"), Samples("calls of 20 ms, two nodes")
    slots = ["[pool]", "slots = 1"]
    with cluster(("one", "two"), share_network=True, cpus=CPUS, settings=slots) as made, made.client.entered():
        computing = isolated(host=host_of(made), keep_alive=600, local_modules=[])(work)
        for number in range(rounds + 1):
            for samples, names in ((one, ["one"]), (two, ["one", "two"])):
                say(f"nodes: round {number} of {rounds}, {len(names)}")
                made.use_only(*names)
                list(computing.map([WORK_SECONDS] * 20))  # until each node has a worker
                with samples.time():
                    list(computing.map([WORK_SECONDS] * count))
                if number == 0:
                    samples.clear()
    return [Comparison(two, one, aim=1.7, amount=count, unit="calls/s")]


def main() -> int:
    parser = command_line("Measure calls on machines behind a server.", 10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    options = parser.parse_args()
    tiny, only = options.tiny, set(options.only)
    rounds = 1 if tiny else max(1, options.rounds)
    if reason := skip_reason():
        print(reason, file=sys.stderr)
        return 1
    rows: list[Row] = []
    notes = [
        f"{rounds} rounds after one that is not counted; of warm calls {BLOCK} in each, of new sandboxes 3.",
        "Server, nodes, clients and Ray's machines are namespaces that share these processors.",
    ]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b", dir="/tmp")))
        os.environ["ATOLL_HOME"] = str(place / "local")
        stack.callback(stop_daemon)
        if only & {"calls", "new", "map", "shared"}:
            made = stack.enter_context(cluster(NODES, settings=["[pool]", f"slots = {SLOTS}"]))
            single = stack.enter_context(cluster((), local=True, switch=made.switch))
            tasks = None
            if "map" in only and ray_there():
                say("starting Ray")
                tasks = stack.enter_context(ray_tasks(made.switch, place / "r", len(NODES), SLOTS))
            stack.enter_context(made.client.entered())
            nodes, alone = host_of(made), host_of(single)
            stack.callback(nodes.close)
            stack.callback(alone.close)
            parts: dict[str, Callable[[], list[Row]]] = {
                "calls": lambda: measure_calls(nodes, alone, rounds),
                "new": lambda: measure_new(nodes, alone, LocalHost(place / "local"), rounds),
                "map": lambda: measure_map(nodes, tasks, rounds, 50 if tiny else 1000),
                "shared": lambda: measure_shared(made, nodes, max(1, rounds // 3), 2_000_000 if tiny else 20_000_000),
            }
            for name, measure in parts.items():
                if name in only:
                    rows += measure()
            if "map" in only and tasks is None:
                notes.append("Ray is not installed: its rows are missing.")
    if "growth" in only:
        rows += measure_growth(max(1, rounds // 3), 10 if tiny else 60)
        notes.append(
            f"Nodes beside each other have {CPUS} of a processor each (a quota), so that all have their share."
        )
    notes.append("A ratio is Atoll's median by the peer's; of rates it is the other way about.")
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
