"""Two machines with daemons of their own share every user's `/data`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, settings
from atoll.cli.data import filesystem
from atoll.host.local import LocalHost
from atoll.node.shared import juicefs
from atoll.node.shared.client import mount_state
from atoll.node.shared.marker import identity
from atoll.sdk.data.sync import sync_dir
from atoll.sdk.data.volume import Volume
from atoll.storage.snapshots.values import JUICEFS

from ..leaks import release_idle
from ..waiting import PATIENCE_SECONDS, ended, soak, until
from . import shared_disk
from .shared_disk import Disk, Machine


@pytest.fixture
def hosts(machines: tuple[Machine, Machine]) -> Iterator[tuple[LocalHost, LocalHost]]:
    """The hosts of both machines."""
    one, other = (LocalHost(machine.path) for machine in machines)
    yield one, other
    release_idle()


def on(host: LocalHost, function: Any, **options: Any) -> Any:
    """Return a function that runs on a host."""
    return isolated(host=host, **options)(function)


def write(path: str, text: str) -> tuple[int, int]:
    """Write a file; return uid and inode."""
    with open(path, "w") as file:
        file.write(text)
    found = os.stat(path)
    return found.st_uid, found.st_ino


def read(path: str) -> tuple[str, int, int]:
    """Read a file; return uid and inode too."""
    with open(path) as file:
        text = file.read()
    found = os.stat(path)
    return text, found.st_uid, found.st_ino


def read_in(directory: int, name: str) -> str:
    """Read a small file of an open directory."""
    descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(descriptor, 1000).decode()
    finally:
        os.close(descriptor)


def read_pairs(path: str) -> int:
    """Read two files of each version of a tree until the last has come; return how many versions were seen."""
    import os

    seen = set()
    while not os.path.exists("/data/go"):
        directory = os.open(path, os.O_RDONLY)
        try:
            names = sorted(os.listdir(directory))
            pair = {read_in(directory, name) for name in names}
        except FileNotFoundError:  # the whole tree was replaced and removed meanwhile
            continue
        finally:
            os.close(directory)
        assert len(pair) == 1, pair
        assert len(names) == 40, names
        seen |= pair
    return len(seen)


def wait_for(path: str) -> str:
    """Wait until a file exists, and read it."""
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    with open(path) as file:
        return file.read()


def test_a_function_reads_what_one_on_another_machine_wrote(
    hosts: tuple[LocalHost, LocalHost], machines: tuple[Machine, Machine]
) -> None:
    """A file that is closed on one machine is read on the other at once, with one owner, and replaced likewise."""
    one, other = hosts
    for number in range(5):
        uid, inode = on(one, write)("/data/note.txt", f"version {number}")
        assert on(other, read)("/data/note.txt") == (f"version {number}", uid, inode)
    assert on(other, write)("/data/note.txt", "back")[0] == uid
    assert on(one, read)("/data/note.txt")[0] == "back"
    first, second = (identity(settings.load(machine.path)) for machine in machines)
    assert first == second != ""
    state = json.loads(machines[0].atoll("data", "filesystem", "status", "--json").stdout)
    assert (state["works"], state["identity"], state["kind"]) == (True, first, "fuse.juicefs")


def test_a_sync_on_one_machine_is_seen_whole_on_the_other(hosts: tuple[LocalHost, LocalHost], tmp_path: Path) -> None:
    """A function that reads on one machine while the other syncs finds old or new trees, never a mixture."""
    one, other = hosts
    source = tmp_path / "tree"
    source.mkdir()

    def make(version: int) -> None:
        for number in range(40):
            (source / f"f{number:02}").write_text(f"version {version}")

    make(0)
    sync_dir(source, "/data/tree", host=one)
    reading = on(other, read_pairs).submit("/data/tree")
    for version in range(1, 6):
        make(version)
        sync_dir(source, "/data/tree", host=one)
    on(one, write)("/data/go", "")
    assert reading.result(PATIENCE_SECONDS) >= 1
    assert on(other, read)("/data/tree/f00")[0] == "version 5"
    Volume(one).remove("/data/go")


def test_a_snapshot_is_restored_when_no_machine_uses_the_volume(
    hosts: tuple[LocalHost, LocalHost], machines: tuple[Machine, Machine]
) -> None:
    """A restore is refused while another machine has sandboxes, by that machine's name, and works when they are gone."""
    one, other = hosts
    Volume(one).write_text("/data/kept/file", "before")
    snapshot = Volume(one).snapshot("first", "/data/kept")
    assert snapshot.way == JUICEFS
    Volume(other).write_text("/data/kept/file", "after")
    waiting = on(other, wait_for).submit("/data/kept/go")
    until(lambda: list((machines[0].root / "use" / "local").glob("*-*")))
    with pytest.raises(errors.VolumeBusy, match="use the volume") as refused:
        Volume(one).restore("first")
    assert refused.value.details["hosts"] == [os.uname().nodename]
    Volume(one).write_text("/data/kept/go", "now")
    assert waiting.result(PATIENCE_SECONDS) == "now"
    release_idle()
    machines[1].stop()
    Volume(one).restore("first")
    assert Volume(other).read_text("/data/kept/file") == "before"


