"""State files of a cluster on a disk that is full, or can only be read: the error is clear, nothing is lost, and then it works."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, settings
from atoll.daemon.joined.fence import NodeFence
from atoll.node.shared import client, marker
from atoll.node.shared.keeper import Keeper
from atoll.sandbox import fence
from atoll.server.accounts.bodies import NewUser
from atoll.server.accounts.direct import Direct
from atoll.server.machines.copies import Copies
from atoll.server.member import joined
from atoll.server.nodes import live
from atoll.server.process import lock

from ..conftest import Home, needs_outbound, own_home
from ..waiting import soak, until
from .certificates import Authority
from .members import Member
from .process import Server, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a plain user mounts no disks")

OWN_MOUNTS = "ATOLL_TEST_OWN_MOUNTS"
BROKEN = ("full", "read-only")


@dataclass
class Disk:
    """A small disk of its own."""

    path: Path

    def spoil(self, how: str) -> None:
        """Let nothing more be written."""
        if how == "read-only":
            self._remount("ro")
            return
        with contextlib.suppress(OSError), open(self.path / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with contextlib.suppress(OSError), open(self.path / "filler", "ab", buffering=0) as file:
            while True:
                file.write(bytes(1))

    def mend(self) -> None:
        """Let it be written again."""
        self._remount("rw")
        (self.path / "filler").unlink(missing_ok=True)

    def _remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)


@contextlib.contextmanager
def mounted(path: Path, size: str) -> Iterator[Disk]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "atoll-test", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path, "1m") as found:
        for name in ("run", "logs", "node"):
            (tmp_path / name).mkdir(mode=0o700)
        yield found


def files(path: Path) -> dict[str, bytes]:
    """Return all files, by name, but for that which fills the disk."""
    found = (one for one in path.rglob("*") if one.is_file() and one.name != "filler")
    return {str(one.relative_to(path)): one.read_bytes() for one in found}


@pytest.mark.parametrize("how", BROKEN)
def test_credentials_of_a_machine_stay(disk: Disk, how: str) -> None:
    """New ones are refused by name, the old ones are whole, and no file is left; then they are written."""
    old, new = (
        joined.Joined("https://lab.example", name, "secret", "lab", {"a": "b" * 300}) for name in ("old", "new")
    )
    joined.write(disk.path, old)
    before = files(disk.path)
    disk.spoil(how)
    with pytest.raises(errors.StateUnusable, match="cannot write") as refused:
        joined.write(disk.path, new)
    assert "make room" in refused.value.hint
    assert files(disk.path) == before
    assert joined.read(disk.path) == old
    disk.mend()
    joined.write(disk.path, new)
    assert joined.read(disk.path) == new


@pytest.mark.parametrize("how", BROKEN)
def test_the_identity_of_the_volumes_is_written_whole_or_not(disk: Disk, how: str) -> None:
    """A machine that cannot note it says so, and does not take the file system for another one afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        os.chmod(shared, 0o755)
        made = marker.create(Path(shared))
        (disk.path / "settings.toml").write_text(f'[storage]\nfilesystem = "path"\npath = "{shared}"\n')
        options = settings.load(disk.path)
        disk.spoil(how)
        with pytest.raises(errors.VolumesUnavailable, match="cannot write"):
            marker.check(options)
        assert not (disk.path / marker.KNOWN).exists()
        disk.mend()
        assert marker.check(options) == made == marker.check(options)


