"""Snapshots and restores on real file systems, and whatever kills them: each is made whole, or was never there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import AtollError, DiskFull
from atoll.storage import crash_points
from atoll.storage.client.contents import OpenFile
from atoll.storage.client.volume import VolumeClient
from atoll.storage.peer.main import main as peer_main
from atoll.storage.protocol.connection import error_of
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.snapshots.archive import Archive
from atoll.storage.sync.cleanup import clean
from atoll.storage.sync.client import SyncOptions
from atoll.storage.volume.locks import target_key
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel, ChannelClosed

from ..conftest import find_tool
from ..waiting import soak, until
from .test_sync import snapshot as seen

MOMENTS = soak(20, 100)
KEPT = ("locks", "index-", "old-", "restored")


class _Killer:
    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self, _: str, __: dict[str, Any]) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


class Lab:
    """Peers of one volume, each a process of its own that dies when it is told to.

    Args:
        volume: an empty directory.
    """

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.data = volume / "data"
        self.trees = volume / "snapshots/trees"
        self.pids: list[int] = []

    def fill(self) -> None:
        """Make a few files of every kind that snapshots keep."""
        (self.data / "d/e").mkdir(parents=True)
        for name in ("a", "d/b", "d/e/c"):
            (self.data / name).write_text(name)
        (self.data / "l").symlink_to("d/b")
        os.link(self.data / "a", self.data / "d/again")
        (self.data / "d/e").chmod(0o555)
        os.utime(self.data / "d/b", (5, 5))

    def change(self) -> None:
        """Change it in place, and otherwise."""
        with open(self.data / "a", "r+") as file:
            file.write("A")
        (self.data / "d/b").unlink()
        (self.data / "new").write_text("new")

    @contextlib.contextmanager
    def peer(self, die_at: int = -1, act: Callable[[str, dict[str, Any]], None] | None = None) -> Iterator[Any]:
        """Give a channel to a peer that dies at its step number `die_at`, or calls `act` at each, and its pid."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                if die_at >= 0 or act is not None:
                    crash_points.arm(act or _Killer(die_at))
                status = peer_main([str(theirs.fileno()), DAEMON, str(self.volume)])
            finally:
                os._exit(status)
        theirs.close()
        channel = Channel(ours)
        try:
            yield channel, pid
        finally:
            channel.close()
            self.status = os.waitpid(pid, 0)[1]

    def ask(self, request: dict[str, Any], die_at: int = -1) -> bool:
        """Ask a peer for something, and say `commit` when it is ready; return whether it lived to answer."""
        with self.peer(die_at) as (channel, _):
            try:
                converse(channel, request)
            except (ChannelClosed, OSError) as error:
                if isinstance(error, AtollError):
                    raise
                return False
        return self.status == 0

    def recover(self) -> None:
        """Have the next peer come, which finishes or drops what the last one has left."""
        with VolumeRoot(str(self.volume)) as volume:
            clean(volume)
            archive = Archive(volume)
            archive.recover()
            archive.close()

    def kept_of_restores(self) -> list[str]:
        """Return the snapshots that restores have made."""
        return [name for name in os.listdir(self.trees) if name.startswith("before-restore-")]

    def leftovers(self) -> list[str]:
        """Return what is there besides snapshots, their records and trees that wait to be removed."""
        left = [name for name in os.listdir(self.volume / "staging") if not name.startswith(KEPT)]
        names = os.listdir(self.trees)
        for record in os.listdir(self.volume / "snapshots/records"):
            left += [record] if record.rpartition(".")[0] not in names else []
        locks = os.listdir(self.volume / "staging/locks")
        return left + [name for name in locks if name.startswith(("snapshot-", "restore-", "name-"))]


