"""A hostile function that changes the volume while storage peers work on it: swaps, renames, special files.

The peers are threads without a sandbox, so that a symlink that one follows leads to real files of this machine. The
function is a process, which exchanges names as fast as the kernel does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll import linux
from atoll.errors import AtollError
from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync.client import SyncOptions
from atoll.wire.channel import Channel

from ..volumes import serving
from ..waiting import soak

pytestmark = pytest.mark.as_user

SECRET = b"of the machine"
COPIES, SYNCS, RESTORES = soak((60, 10, 6), (2000, 100, 50))
SYNC_STEPS = ("scanned", "resumed", "received", "staged", "linked", "synced")
RESTORE_STEPS = ("snapshot_began", "snapshot_staged", "restore_began", "restore_staged", "restore_noted")


@pytest.fixture
def machine_files(tmp_path: Path) -> Path:
    """A directory outside of the volume, whose files nothing may read or change."""
    path = tmp_path / "machine"
    (path / "sub").mkdir(parents=True)
    for name in ("file", "sub/file", "sub/other"):
        (path / name).write_bytes(SECRET)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The volume as functions see it, with a tree in it."""
    path = tmp_path / "volume/data"
    (path / "tree/sub/deep").mkdir(parents=True)
    (path / ".snapshots").mkdir()
    for name in ("file", "sub/file", "sub/other", "sub/deep/file"):
        (path / "tree" / name).write_bytes(b"of the volume" * 1000)
    return path


@contextlib.contextmanager
def hostile(data: Path, machine_files: Path) -> Iterator[None]:
    """Exchange a tree's directories and files with symlinks, fifos and sockets while the block runs."""
    tree, place = data / "tree", data / "swaps"
    place.mkdir()
    (place / "sub").symlink_to(machine_files / "sub")
    (place / "deep").symlink_to(machine_files)
    (place / "file").symlink_to(machine_files / "file")
    (place / "other").symlink_to("/dev/zero")
    os.mkfifo(place / "fifo")
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    # By open directories: the symlinks that it plants must not lead this process itself to the machine's files.
    top, sub, deep, aside = (os.open(path, os.O_RDONLY) for path in (tree, tree / "sub", tree / "sub/deep", place))
    swaps = [(top, "sub", "sub"), (sub, "deep", "deep"), (top, "file", "file"), (sub, "file", "fifo")]
    swaps += [(sub, "other", "socket"), (sub, "other", "other"), (deep, "file", "fifo")]
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            while os.getppid() == parent:
                for directory, one, other in swaps:
                    with contextlib.suppress(OSError):
                        linux.exchange(directory, one, aside, other)
        finally:
            os._exit(1)
    for descriptor in (top, sub, deep, aside):
        os.close(descriptor)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def untouched(machine_files: Path) -> bool:
    files = sorted(str(path.relative_to(machine_files)) for path in machine_files.rglob("*"))
    return files == ["file", "sub", "sub/file", "sub/other"] and all(
        (machine_files / name).read_bytes() == SECRET for name in ("file", "sub/file", "sub/other")
    )


def test_get_brings_nothing_of_the_machine(data: Path, machine_files: Path, tmp_path: Path) -> None:
    """Copies of a tree whose parts become symlinks, fifos and devices hold files of the volume alone, and end."""
    (data / "tree/sub/file").chmod(0o6755)
    (data / "tree/sub/deep").chmod(0o3777)
    brought = 0
    with serving(data.parent) as sock, VolumeClient(Channel(sock)) as client, contextlib.ExitStack() as stack:
        for turn in range(COPIES):
            local = tmp_path / f"copy-{turn}"
            with contextlib.suppress(AtollError, OSError):
                client.get("tree", str(local))
            if turn == 0:
                stack.enter_context(hostile(data, machine_files))
            for path in local.rglob("*") if local.exists() else ():
                mode = path.lstat().st_mode
                assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
                assert stat.S_ISLNK(mode) or not mode & 0o7000, path
                if stat.S_ISREG(mode):
                    assert path.read_bytes() == b"of the volume" * 1000
                    brought += 1
    assert untouched(machine_files)
    assert brought >= 4


