"""Operators' acts on a machine that runs: a removed one is cut off, whatever it does, and its process ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import atoll as atoll_package
from atoll import Host, errors, isolated
from atoll.cli.nodes.node import REFUSED_STATUS
from atoll.server import versions
from atoll.server.cluster.links.messages import LINE_PATH
from atoll.server.member import joined as joined_file
from atoll.server.member.dialling import Address, dial

from ..conftest import needs_outbound
from ..waiting import PATIENCE_SECONDS, until
from .functions import Leased
from .members import Member, cluster
from .process import Server
from .test_remote_host import connect_proxy

pytestmark = needs_outbound


@pytest.fixture(scope="module")
def solo() -> Iterator[tuple[Server, Member]]:
    """A server, and one machine beside its own; each has a `/data` of its own."""
    with cluster("solo", options=()) as (server, members):
        yield server, members["solo"]


@pytest.fixture
def host(solo: tuple[Server, Member], monkeypatch: pytest.MonkeyPatch) -> Host:
    """The server as a program's host."""
    server, _ = solo
    for name, value in server.client_variables.items():
        monkeypatch.setenv(name, value)
    return Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))


def add(a: int, b: int) -> int:
    return a + b


def wait_for(name: str) -> int:
    """Wait until there is a file in `/data`; return how often this function has run."""
    with open(f"/data/{name}.runs", "a") as file:
        file.write("x")
    while not os.path.exists(f"/data/{name}"):
        time.sleep(0.01)
    return os.path.getsize(f"/data/{name}.runs")


def touch(name: str) -> None:
    open(f"/data/{name}", "w").close()


def place(solo: tuple[Server, Member], name: str) -> tuple[str, Path] | None:
    """Return the machine that has a file in a `/data`, and that directory; None if none has it."""
    server, member = solo
    for machine, home in (("local", server.home), ("solo", member.home)):
        for data in (home.path / "volumes").glob("*/data"):
            if (data / name).exists():
                return machine, data
    return None


def atoll(server: Server, *arguments: str) -> subprocess.Popen[str]:
    """Begin a command of the server's operator."""
    variables = {"ATOLL_HOST": server.url, "ATOLL_KEY_ID": server.key[0], "ATOLL_KEY_SECRET": server.key[1]}
    environment = {**server.home.environment(), **variables, "ATOLL_CA_FILE": str(server.ca_file)}
    program = [sys.executable, "-c", "from atoll.cli.main import main; main()", *arguments]
    return subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["waited for", "detached"])
def test_a_drained_machine_finishes_its_calls_and_gets_no_others(
    solo: tuple[Server, Member], host: Host, kind: str
) -> None:
    """`drain --wait` ends when the last call has; a program with a warm worker there goes on with one elsewhere."""
    server, _ = solo
    name, warm, function = f"runs-{kind[0]}", isolated(host=host, keep_alive=600)(touch), isolated(host=host)(wait_for)
    call = function.submit(name) if kind == "waited for" else function.spawn(name)
    at = until(partial(place, solo, f"{name}.runs"))
    assert at is not None
    server.ask("POST", f"/v1/nodes/{'solo' if at[0] == 'local' else 'local'}/cordon")
    warm(f"before-{name}")
    assert (at[1] / f"before-{name}").exists()
    server.ask("POST", f"/v1/nodes/{'solo' if at[0] == 'local' else 'local'}/uncordon")
    with atoll(server, "nodes", "drain", at[0], "--wait") as drain:
        assert drain.stderr is not None
        assert drain.stderr.readline() == f"`{at[0]}` takes no new calls\n"
        shown = ": 1 running, 0 waiting" + (", 1 detached call left" if kind == "detached" else "")
        while not (line := drain.stderr.readline()).endswith(
            f"{shown}\n"
        ):  # the warm worker is there, too, for a moment
            assert line.startswith(f"`{at[0]}`: "), line
        assert drain.poll() is None
        (at[1] / name).touch()
        assert call.result(PATIENCE_SECONDS) == 1
        assert drain.stderr.read().endswith("is empty: it can be stopped, upgraded or removed\n")
    assert drain.returncode == 0
    warm(f"after-{name}")
    after = place(solo, f"after-{name}")
    assert after is not None
    assert after[0] == ("solo" if at[0] == "local" else "local")
    assert server.ask("POST", f"/v1/nodes/{at[0]}/uncordon")[0] == 200


