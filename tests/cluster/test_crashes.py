"""Members, daemons, machines, cables and the server fail at random moments under load: what is promised of calls is kept."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.server.cluster.contract import LOST_SECONDS

from ..conftest import needs_outbound
from ..waiting import soak, until
from . import leftovers
from .checker import check, longest_after
from .cluster import Cluster, cluster
from .history import History, read_executions
from .workload import KINDS, LONG, Load, load

pytestmark = [pytest.mark.root, needs_outbound]

ROUNDS = 3, 50
"""Faults: as is, and with `SOAK`."""
FIRST = ("kill of a daemon", "restart of the server", "partition")
"""The first faults; the further ones are drawn."""
CLIENTS = [(3, KINDS), (3, KINDS), (2, LONG)]
"""Threads and kinds of calls of each client."""
SLOTS = 6
"""Calls at a time on each node: those of all clients, also while one node is away."""


def _member_killed(made: Cluster, name: str, chance: random.Random) -> None:
    node = made.nodes[name]
    assert node.member is not None
    assert node.member.end(signal.SIGKILL) == -signal.SIGKILL
    time.sleep(chance.random() * soak(0.1, 12.0))  # before or after the node's lease ends
    made.start(name)


def _daemon_killed(made: Cluster, name: str, chance: random.Random) -> None:
    pid = made.nodes[name].daemon()
    if pid is not None:
        made.send(pid, signal.SIGKILL)


def _machine_killed(made: Cluster, name: str, chance: random.Random) -> None:
    made.kill(name)
    time.sleep(chance.random() * 20)
    made.start(name)


def _partition(made: Cluster, name: str, chance: random.Random) -> None:
    made.partition(name)
    time.sleep(soak(LOST_SECONDS + 1, 3 + chance.random() * 22))
    made.heal(name)


def _stopped_member(made: Cluster, name: str, chance: random.Random) -> None:
    node = made.nodes[name]
    assert node.member is not None
    node.member.send(signal.SIGSTOP)
    time.sleep(1 + chance.random() * 20)
    node.member.send(signal.SIGCONT)


def _stopped_daemon(made: Cluster, name: str, chance: random.Random) -> None:
    pid = made.nodes[name].daemon()
    if pid is not None:
        made.send(pid, signal.SIGSTOP)
        time.sleep(1 + chance.random() * 8)
        made.send(pid, signal.SIGCONT)


def _head_restarted(made: Cluster, name: str, chance: random.Random) -> None:
    made.restart_head()


def _head_killed(made: Cluster, name: str, chance: random.Random) -> None:
    made.restart_head(signal.SIGKILL)


FAULTS: dict[str, Callable[[Cluster, str, random.Random], None]] = {
    "kill of a member": _member_killed,
    "kill of a daemon": _daemon_killed,
    "kill of a machine": _machine_killed,
    "partition": _partition,
    "stop of a member": _stopped_member,
    "stop of a daemon": _stopped_daemon,
    "restart of the server": _head_restarted,
    "kill of the server": _head_killed,
}


def _node_of_long_call(made: Cluster) -> str:
    """Return a node that runs a call of the client of long ones; empty for none."""
    client = str(len(CLIENTS) - 1)
    running = [one for one in read_executions(made.volume() / "writes") if not one.complete and one.token[0] == client]
    latest = max(running, key=lambda one: one.last, default=None)
    return latest.node if latest is not None and latest.last > time.monotonic() - 1 else ""


def fail(made: Cluster, clients: Load, fault: str, chance: random.Random) -> None:
    """Have something fail under load, and wait until it works again: calls that began afterwards are answered."""
    name = chance.choice(sorted(made.nodes))
    if fault == "partition":  # of a node that has a call to end
        name = until(lambda: _node_of_long_call(made))
    print(f"{time.monotonic():.3f} {fault}: {name}", flush=True)
    FAULTS[fault](made, name, chance)
    made.wait_linked()
    clients.wait_answers(time.monotonic(), 2)


@pytest.mark.timeout(5000)  # the long form takes a quarter of an hour
def test_whatever_fails_each_call_has_one_outcome_and_writes_end_with_it(tmp_path: Path) -> None:
    """None is answered twice or lost without an error, none writes after its end or its node's lease, nothing is left."""
    seed = random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    failed = Counter[str]()
    with cluster(settings=["[pool]", f"slots = {SLOTS}"]) as made:
        with load(made, tmp_path / "load", seed, CLIENTS) as clients:
            clients.wait_answers(0.0, 6)
            for number in range(soak(*ROUNDS)):
                fault = FIRST[number] if number < len(FIRST) else chance.choice(sorted(FAULTS))
                time.sleep(chance.random() * soak(0.3, 3.0))  # somewhere in a call: no event names the place
                fail(made, clients, fault, chance)
                failed[fault] += 1
        until(lambda: not leftovers.sessions(made))
        history = History(clients.calls(), read_executions(made.volume() / "writes"), made.outages)
        kinds = Counter(one.error or "answer" for call in history.calls.values() for one in call.outcomes)
        nodes = Counter(one.node for one in history.executions)
        told = f"seed {seed}, {dict(failed)}, {dict(kinds)}, {dict(nodes)}, {longest_after(history):.1f} s after a last word"
        print(told)
        broken = check(history)
        assert not broken, "\n".join([told, *broken[:20]])
        assert set(nodes) == set(made.nodes), told
        for node in made.nodes.values():
            assert leftovers.mounts(node) == [], told
    for home in (made.head.home, *(node.home for node in made.nodes.values())):
        assert not leftovers.groups(home.path), told
