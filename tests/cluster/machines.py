"""Machines as namespaces on this one: network, mounts, processes and host name of their own, on one switch.

Each machine, and the switch, is held by a first process whose standard input is a pipe of the test process. A test
process that dies closes the pipe: the first process ends, the kernel kills all processes of that machine, and its
mounts and cables go with them. No interface, mount or process of the machine below is touched.

```
          switch (bridge, 10.79.0.254)
        /        |          \\
   cable       cable       cable          one for each machine
     |           |           |
 head .1      one .11     two .12         network, mounts, processes, host name
```

A cut port drops packets both ways in silence, as a failing network does; the cable keeps its carrier.

Machines share the files of this one, and `/tmp` with them, where JuiceFS has a socket named after a process id. So
the ids of each machine begin elsewhere: a mount would be given the descriptor of another machine's, or none. Copies of
mounts that other tests have just now are detached first: who sees one counts as a process of that test, and is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..waiting import PATIENCE_SECONDS, until

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
"""Where the kernel has control groups of version 1, those that limit processors."""
NETWORK, SWITCH = "10.79.0", "10.79.0.254"
_FIRST_PROCESS = """
import ctypes, signal, sys
libc, detach = ctypes.CDLL(None), 2
with open("/proc/self/mountinfo") as file:
    points = [line.split()[4] for line in file]
for point in reversed(points):
    if point.startswith("/tmp/atoll-"):
        libc.umount2(point.encode(), detach)
if sys.argv[1:]:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(sys.argv[1])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are nobody's to wait for
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""
_IDS, _MOST_APART = 3000, 9
"""Process ids from one machine's first to the next one's, and machines until they begin again: below 32,768."""
_BRIDGE = "02:00:00:00:00:fe"
_NS_GET_PARENT = 0xB702
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def skip_reason() -> str:
    """Return why this user or machine cannot make machines; empty where it can."""
    if os.geteuid() != 0:
        return "needs root: machines are namespaces"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    return f"`{'` and `'.join(missing)}` not installed" if missing else ""


class First:
    """The first process of namespaces: its id is used only while it is alive, since it may be another's afterwards.

    Args:
        pid: as the test process sees it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.processes = os.stat(f"/proc/{pid}/ns/pid").st_ino
        """Names the namespace of its processes."""
        assert self.processes != os.stat("/proc/self/ns/pid").st_ino

    @property
    def alive(self) -> bool:
        """True until it has ended, and all processes with it."""
        return not select.select([self._descriptor], [], [], 0)[0]

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ProcessLookupError: it has ended.
        """
        if not self.alive:
            raise ProcessLookupError("the machine has ended")
        return self._pid

    def close(self) -> None:
        """Forget it."""
        os.close(self._descriptor)


