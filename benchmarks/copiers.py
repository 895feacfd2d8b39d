"""What makes one directory a copy of another: Atoll's sync, and what it is measured beside.

Each takes a source and the name of a target, and leaves the target equal to the source. The processor time of a copy is
that of all processes which worked for it: this one, what it started, and the servers with their children.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from table import Samples

TOOLS = Path(__file__).parents[1] / ".venv" / "tools"
_TICKS = os.sysconf("SC_CLK_TCK")


def find_tool(name: str) -> str | None:
    """Return the path of a program: the machine's, of this virtual environment, or what `.ci/tools` has unpacked."""
    # First what the machine lacked: the suite has the same programs on PATH without the libraries that they need.
    places = [str(TOOLS / "bin"), os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]
    return shutil.which(name, path=os.pathsep.join(places))


class Copier(Protocol):
    """One way to copy a directory."""

    name: str

    def copy(self, source: Path, target: str) -> None:
        """Make the target equal to the source."""

    def servers(self) -> list[int]:
        """Return the processes that work for it and that this one has not started for the copy."""


@contextlib.contextmanager
def measured(samples: Samples, copier: Copier) -> Iterator[None]:
    """Measure the time and the processor time of what happens inside, with a disk that has nothing left to write."""
    os.sync()
    servers = copier.servers()
    before = _cpu_seconds(servers)
    with samples.time():
        yield
    samples.cpu_seconds.append(_cpu_seconds(servers) - before)


def _cpu_seconds(servers: list[int]) -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return used + sum(map(_tree_seconds, servers))


def _tree_seconds(root: int) -> float:
    """Return what a process and all below it have used, those that have ended included."""
    return sum(sum(map(int, fields[11:15])) for fields in _tree(root).values()) / _TICKS