def test_a_mount_that_dies_is_named_and_mounted_again(
    hosts: tuple[LocalHost, LocalHost], machines: tuple[Machine, Machine]
) -> None:
    """After a SIGKILL of all of JuiceFS, calls fail by name until it is mounted again, and then work."""
    one, other = hosts
    on(one, write)("/data/note.txt", "before")
    waiting = on(one, wait_for).submit("/data/never")
    until(lambda: list((machines[0].root / "use" / "local").glob("*-*")))
    state = mount_state(settings.load(machines[0].path))
    program = state["program"]
    os.killpg(program, signal.SIGKILL)
    with pytest.raises((errors.WorkerDied, OSError)):  # the function's own error, or the end of its sandbox
        waiting.result(PATIENCE_SECONDS)
    until(lambda: mount_state(settings.load(machines[0].path))["mounts"] > state["mounts"])

    def works() -> bool:
        with contextlib.suppress(OSError):
            return bool(on(one, read)("/data/note.txt")[0] == "before")
        return False

    until(works)
    assert "in order" in machines[0].atoll("status").stdout
    assert on(other, read)("/data/note.txt")[0] == "before"


def test_leftovers_of_a_daemon_are_removed_when_it_is_dead(
    hosts: tuple[LocalHost, LocalHost], machines: tuple[Machine, Machine]
) -> None:
    """A daemon that was killed leaves no mount and no hold on a volume: the other's restore removes its mark."""
    one, other = hosts
    Volume(one).write_text("/data/kept/file", "before")
    Volume(one).snapshot("second", "/data/kept")
    on(other, read)("/data/kept/file")
    release_idle()
    machines[0].stop()
    pid = machines[1].daemon_pid()
    assert pid is not None
    marks = Path("use", "local")
    until(lambda: (machines[1].root / marks).exists())
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    assert machines[1].wait_processes() == []
    assert not machines[1].root.joinpath("volumes").exists()
    Volume(one).restore("second")
    assert sorted(os.listdir(machines[0].root / marks)) == ["gate"]


def test_a_path_is_shared_by_machines_that_mount_it(disk: Disk) -> None:
    """Daemons on a shared path, mounted by somebody else, share volumes as those that mount it themselves."""
    with disk.mounted() as one, disk.mounted() as other:
        options = ['[storage]\nfilesystem = "path"\npath = "' + str(mount / "lab") + '"\n' for mount in (one, other)]
        (one / "lab").mkdir()
        with shared_disk.machine(disk, options[0]) as here, shared_disk.machine(disk, options[1]) as there:
            here.atoll("data", "filesystem", "init")
            uid, inode = on(LocalHost(here.path), write)("/data/note.txt", "shared")
            assert on(LocalHost(there.path), read)("/data/note.txt") == ("shared", uid, inode)
            release_idle()


