"""The fence of a node that has joined a server: nothing of the server's users runs, or writes to `/data`, after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from atoll import Host, Volume, errors, isolated, settings
from atoll.daemon.joined.fence import NodeFence
from atoll.model.mounts import Bind
from atoll.sandbox import fence
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import confine
from atoll.server.accounts.bodies import NewUser
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.settings import Settings

from ..conftest import needs_outbound
from ..waiting import ended, until
from .process import Server, running

pytestmark = needs_outbound

_MEMBER = """
import sys, time
from pathlib import Path
from atoll import settings
from atoll.server.node import Node

node = Node(settings.load(Path(sys.argv[1])))
while True:
    node.request(None, "fence", {"seconds": 1.0})
    print("renewed", flush=True)
    time.sleep(0.1)
"""


def _write(name: str) -> None:
    """Append the time to a file, until there is another one."""
    with open(f"/data/{name}", "a", buffering=1) as file:
        while not os.path.exists(f"/data/{name}.stop"):
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME)}\n")
            time.sleep(0.01)


def _one() -> int:
    return 1


class Joined:
    """A server whose node this test fences as a member would, and a user with a key."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.node = Node(settings.load(server.home.path))
        key = server.add_user(NewUser("ann")).key
        assert key is not None
        self.host = Host(server.url, key_id=key.id, key_secret=key.secret, ca_file=str(server.ca_file))

    def fence(self, **arguments: Any) -> dict[str, Any]:
        """Name another moment, as the owner."""
        return self.node.request(None, "fence", arguments)

    def write(self, name: str) -> tuple[Future[Any], Path]:
        """Start a call that writes; return it and its file, which has a first line."""
        call = isolated(host=self.host)(_write).submit(name)

        def begun() -> Path | None:
            found = list((self.server.home.path / "volumes").glob(f"*/data/{name}"))
            return found[0] if found and found[0].stat().st_size else None

        path = until(begun)
        assert path is not None
        return call, path

    def worker(self) -> int:
        """Return the process of the user's busy worker."""
        status = self.node.request(None, "status", {})
        sandboxes = {row["id"] for row in status["sandboxes"] if row["user"] != "local"}
        (found,) = (row for row in status["workers"] if row["sandbox"] in sandboxes and row["state"] == "busy")
        return int(found["pid"])


@pytest.fixture(scope="module")
def joined() -> Iterator[Joined]:
    with running(share_network=True) as server:
        found = Joined(server)
        yield found
        found.host.close()
        found.fence()


def daemon_of(joined: Joined) -> int:
    pid = joined.server.home.daemon_pid()
    assert pid is not None
    return pid


def check_still(path: Path, after: float) -> None:
    """Check that a file ends before a moment, and that nothing writes to it."""
    size = path.stat().st_size
    assert float(path.read_text().splitlines()[-1]) < after
    time.sleep(0.1)
    assert path.stat().st_size == size


@contextlib.contextmanager
def member(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that renews."""
    command = [sys.executable, "-c", _MEMBER, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "renewed\n"
            yield process
        finally:
            process.kill()


def test_calls_end_with_the_last_renewal_of_a_member_that_is_stopped(joined: Joined, monkeypatch: Any) -> None:
    """They run while it renews. Then calls, storage peers and requests of users end; the owner's calls go on."""
    monkeypatch.setenv("ATOLL_HOME", str(joined.server.home.path))
    own = isolated(keep_alive=0)(_write).submit("own")
    with member(joined.server.home.path) as process, Volume(joined.host) as volume:
        file = volume.open("half", "wb", buffering=0)
        call, path = joined.write("stopped")
        began, size = fence.now(), path.stat().st_size
        until(lambda: fence.now() > began + 1.5)  # longer than one lease
        assert path.stat().st_size > size
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(errors.WorkerDied, match="the node lost its server, and has ended the call"):
            call.result(60)
        with pytest.raises(errors.HostUnreachable, match="the node lost its server"):
            joined.node.request(Principal("u1", "u1"), "status", {})
        with pytest.raises((errors.HostUnreachable, OSError)):
            _fill(file)
        process.kill()
        process.wait()
    answer = joined.fence(seconds=600)  # answered when everything is gone
    assert answer["ended"] >= 2
    check_still(path, fence.now())
    assert isolated(host=joined.host)(_one)() == 1
    mine = joined.server.home.path / "volumes" / "local" / "data" / "own"
    size = mine.stat().st_size
    until(lambda: mine.stat().st_size > size)
    mine.with_name("own.stop").touch()
    own.result(60)


def _fill(file: Any) -> None:
    for _ in range(1000):
        file.write(bytes(1 << 16))


def killer_of(daemon: int) -> int:
    """Return the daemon's orphan killer."""

    def found() -> int:
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError):
                words = Path("/proc", name, "cmdline").read_bytes()
                parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
                if b"orphan_killer.py" in words and parent == daemon:
                    return int(name)
        return 0

    return until(found)


