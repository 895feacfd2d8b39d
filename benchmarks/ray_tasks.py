"""Ray doing what is measured of Atoll: tasks on three machines beside a head that runs none, in namespaces of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.machines import Machine, Switch

PORT = 6379
_DRIVER = """
import os, sys, time
import ray

address, nodes = sys.argv[1], int(sys.argv[2])
ray.init(address=f"{address}:6379", _node_ip_address=address, log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < nodes + 1:
    time.sleep(0.1)

@ray.remote
def absolute(number):
    return abs(number)

print("ready", flush=True)
for line in sys.stdin:
    count = int(line)
    began = time.perf_counter()
    found = ray.get([absolute.remote(number) for number in range(count)])
    seconds = time.perf_counter() - began
    assert found == list(range(count))
    print(seconds, flush=True)
"""


class RayTasks:
    """A driver on the head's machine."""

    def __init__(self, driver: subprocess.Popen[str]) -> None:
        self._driver = driver

    def run(self, count: int) -> float:
        """Make so many tasks at once; return the seconds until all results are there, measured in the driver."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(f"{count}\n")
        self._driver.stdin.flush()
        return float(self._driver.stdout.readline())


def ray_there() -> bool:
    """Return whether Ray is installed."""
    return (Path(sys.executable).parent / "ray").exists()


@contextlib.contextmanager
def ray_tasks(switch: Switch, place: Path, nodes: int, cpus: int) -> Iterator[RayTasks]:
    """Run Ray on machines of its own.

    Args:
        place: a directory with a short path: Ray's sockets are below it.
        nodes: machines that run tasks.
        cpus: tasks at a time on each.
    """
    machines = [switch.machine(f"ray-{number}") for number in range(nodes + 1)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    place.mkdir()
    head = machines[0]
    for machine in machines:
        for directory in (place, Path("/dev/shm")):  # each node believes that it is alone there
            machine.run("mount", "-t", "tmpfs", "tmpfs", str(directory))
    common = ["--disable-usage-stats", f"--object-store-memory={100 << 20}", "--block"]
    first = ["--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=0", f"--temp-dir={place}"]
    _start(head, [*first, *common], environment, place)
    for machine in machines[1:]:
        _start(machine, [f"--address={head.address}:{PORT}", f"--num-cpus={cpus}", *common], environment, place)
        time.sleep(0.5)  # all at once they starve each other, and some give up
    with subprocess.Popen(
        head.command(sys.executable, "-c", _DRIVER, head.address, str(nodes)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as driver:
        try:
            assert driver.stdout is not None
            if driver.stdout.readline() != "ready\n":
                raise RuntimeError(f"Ray did not start; see {place.parent}")
            yield RayTasks(driver)
        finally:
            driver.kill()


def _start(machine: Machine, arguments: list[str], environment: dict[str, str], place: Path) -> None:
    program = [str(Path(sys.executable).parent / "ray"), "start", f"--node-ip-address={machine.address}", *arguments]
    machine.start(program, environment, place.with_name(f"{machine.name}.log"))
