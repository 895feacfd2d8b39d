"""Mirroring a directory to a volume, with a real storage peer: exact, atomic, and whole after any crash."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.errors import DiskFull, HostUnreachable, SourceNotFound, StateUnusable, SyncError
from atoll.sdk.data.sync import sync_dir
from atoll.storage.client.volume import VolumeClient
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync.client import Synced, SyncOptions
from atoll.storage.sync.index import index_path
from atoll.wire.channel import Channel

from ..conftest import Home

pytestmark = pytest.mark.as_user

PLAIN_UID = 65534


AS_USER = """
import ctypes, os, sys
from atoll.storage.peer.main import main
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""
"""Becomes another user with the modules loaded already, since the interpreter may be out of that user's reach."""


class Peers:
    """Starts storage peers on one volume, each a process of its own."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.data = volume / "data"
        self.staging = volume / "staging"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, uid: int | None = None) -> tuple[VolumeClient, subprocess.Popen[bytes]]:
        """Return a client and its peer."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "atoll.storage.peer.main", str(theirs.fileno()), DAEMON, "."]
            if uid is not None:
                command[1:3] = ["-c", AS_USER, str(uid)]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=self.volume)
        self._processes.append(process)
        return VolumeClient(Channel(ours)), process

    def sync(self, source: Path, target: str = "t", options: SyncOptions | None = None) -> Synced:
        """Sync with a peer of its own."""
        client, process = self.start()
        with client:
            synced = client.sync(str(source), target, options or SyncOptions())
        assert process.wait() == 0
        return synced

    def leftovers(self) -> list[str]:
        """Return what is in staging besides replaced trees."""
        return [
            name for name in os.listdir(self.staging) if name != "locks" and not name.startswith(("old-", "index-"))
        ]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Peers on a fresh volume."""
    (tmp_path / "volume").mkdir()
    made = Peers(tmp_path / "volume")
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory to upload."""
    path = tmp_path / "source"
    path.mkdir()
    return path


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Return all that a mirror must reproduce, read in the plainest way."""
    found: dict[bytes, tuple[object, ...]] = {}

    def visit(path: bytes, name: bytes) -> None:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            found[name] = ("link", os.readlink(path), info.st_mtime_ns)
        elif stat.S_ISDIR(info.st_mode):
            found[name] = ("directory", stat.S_IMODE(info.st_mode), info.st_mtime_ns)
            for below in os.listdir(path):
                visit(path + b"/" + below, name + b"/" + below)
        else:
            with open(path, "rb") as file:
                content = file.read()
            found[name] = ("file", stat.S_IMODE(info.st_mode), info.st_mtime_ns, content)

    visit(os.fsencode(root), b"")
    return found


def fill(root: Path) -> None:
    """Make one of everything that a directory can hold and a mirror can reproduce."""
    base = os.fsencode(root)
    names = [
        b"plain",
        b"\xff\xfe not utf-8",
        b"new\nline",
        b"x" * 255,
        b"-rf",
        b" ",
        b"\xf0\x9f\x98\x80",
        b".hidden",
        b"\\",
    ]
    for name in names:
        with open(base + b"/" + name, "wb") as file:
            file.write(name * 100)
        os.mkdir(base + b"/dir-" + name[:200])
        with open(base + b"/dir-" + name[:200] + b"/in " + name[:200], "wb") as file:
            file.write(name)
    (root / "large").write_bytes(random.Random(1).randbytes(9_000_001))
    (root / "empty-file").touch()
    deep = root
    for _ in range(40):
        deep /= "deep"
    deep.mkdir(parents=True)
    for mode in (0o400, 0o444, 0o600, 0o755, 0o711, 0o4755, 0o2755, 0o777):
        path = root / f"mode-{mode:o}"
        path.write_text(f"{mode}")
        path.chmod(mode)
    for link, target in {"dangling": "/nowhere", "up": "../..", "inside": "plain", "to-dir": "deep"}.items():
        (root / link).symlink_to(target)
    os.link(root / "plain", root / "hard-link")
    (root / "closed").mkdir()
    (root / "closed/file").write_text("x")
    (root / "closed").chmod(0o555)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.utime(root / "plain", ns=(1, 1_000_000_001))
    os.utime(root / "empty-file", ns=(1, -5))
    os.utime(root / "dangling", ns=(1, 123_456_789), follow_symlinks=False)
    os.utime(root / "deep", ns=(1, 987_654_321))


def test_everything_is_mirrored(peers: Peers, source: Path) -> None:
    """Names, contents, modes, times, empty directories and symlinks arrive exactly, and again there is nothing to do."""
    fill(source)
    before = snapshot(source)
    peers.sync(source, "sync/a")
    assert snapshot(peers.data / "sync/a") == before == snapshot(source)
    again = peers.sync(source, "sync/a")
    assert not again.plan
    assert (peers.data / "sync/a/hard-link").stat().st_nlink == 1
    assert not peers.leftovers()


@pytest.mark.root
def test_everything_is_mirrored_by_a_peer_without_privileges(peers: Peers, source: Path) -> None:
    """The volume's owner needs no capability for it, also where modes keep the owner out."""
    fill(source)
    (source / "nobody").mkdir()
    (source / "nobody/file").write_text("x")
    (source / "nobody/file").chmod(0)
    (source / "nobody").chmod(0)
    source.chmod(0o555)
    os.chown(peers.volume, PLAIN_UID, PLAIN_UID)
    client, _ = peers.start(PLAIN_UID)
    with client:
        client.sync(str(source), "t", SyncOptions())
        assert snapshot(peers.data / "t") == snapshot(source)
        assert (peers.data / "t/plain").stat().st_uid == PLAIN_UID
        assert not client.sync(str(source), "t", SyncOptions()).plan
        os.chmod(peers.data / "t/nobody/file", 0o600)
        os.chmod(peers.data / "t/nobody/file", 0)
        assert not client.sync(str(source), "t", SyncOptions()).plan
        (source / "plain").write_text("changed")
        (source / "nobody/new").write_text("n")
        client.sync(str(source), "t", SyncOptions())
        assert snapshot(peers.data / "t") == snapshot(source)
        assert client.collect() == 1
    assert not peers.leftovers()


