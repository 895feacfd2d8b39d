"""Machines of Ray's, Ray itself, cables and the server fail at random moments under load: promises of calls are kept."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import needs_outbound
from ..waiting import soak, until
from . import leftovers
from .checker import check, longest_after
from .history import History, read_executions
from .ray_cluster import RAY_SECONDS, RayCluster, having, ray_cluster
from .workload import KINDS, LONG, Load, load

pytestmark = [
    pytest.mark.root,
    needs_outbound,
    pytest.mark.skipif(not soak(0, 1), reason="takes half an hour; SOAK=1 runs it"),
]

ROUNDS = int(os.environ.get("ATOLL_RAY_ROUNDS", "50"))
FIRST = ("kill of a machine", "partition", "restart of Ray's head")
"""The first faults; the further ones are drawn."""
CLIENTS = [(2, KINDS), (1, KINDS), (2, LONG)]
"""Threads and kinds of calls of each client."""
CORES = 4
"""Of each machine, for Ray: a call takes one."""


def _machine_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    made.kill(name)
    time.sleep(chance.random() * 20)
    made.start(name)


def _partition(made: RayCluster, name: str, chance: random.Random) -> None:
    made.partition(name)
    time.sleep(2 + chance.random() * 23)
    made.heal(name)


def _member_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    pid = made.node(name).member_pid()
    if pid:
        made.send(pid, signal.SIGKILL)


def _daemon_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    pid = made.node(name).daemon()
    if pid is not None:
        made.send(pid, signal.SIGKILL)


def _ray_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    for pid in having(made.node(name).machine, "raylet/raylet"):
        made.send(pid, signal.SIGKILL)


def _ray_stopped(made: RayCluster, name: str, chance: random.Random) -> None:
    stopped = having(made.node(name).machine, "raylet/raylet")
    for pid in stopped:
        made.send(pid, signal.SIGSTOP)
    time.sleep(1 + chance.random() * 15)
    for pid in stopped:
        made.send(pid, signal.SIGCONT)


def _actor_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    for pid in having(made.node(name).machine, "ray::Machine"):
        made.send(pid, signal.SIGKILL)


def _holders_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    made.wait_ray(name)


def _driver_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    for pid in having(made.head.machine, "atoll.server.ray.driver"):
        made.send(pid, signal.SIGKILL)
    made.wait_ray(name)


def _head_of_ray_restarted(made: RayCluster, name: str, chance: random.Random) -> None:
    made.rays.kill(made.head.machine)
    made.wait_ray(name)


def _server_restarted(made: RayCluster, name: str, chance: random.Random) -> None:
    made.restart_head()


def _server_killed(made: RayCluster, name: str, chance: random.Random) -> None:
    made.restart_head(signal.SIGKILL)


FAULTS: dict[str, Callable[[RayCluster, str, random.Random], None]] = {
    "kill of a machine": _machine_killed,
    "partition": _partition,
    "kill of a member": _member_killed,
    "kill of a daemon": _daemon_killed,
    "kill of a raylet": _ray_killed,
    "stop of a raylet": _ray_stopped,
    "kill of a machine's actor": _actor_killed,
    "kill of holders": _holders_killed,
    "kill of the driver": _driver_killed,
    "restart of Ray's head": _head_of_ray_restarted,
    "restart of the server": _server_restarted,
    "kill of the server": _server_killed,
}


def fail(made: RayCluster, clients: Load, fault: str, chance: random.Random) -> None:
    """Have something fail under load, and wait until it works again: calls that began afterwards are answered."""
    name = chance.choice(sorted(made.nodes))
    began = time.monotonic()
    print(f"{began:.3f} {fault}: {name}", flush=True)
    FAULTS[fault](made, name, chance)
    made.wait_linked()
    clients.wait_answers(time.monotonic(), 2, RAY_SECONDS)
    print(f"{time.monotonic():.3f} after {time.monotonic() - began:.1f} s", flush=True)


def _left_sessions(made: RayCluster) -> str:
    """Wait until the server knows of no line; return what it says of nodes if it still does."""
    try:
        until(lambda: not leftovers.sessions(made))
    except AssertionError:
        return f"lines are left: {made.rows()}"
    return ""


@pytest.mark.timeout(7200)  # the rounds take half an hour
def test_whatever_fails_on_machines_of_rays_each_call_has_one_outcome(tmp_path: Path) -> None:
    """None is answered twice or lost without an error, none writes after its end or its node's lease, nothing is left."""
    seed = int(os.environ.get("ATOLL_RAY_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    failed = Counter[str]()
    with ray_cluster(cores=CORES, settings=["[pool]", f"slots = {CORES}"], data="juicefs") as made:
        with load(made, tmp_path / "load", seed, CLIENTS) as clients:
            clients.wait_answers(0.0, 6, RAY_SECONDS)
            until(lambda: {one.node for one in read_executions(made.volume() / "writes")} >= set(made.nodes))
            for number in range(ROUNDS):
                fault = FIRST[number] if number < len(FIRST) else chance.choice(sorted(FAULTS))
                time.sleep(chance.random() * 3.0)  # somewhere in a call: no event names the place
                fail(made, clients, fault, chance)
                failed[fault] += 1
        left = _left_sessions(made)
        history = History(clients.calls(), read_executions(made.volume() / "writes"), made.outages)
        kinds = Counter(one.error or "answer" for call in history.calls.values() for one in call.outcomes)
        nodes = Counter(one.node for one in history.executions)
        told = f"seed {seed}, {dict(failed)}, {dict(kinds)}, {dict(nodes)}, {longest_after(history):.1f} s after a last word"
        print(told)
        broken = check(history)
        assert not broken, "\n".join([told, *broken[:20]])
        assert not left, f"{told}, {left}"
        assert set(nodes) == set(made.nodes), told
        assert {row["name"] for row in made.rows()} - {"local"} == set(made.nodes), made.rows()
        for node in made.nodes.values():
            assert leftovers.mounts(node) == [], told
    for home in (made.head.home, *(node.home for node in made.nodes.values())):
        assert not leftovers.groups(home.path), told
