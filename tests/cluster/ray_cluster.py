"""A cluster whose machines are Ray's: Ray runs on each, its head beside the server, and its actors start the nodes.

Each machine has a program that starts its Ray again when that ends, as systemd would. The head's Ray has a process
namespace of its own, so that it can be killed and started again while the server goes on; its state is on the disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..waiting import until
from .cluster import PORT, Cluster, Node, mark, prepared
from .machines import Machine, Program, children

RAY_PORT = 6379
CHECKS = (
    '{"health_check_initial_delay_ms":2000,"health_check_period_ms":1000,'
    '"health_check_timeout_ms":2000,"health_check_failure_threshold":3}'
)
"""A silent machine is dead for Ray after about 5 s, before its node's lease ends."""
STORE_BYTES = 80_000_000
RAY_SECONDS = 400.0
"""The limit of a wait for Ray: `ray start` gives up after 30 s on a busy machine, and is begun again."""
UNSEEN = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")
"""Ray's head has processes of its own: the end of the first one is the end of all."""
AGAIN = """
import os, signal, subprocess, sys, threading, time

ending = False
child = None

def end(*_):
    global ending
    ending = True
    if child is not None:
        child.terminate()
        timer = threading.Timer(20, child.kill)  # one in a namespace of its own may not hear of it
        timer.daemon = True
        timer.start()

signal.signal(signal.SIGTERM, end)
while not ending:
    child = subprocess.Popen(sys.argv[1:])
    if ending:
        child.terminate()
    child.wait()
    time.sleep(not ending)
"""


def why_not() -> str:
    """Return why there can be no Ray here; empty where it can."""
    return "" if importlib.util.find_spec("ray") is not None else "Ray is not installed: `pip install 'atoll[ray]'`"