@pytest.mark.root
def test_roots_that_their_owner_may_not_enter(peers: Peers, source: Path) -> None:
    """A source of any mode can be synced again and again; a directory above the target that is closed is named."""
    os.chown(peers.volume, PLAIN_UID, PLAIN_UID)
    client, _ = peers.start(PLAIN_UID)
    with client:
        for mode in (0, 0o600, 0o300):
            for text in ("a", "b", "c"):
                source.chmod(0o755)
                (source / "file").write_text(text)
                source.chmod(mode)
                client.sync(str(source), "above/t", SyncOptions())
                assert snapshot(peers.data / "above/t") == snapshot(source)
        (peers.data / "above").chmod(0)
        with pytest.raises(SyncError, match="`/data/above` is a directory that its owner may not enter") as caught:
            client.sync(str(source), "above/t", SyncOptions())
        assert "chmod" in caught.value.hint
        client.set_attributes("above", mode=0o755)
        client.sync(str(source), "above/t", SyncOptions())


@pytest.mark.root
def test_directories_that_their_owner_may_not_write(peers: Peers, source: Path) -> None:
    """A closed directory is named by a sync to a place in it; files and directories that would come or go there are a
    `PermissionError` with their paths, and what has nothing to do there is no error."""
    os.chown(peers.volume, PLAIN_UID, PLAIN_UID)
    (source / "file").write_text("a")
    client, _ = peers.start(PLAIN_UID)
    with client:
        client.sync(str(source), "ro/t", SyncOptions())
        for name in ("ro/a", "ok"):
            client.write(name, [b"x"])
        client.set_attributes("ro", mode=0o555)
        client.sync(str(source), "ro/t", SyncOptions())
        for target in ("ro/new", "ro/x/new", "ro/t"):
            (source / "file").unlink()
            (source / "other").write_text(target)
            with pytest.raises(SyncError, match="`/data/ro` is a directory that its owner may not write") as refused:
                client.sync(str(source), target, SyncOptions())
            assert "`Volume().chmod('/data/ro', 0o755)`" in refused.value.hint
            (source / "other").rename(source / "file")
        attempts: list[tuple[Callable[[], None], tuple[str, str | None]]] = [
            (lambda: client.write("ro/b", [b"x"]), ("/data/ro/b", None)),
            (lambda: client.write("ro/a", [b"x"]), ("/data/ro/a", None)),
            (lambda: client.rename("ro/a", "x"), ("/data/ro/a", "/data/x")),
            (lambda: client.rename("ok", "ro/ok"), ("/data/ok", "/data/ro/ok")),
            (lambda: client.copy("ok", "ro/ok"), ("/data/ok", "/data/ro/ok")),
            (lambda: client.remove("ro/a"), ("/data/ro/a", None)),
        ]
        for attempt, paths in attempts:
            with pytest.raises(PermissionError) as caught:
                attempt()
            assert (caught.value.filename, caught.value.filename2) == paths
        client.set_attributes("ro", mode=0o755)
        client.sync(str(source), "ro/new", SyncOptions())
    assert (peers.data / "ro/a").read_text() == "x"
    assert not peers.leftovers()