def test_a_stopped_daemon_does_not_hold_the_fence_up(joined: Joined) -> None:
    """The orphan killer kills by itself, also one that took the place of another; the daemon renews when it goes on."""
    joined.fence(seconds=600)
    call, path = joined.write("daemon")
    daemon = daemon_of(joined)
    first = killer_of(daemon)
    os.kill(first, signal.SIGKILL)
    until(lambda: killer_of(daemon) != first)
    worker = joined.worker()
    moment = fence.now() + 1.0
    joined.fence(until=moment)
    os.kill(daemon, signal.SIGSTOP)
    try:
        assert ended(worker)
        assert fence.now() >= moment
        check_still(path, fence.now())
    finally:
        os.kill(daemon, signal.SIGCONT)
    joined.fence(seconds=600)
    with pytest.raises(errors.WorkerDied):
        call.result(60)
    check_still(path, fence.now())
    assert isolated(host=joined.host)(_one)() == 1


def test_a_daemon_that_starts_later_waits_for_its_first_moment(joined: Joined) -> None:
    """Users are refused after the crash of a daemon whose machine has joined, detached calls wait; then both are served."""
    joined.fence(seconds=600)
    joined.node.request(None, "allowance", {"millicores": 0})
    kept = isolated(host=joined.host)(_one).spawn()
    daemon = daemon_of(joined)
    os.kill(daemon, signal.SIGKILL)
    assert ended(daemon)
    with pytest.raises(errors.HostUnreachable, match="the node lost its server"):
        joined.node.request(Principal("u1", "u1"), "status", {})
    assert joined.node.request(None, "status", {})["daemon"]["pid"] != daemon
    for malformed in ({"until": "x"}, {"seconds": float(10**9)}):
        with pytest.raises(errors.ProtocolMismatch):
            joined.fence(**malformed)
    assert not joined.node.request(None, "status", {})["sandboxes"]
    joined.fence(seconds=600)
    assert kept.result(60) == 1
    joined.fence()
    assert isolated(host=joined.host)(_one)() == 1


def test_a_restore_that_waits_ends_with_the_fence(joined: Joined) -> None:
    """It changes nothing, then or when the node has its server again: the calls that it waited for are gone by then."""
    joined.fence(seconds=600)
    volume = Volume(joined.host)
    volume.write_text("/data/kept/file", "before")
    volume.snapshot("first", "/data/kept")
    volume.write_text("/data/kept/file", "after")
    call, path = joined.write("held")
    with ThreadPoolExecutor(1) as threads:
        restoring = threads.submit(volume.restore, "first", wait=True)
        staging = path.parent.with_name("staging")
        until(lambda: any(name.startswith("restore-") for name in os.listdir(staging)))
        joined.fence(seconds=0.0)
        with pytest.raises(errors.HostUnreachable, match="the node lost its server"):
            restoring.result(60)
    with pytest.raises(errors.WorkerDied):
        call.result(60)
    joined.fence(seconds=600)
    assert volume.read_text("/data/kept/file") == "after"
    volume.restore("first")
    assert volume.read_text("/data/kept/file") == "before"


class _Launcher:
    """A launcher without sandboxes."""

    def __init__(self) -> None:
        self.fence = fence.Fence()
        self.ended = asyncio.Event()

    def move_fence(self, until: float | None) -> None:
        self.fence.until = until

    async def end_served(self) -> int:
        self.ended.set()
        return 0


async def _cut(_until: float) -> None:
    """Have no file system to cut off."""


class _Engine:
    def give_up(self, *_: Any) -> None:
        """Have nothing to give up."""


def test_a_daemon_that_drains_beside_another_one_learns_of_renewals(tmp_path: Path) -> None:
    """The moment that the other was told last is in a file; it ends what it has when that has passed."""

    async def scenario() -> None:
        engine: Any = _Engine()
        old, new = (_Launcher() for _ in range(2))
        drains = NodeFence(engine, cast("Any", old), _cut, tmp_path / "joined")
        moment = fence.now() + 0.3
        await drains.move({"until": moment})
        told = NodeFence(engine, cast("Any", new), _cut, tmp_path / "joined")
        assert new.fence.passed, "it has not been told yet"
        await told.move({"until": moment + 0.5})
        await asyncio.wait_for(old.ended.wait(), 60)
        assert fence.now() >= moment + 0.5
        assert old.fence.until == pytest.approx(moment + 0.5)
        await told.move({})
        assert new.fence.until is None
        assert not (tmp_path / "joined").exists()
        for one in (drains, told):
            one.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("passes", [False, True])
def test_a_sandbox_that_is_being_made_does_not_begin_after_the_fence(tmp_path: Path, *, passes: bool) -> None:
    """Its gate stays closed, whatever the orphan killer does meanwhile; no other one is started."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)

    async def scenario() -> None:
        options = Settings(tmp_path)
        launcher, identity = Launcher(options), Identities(options).user("someone")
        command = ["sh", "-c", "echo written > /out/file"]
        policy = confine(
            command,
            machine=launcher.machine,
            identity=identity,
            binds=[Bind(str(out), "/out", writable=True)],
            environment=(),
            workdir="/",
            own_pids=True,
        )
        launcher._orphan_pipe._killer.tell = lambda _: True  # type: ignore[assignment]  # it knows of no fence

        async def begin(_pid: int, _place: int) -> None:
            if passes:
                launcher.move_fence(fence.now())

        launcher._pid_ranges.begin = begin  # type: ignore[assignment]
        launcher.move_fence(fence.now() + 600)
        sandbox = launcher.launch(policy)
        await sandbox.wait()
        assert (out / "file").exists() is not passes
        if passes:
            with pytest.raises(errors.HostUnreachable):
                launcher.launch(policy)
        launcher.abandon()

    asyncio.run(scenario())