def test_sync_changes_nothing_of_the_machine(data: Path, machine_files: Path, tmp_path: Path) -> None:
    """Syncs to a target whose directories become symlinks write into the volume alone; the last one is whole."""
    source = tmp_path / "source"
    (source / "sub/deep").mkdir(parents=True)
    names = ("file", "sub/file", "sub/other", "sub/deep/file")
    ended = 0
    with serving(data.parent) as sock, VolumeClient(Channel(sock)) as client:
        with hostile(data, machine_files):
            for turn in range(SYNCS):
                for name in names:
                    (source / name).write_bytes(b"%d of the source" % turn)
                with contextlib.suppress(AtollError, OSError):
                    client.sync(str(source), "tree", SyncOptions())
                    ended += 1
        client.sync(str(source), "tree", SyncOptions())
    assert untouched(machine_files)
    assert {(data / "tree" / name).read_bytes() for name in names} == {b"%d of the source" % (SYNCS - 1)}
    assert not (data / "tree/sub").is_symlink()


def test_restore_changes_nothing_of_the_machine(data: Path, machine_files: Path) -> None:
    """Snapshots and restores of a directory that becomes a symlink neither read nor replace what it leads to."""
    trees = data.parent / "snapshots/trees"
    with serving(data.parent, DAEMON) as sock, VolumeClient(Channel(sock)) as client:
        client.snapshot("whole", "/data/tree")
        with hostile(data, machine_files):
            for turn in range(RESTORES):
                with contextlib.suppress(AtollError, OSError):
                    client.snapshot(f"s{turn}", "/data/tree/sub")
                restore(client, "whole")
                restore(client, f"s{turn}")
    assert untouched(machine_files)
    for path in trees.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            assert path.read_bytes() == b"of the volume" * 1000, path
    assert sorted(path.name for path in (trees / "whole").iterdir()) == ["file", "sub"]


@contextlib.contextmanager
def swapped_at(step: str, data: Path, machine_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace directories of the tree by symlinks to the machine's files when a peer reaches a step, once."""
    done: list[str] = []

    def report(name: str, _: object) -> None:
        if name == step and not done:
            done.append(name)
            os.rename(data / "tree/sub/deep", data / "deep")
            (data / "tree/sub/deep").symlink_to(machine_files / "sub")
            os.rename(data / "tree/sub", data / "sub")
            (data / "tree/sub").symlink_to(machine_files / "sub")

    with monkeypatch.context() as patched:
        patched.setattr(crash_points, "_report", report)
        yield done


@pytest.mark.parametrize("step", SYNC_STEPS)
def test_a_swap_at_any_step_of_a_sync_leads_nowhere(
    data: Path, machine_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Directories of the target that become symlinks at a step of a sync are replaced or refused, never entered."""
    source = tmp_path / "source"
    shutil.copytree(data / "tree", source)
    with serving(data.parent) as sock, VolumeClient(Channel(sock)) as client:
        client.sync(str(source), "tree", SyncOptions())
        (source / "sub/file").write_bytes(b"new")
        (source / "sub/deep/new").write_bytes(b"new")
        os.unlink(source / "sub/other")
        with swapped_at(step, data, machine_files, monkeypatch) as done:
            with contextlib.suppress(AtollError, OSError):
                client.sync(str(source), "tree", SyncOptions())
            assert done
        assert untouched(machine_files)
        client.sync(str(source), "tree", SyncOptions())
    assert untouched(machine_files)
    assert (data / "tree/sub/deep/new").read_bytes() == b"new"


@pytest.mark.parametrize("step", RESTORE_STEPS)
def test_a_swap_at_any_step_of_a_restore_leads_nowhere(
    data: Path, machine_files: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Directories that become symlinks at a step of a snapshot or restore are neither copied from nor replaced."""
    trees = data.parent / "snapshots/trees"
    with serving(data.parent, DAEMON) as sock, VolumeClient(Channel(sock)) as client:
        client.snapshot("before", "/data/tree/sub")
        with swapped_at(step, data, machine_files, monkeypatch) as done:
            with contextlib.suppress(AtollError, OSError):
                client.snapshot("at", "/data/tree/sub")
            restore(client, "before")
            assert done
    assert untouched(machine_files)
    assert SECRET not in [path.read_bytes() for path in trees.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]


def restore(client: VolumeClient, name: str) -> None:
    """Restore a snapshot as the daemon does, or be refused."""
    channel = client.connection.channel
    channel.send({"type": "restore", "name": name})
    last = ""
    while (answer := channel.receive().header["type"]) not in ("done", "error"):
        if answer in ("ready", "busy"):
            last = "commit" if answer == "ready" else "again"
            channel.send({"type": last})
    if answer == "error" and last != "commit":
        channel.send({"type": "abort"})
