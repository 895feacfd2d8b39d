"""A server on one machine, its nodes on others, and clients on one more: what fails is asked for by name.

All machines share `/data` by a directory of this one. The server's own machine runs no functions unless it is asked to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from atoll.cli.server import machine_packages

from ..cluster_storage import shared_disk
from ..conftest import Home, own_home
from ..server.certificates import Authority
from ..server.machines import COMMAND
from ..server.process import Server
from ..waiting import until
from .history import Outage
from .machines import Machine, Program, Switch, network

PORT = 8443
C = TypeVar("C", bound="Cluster")
_MARKED = ("/usr/games", "/usr/src", "/usr/local/games", "/usr/local/src", "/usr/local/etc")
"""Directories that sandboxes see; a machine's own file system is mounted over the first that exists."""


def mark(machine: Machine) -> str:
    """Write the machine's name to where its functions find it; return that path."""
    directory = next(path for path in _MARKED if os.path.isdir(path))
    machine.run("mount", "-t", "tmpfs", "tmpfs", directory)
    machine.run("sh", "-c", f"chmod 755 {directory}; echo {machine.name} > {directory}/machine")
    return f"{directory}/machine"


class Head(Server):
    """The server, on a machine of its own."""

    machine: Machine
    client: Machine
    shared: Path
    program: Program | None = None

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.client.entered()

    @property
    def address(self) -> str:
        return self.machine.address

    @property
    def volumes(self) -> Path:
        return self.shared / "volumes"

    @property
    def pid(self) -> int:
        """The server's process, as the test process sees it; 0 for none."""
        return self.program.pid if self.program is not None else 0

    def start(self) -> None:
        """Start it, and wait until it listens."""
        directory = self.authority.ca_file.parent
        certificate, key = directory / "server.pem", directory / "server.key"
        if not key.exists():
            self.authority.issue("server", self.machine.address, "127.0.0.1")
        described = self.home.path / "run" / "server.json"
        described.unlink(missing_ok=True)
        arguments = ["server", "--listen", f"{self.machine.address}:{self.port}"]
        arguments += ["--tls-cert", str(certificate), "--tls-key", str(key), *self.options]
        command = [sys.executable, "-c", COMMAND, *arguments]
        program = self.machine.start(command, self.home.environment(self.environment), self.log)
        self.program = program
        until(lambda: described.exists() or not program.runs)
        assert program.runs, self.log.read_text()[-3000:]

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its status."""
        program, self.program = self.program, None
        return 0 if program is None else program.end(number)


@dataclass
class Node:
    """A machine that has joined.

    Args:
        home: its state directory.
        member: the process in front of its daemon.
    """

    machine: Machine
    home: Home
    member: Program | None = None

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def log(self) -> Path:
        """The file of its member's stderr."""
        return self.home.path / "member.log"

    def daemon(self) -> int | None:
        """Return the daemon's process as the test process sees it, None where none runs."""
        inner = self.home.daemon_pid()
        return None if inner is None else self.machine.outer(inner)

    def start(self, *arguments: str) -> None:
        """Start its member."""
        command = [sys.executable, "-c", COMMAND, "node", *arguments]
        self.member = self.machine.start(command, self.home.environment(), self.log)