def test_an_upgrade_machine_by_machine_ends_no_call(
    solo: tuple[Server, Member], host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drained, started with another version and given calls again, a machine serves on; a program that calls sees nothing."""
    server, member = solo
    over = threading.Event()

    def calls() -> int:
        count, function = 0, isolated(host=host)(add)
        while not over.is_set():
            assert function(count, 1) == count + 1
            count += 1
        return count

    newer = shutil.copytree(Path(atoll_package.__file__).parent, tmp_path / "atoll")
    text = (newer / "__init__.py").read_text()
    (newer / "__init__.py").write_text(
        text.replace(f'__version__ = "{atoll_package.__version__}"', '__version__ = "9.9.9"')
    )
    with ThreadPoolExecutor(2) as threads:
        counts = [threads.submit(calls) for _ in range(2)]
        try:
            before = member.home.daemon_pid()
            with atoll(server, "nodes", "drain", "solo", "--wait") as drain:
                assert drain.wait(PATIENCE_SECONDS) == 0
                assert drain.stderr is not None
                assert "is empty" in drain.stderr.read()
            assert member.end() == 0
            with monkeypatch.context() as patch:
                patch.setenv("PYTHONPATH", str(tmp_path))
                member.start()
            assert member.home.daemon_pid() != before
            assert (row(server)["state"], row(server)["version"]) == ("draining", "9.9.9")
            assert server.ask("POST", "/v1/nodes/solo/uncordon")[0] == 200
            with atoll(server, "nodes", "drain", "local", "--wait") as drain:  # so that it serves
                assert drain.wait(PATIENCE_SECONDS) == 0
                assert drain.stderr is not None
                assert "is empty" in drain.stderr.read()
            until(lambda: row(server)["running"])
        finally:
            over.set()
            server.ask("POST", "/v1/nodes/local/uncordon")
        assert min(count.result(PATIENCE_SECONDS) for count in counts) > 0


def row(server: Server) -> dict[str, Any]:
    """Return the row of the machine, as operators see it."""
    return next(one for one in server.ask("GET", "/v1/nodes")[1]["nodes"] if one["name"] == "solo")


def connections(member: Member, server: Server) -> int:
    """Return the number of open connections between a machine's process and its server."""
    numbers = {os.readlink(path) for path in Path(f"/proc/{member.process.pid}/fd").iterdir() if path.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port, established = f":{server.port:04X}", "01"
    return sum(
        1 for one in lines if one[2].endswith(port) and one[3] == established and f"socket:[{one[9]}]" in numbers
    )


@pytest.fixture
def only_there(solo: tuple[Server, Member]) -> Iterator[tuple[Server, Member]]:
    """The same, with calls on the machine alone."""
    server, _ = solo
    assert server.ask("POST", "/v1/nodes/local/cordon")[0] == 200
    yield solo
    assert server.ask("POST", "/v1/nodes/local/uncordon")[0] == 200


def test_figures_of_a_machine_are_told(only_there: tuple[Server, Member]) -> None:
    """Operators see a linked machine with its size, what is free, and its lines; the owner of the server's directory, too."""
    server, member = only_there
    leased = Leased(server, add, 1, 2)
    try:
        found = until(lambda: found if (found := row(server))["free"] and found["lines"] else None)
        assert found is not None
        assert (found["linked"], found["state"], found["apart"]) == (True, "active", False)
        assert found["has"]["millicores"] > 0
        shared = server.home.path / "run" / "nodes.json"
        until(
            lambda: (
                shared.exists()
                and any(one["name"] == "solo" and one["free"] for one in json.loads(shared.read_bytes()))
            )
        )
        assert shared.stat().st_mode & 0o077 == 0
        assert leased.call() == 3
    finally:
        leased.line.close()
    assert member.process.runs


def test_a_machine_that_is_not_up_to_date_is_shown_as_such(solo: tuple[Server, Member]) -> None:
    """It is linked and gets no calls: the routes, the command and the page tell it, operators the reason; then it is active."""
    server, member = solo
    missed = server.home.path / "machines-missed.json"
    member.end()
    until(lambda: not row(server)["linked"])
    missed.write_text(json.dumps({"solo": [["users.remove", {"user": 5}]]}))
    member.start()
    found = until(lambda: one if "`user` is a user" in (one := row(server))["catching_up"] else None)
    assert found is not None
    assert (found["linked"], found["state"]) == (True, "active")
    (seen,) = (one for one in server.ask("GET", "/v1/machines")[1]["machines"] if one["name"] == "solo")
    assert seen["catching_up"] is True
    shared = server.home.path / "run" / "nodes.json"
    until(lambda: b"is a user" in shared.read_bytes())
    shown = server.home.atoll("nodes", "list")
    assert "catching up" in shown.stdout
    assert "no calls are placed on `solo` yet" in shown.stderr
    missed.write_text("{}")
    until(lambda: row(server)["catching_up"] == "")
    until(lambda: b"is a user" not in shared.read_bytes())
    assert "catching up" not in server.home.atoll("nodes", "list").stdout


def test_a_machine_behind_a_proxy_links_through_it(
    only_there: tuple[Server, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member dials by the proxy that the environment names, and says its versions; the server refuses unknown ones by name."""
    server, member = only_there
    monkeypatch.setattr("atoll.host.remote.proxies.is_loopback", lambda host: False)
    own = joined_file.need(member.home.path)
    address = Address(own.url, own.authorization, own.ca_file)

    class Connected(asyncio.Protocol):
        """Sends nothing."""

    async def link() -> None:
        transport, _ = await dial(address, LINE_PATH, lambda _transport: Connected())
        transport.abort()

    with connect_proxy() as (port, heads):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        asyncio.run(link())
        assert [head.split()[:2] for head in heads] == [["CONNECT", f"127.0.0.1:{server.port}"]]
        monkeypatch.setattr(versions, "NODE_LOWEST", 2)
        monkeypatch.setattr(versions, "NODE_HIGHEST", 3)
        with pytest.raises(errors.ProtocolMismatch, match="the node 2 to 3") as caught:
            asyncio.run(link())
        assert caught.value.hint == "upgrade atoll on the server"


def test_a_removed_machine_is_cut_off(only_there: tuple[Server, Member]) -> None:
    """The link and the lines of a removed machine end at once, also if it no longer does as it is told.

    Once it hears of it, it ends what runs there, and itself.
    """
    server, member = only_there
    leased = Leased(server, add, 1, 2)
    try:
        assert leased.call() == 3
        os.kill(member.process.pid, signal.SIGSTOP)
        assert connections(member, server) >= 2
        assert server.ask("DELETE", "/v1/nodes/solo")[0] == 200
        until(lambda: connections(member, server) == 0)
    finally:
        os.kill(member.process.pid, signal.SIGCONT)
        leased.line.close()
    until(lambda: not member.process.runs)
    assert member.end() == REFUSED_STATUS
    assert json.loads(member.home.atoll("status", "--json").stdout)["sandboxes"] == []
    text = member.log.read_text()
    assert "was removed from this server" in text
    assert "`atoll node join` here" in text