def test_changes_of_every_kind(peers: Peers, source: Path) -> None:
    """After any mix of changes on both sides the target is the mirror again, and what did not change did not travel."""
    fill(source)
    peers.sync(source)
    untouched = (peers.data / "t/large").stat().st_ino
    (source / "plain").unlink()
    (source / "plain").mkdir()
    shutil.rmtree(source / "deep")
    (source / "deep").symlink_to("elsewhere")
    (source / "mode-755").chmod(0o640)
    (source / "up").unlink()
    (source / "up").write_text("a file now")
    (source / "added/below").mkdir(parents=True)
    target = peers.data / "t"
    (target / "mode-600").write_text("a function was here")
    (target / "planted").symlink_to("/etc/passwd")
    (target / "more").mkdir()
    os.mkfifo(target / "more/fifo")
    (target / ".hidden").unlink()
    synced = peers.sync(source)
    assert snapshot(target) == snapshot(source)
    assert sorted(synced.plan.send) == [".hidden", "mode-600", "up"]
    assert synced.plan.copy == {"mode-755"}
    assert (target / "large").stat().st_ino == untouched


def test_no_inode_is_shared_between_two_states_of_a_file(peers: Peers, source: Path) -> None:
    """The replaced tree keeps content, mode and times of what changed."""
    for name in ("content", "mode", "time"):
        (source / name).write_text("1")
    peers.sync(source)
    before = snapshot(peers.data / "t")
    held = os.open(peers.data / "t", os.O_RDONLY)
    (source / "content").write_text("22")
    (source / "mode").chmod(0o600)
    os.utime(source / "time", ns=(5, 5))
    peers.sync(source)
    assert snapshot(peers.data / "t") == snapshot(source)
    (old,) = peers.staging.glob("old-*[0-9a-f]")
    assert snapshot(old) == before
    assert os.fstat(held).st_ino == old.stat().st_ino
    os.close(held)


def test_replaced_trees_stay_until_they_are_collected(peers: Peers, source: Path) -> None:
    """A process in the old directory keeps it whole; `collect` removes what was replaced before a moment."""
    (source / "a").write_text("1")
    peers.sync(source)
    here = os.open(peers.data / "t", os.O_RDONLY)
    (source / "a").rename(source / "b")
    peers.sync(source)
    moment = time.time_ns()
    (source / "b").rename(source / "c")
    peers.sync(source)
    assert os.listdir(here) == ["a"]
    client, _ = peers.start()
    with client:
        assert client.collect(before_ns=moment) == 1
        assert os.listdir(here) == []
        assert len(list(peers.staging.glob("old-*[0-9a-f]"))) == 1
        assert client.collect() == 1
    os.close(here)
    assert not list(peers.staging.glob("old-*[0-9a-f]"))
    assert not peers.leftovers()


def test_what_was_hashed_again_is_remembered(peers: Peers, source: Path, tmp_path: Path) -> None:
    """The removal of a replaced tree moves the change times of what is linked in both; the next sync alone looks why."""
    (source / "stays").write_text("the same")
    options = SyncOptions(index=tmp_path / "index")
    peers.sync(source, options=options)
    for name in "ab":
        (source / name).write_text("new")
    for _ in range(2):  # the second time all stamps are old enough to be trusted
        peers.sync(source, options=options)
    client, _ = peers.start()
    with client:
        client.collect()
    (index,) = peers.staging.glob("index-*")
    kept = [index.read_bytes()]
    for _ in range(3):
        assert not peers.sync(source, options=options).plan
        kept.append(index.read_bytes())
    assert kept[0] != kept[2] == kept[3]
    assert snapshot(peers.data / "t") == snapshot(source)