def test_volumes_that_stay_on_the_own_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that has volumes already says that their users see an empty `/data`, until they are there."""
    home, shared = tmp_path / "home", tmp_path / "shared"
    (home / "volumes" / "ann").mkdir(parents=True)
    home.chmod(0o700)
    shared.mkdir()
    (home / "settings.toml").write_text(f'[storage]\nfilesystem = "path"\npath = "{shared}"\n')
    monkeypatch.setenv("ATOLL_HOME", str(home))
    assert filesystem.init() == 0
    assert "note: 1 volume in" in capsys.readouterr().err
    (shared / "volumes" / "ann").mkdir()
    assert filesystem.init() == 0
    assert "note:" not in capsys.readouterr().err


def test_a_file_system_that_could_lose_data_is_refused(disk: Disk) -> None:
    """JuiceFS that keeps removed contents for 0 days is not used, and the error says why and what to do."""
    with shared_disk.made() as own, shared_disk.machine(own) as machine:
        machine.atoll("data", "filesystem", "init")
        line = [juicefs.find_program(), "config", own.metadata, "--trash-days", "0", "--yes"]
        subprocess.run(line, check=True, capture_output=True)
        with pytest.raises(errors.VolumesUnavailable, match="has lost data") as refused:
            on(LocalHost(machine.path), time.time)()
        assert "--trash-days 1" in refused.value.hint


def test_a_machine_without_the_file_system_runs_nothing(disk: Disk, tmp_path: Path) -> None:
    """A directory without a marker is not used: a disk that is not mounted is no empty volume."""
    (tmp_path / "settings.toml").write_text(f'[storage]\nfilesystem = "path"\npath = "{tmp_path / "shared"}"\n')
    (tmp_path / "shared").mkdir()
    with pytest.raises(errors.VolumesUnavailable, match="never prepared"):
        on(LocalHost(tmp_path), time.time)()
    assert os.listdir(tmp_path / "shared") == []


def fill(path: str, size: int) -> str:
    """Write a file in pieces until it is large enough, or the file system refuses; return the error's name."""
    import errno

    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_a_quota_holds_on_all_machines(hosts: tuple[LocalHost, LocalHost]) -> None:
    """A quota that is set on one machine refuses writes on the other, to functions and by name to clients."""
    one, other = hosts
    found = one.request("quotas.set", {"user": "local", "bytes": 4 << 20, "files": 0})
    assert (found["bytes"], found["kind"]) == (4 << 20, "juicefs")
    try:
        until(lambda: on(other, fill)("/data/large", 8 << 20) == "EDQUOT")  # JuiceFS tells its mounts in seconds
        with Volume(other) as volume, pytest.raises(errors.QuotaExceeded, match=r"of 4\.0 MiB"):
            volume.write_bytes("/data/more", os.urandom(8 << 20))
        Volume(other).remove("/data/large")
    finally:
        one.request("quotas.set", {"user": "local", "bytes": 0, "files": 0})
    if soak(short=False, long=True):
        until(lambda: on(other, fill)("/data/large", 8 << 20) == "")


def test_machines_are_compared_by_their_settings(machines: tuple[Machine, Machine]) -> None:
    """The command mounts what the settings name on both sides, tells its conclusion, and leaves no mount."""
    one, other = machines
    release_idle()
    for machine in machines:
        machine.stop()
        assert machine.wait_processes() == []
    peer = f"env ATOLL_HOME={other.path} {Path(sys.executable).with_name('atoll')}"
    done = one.atoll("doctor", "--data", "--peer", peer)
    assert "everything that `/data` on both machines needs works" in done.stdout
    assert "in one step" in done.stdout
    assert one.wait_processes() == other.wait_processes() == []