def _tree(root: int) -> dict[int, list[bytes]]:
    """Return the fields of `/proc/PID/stat`, from the state on, of a process and all below it."""
    everything: dict[int, list[bytes]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            everything[int(name)] = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
    found = {root}
    while more := {pid for pid, fields in everything.items() if int(fields[1]) in found and pid not in found}:
        found |= more
    return {pid: everything[pid] for pid in found if pid in everything}


class Atoll:
    """`sync_dir`, called in this process; durable."""

    name = "sync_dir"

    def __init__(self, home: Path) -> None:
        self._home = home

    def copy(self, source: Path, target: str) -> None:
        from atoll import sync_dir

        sync_dir(source, target)

    def servers(self) -> list[int]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return [int(json.loads((self._home / "run" / "daemon.json").read_text())["pid"])]
        return []

    def copy_and_count(self, source: Path, target: str) -> int:
        """Copy, and return how many bytes this process has sent to the storage peer, headers included."""
        from atoll.wire.channel import Channel
        from atoll.wire.frames import encode

        sent, send = 0, Channel.send

        def counted(self: Channel, header: dict[str, Any], buffers: Sequence[Any] = (), **more: Any) -> None:
            nonlocal sent
            sent += sum(memoryview(piece).nbytes for piece in encode(header, buffers))
            send(self, header, buffers, **more)

        with unittest.mock.patch.object(Channel, "send", counted):
            self.copy(source, target)
        return sent

    def storage_peers(self) -> list[int]:
        """Return the storage peers that live now."""
        found = []
        for pid in [pid for server in self.servers() for pid in _tree(server)]:
            with contextlib.suppress(OSError):
                if b"atoll.storage.peer.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


class AtollCommand(Atoll):
    """`atoll data sync`, a process for each copy."""

    name = "atoll data sync"

    def copy(self, source: Path, target: str) -> None:
        atoll = Path(sys.executable).with_name("atoll")
        # Bytecode is cached, as it is where the program is installed.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = str(self._home.with_name("bytecode"))
        command = [str(atoll), "data", "sync", str(source), target]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


class Rsync:
    """`rsync -a --delete` to a directory of this machine."""

    def __init__(self, place: Path, *, fsync: bool = False) -> None:
        found = find_tool("rsync")
        assert found is not None
        self._rsync = found
        self._place = place
        self._options = ["-a", "--delete", "--stats", *(["--fsync"] if fsync else [])]
        self.name = "rsync --fsync" if fsync else "rsync"
        self.sent_bytes = 0
        """What the last copy has sent, by its own count."""
        place.mkdir(parents=True, exist_ok=True)

    def copy(self, source: Path, target: str) -> None:
        self._run(source, f"{self._place}/{target}/")

    def _run(self, source: Path, target: str) -> None:
        command = [self._rsync, *self._options, f"{source}/", target]
        said = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        sent = re.search(r"Total bytes sent: ([\d,.]+)", said)
        self.sent_bytes = int(re.sub(r"\D", "", sent[1])) if sent else 0

    def servers(self) -> list[int]:
        return []


class RsyncServer:
    """An rsync daemon on a free port of the loopback interface, with one writable module.

    Args:
        place: what the module shows; the daemon's own files go beside it.
        prompt: whether it sends at once what it has to say (TCP_NODELAY); with rsync's defaults a connection waits
            about 0.1 s for acknowledgements.
    """

    def __init__(self, place: Path, *, prompt: bool = False) -> None:
        found = find_tool("rsync")
        assert found is not None
        place.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        configuration = place.with_name(f"{place.name}.conf")
        lines = [f"log file = {place}.log", "use chroot = no", *(["socket options = TCP_NODELAY"] if prompt else [])]
        lines += ["[mirror]", f"path = {place}", "read only = no"]
        lines += [f"uid = {os.getuid()}", f"gid = {os.getgid()}"] if os.getuid() == 0 else []
        configuration.write_text("\n".join([*lines, ""]))
        command = [found, "--daemon", "--no-detach", f"--config={configuration}", "--address=127.0.0.1"]
        self._process = subprocess.Popen([*command, f"--port={self.port}"], stdin=subprocess.DEVNULL)
        self.prompt = prompt
        self._wait()

    def _wait(self) -> None:
        for _ in range(500):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.01)
        raise RuntimeError("rsync's daemon does not listen")

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class RsyncToServer(Rsync):
    """`rsync -a --delete` to a daemon."""

    def __init__(self, place: Path, server: RsyncServer, *, fsync: bool = False) -> None:
        super().__init__(place, fsync=fsync)
        self._server = server
        self.name = "rsync --fsync to a daemon" if fsync else "rsync to a daemon"
        if server.prompt:
            self._options.append("--sockopts=TCP_NODELAY")
            self.name += ", TCP_NODELAY"
        self._prefix = "durable-" if fsync else ""

    def copy(self, source: Path, target: str) -> None:
        self._run(source, f"rsync://127.0.0.1:{self._server.port}/mirror/{self._prefix}{target}/")

    def servers(self) -> list[int]:
        return [self._server.pid]


class Rclone:
    """`rclone sync` to a directory of this machine, with eight files at a time."""

    name = "rclone"

    def __init__(self, place: Path) -> None:
        found = find_tool("rclone")
        assert found is not None
        self._command = [found, "sync", "--config=", "--checkers=8", "--transfers=8", "--quiet"]
        self._place = place

    def copy(self, source: Path, target: str) -> None:
        subprocess.run([*self._command, str(source), f"{self._place}/{target}"], check=True, stdin=subprocess.DEVNULL)

    def servers(self) -> list[int]:
        return []


def versions() -> str:
    """Say which programs are compared with."""
    said = []
    for name, option in (("rsync", "--version"), ("rclone", "version"), ("fio", "--version")):
        program: Any = find_tool(name)
        if program is None:
            said.append(f"{name} is not here: `make bench` gets it where it can")
            continue
        lines = subprocess.run([program, option], capture_output=True, text=True, check=False).stdout.splitlines()
        said.append(" ".join(lines[0].split()[:3]).removesuffix(" protocol") if lines else name)
    return ", ".join(said)