@dataclass
class Cluster:
    """A server and its nodes.

    Args:
        client: a machine for programs that make calls.
        shared: the directory that carries `/data` on all machines.
        mark: a path that functions read: the name of their machine.
    """

    head: Head
    switch: Switch
    client: Machine
    shared: Path
    mark: str
    nodes: dict[str, Node] = field(default_factory=dict)
    has_packages: bool = True
    """Whether the machines find packages: those of directories of this one."""
    outages: list[Outage] = field(default_factory=list)
    """Those that are over."""
    _cut: dict[str, float] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """Variables of programs that call."""
        key_id, secret = self.head.key
        found = {"ATOLL_HOST": self.head.url, "ATOLL_KEY_ID": key_id, "ATOLL_KEY_SECRET": secret}
        return {**found, "ATOLL_CA_FILE": str(self.head.ca_file), **self.head.client_variables}

    def new_user(self, name: str) -> dict[str, str]:
        """Add a user; return the variables of the key."""
        from atoll.server.accounts.bodies import NewUser

        added = self.head.add_user(NewUser(name))
        assert added.key is not None
        return {"ATOLL_KEY_ID": added.key.id, "ATOLL_KEY_SECRET": added.key.secret}

    def volume(self) -> Path:
        """Return the volume of the operator."""
        volumes = [path / "data" for path in (self.shared / "volumes").iterdir() if (path / "data").is_dir()]
        assert len(volumes) == 1, volumes
        return volumes[0]

    # --- faults ------------------------------------------------------------------------------------------------------

    def partition(self, name: str) -> None:
        """Drop all packets from and to a node."""
        self.nodes[name].machine.cut()
        self._cut[name] = time.monotonic()  # the last word cannot be later

    def heal(self, name: str) -> None:
        """Let packets pass again."""
        self.outages.append(Outage(name, self._cut.pop(name), time.monotonic()))
        self.nodes[name].machine.join()

    def kill(self, name: str) -> None:
        """Kill all processes of a node at once, as a power cut does; it starts again with `start`."""
        node = self.nodes[name]
        node.machine.kill()
        node.member = None

    def start(self, name: str) -> None:
        """Start a node's member again; it links by itself."""
        node = self.nodes[name]
        node.machine.join()
        node.start("run")

    @staticmethod
    def send(pid: int, number: int) -> None:
        """Send a signal to a process that may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def restart_head(self, number: int = signal.SIGTERM) -> None:
        """End the server by a signal, and start it again."""
        self.head.end(number)
        self.head.start()

    def rows(self) -> list[dict[str, Any]]:
        """Return the server's rows of its nodes."""
        with self.client.entered():
            status, body = self.head.ask("GET", "/v1/nodes")
        assert status == 200, body
        rows: list[dict[str, Any]] = body["nodes"] if isinstance(body, dict) else body
        return rows

    def use_only(self, *names: str) -> None:
        """Have new calls placed on some nodes alone, from a thread that has entered the clients' network."""
        for name in self.nodes:
            act = "uncordon" if name in names else "cordon"
            status, body = self.head.ask("POST", f"/v1/nodes/{name}/{act}")
            assert status == 200, body

    def wait_linked(self, *names: str) -> None:
        """Wait until the server has a link of each of these nodes, of all by default."""

        def linked() -> bool:
            found = {row["name"] for row in self.rows() if row["linked"]}
            for node in self.nodes.values():
                assert node.member is None or node.member.runs, node.log.read_text()[-3000:]
            return found >= set(names or self.nodes)

        until(linked)

    def end(self) -> None:
        """End members, daemons and the server in order; afterwards no machine has a process."""
        for name in tuple(self._cut):
            self.heal(name)
        for node in self.nodes.values():
            if node.member is not None and node.member.runs:
                assert node.member.end() in (0, -signal.SIGTERM), node.log.read_text()[-3000:]
            self._end_daemon(node.home, node.machine)
            until(lambda machine=node.machine: not machine.processes())  # type: ignore[misc]
        if self.head.program is not None:
            assert self.head.end() in (0, -signal.SIGTERM), self.head.log.read_text()[-3000:]
        self._end_daemon(self.head.home, self.head.machine)
        until(lambda: not self.head.machine.processes())

    def _end_daemon(self, home: Home, machine: Machine) -> None:
        inner = home.daemon_pid()
        if inner is not None and (pid := machine.outer(inner)) is not None:
            self.send(pid, signal.SIGTERM)