def converse(channel: Channel, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one request as the daemon does; return the headers of the answer."""
    channel.send(request)
    answers: list[dict[str, Any]] = []
    while not answers or answers[-1]["type"] != "done":
        message = channel.receive()
        if message.type == "error":
            if not any(header["type"] == "ready" for header in answers):
                channel.send({"type": "abort"})
            raise error_of(message)
        if message.type == "ready":
            channel.send({"type": "commit"})
        answers.append(message.header)
    return answers


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab on a fresh volume."""
    (tmp_path / "volume").mkdir()
    made = Lab(tmp_path / "volume")
    made.fill()
    return made


def whole(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Read all that is to be kept, but for the place where snapshots are mounted and the root's own time."""
    found = seen(root)
    return {name: entry for name, entry in found.items() if name not in (b"", b"/.snapshots")}


def test_a_snapshot_that_is_killed_at_any_step_is_there_whole_or_not_at_all(lab: Lab) -> None:
    """Whatever step its peer dies at, the name stands for all or for nothing, live data is as it was, and the next
    peer leaves nothing of it."""
    before = whole(lab.data)
    made = []
    for number in range(100):
        name = f"s{number}"
        done = lab.ask({"type": "snapshot", "path": "", "name": name}, number)
        there = (lab.trees / name).exists()
        made.append(there)
        if there:
            assert whole(lab.trees / name) == before
        lab.recover()
        assert (lab.trees / name).exists() == there
        assert not lab.leftovers()
        assert whole(lab.data) == before
        if done:
            break
    assert number >= 4
    assert set(made) == {False, True}


@pytest.mark.parametrize("path", ["", "d"])
def test_a_restore_that_is_killed_at_any_step_is_done_or_undone(lab: Lab, path: str) -> None:
    """Whatever step its peer dies at, lookups find the old state or the new, and the old one is a snapshot in the
    end exactly where the new one is live."""
    target = lab.data / path
    assert lab.ask({"type": "snapshot", "path": path, "name": "s"})
    new = whole(target)
    lab.change()
    old = whole(target)
    outcomes = set()
    for number in range(100):
        kept = set(os.listdir(lab.trees))
        done = lab.ask({"type": "restore", "name": "s"}, number)
        live = whole(target)
        assert live in (old, new)
        restored = live == new
        outcomes.add(restored)
        lab.recover()
        assert whole(target) == live
        appeared = set(os.listdir(lab.trees)) - kept
        assert len(appeared) == restored
        assert all(whole(lab.trees / name) == old for name in appeared)
        assert whole(lab.trees / "s") == new
        assert not lab.leftovers()
        if done:
            break
        if restored:
            (back,) = appeared
            assert lab.ask({"type": "restore", "name": back})
    assert number >= 5
    assert outcomes == {False, True}


def test_a_removal_that_is_killed_at_any_step_is_done_or_undone(lab: Lab) -> None:
    """A snapshot is whole as long as its name is there, and nothing of it is left when it is not."""
    before = whole(lab.data)
    for number in range(100):
        assert lab.ask({"type": "snapshot", "path": "", "name": f"s{number}"})
        done = lab.ask({"type": "remove_snapshot", "name": f"s{number}"}, number)
        for name in os.listdir(lab.trees):
            assert whole(lab.trees / name) == before
        lab.recover()
        assert not lab.leftovers()
        if done:
            break
    assert number >= 2


def test_random_moments_of_death(lab: Lab) -> None:
    """Killed at a random moment of a snapshot or a restore, the volume is in one of its two states."""
    assert lab.ask({"type": "snapshot", "path": "", "name": "s"})
    new = whole(lab.data)
    lab.change()
    states = [new, whole(lab.data)]
    random.seed(5)
    for number in range(MOMENTS):
        requests = [{"type": "restore", "name": "s"}, {"type": "snapshot", "path": "", "name": f"s{number}"}]
        with lab.peer() as (channel, pid):
            channel.send(requests[number % 2])
            if number % 2 == 0:
                channel.send({"type": "commit"})
            time.sleep(random.uniform(0.0, 0.03))
            os.kill(pid, signal.SIGKILL)
        lab.recover()
        assert whole(lab.data) in states
        for name in os.listdir(lab.trees):
            assert whole(lab.trees / name) in states
        assert not lab.leftovers()


def test_what_a_restore_brings_is_apart_from_the_snapshot(lab: Lab) -> None:
    """Writes in place after a restore change neither the snapshot nor what was kept of the state before."""
    assert lab.ask({"type": "snapshot", "path": "", "name": "s"})
    new = whole(lab.data)
    lab.change()
    old = whole(lab.data)
    with lab.peer() as (channel, _):
        *_, restored, _done = converse(channel, {"type": "restore", "name": "s"})
    assert whole(lab.data) == new
    assert (lab.data / "a").samefile(lab.data / "d/again")
    for path in (lab.data / "a", lab.data / "d/e/c"):
        with open(path, "r+") as file:
            file.write("X")
    assert whole(lab.trees / "s") == new
    assert whole(lab.trees / restored["kept"]) == old


def test_a_removed_directory_is_restored_and_a_file_in_its_place_is_not_replaced(lab: Lab) -> None:
    """Where nothing stands, nothing is kept; where a file stands, the restore is refused and the file stays."""
    assert lab.ask({"type": "snapshot", "path": "d", "name": "s"})
    before = whole(lab.data / "d")
    (lab.data / "d").rename(lab.data / "elsewhere")
    with lab.peer() as (channel, _):
        answers = converse(channel, {"type": "restore", "name": "s"})
    assert answers[-2] == {"type": "restored", "kept": None}
    assert whole(lab.data / "d") == before
    (lab.data / "d").rename(lab.data / "again")
    (lab.data / "d").write_text("a file")
    with pytest.raises(NotADirectoryError), lab.peer() as (channel, _):
        converse(channel, {"type": "restore", "name": "s"})
    assert (lab.data / "d").read_text() == "a file"
    (lab.data / "d").unlink()
    (lab.data / "d").symlink_to("again")
    with pytest.raises(AtollError, match="symlink"), lab.peer() as (channel, _):
        converse(channel, {"type": "restore", "name": "s"})
    assert (lab.data / "d").is_symlink()
    assert not lab.leftovers()


def test_clients_that_were_there_before_a_restore_work_on_what_is_there_after(lab: Lab, tmp_path: Path) -> None:
    """A peer that had the volume open writes into the restored directory, not into the snapshot of the old one."""
    assert lab.ask({"type": "snapshot", "path": "", "name": "s"})
    lab.change()
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_text("x")
    with lab.peer() as (channel, _), VolumeClient(channel) as client:
        client.write("before", [b"1"])
        assert lab.ask({"type": "restore", "name": "s"})
        (kept,) = [name for name in os.listdir(lab.trees) if name != "s"]
        client.write("after", [b"2"])
        client.sync(str(source), "synced", SyncOptions())
        assert set(client.listdir()) == {"a", "d", "l", "after", "synced"}
        assert sorted(os.listdir(lab.trees / kept)) == ["a", "before", "d", "l", "new"]
        assert [entry.name for entry in client.snapshots()] == ["s", kept]


@pytest.mark.parametrize("kind", ["snapshot", "restore"])
def test_a_sync_and_a_snapshot_or_restore_take_turns(lab: Lab, tmp_path: Path, kind: str) -> None:
    """What comes while a sync has its target waits for its end: the sync is in the snapshot whole, and a restore
    undoes it whole."""
    assert lab.ask({"type": "snapshot", "path": "", "name": "s"})
    source = tmp_path / "source"
    source.mkdir()
    for name in ("x", "y"):
        (source / name).write_text(name)
    inside, go = os.pipe()

    def hold(step: str, _: dict[str, Any]) -> None:
        if step == "locked":
            os.read(inside, 1)

    with lab.peer(act=hold) as (syncing, _), lab.peer() as (other, _):
        client = VolumeClient(syncing)
        sync = threading.Thread(target=lambda: client.sync(str(source), "d/synced", SyncOptions()))
        sync.start()
        until((lab.volume / "staging/locks" / target_key("d/synced")).exists)
        name = "t" if kind == "snapshot" else "s"
        other.send({"type": kind, "path": "", "name": name})
        assert other.receive().type == "waiting"
        os.write(go, b"1")
        sync.join()
        if kind == "restore":
            assert other.receive().type == "ready"
            other.send({"type": "commit"})
        while other.receive().type != "done":
            pass
    os.close(inside)
    os.close(go)
    (kept,) = [one for one in os.listdir(lab.trees) if one != "s"]
    assert sorted(os.listdir(lab.trees / kept / "d/synced")) == ["x", "y"]
    assert (lab.data / "d/synced").exists() == (kind == "snapshot")


@pytest.mark.parametrize("step", ["restore_exchanged", "restore_durable", "record", "name"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_after_the_exchange_of_a_restore_loses_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    """What was replaced is kept, whatever cannot be written then, and becomes a snapshot when it can."""
    assert lab.ask({"type": "snapshot", "path": "d", "name": "s"})
    (lab.data / "d/precious").write_text("only here")
    exchanged = False

    def fail(name: str, _: dict[str, Any]) -> None:
        nonlocal exchanged
        exchanged = exchanged or name == "restore_exchanged"
        if name == step:
            raise OSError(number, os.strerror(number))

    def break_once(method: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*arguments: Any) -> Any:
            if exchanged:
                raise OSError(number, os.strerror(number))
            return method(*arguments)

        return broken

    with monkeypatch.context() as context:
        if step == "record":
            context.setattr(Archive, "write_json", break_once(Archive.write_json))
        if step == "name":
            context.setattr(Archive, "_name_tree", break_once(Archive._name_tree))
        with lab.peer(act=fail) as (channel, _):
            channel.send({"type": "restore", "name": "s"})
            assert channel.receive().type == "ready"
            channel.send({"type": "commit"})
            answer = channel.receive()
            if step != "record":
                assert answer.type == "error"
                assert "is restored" in answer.header["error"]["message"]
    assert not (lab.data / "d/precious").exists()
    lab.recover()
    (kept,) = lab.kept_of_restores()
    assert (lab.trees / kept / "precious").read_text() == "only here"
    assert not lab.leftovers()


def test_a_restore_before_which_a_sync_begins_is_busy_soon_and_goes_on_after_it(lab: Lab, tmp_path: Path) -> None:
    """No function may begin between `commit` and its answer, so it does not wait for a sync; a client that writes, or
    has stopped in the midst of a copy, is not waited for at all."""
    assert lab.ask({"type": "snapshot", "path": "d", "name": "s"})
    with lab.peer() as (syncing, _), lab.peer() as (writing, _), lab.peer() as (other, _):
        writing.send({"type": "write", "path": "d/b"})
        writing.send({"type": "data"}, [b"late"])
        other.send({"type": "restore", "name": "s"})
        assert other.receive().type == "ready"
        syncing.send({"type": "sync", "path": "d/synced", "generation": "", "algorithms": ["sha256"]})
        assert syncing.receive().type == "standing"
        other.send({"type": "commit"})
        assert other.receive().type == "busy"
        assert not lab.kept_of_restores()
        other.send({"type": "again"})
        assert other.receive().type == "waiting"
        syncing.send({"type": "end"})
        assert syncing.receive().type == "done"
        assert other.receive().type == "ready"
        other.send({"type": "commit"})
        assert other.receive().type == "restored"
        assert other.receive().type == "done"
        writing.send({"type": "commit"})
        assert writing.receive().type == "done"
        assert (lab.data / "d/b").read_bytes() == b"late"
        other.send({"type": "restore", "name": "s"})
        assert other.receive().type == "ready"
        other.send({"type": "abort"})
        assert other.receive().type == "done"
    assert len(lab.kept_of_restores()) == 1
    assert not lab.leftovers()


@pytest.mark.parametrize("path", ["", "d"])
def test_a_file_that_was_open_for_writing_in_place_is_closed_by_a_restore(lab: Lab, path: str) -> None:
    """What a client holds open for changes would lead into the snapshot of the old state; to read, it stays open."""
    assert lab.ask({"type": "snapshot", "path": path, "name": "s"})
    with lab.peer() as (channel, _), VolumeClient(channel) as client:
        reading, writing = (OpenFile(client.connection, "d/b", mode) for mode in ("read", "update"))
        writing.write(0, memoryview(b"D"))
        assert lab.ask({"type": "restore", "name": "s"})
        with pytest.raises(OSError, match="Bad file"):
            writing.write(0, memoryview(b"X"))
        assert reading.read_ranges([(0, None)])[0] == b"D/b"
        assert b"".join(client.read("d/b")) == b"d/b"


# --- file systems -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(tmp_path: Path, kind: str, mebibytes: int) -> Iterator[Path]:
    """Give a directory on a file system of this kind, or skip the test."""
    place, image = tmp_path / "mounted", tmp_path / "image"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    else:
        program = find_tool(f"mkfs.{kind}")
        if program is None:
            pytest.skip(f"no mkfs.{kind} here (`make tools`)")
        with open(image, "wb") as file:
            file.truncate(mebibytes << 20)
        quiet = ["-q"] if kind != "ext4" else ["-q", "-F"]
        subprocess.run([program, *quiet, str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount {kind} here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    ("kind", "mebibytes", "way"), [("xfs", 320, "reflink"), ("btrfs", 128, "reflink"), ("ext4", 64, "copy")]
)
def test_each_file_system_has_its_way(tmp_path: Path, kind: str, mebibytes: int, way: str) -> None:
    """On XFS and btrfs a snapshot and a restore share blocks and take no space, on ext4 the second snapshot does;
    on each, none of the states changes with another."""
    with mounted(tmp_path, kind, mebibytes) as place:
        (place / "volume").mkdir()
        lab = Lab(place / "volume")
        lab.fill()
        (lab.data / "big").write_bytes(os.urandom(16 << 20))
        os.utime(lab.data / "big", (5, 5))
        os.sync()
        before, used = whole(lab.data), _used(place)
        with lab.peer() as (channel, _), VolumeClient(channel) as client:
            first = client.snapshot("first")
            second = client.snapshot("second")
            assert {one.way for one in (first, second)} == {way}
            assert second.copied_bytes == 0
            assert first.copied_bytes == (0 if way == "reflink" else first.bytes - 1)
            assert _used(place) - used < (4 << 20 if way == "reflink" else 20 << 20)
            with open(lab.data / "big", "r+b") as file:
                file.write(b"changed in place")
            assert whole(lab.trees / "first") == whole(lab.trees / "second") == before
            assert [one.path for one in client.diff("first")] == ["/data/big"]
            assert not client.diff("first", "second")
            assert client.diff("first")
        assert lab.ask({"type": "restore", "name": "first"})
        assert whole(lab.data) == before
        assert _used(place) - used < (8 << 20 if way == "reflink" else 40 << 20)
        assert not lab.leftovers()


def _used(place: Path) -> int:
    os.sync()
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_full_disk_leaves_no_snapshot_and_no_half_restore(tmp_path: Path) -> None:
    """A snapshot or restore for which there is no space is `DiskFull`, and leaves everything as it was."""
    with mounted(tmp_path, "tmpfs", 12) as place:
        (place / "volume").mkdir()
        lab = Lab(place / "volume")
        lab.fill()
        (lab.data / "big").write_bytes(os.urandom(4 << 20))
        with lab.peer() as (channel, _), VolumeClient(channel) as client:
            client.snapshot("fits")
            (lab.data / "more").write_bytes(bytes(3 << 20))
            before = whole(lab.data)
            with pytest.raises(DiskFull, match="full"):
                client.snapshot("does-not")
            with pytest.raises(DiskFull, match="full"):
                converse(channel, {"type": "restore", "name": "fits"})
            assert [one.name for one in client.snapshots()] == ["fits"]
            assert whole(lab.data) == before
            (lab.data / "more").unlink()
            (lab.data / "big").unlink()
            assert client.snapshot("fits-again").copied_bytes == 0
        assert not lab.leftovers()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_writers_do_not_tear_a_file_or_stop_a_snapshot(lab: Lab) -> None:
    """While a program rewrites and replaces files all the time, a snapshot comes to its end, and each replaced file
    is in it whole."""
    writer = os.fork()
    if writer == 0:
        for number in range(10**9):
            (lab.data / "d/.tmp").write_text(f"{number}" * 2000)
            os.replace(lab.data / "d/.tmp", lab.data / "d/turning")
            with open(lab.data / "growing", "a") as file:
                file.write("x" * 100)
    try:
        with lab.peer() as (channel, _), VolumeClient(channel) as client:
            for number in range(10):
                client.snapshot(f"s{number}")
                path = lab.trees / f"s{number}/d/turning"
                if path.exists():
                    text = path.read_text()
                    assert text == text[: len(text) // 2000] * 2000
                assert set((lab.trees / f"s{number}/growing").read_text()) <= {"x"}
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert stat.S_ISDIR((lab.trees / "s9").stat().st_mode)