@pytest.mark.parametrize("how", BROKEN)
def test_removals_that_machines_have_missed_stay(disk: Disk, how: str) -> None:
    """One that cannot be kept is an error, after the machines that are there have done it; those of before are kept."""

    class Node:
        def __init__(self) -> None:
            self.asked: list[Any] = []

        async def ask(self, _principal: Any, _name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            self.asked.append(arguments["user"])
            return {"kept": ""}

    async def no_quotas() -> list[dict[str, Any]]:
        return []

    async def scenario() -> None:
        here, away = Node(), Node()
        copies = Copies(here, disk.path / "missed.json", no_quotas)

        async def remove(user: str) -> None:
            await copies.everywhere({"here": here}, ["away"], "users.remove", {"user": user})

        await remove("ann")
        before = files(disk.path)["missed.json"]
        disk.spoil(how)
        with pytest.raises(errors.StateUnusable, match="cannot write"):
            await remove("bob")
        assert files(disk.path)["missed.json"] == before
        disk.mend()
        await remove("bob")
        await copies.make_up("away", away)
        assert here.asked == ["ann", "bob", "bob"]
        assert away.asked == ["ann", "bob"]
        assert copies.missing() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("how", BROKEN)
def test_the_fence_moves_on_a_spoiled_disk(disk: Disk, how: str) -> None:
    """A lease that has begun is renewed; a first one is refused, since a later daemon would not know of it."""

    class Launcher:
        def __init__(self) -> None:
            self.fence = fence.Fence()

        def move_fence(self, until: float | None) -> None:
            self.fence.until = until

        async def end_served(self) -> int:
            return 0

    async def cut(_until: float) -> None:
        """Have no file system to cut off."""

    async def scenario() -> None:
        launcher: Any = Launcher()
        engine: Any = None
        file = disk.path / "run" / fence.FILE
        begun = NodeFence(engine, launcher, cut, file)
        await begun.move({"seconds": 60})
        disk.spoil(how)
        moved = (await begun.move({"seconds": 120}))["until"]
        assert launcher.fence.until == moved
        if how == "full":
            assert fence.told(file) == pytest.approx(moved)
        else:
            first = NodeFence(engine, Launcher(), cut, file.with_name("another"))  # type: ignore[arg-type]
            with pytest.raises(errors.StateUnusable, match="cannot write"):
                await first.move({"seconds": 60})
        disk.mend()
        await begun.move({"seconds": 180})
        assert fence.told(file) == pytest.approx(launcher.fence.until)
        await begun.move({})
        assert not file.exists()
        begun.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", BROKEN)
def test_the_keeper_of_a_mount_goes_on(disk: Disk, how: str) -> None:
    """It does not end, and with it the mount, because it cannot say how it is; what it said before stays readable."""
    options = settings.load(disk.path)
    keeper = Keeper(options, -1)
    keeper._tell("mounting", program=5)
    disk.spoil(how)
    keeper._tell("mounted")
    assert client.mount_state(options)["program"] == 5
    disk.mend()
    keeper._tell("lost")
    assert client.mount_state(options)["state"] == "lost"
    assert list(files(disk.path)) == ["run/mount.json"]


@pytest.mark.parametrize("how", BROKEN)
def test_files_of_a_server_for_others_are_replaced_whole(disk: Disk, how: str) -> None:
    """Its address is refused by name, rows of machines are left as they were; both are written afterwards."""
    options, rows = settings.load(disk.path), disk.path / "run" / live.SHARED_FILE
    lock.describe(options, "https://before")
    live._share(rows, b"[]")
    before = files(disk.path)
    disk.spoil(how)
    with pytest.raises(errors.StateUnusable, match=r"cannot write .*server\.json"):
        lock.describe(options, "https://after")
    live._share(rows, b"[1]" * 5000)
    lock.forget(settings.load(disk.path)) if how == "full" else None
    disk.mend()
    assert {**before, **files(disk.path)} == before
    lock.describe(options, "https://after")
    assert lock.url_for_machines(options.run_directory) == "https://after"


@pytest.mark.parametrize("how", BROKEN)
def test_rows_of_the_servers_database_are_written_or_refused(disk: Disk, how: str) -> None:
    """A user who cannot be kept is an error of the disk's; those of before are there, and the next one is added."""
    with Direct(disk.path) as accounts:
        accounts.add_user(NewUser("first"))
    disk.spoil(how)
    with pytest.raises((errors.DiskFull, errors.StateUnusable)) as refused:
        add_users(disk.path, 200)  # SQLite has free pages for some
    assert refused.value.hint
    disk.mend()
    with Direct(disk.path) as accounts:
        accounts.add_user(NewUser("last"))
        names = [one.name for one in accounts.list_users().users]
    assert {"first", "last"} <= set(names)
    assert len(names) < 202


def add_users(home: Path, count: int) -> None:
    with Direct(home) as accounts:
        for number in range(count):
            accounts.add_user(NewUser(f"user-{number}"))


# --- processes, in a mount namespace of their own: others would get copies of the disk ---------------------------------


@pytest.mark.skipif(not soak(short=False, long=True), reason="takes half a minute; SOAK=1 runs it")
def test_processes_on_full_disks() -> None:
    """The two tests below pass where no other process sees their disks."""
    inside = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--tb=short",
    ]
    inside += ["-p", "no:cacheprovider", "-p", "no:xdist", "-k", "whose_disk_is_full", __file__]
    done = subprocess.run(
        inside,
        env={**os.environ, OWN_MOUNTS: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "2 passed" in done.stdout, done.stdout[-5000:]


alone = pytest.mark.skipif(OWN_MOUNTS not in os.environ, reason="run by `test_processes_on_full_disks`")


@contextlib.contextmanager
def home_on_disk() -> Iterator[tuple[Home, Disk]]:
    """Make a state directory on a disk of its own, which is gone after its processes."""
    with own_home(library_there=False) as home, mounted(home.path, "300m") as disk:
        try:
            yield home, disk
        finally:
            disk.mend()
            home.stop()
            assert home.wait_processes() == []


@alone
@needs_outbound
def test_a_machine_whose_disk_is_full_keeps_its_lease() -> None:
    """It stays linked; one that begins then says why it cannot, and does when there is room, with its credentials."""
    with running(own_data=True) as server, home_on_disk() as (home, disk):
        member = Member(server, home, "small")
        (home.path / "settings.toml").write_text((server.home.path / "settings.toml").read_text())
        token = server.ask("POST", "/v1/nodes/tokens", b"{}")[1]["token"]
        try:
            member.begin("join", server.url, "--token", token, "--name", "small", "--ca-file", str(server.ca_file))
            member.wait()
            kept, told = joined.read(home.path), home.path / "run" / fence.FILE
            disk.spoil("full")
            before = until(lambda: fence.told(told)) or 0.0
            until(lambda: (fence.told(told) or 0.0) > before)
            member.end()
            refused = home.atoll("node", "run", check=False)
            assert refused.returncode == 1
            assert "no space left" in refused.stderr
            assert "free some space" in refused.stderr
            disk.mend()
            member.start()
            assert joined.read(home.path) == kept
        finally:
            member.end()
            member.process.close()


@alone
@needs_outbound
def test_a_server_whose_disk_is_full_says_so() -> None:
    """An act that must be kept is refused with the reason; the server goes on, and the next act works."""
    with home_on_disk() as (home, disk), tempfile.TemporaryDirectory() as directory:
        server = Server(home, Authority(Path(directory)))

        def make_token() -> tuple[int, Any]:
            return server.ask("POST", "/v1/nodes/tokens", b"{}")

        try:
            server.start()
            assert make_token()[0] == 201
            disk.spoil("full")
            status, answer = until(lambda: found if (found := make_token())[0] != 201 else None) or (0, {})
            assert (status, answer["error"]["code"]) == (507, "disk_full"), answer
            assert server.ask("GET", "/v1/nodes")[0] == 200
            disk.mend()
            assert make_token()[0] == 201
        finally:
            server.end()
            server.process.close()