@contextlib.contextmanager
def _held(*namespaces: str, last_pid: int = 0) -> Iterator[First]:
    """Make namespaces, and give the first process in them; with `last_pid` the ids of further ones begin there."""
    command = ["unshare", *namespaces, "--fork", "--kill-child", "--propagation", "private"]
    command += [sys.executable, "-c", _FIRST_PROCESS, *([str(last_pid)] if last_pid else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as above:
        assert above.stdout is not None
        try:
            assert above.stdout.readline() == b"ready\n"
            (pid,) = children(above.pid)
            with contextlib.closing(First(pid)) as first:
                yield first
        finally:
            above.kill()  # with it the first process, and with that all others


def children(pid: int) -> list[int]:
    """Return the children of a process that has one thread."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@dataclass
class Program:
    """A program on a machine.

    Args:
        above: the process outside that waits for it.
        pid: as the test process sees it.
    """

    above: subprocess.Popen[bytes]
    pid: int

    @property
    def runs(self) -> bool:
        """True while it has not ended."""
        return self.above.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal; a stopped one goes on with SIGCONT."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGCONT and self.runs:  # the one above stops and goes on with it
            self.above.send_signal(signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and by SIGKILL when that does not; return its status."""
        for one in (number, signal.SIGKILL):
            self.send(one)
            self.send(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.above.wait(PATIENCE_SECONDS)
        raise AssertionError("SIGKILL did not end it")


@dataclass
class Machine:
    """A machine on the switch.

    Args:
        name: its host name.
        address: on the switch's network.
        first: its first process.
        switch: the switch's first process.
        group: a control group that its programs are in; None where they are not limited.
    """

    name: str
    address: str
    first: First
    switch: First
    group: Path | None = None
    _programs: list[Program] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a program on this machine."""
        enter = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
        limits = ["sh", "-c", enter, str(self.group)] if self.group is not None else []
        return ["nsenter", f"--target={self.first.pid}", "--net", "--mount", "--uts", "--pid", *limits, *arguments]

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a program to its end."""
        subprocess.run(self.command(*arguments), check=True, stdin=subprocess.DEVNULL, env=environment)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> Program:
        """Start a program whose output goes to a file."""
        with open(log, "ab") as output:
            above = subprocess.Popen(
                self.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                cwd=cwd,
            )
        started = until(lambda: children(above.pid) or above.poll() is not None)
        assert isinstance(started, list), log.read_text(errors="replace")[-3000:]
        program = Program(above, started[0])
        self._programs = [one for one in self._programs if one.runs] + [program]
        return program

    def share(self, source: Path, target: Path) -> None:
        """Mount a directory of this machine below at a path of its own, as a file system that machines share."""
        source.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        self.run("mount", "--bind", str(source), str(target))

    def processes(self) -> list[int]:
        """Return all its processes but the first, sandboxes included, as the test process sees them."""
        if not self.first.alive:
            return []
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in pids if pid != self.first.pid and _is_in(pid, self.first.processes)]

    def outer(self, pid: int) -> int | None:
        """Return the process id here of one that the machine knows by another; None where it has ended."""
        for found in self.processes():
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{found}/status").read_text().splitlines()
                numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
                if len(numbers) == 2 and int(numbers[1]) == pid:
                    return found
        return None

    def cut(self) -> None:
        """Drop all packets from and to it."""
        self._port("nomaster")

    def join(self) -> None:
        """Let packets pass again."""
        self._port("master", "bridge")

    def _port(self, *arguments: str) -> None:
        command = ["nsenter", f"--net=/proc/{self.switch.pid}/ns/net", "ip", "link", "set", "dev", self._plug]
        subprocess.run([*command, *arguments], check=True)

    @property
    def _plug(self) -> str:
        return f"port{self.address.rpartition('.')[2]}"

    def kill(self) -> None:
        """Kill all its processes but the first; its cable is cut before, so that nobody hears of it."""
        if self.first.alive:  # else its cable is gone with it
            self.cut()
        while found := self.processes():
            for pid in found:
                self._kill(pid)
        self.forget()

    def _kill(self, pid: int) -> None:
        """Kill one of its processes, or nothing: an id that it has no more may be another machine's."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if _is_in(pid, self.first.processes):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """Wait for programs that have been killed."""
        for program in self._programs:
            program.above.wait(PATIENCE_SECONDS)
        self._programs.clear()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Use its network in this thread, and in those that it starts meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter_network(Path(f"/proc/{self.first.pid}/ns/net"))
            yield
        finally:
            _enter_network(Path(f"/proc/self/fd/{before}"))
            os.close(before)


def _enter_network(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network of {path}")
    finally:
        os.close(descriptor)


def _is_in(pid: int, namespace: int) -> bool:
    """Return whether a process is in a process namespace, or in one below it."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    while True:
        try:
            if os.fstat(descriptor).st_ino == namespace:
                return True
            above = fcntl.ioctl(descriptor, _NS_GET_PARENT)
        except OSError:  # the test process's own namespace has none that it may see
            return False
        finally:
            os.close(descriptor)
        descriptor = above


class Switch:
    """A network of machines.

    Args:
        first: the first process of its namespace.
        stack: ends machines when the network ends.
    """

    def __init__(self, first: First, stack: contextlib.ExitStack) -> None:
        self.first = first
        self._stack = stack
        self._numbers = itertools.count(1)
        self._first_id = random.randrange(1000, 1000 + _IDS)  # other test processes have machines, too

    def ip(self, *arguments: str) -> None:
        """Run `ip` on the switch."""
        subprocess.run(["nsenter", f"--net=/proc/{self.first.pid}/ns/net", "ip", *arguments], check=True)

    def machine(self, name: str, cpus: float = 0.0) -> Machine:
        """Plug a new machine in.

        Args:
            cpus: processors that all its programs have together, such as 0.5; 0 for no limit.
        """
        group = self._stack.enter_context(_group(f"atoll-{os.getpid()}-{name}", cpus)) if cpus else None
        number = next(self._numbers)
        last_pid = self._first_id + _IDS * (number % _MOST_APART)
        namespaces = "--net", "--mount", "--uts", "--pid", "--mount-proc"
        first = self._stack.enter_context(_held(*namespaces, last_pid=last_pid))
        made = Machine(name, f"{NETWORK}.{number}", first, self.first, group)
        self._stack.callback(made.kill)
        cable = ["link", "add", "name", made._plug, "type", "veth", "peer", "name", "cable", "netns", str(first.pid)]
        self.ip(*cable)
        self.ip("link", "set", "dev", made._plug, "up")
        made.run("hostname", name)
        for arguments in (
            "link set dev lo up",
            f"address add {made.address}/24 dev cable",
            "link set dev cable up",
            f"route add default via {SWITCH}",
        ):
            made.run("ip", *arguments.split())
        made.join()
        return made


@contextlib.contextmanager
def _group(name: str, cpus: float) -> Iterator[Path]:
    """Make a control group (version 1) with so many processors."""
    directory = CPU_GROUPS / name
    directory.mkdir()
    try:
        (directory / "cpu.cfs_quota_us").write_text(str(round(cpus * 100_000)))
        yield directory
    finally:
        until(lambda: not (directory / "cgroup.procs").read_text())
        for below, _, _ in os.walk(directory, topdown=False):
            os.rmdir(below)


@contextlib.contextmanager
def network() -> Iterator[Switch]:
    """Make a network without machines; all of them have ended with the context."""
    if reason := skip_reason():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(_held("--net", "--pid", "--mount", "--mount-proc"))
        switch = Switch(first, stack)
        switch.ip("link", "add", "name", "bridge", "address", _BRIDGE, "type", "bridge")
        switch.ip("address", "add", f"{SWITCH}/24", "dev", "bridge")
        switch.ip("link", "set", "dev", "lo", "up")
        switch.ip("link", "set", "dev", "bridge", "up")
        yield switch