@dataclass
class Rays:
    """Ray on the machines of a cluster.

    Args:
        place: a directory with a short path: Ray's sockets are below it.
    """

    place: Path
    _programs: dict[str, Program] = field(default_factory=dict)

    def variables(self, machine: Machine) -> dict[str, str]:
        """Return variables for all that speaks with Ray on a machine."""
        own = self.place / machine.name
        own.mkdir(exist_ok=True)
        token = self.place / "token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text("a" * 40)
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(own),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # others may fill this machine
            "RAY_worker_niceness": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # of actors that stay, none would end
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_worker_register_timeout_seconds": "300",
        }

    def start_head(self, machine: Machine) -> None:
        """Start Ray's head, which keeps its state."""
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.place / "kept")}
        options = ("--head", f"--port={RAY_PORT}", "--num-cpus=0", "--include-dashboard=false")
        self._start(machine, UNSEEN, (*options, f"--system-config={CHECKS}"), kept)

    def start_node(self, machine: Machine, head: Machine, cores: int) -> None:
        """Start Ray on another machine."""
        self._start(machine, (), (f"--address={head.address}:{RAY_PORT}", f"--num-cpus={cores}"))

    def _start(
        self, machine: Machine, before: Sequence[str], options: Sequence[str], more: Mapping[str, str] | None = None
    ) -> None:
        ray = [*before, str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        ray += [
            f"--node-ip-address={machine.address}",
            f"--object-store-memory={STORE_BYTES}",
            "--include-log-monitor=false",
        ]
        variables = {**os.environ, **self.variables(machine), **(more or {})}
        command = [sys.executable, "-c", AGAIN, *ray]
        self._programs[machine.name] = machine.start(command, variables, self.place / f"{machine.name}.log")

    def end(self, machine: Machine) -> None:
        """End a machine's Ray in order, and with it all that its actors run."""
        program = self._programs.pop(machine.name, None)
        if program is not None and program.runs:
            assert program.end() == 0, self.told(machine)

    def kill(self, machine: Machine) -> None:
        """Kill the head's Ray; it is started again at once."""
        for pid in children(self._programs[machine.name].pid):
            os.kill(pid, signal.SIGKILL)

    def told(self, machine: Machine) -> str:
        """Return what a machine's Ray has printed last."""
        return (self.place / f"{machine.name}.log").read_text(errors="replace")[-3000:]


def having(machine: Machine, *words: str) -> list[int]:
    """Return the processes of a machine whose command lines have all these words."""
    found = []
    for pid in machine.processes():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if all(word in line for word in words):
                found.append(pid)
    return found


@dataclass
class RayNode(Node):
    """A machine whose node is started by an actor of Ray's."""

    def member_pid(self) -> int:
        """Return the process in front of its daemon; 0 where none runs."""
        found = having(self.machine, "atoll.cli.main", "node\0run")
        return found[0] if found else 0

    def holders(self) -> set[int]:
        """Return the actors that hold resources for Atoll."""
        return set(having(self.machine, "ray::Holder"))


@dataclass
class RayCluster(Cluster):
    """A server with the engine `ray`, and the nodes that it has on Ray's machines.

    Args:
        cores: of each machine, for Ray.
    """

    rays: Rays = field(default_factory=lambda: Rays(Path()))
    cores: int = 4

    def node(self, name: str) -> RayNode:
        """Return a node."""
        found = self.nodes[name]
        assert isinstance(found, RayNode)
        return found

    def start(self, name: str) -> None:
        machine = self.nodes[name].machine
        machine.join()
        self.rays.start_node(machine, self.head.machine, self.cores)

    def wait_ray(self, name: str) -> None:
        """Kill what Atoll holds of a machine, and wait until Ray has lent something anew."""
        before = self.node(name).holders()
        for pid in before:
            self.send(pid, signal.SIGKILL)
        until(lambda: self.node(name).holders() - before, RAY_SECONDS)

    def wait_linked(self, *names: str) -> None:
        wanted = set(names or self.nodes)
        until(lambda: {row["name"] for row in self.rows() if row["linked"]} >= wanted, RAY_SECONDS)

    def end(self) -> None:
        for name in tuple(self._cut):
            self.heal(name)
        for node in self.nodes.values():
            self.rays.end(node.machine)
            until(lambda machine=node.machine: not machine.processes())  # type: ignore[misc]
        if self.head.program is not None:
            assert self.head.end() in (0, -signal.SIGTERM), self.head.log.read_text()[-3000:]
        self._end_daemon(self.head.home, self.head.machine)
        self.rays.end(self.head.machine)
        until(lambda: not self.head.machine.processes())


@contextlib.contextmanager
def ray_cluster(
    nodes: Sequence[str] = ("one", "two"), *, cores: int = 4, settings: Sequence[str] = (), data: str = ""
) -> Iterator[RayCluster]:
    """Run a server with the engine `ray` on machines of Ray's; each process has ended at the end of the context.

    Args:
        nodes: names of the machines beside the head's.
        cores: of each of them, for Ray.
        settings, data: as `cluster` has them.
    """
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="ar-", dir="/tmp"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        place.chmod(0o755)
        (place / "nodes").mkdir(mode=0o755)
        ray = ["[ray]", f'home = "{place}/nodes/{{name}}"', "idle_seconds = 5.0"]
        group = ["[cluster]", f'ca_file = "{place}/ca.pem"', f'url = "https://10.79.0.1:{PORT}"']
        options = ("--engine", "ray", "--ray-address", f"10.79.0.1:{RAY_PORT}")
        made, home = stack.enter_context(
            prepared(RayCluster, options=options, settings=[*settings, *ray, *group], data=data)
        )
        made.rays, made.cores = Rays(place), cores
        head = made.head
        made.rays.start_head(head.machine)
        head.environment.update(made.rays.variables(head.machine))
        shutil.copy(head.ca_file, place / "ca.pem")
        for name in nodes:
            machine = made.switch.machine(name)
            mark(machine)
            made.nodes[name] = RayNode(machine, home(place / "nodes" / name))
            made.start(name)
        head.start()
        made.wait_linked()
        yield made
        made.end()
        for log in head.home.path.glob("*.log"):
            assert "Traceback" not in (text := log.read_text()), text[-5000:]