@contextlib.contextmanager
def cluster(
    nodes: Sequence[str] = ("one", "two"),
    *,
    local: bool = False,
    share_network: bool = False,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    cpus: float = 0.0,
    switch: Switch | None = None,
    data: str = "",
) -> Iterator[Cluster]:
    """Run a server with nodes that have joined it; each process has ended at the end of the context.

    Args:
        nodes: names of the machines beside the server's.
        local: the server's own machine runs functions, too.
        options, environment: further ones of `atoll server`.
        settings: further lines of `settings.toml` on all machines.
        cpus: processors of each node; 0 for no limit.
        switch: a network that exists already.
        data: what carries `/data`: `path`, a directory of this machine below, or `juicefs`, which each machine mounts;
            by default what `ATOLL_CLUSTER_DATA` says, else `path`.
    """
    with prepared(
        Cluster,
        local=local,
        share_network=share_network,
        options=options,
        environment=environment,
        settings=settings,
        switch=switch,
        data=data,
    ) as (made, home):
        head = made.head
        head.start()
        token = _token(head, len(nodes)) if nodes else ""
        for name in nodes:
            machine = made.switch.machine(name, cpus)
            mark(machine)
            made.nodes[name] = node = Node(machine, home(None))
            arguments = ["--token", token, "--name", name, "--ca-file", str(head.ca_file)]
            node.start("join", head.url, *arguments)
        if nodes:
            made.wait_linked()
        yield made
        made.end()
        for place in (head.home, *(node.home for node in made.nodes.values())):
            for log in place.path.glob("*.log"):
                assert "Traceback" not in (text := log.read_text()), text[-5000:]


@contextlib.contextmanager
def prepared(
    kind: type[C],
    *,
    local: bool = False,
    share_network: bool = False,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    switch: Switch | None = None,
    data: str = "",
) -> Iterator[tuple[C, Callable[[Path | None], Home]]]:
    """Give a cluster without nodes, whose server is not started, and a maker of state directories for its nodes."""
    with contextlib.ExitStack() as stack:
        switch = switch or stack.enter_context(network())
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-cluster-", dir="/tmp")))
        files.chmod(0o755)
        shared, lines = stack.enter_context(_disk(data or os.environ.get("ATOLL_CLUSTER_DATA", "path"), files))
        packages = machine_packages.read(files)
        lines += ["[users]", f"share_network = {str(share_network).lower()}"]
        lines += ["[environments]", _index(packages), *settings]

        def home(path: Path | None) -> Home:
            made = stack.enter_context(own_home(path=path))
            (made.path / "settings.toml").write_text("\n".join(lines))
            return made

        where = switch.machine("head")
        options = [*options, *([] if local else ["--no-local"])]
        nothing: Any = None  # a machine has its program
        head = Head(home(None), Authority(files), options, port=PORT, process=nothing)
        head.machine, head.shared = where, shared
        head.environment = dict(environment or {})
        # There: a mount of this machine's, which outlives the command a little, would be copied to the next machine.
        init = [sys.executable, "-c", COMMAND, "data", "filesystem", "init"]
        where.run(*init, environment=head.home.environment())
        head.client_variables = packages.variables
        head.client = switch.machine("client")
        yield kind(head, switch, head.client, shared, mark(where)), home


def _index(packages: machine_packages.MachinePackages) -> str:
    """Return settings of places of packages, all on this machine: nothing leads out of the machines' network.

    `ATOLL_CLUSTER_PACKAGES` names a directory of further ones.
    """
    more = os.environ.get("ATOLL_CLUSTER_PACKAGES", "")
    options = packages.options or 'users_index_url = ""\nusers_extra_index_urls = []\nusers_find_links = []\n' * bool(
        more
    )
    first = next(iter(packages.places), more)
    options = options.replace('users_index_url = ""', f"users_index_url = {json.dumps(first)}")
    if not more:
        return options
    kept, found = options.rsplit("users_find_links = ", 1)
    return f"{kept}users_find_links = {json.dumps([*json.loads(found), more])}\n"


@contextlib.contextmanager
def _disk(data: str, files: Path) -> Iterator[tuple[Path, list[str]]]:
    """Give the directory that carries the volumes, as the test process has it, and the settings of each machine."""
    if data == "juicefs":
        if reason := shared_disk.why_not():
            pytest.skip(reason)
        with shared_disk.made() as disk, disk.mounted() as point:
            yield point, disk.settings.splitlines()
        return
    shared = files / "shared"
    shared.mkdir(mode=0o755)
    yield shared, ["[storage]", 'filesystem = "path"', f"path = {json.dumps(str(shared))}"]


def _token(head: Head, uses: int) -> str:
    """Return a token for some machines, as the command line on the server's machine gives it."""
    done = head.home.atoll("nodes", "token", "--uses", str(uses), "--json")
    token: str = json.loads(done.stdout)["token"]
    return token