def test_a_change_with_size_and_time_put_back_is_seen(peers: Peers, source: Path, tmp_path: Path) -> None:
    """The change time and the inode of the last sync tell what size and modification time hide."""
    options = SyncOptions(index=tmp_path / "index.json")
    for name in ("rewritten", "left", "right"):
        (source / name).write_text(f"{name:10}")
        os.utime(source / name, ns=(1, 1))
    peers.sync(source, options=options)
    (source / "rewritten").write_text("REWRITTEN ")
    os.utime(source / "rewritten", ns=(1, 1))
    (source / "left").rename(source / "x")
    (source / "right").rename(source / "left")
    (source / "x").rename(source / "right")
    os.utime(source, ns=(1, 1))
    peers.sync(source, options=options)
    assert snapshot(peers.data / "t") == snapshot(source)


def test_changes_right_after_a_sync_are_seen(peers: Peers, source: Path, tmp_path: Path) -> None:
    """A file that is rewritten within the same tick of the clock as it was uploaded travels again."""
    options = SyncOptions(index=tmp_path / "index.json")
    client, _ = peers.start()
    with client:
        for number in range(20):
            (source / "f").write_text(f"{number:4}")
            os.utime(source / "f", ns=(1, 1))
            client.sync(str(source), "t", options)
            assert (peers.data / "t/f").read_text() == f"{number:4}"


def test_excluded_names_are_left_alone_on_both_sides(peers: Peers, source: Path) -> None:
    """`.atollignore` files and `exclude` keep names from being uploaded, and from being removed at the target."""
    for name in ("a.log", "keep.log", "d/b.log", "d/special.log", "build/x", "d/e/build/y", "secret"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    os.mkfifo(source / "build/fifo")
    (source / ".atollignore").write_text("*.log\nbuild/\n!keep.log\n")
    (source / "d/.atollignore").write_text("!special.log\n")
    options = SyncOptions(exclude=("/secret",))
    target = peers.data / "t"
    synced = peers.sync(source, options=options)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())
    assert found == [".atollignore", "d/.atollignore", "d/special.log", "keep.log"]
    assert sorted(synced.skipped) == ["a.log", "build", "d/b.log", "d/e/build", "secret"]
    (target / "run.log").write_text("a function's")
    (target / "build").mkdir()
    (target / "build/result").write_text("a function's")
    (target / "other").write_text("a function's")
    shutil.rmtree(source / "d")
    (target / "d/f.log").write_text("kept, so `d` stays")
    peers.sync(source, options=options)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())
    # The rules of `d` went with its `.atollignore`: `special.log` is a log like others now.
    assert found == [".atollignore", "build/result", "d/f.log", "d/special.log", "keep.log", "run.log"]


def test_delete_false_only_adds(peers: Peers, source: Path) -> None:
    """With `delete=False` what the source lacks stays, special files included."""
    (source / "a").write_text("1")
    target = peers.data / "t"
    peers.sync(source)
    (target / "b").write_text("2")
    os.mkfifo(target / "fifo")
    (source / "a").write_text("22")
    peers.sync(source, options=SyncOptions(delete=False))
    assert sorted(os.listdir(target)) == ["a", "b", "fifo"]
    assert (target / "a").read_text() == "22"


def test_a_dry_run_changes_nothing(peers: Peers, source: Path) -> None:
    """`dry_run` gives the plan and touches neither the target nor staging."""
    (source / "a\n").write_text("1")
    synced = peers.sync(source, options=SyncOptions(dry_run=True))
    assert list(synced.plan.lines()) == ["mkdir   .", "send    a\\n  (1 bytes)"]
    assert not os.listdir(peers.data)
    assert not peers.leftovers()


