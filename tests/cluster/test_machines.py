"""Machines of the tests: they reach each other until a cable is cut, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import until
from .machines import CPU_GROUPS, Machine, Switch, network

pytestmark = pytest.mark.root

ECHO = """
import socket, sys
with socket.create_server(("", 7000)) as listener:
    print("listens", flush=True)
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(100):
            connection.sendall(data)
"""
ASK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], 7000), timeout=60)
for line in sys.stdin:
    sock.settimeout(abs(float(line)))
    sock.sendall(b"x" * int(line[0] != "-"))
    try:
        print(len(sock.recv(1)), flush=True)
    except TimeoutError:
        print("nothing", flush=True)
"""


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    """A network for this module."""
    with network() as made:
        yield made


@pytest.fixture(scope="module")
def machines(switch: Switch) -> tuple[Machine, Machine]:
    """Two machines on it."""
    return switch.machine("first"), switch.machine("second")


def start(machine: Machine, program: str, tmp_path: Path) -> Path:
    """Start a program, and return its log as soon as there is something in it."""
    log = tmp_path / f"{machine.name}.log"
    machine.start([sys.executable, "-c", program], os.environ, log)
    until(lambda: log.read_text())
    return log


def end(machine: Machine) -> None:
    """End all its programs."""
    machine.kill()
    machine.join()


def test_a_cut_cable_drops_packets_in_silence(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """A connection over a cut cable hears nothing, neither data nor an end, and goes on when the cable is joined."""
    first, second = machines
    start(first, ECHO, tmp_path)
    command = second.command(sys.executable, "-c", ASK, first.address)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as asking:
        assert asking.stdin is not None
        assert asking.stdout is not None

        def ask(seconds: float) -> str:
            assert asking.stdin is not None
            assert asking.stdout is not None
            asking.stdin.write(f"{seconds}\n")
            return asking.stdout.readline().strip()

        assert ask(60) == "1"
        for machine in machines:
            machine.cut()
            assert ask(0.3) == "nothing"
            machine.join()
            assert ask(-60) == "1"  # sends nothing more: TCP sends again
        asking.stdin.close()
    end(first)


def test_a_killed_machine_has_no_process_and_can_be_used_again(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    """All die at once, those in process namespaces of their own included; the other machine's go on."""
    first, second = machines
    nested = "import subprocess; subprocess.run(['unshare', '--pid', '--fork', '--kill-child', 'sh', '-c', 'echo; sleep 600'])"
    start(first, nested, tmp_path)
    start(second, ECHO, tmp_path)
    assert len(first.processes()) == 4
    assert len(second.processes()) == 1
    first.kill()
    assert not first.processes()
    assert len(second.processes()) == 1
    first.join()
    start(first, ECHO, tmp_path)
    end(first)
    end(second)


def test_names_of_processes_are_those_of_the_test(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """A process id of the machine's is found here, so that a signal reaches it and no other."""
    first, _ = machines
    log = tmp_path / "log"
    program = first.start(
        [sys.executable, "-c", "import os\nprint(os.getpid(), flush=True)\nos.read(os.pipe()[0], 1)"], os.environ, log
    )
    inner = int(until(lambda: log.read_text().strip()))
    assert first.outer(inner) == program.pid != inner
    program.send(signal.SIGSTOP)
    program.send(signal.SIGCONT)
    assert program.end(signal.SIGTERM) == -signal.SIGTERM
    assert first.outer(inner) is None


def test_mounts_and_addresses_are_the_machines_own(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """A directory that two machines share is seen by both; neither mount nor cable is seen outside."""
    for machine in machines:
        machine.share(tmp_path / "shared", tmp_path / machine.name)
    machines[0].run("touch", str(tmp_path / "first" / "file"))
    machines[1].run("cat", str(tmp_path / "second" / "file"))
    assert not list((tmp_path / "first").iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert "cable" not in Path("/proc/net/dev").read_text()
    with machines[0].entered():
        assert "cable" in Path("/proc/thread-self/net/dev").read_text()
    assert "cable" not in Path("/proc/thread-self/net/dev").read_text()


@pytest.mark.skipif(not (CPU_GROUPS / "cpu.shares").exists(), reason="no control groups of version 1")
def test_a_machine_may_have_a_part_of_a_processor(tmp_path: Path) -> None:
    """All its programs are in a group with a quota, those of a nested process namespace included; the group goes with it."""
    with network() as switch:
        machine = switch.machine("small", cpus=0.5)
        nested = "import subprocess; print(); subprocess.run(['unshare', '--pid', '--fork', 'sleep', '600'])"
        start(machine, nested, tmp_path)
        group = machine.group
        assert group is not None
        assert (group / "cpu.cfs_quota_us").read_text() == "50000\n"
        until(lambda: len(machine.processes()) == 3)
        assert sorted(map(int, (group / "cgroup.procs").read_text().split())) == sorted(machine.processes())
    assert not group.exists()


def test_machines_end_with_a_test_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the test process ends its machines, with all their processes."""
    program = f"""
import os, sys, time
from tests.cluster.machines import network
with network() as switch:
    machine = switch.machine("alone")
    from pathlib import Path
    one = machine.start(["sleep", "600"], os.environ, Path({str(tmp_path / "log")!r}))
    print(one.pid, machine.first.pid, switch.first.pid, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as test:
        assert test.stdout is not None
        pids = [int(word) for word in test.stdout.readline().split()]
        test.kill()
    assert len(pids) == 3
    for pid in pids:
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