def test_an_empty_source_does_not_empty_a_full_target_unless_told(peers: Peers, source: Path) -> None:
    """A mirror of nothing is an empty directory, where that is said to be meant."""
    (source / "a").write_text("1")
    peers.sync(source)
    (source / "a").unlink()
    with pytest.raises(SyncError, match="would be emptied") as caught:
        peers.sync(source)
    assert "allow_empty" in caught.value.hint
    assert (peers.data / "t/a").read_text() == "1"
    tried = peers.sync(source, options=SyncOptions(dry_run=True))
    assert tried.plan.drop == {"a"}
    assert tried.refused
    assert not peers.sync(source, options=SyncOptions(dry_run=True, allow_empty=True)).refused
    assert (peers.data / "t/a").exists()
    peers.sync(source, options=SyncOptions(allow_empty=True))
    assert os.listdir(peers.data / "t") == []
    peers.sync(source)


def test_sources_that_cannot_be_mirrored(peers: Peers, source: Path, tmp_path: Path) -> None:
    """Each has its named error that names the path, and the target stays as it was."""
    (source / "a").write_text("1")
    peers.sync(source)
    before = snapshot(peers.data / "t")
    (source / "b").write_text("1")
    with pytest.raises(SourceNotFound, match="missing"):
        peers.sync(tmp_path / "missing")
    with pytest.raises(SyncError, match="not a directory"):
        peers.sync(source / "a")
    os.mkfifo(source / "pipe")
    with pytest.raises(SyncError, match=r"pipe` is a fifo"):
        peers.sync(source)
    (source / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "sock"))
        with pytest.raises(SyncError, match=r"sock` is a socket"):
            peers.sync(source)
    (source / "sock").unlink()
    assert snapshot(peers.data / "t") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
@pytest.mark.parametrize("name", ["file", "directory"])
def test_unreadable_sources_are_named(peers: Peers, source: Path, name: str) -> None:
    """What the caller cannot read is an error that names it, and nothing is changed."""
    (source / "directory").mkdir()
    (source / "file").write_text("x")
    (source / name).chmod(0)
    with pytest.raises(SyncError, match=f"{name}`: permission denied"):
        peers.sync(source)
    (source / name).chmod(0o700)
    assert not os.listdir(peers.data)


def test_targets_that_cannot_be_mirrored_to(peers: Peers, source: Path) -> None:
    """A file at the target or on the way, and symlinks that lead out, are refused; the client can go on."""
    client, _ = peers.start()
    (source / "a").write_text("1")
    with client:
        client.write("file", [b"x"])
        (peers.data / "out").symlink_to("/tmp")
        (peers.data / "staging").symlink_to("../staging")
        (peers.data / "in").symlink_to("/data/real")
        (peers.data / "real").mkdir()
        for target, reason in {
            "file": "is a file",
            "file/x": "not a directory",
            "out/x": "leads out",
            "out": "leads out",
            "staging/x": "leads out",
            "": "itself",
            "y" * 256: "too long",
        }.items():
            with pytest.raises(SyncError, match=reason):
                client.sync(str(source), target, SyncOptions())
        client.sync(str(source), "in/x", SyncOptions())
        client.sync(str(source), "in", SyncOptions())
    assert os.listdir(peers.data / "real") == ["a"]
    assert (peers.data / "in").is_symlink()
    assert sorted(os.listdir(peers.data)) == ["file", "in", "out", "real", "staging"]


def test_two_syncs_of_one_target_take_turns(peers: Peers, tmp_path: Path) -> None:
    """Whoever is last wins whole: the target is one of the sources, never a mixture."""
    sources = []
    for number in range(4):
        path = tmp_path / f"source-{number}"
        for name in range(50):
            (path / f"d{name % 5}").mkdir(parents=True, exist_ok=True)
            (path / f"d{name % 5}/{name}").write_text(f"{number}")
        sources.append(path)
    failures: list[BaseException] = []

    def work(path: Path, target: str) -> None:
        try:
            for _ in range(3):
                peers.sync(path, target)
        except BaseException as error:
            failures.append(error)

    targets = ["a/t", "a/t", "a/t", "a"]
    threads = [threading.Thread(target=work, args=pair) for pair in zip(sources, targets, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    peers.sync(sources[0], "a/t")
    assert snapshot(peers.data / "a/t") == snapshot(sources[0])
    assert not peers.leftovers()
    assert not os.listdir(peers.staging / "locks")


def test_readers_see_one_generation(peers: Peers, source: Path) -> None:
    """A process that opens files by path during syncs finds every one, and those it finds through one directory agree."""
    names = [f"d{number % 3}/{number}" for number in range(30)]

    def write(generation: int) -> None:
        for name in names:
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_text(f"{generation}")

    write(0)
    peers.sync(source)
    code = (
        "import os, sys, select\n"
        "names, rounds = sys.argv[2:], 0\n"
        "print('ready', flush=True)\n"
        "while not select.select([0], [], [], 0)[0]:\n"
        "    for name in names: open(os.path.join(sys.argv[1], name)).close()\n"
        "    root = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    found = {open(os.open(name, os.O_RDONLY, dir_fd=root)).read() for name in names}\n"
        "    os.close(root)\n"
        "    assert len(found) == 1, found\n"
        "    rounds += 1\n"
        "print(rounds)\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(peers.data / "t"), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    client, _ = peers.start()
    with client:
        for generation in range(1, 40):
            write(generation)
            client.sync(str(source), "t", SyncOptions())
    out, err = reader.communicate("stop")
    assert reader.returncode == 0, err
    assert int(out) > 10


def test_an_interrupted_sync_resumes(peers: Peers, source: Path) -> None:
    """What has been received is not sent again, a part of a large file included, unless it has changed since."""
    content = random.Random(2).randbytes(40 << 20)
    (source / "a-small").write_bytes(b"x" * 2000)
    (source / "b-changed").write_bytes(b"y" * 2000)
    (source / "c-large").write_bytes(content)
    (source / "d-unread").write_bytes(b"z")
    client, process = peers.start()
    _send_a_part(client, source, 20 << 20)
    assert process.wait() == 0
    assert len(peers.leftovers()) == 1
    mtime_ns = (source / "b-changed").stat().st_mtime_ns
    (source / "b-changed").write_bytes(b"Y" * 2000)
    os.utime(source / "b-changed", ns=(mtime_ns, mtime_ns))
    sent = 0

    class Counting(Channel):
        def send(self, header: dict[str, object], buffers: object = (), descriptors: object = ()) -> None:
            nonlocal sent
            if header["type"] in ("batch", "piece"):
                sent += len(buffers[-1])  # type: ignore[index]
            super().send(header, buffers, descriptors)  # type: ignore[arg-type]

    client, _ = peers.start()
    with VolumeClient(Counting(client.connection.channel.socket)) as counted:
        counted.sync(str(source), "t", SyncOptions())
    assert snapshot(peers.data / "t") == snapshot(source)
    assert 2000 < sent <= (20 << 20) + 2001
    assert not peers.leftovers()


def _send_a_part(client: VolumeClient, source: Path, size: int) -> None:
    """Sync up to `size` bytes of content and leave in the middle."""

    class Leave(BaseException):
        pass

    class Leaving(Channel):
        left = size

        def send(self, header: dict[str, object], buffers: object = (), descriptors: object = ()) -> None:
            if header["type"] == "piece":
                self.left -= sum(map(len, buffers))  # type: ignore[call-overload]
            if self.left < 0:
                raise Leave
            super().send(header, buffers, descriptors)  # type: ignore[arg-type]

    with pytest.raises(Leave):
        VolumeClient(Leaving(client.connection.channel.socket)).sync(str(source), "t", SyncOptions())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("sizes", [[12 << 20], [30_000] * 400], ids=["one large file", "many small files"])
def test_a_full_disk_leaves_the_old_tree(small_disk: Path, source: Path, sizes: list[int]) -> None:
    """A disk that fills up is `DiskFull`, nothing is left in staging, and the next sync works."""
    peers = Peers(small_disk)
    (source / "a").write_text("1")
    try:
        peers.sync(source)
        before = snapshot(peers.data / "t")
        for number, size in enumerate(sizes):
            (source / f"big-{number}").write_bytes(bytes(size))
        client, _ = peers.start()
        with client:
            with pytest.raises(DiskFull, match="full"):
                client.sync(str(source), "t", SyncOptions())
            assert snapshot(peers.data / "t") == before
            assert not peers.leftovers()
            with pytest.raises(DiskFull):
                client.write("big", [bytes(12 << 20)])
            assert not peers.leftovers()
            for path in source.glob("big-*"):
                path.unlink()
            (source / "b").write_text("2")
            client.sync(str(source), "t", SyncOptions())
        assert snapshot(peers.data / "t") == snapshot(source)
    finally:
        peers.close()


@pytest.mark.root
def test_a_read_only_volume_is_state_unusable(small_disk: Path, source: Path) -> None:
    """A volume that cannot be written is named as such, and can still be read."""
    peers = Peers(small_disk)
    (source / "a").write_text("1")
    try:
        peers.sync(source)
        (source / "b").write_text("1")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        client, _ = peers.start()
        with client:
            with pytest.raises(StateUnusable):
                client.sync(str(source), "t", SyncOptions())
            with pytest.raises(StateUnusable):
                client.write("x", [b"x"])
            assert b"".join(client.read("t/a")) == b"1"
    finally:
        peers.close()


def test_a_peer_that_is_gone_is_host_unreachable(peers: Peers, source: Path) -> None:
    """A peer that dies is named as such by every operation."""
    client, process = peers.start()
    process.kill()
    process.wait()
    with client:
        with pytest.raises(HostUnreachable):
            client.sync(str(source), "t", SyncOptions())
        with pytest.raises(HostUnreachable):
            client.stat("t")


def test_sync_dir_end_to_end(shared_home: Home, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`sync_dir` mirrors through the daemon into the caller's volume and returns the path inside."""
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    target = "sync-e2e"
    assert sync_dir(source, target, dry_run=True) == "/data/sync/sync-e2e"
    assert "send    plain" in capfd.readouterr().out
    volume = shared_home.path / "volumes/local/data"
    assert not (volume / "sync/sync-e2e").exists()
    assert sync_dir(str(source), target) == "/data/sync/sync-e2e"
    assert snapshot(volume / "sync/sync-e2e") == snapshot(source)
    assert sync_dir(source, "/data/elsewhere/x/") == "/data/elsewhere/x"
    assert snapshot(volume / "elsewhere/x") == snapshot(source)
    assert capfd.readouterr() == ("", "")
    assert index_path(shared_home.path, "local", os.path.realpath(source), "sync/sync-e2e").exists()


@pytest.mark.root
def test_on_a_full_disk_replaced_trees_go_first(atoll_home: Home, source: Path) -> None:
    """A sync that has no room gets that of the trees which earlier ones have replaced; then it is `DiskFull`."""
    volumes = atoll_home.path / "volumes"
    volumes.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m,mode=755", "tmpfs", str(volumes)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        for number in range(4):
            (source / "large").write_bytes(os.urandom(12 << 20))
            (source / "small").write_text(str(number))
            sync_dir(source, "t")
            assert snapshot(volumes / "local/data/sync/t") == snapshot(source)
        (source / "larger").write_bytes(os.urandom(28 << 20))
        with pytest.raises(DiskFull):
            sync_dir(source, "t")
    finally:
        atoll_home.stop()
        subprocess.run(["umount", "-l", str(volumes)], check=True)


@pytest.mark.parametrize("remote", ["", "/", "/data", "..", "/data/../x", "/etc", "a\0"])
def test_escapes_are_refused_before_anything_runs(atoll_home: Home, source: Path, remote: str) -> None:
    """A target outside of `/data` is a `ValueError`, and no daemon is started for it."""
    with pytest.raises(ValueError, match=r"."):
        sync_dir(source, remote)
    with pytest.raises(SourceNotFound):
        sync_dir(source / "missing", "x")
    assert atoll_home.daemon_pid() is None


def test_atolls_own_state_is_left_out(shared_home: Home) -> None:
    """A source that holds `ATOLL_HOME` does not upload the volume into itself."""
    source = shared_home.path.parent / f"{shared_home.path.name}-outer"
    source.mkdir()
    link = source / "state"
    try:
        (source / "a").write_text("1")
        inner = source / "home"
        home = Home(inner)
        inner.mkdir()
        code = "import sys; from atoll import sync_dir; sync_dir(sys.argv[1], 'outer')"
        home.python("-c", code, str(source))
        assert os.listdir(inner / "volumes/local/data/sync/outer") == ["a"]
        home.stop()
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(source, ignore_errors=True)
