"""The storage peer's ways through a volume, and what it does where the file system is not what one would like."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll import linux
from atoll.errors import HostUnreachable, SyncError
from atoll.file_stamp import FINE_CLOCK_NS
from atoll.sdk.data.sync import Arranged
from atoll.storage import crash_points
from atoll.storage.client.contents import OpenFile
from atoll.storage.client.volume import VolumeClient
from atoll.storage.content.transfer import FileReader, FileRequest, send_files
from atoll.storage.files import scan
from atoll.storage.files.scan import Scan
from atoll.storage.files.tree import pack
from atoll.storage.peer import main
from atoll.storage.protocol import replies
from atoll.storage.sync import peer as mirror
from atoll.storage.sync.client import SyncOptions
from atoll.storage.sync.index import Index, index_of
from atoll.storage.volume.locate import locate
from atoll.storage.volume.removal import remove_tree
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel, ChannelClosed

from ..volumes import ThreadHost, serving

pytestmark = pytest.mark.as_user


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume's directory."""
    path = tmp_path / "volume"
    path.mkdir()
    return path


@pytest.fixture
def client(volume: Path) -> Iterator[VolumeClient]:
    """A client whose peer is a thread, so that its file system can be replaced."""
    with serving(volume) as sock, VolumeClient(Channel(sock)) as made:
        yield made


def at_step(name: str, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the midst of a sync, when the peer has reached a step."""

    def report(step: str, _: object) -> None:
        if step == name:
            action()

    monkeypatch.setattr(crash_points, "_report", report)


@pytest.fixture
def data(volume: Path) -> Iterator[int]:
    """The open directory that functions see as `/data`, with a few ways through it."""
    base = volume / "data"
    (base / "real/deep").mkdir(parents=True)
    (base / "file").write_text("x")
    for name, target in {
        "absolute": "/data/real",
        "relative": "real",
        "up": "real/deep/..",
        "real/back": "../real/deep",
        "chain": "absolute/back",
        "root": "/data",
        "out": "/etc",
        "above": "../..",
        "sneaky": "/data/../staging",
        "staging": "/volume/staging",
        "loop": "loop",
        "dangling": "/data/nothing",
    }.items():
        (base / name).symlink_to(target)
    with VolumeRoot(str(volume)) as root:
        yield root.data


@pytest.mark.parametrize(
    ("path", "real", "exists"),
    [
        ("", "", True),
        ("real", "real", True),
        ("absolute/deep", "real/deep", True),
        ("relative/deep", "real/deep", True),
        ("up", "real", True),
        ("chain", "real/deep", True),
        ("chain/new", "real/deep/new", False),
        ("root/root/file", "file", True),
        ("root", "", True),
        ("dangling", "nothing", False),
        ("a/b/c", "a/b/c", False),
    ],
)
def test_paths_lead_where_a_function_would_find_them(data: int, path: str, real: str, exists: bool) -> None:
    """Symlinks are followed as inside a sandbox, where `/data` is the volume."""
    with locate(data, path, follow=True) as place:
        assert (place.path, place.found is not None) == (real, exists)


@pytest.mark.parametrize("path", ["out", "out/passwd", "above", "above/x", "sneaky", "sneaky/x", "staging", "loop/x"])
def test_symlinks_that_lead_out_are_refused(data: int, path: str) -> None:
    """No symlink in a volume leads the peer out of it."""
    with pytest.raises(OSError, match=r"leads out|symbolic links"):
        locate(data, path, follow=True)


@pytest.mark.parametrize(
    ("request_", "make"),
    [
        ({"type": "pwrite"}, lambda: bytes(65 << 20)),
        ({"type": "fetch", "path": ""}, lambda: b"[" + b"[]," * (20 << 20) + b"[]]"),
    ],
    ids=["large", "much"],
)
def test_a_function_cannot_have_its_peer_take_the_machines_memory(
    volume: Path, request_: dict[str, str], make: Callable[[], bytes]
) -> None:
    """The peer of a function takes messages of bounded size, has bounded memory, and says so before it ends."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "atoll.storage.peer.main", str(theirs.fileno()), replies.FUNCTION, str(volume)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with contextlib.closing(Channel(ours)) as channel:
        with contextlib.suppress(ChannelClosed):
            channel.send(request_, [make()])
        answer = channel.receive().header
    assert answer["error"]["message"].startswith("too much at once for the storage peer")
    assert process.wait() == 1  # its peak cannot be asked for: the kernel counts that of who started it


def test_no_way_to_many_files_follows_a_symlink(client: VolumeClient, volume: Path) -> None:
    """Contents, trees and modes are looked at component by component: a symlink in the middle leads nowhere."""
    (volume / "data/d").mkdir()
    (volume / "staging/secret").write_text("secret")
    (volume / "data/d/way").symlink_to(volume / "staging")
    with pytest.raises(SyncError, match="cannot read"):
        list(client._messages("fetch", "d", {}, list(pack([[0, "way/secret", 6]]))))
    directory = os.open(volume / "data", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (volume / "staging/below").mkdir(mode=0o711)
        with pytest.raises(NotADirectoryError):
            mirror._chmod_below(directory, "d/way/below", 0o777)
        scanner = scan._Scanner("", directory, None, special=True)
        with pytest.raises(NotADirectoryError):
            scanner._list("d/way/below")
    finally:
        os.close(directory)
    assert (volume / "staging/below").stat().st_mode & 0o777 == 0o711


def test_a_file_on_the_way_is_refused(data: int) -> None:
    """A file is no directory, and the error names it."""
    with pytest.raises(NotADirectoryError, match="file"):
        locate(data, "file/x", follow=True)


def test_trees_of_any_depth_and_mode_are_removed(tmp_path: Path) -> None:
    """What a function can make the peer can remove: 3,000 levels, directories without any permission."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    here = os.dup(descriptor)
    os.mkdir("top", dir_fd=here)
    for name in ["top", *["d"] * 3000]:
        if name == "d":
            os.mkdir("d", dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.mkdir("locked", 0o000, dir_fd=here)
    os.close(here)
    remove_tree(descriptor, "top")
    os.close(descriptor)
    assert not os.listdir(tmp_path)


def test_without_exchange_the_sync_is_refused_unless_less_is_accepted(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that cannot exchange, the target stays as it is, and `atomic=False` replaces it all the same."""

    def unable(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(linux, "renameat2", unable)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    (source / "b").write_text("1")
    client.sync(str(source), "t", SyncOptions())
    (source / "a").write_text("22")
    client.sync(str(source), "t", SyncOptions())  # one file is replaced in one step everywhere
    assert (volume / "data/t/a").read_text() == "22"
    (source / "a").write_text("333")
    (source / "b").write_text("333")
    with pytest.raises(SyncError, match="cannot exchange") as caught:
        client.sync(str(source), "t", SyncOptions())
    assert caught.value.details["reason"] == "no_exchange"
    assert (volume / "data/t/a").read_text() == "22"
    client.sync(str(source), "t", SyncOptions(atomic=False))
    assert (volume / "data/t/a").read_text() == (volume / "data/t/b").read_text() == "333"


def test_without_hard_links_unchanged_files_are_copied(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file has all the links that it can have, the new tree gets a copy."""

    def unable(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    (source / "b").write_text("1")
    client.sync(str(source), "t", SyncOptions())
    before = (volume / "data/t/b").stat()
    (source / "a").write_text("22")
    (source / "c").write_text("22")
    monkeypatch.setattr(os, "link", unable)
    client.sync(str(source), "t", SyncOptions())
    after = (volume / "data/t/b").stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, before.st_size)


def test_a_target_that_changes_under_a_sync_is_looked_at_again(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that a function replaces during a sync makes it start again, and the mirror is right in the end."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    client.sync(str(source), "t", SyncOptions())
    (source / "a").write_text("22")
    calls = list[int]()

    def meddle() -> None:
        if not calls:
            os.rename(volume / "data/t", volume / "data/elsewhere")
            (volume / "data/t").mkdir()
        calls.append(1)

    at_step("synced", meddle, monkeypatch)
    client.sync(str(source), "t", SyncOptions())
    assert len(calls) == 2
    assert (volume / "data/t/a").read_text() == "22"


@pytest.mark.parametrize("step", ["scanned", "resumed", "received", "staged", "linked", "synced"])
def test_what_a_function_moves_under_a_sync_is_looked_at_again(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A directory of the target that is renamed at any moment makes the sync start again."""
    source = tmp_path / "source"
    for name in ("d/e/a", "d/e/b", "d/c"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("1" * (1 << 20) + "2" * (1 << 20))
    client.sync(str(source), "t", SyncOptions())
    (source / "d/e/a").write_text("1" * (2 << 20))
    (source / "d/e/b").chmod(0o600)
    (source / "d/c").write_text("22")
    left = [step]

    def meddle() -> None:
        if left:
            left.clear()
            os.rename(volume / "data/t/d/e", volume / "data/t/d/ex")

    at_step(step, meddle, monkeypatch)
    client.sync(str(source), "t", SyncOptions())
    client.sync(str(source), "t", SyncOptions())
    assert sorted(path.name for path in (volume / "data/t").rglob("*")) == ["a", "b", "c", "d", "e"]
    assert (volume / "data/t/d/e/a").read_text() == "1" * (2 << 20)


def test_a_source_is_not_read_through_what_became_a_symlink(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of the source that is swapped for a symlink after the scan does not lead elsewhere: it is mirrored as
    the symlink that it is."""
    for name in ("source/d/shadow", "elsewhere/shadow"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)

    def meddle() -> None:
        if not (tmp_path / "away").exists():
            os.rename(tmp_path / "source/d", tmp_path / "away")
            (tmp_path / "source/d").symlink_to(tmp_path / "elsewhere")

    at_step("ready", meddle, monkeypatch)
    client.sync(str(tmp_path / "source"), "t", SyncOptions())
    assert os.listdir(volume / "data/t") == ["d"]
    assert os.readlink(volume / "data/t/d") == str(tmp_path / "elsewhere")


def test_a_sync_that_waits_says_so_and_a_silent_function_is_not_waited_for(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who begins a sync within a function and then says nothing holds the target for a bounded time only."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("1")
    monkeypatch.setattr(replies, "MOST_SILENT_SECONDS", {replies.FUNCTION: 1.5})
    monkeypatch.setattr(main, "MOST_SILENT_SECONDS", {replies.FUNCTION: 1.5})
    with contextlib.closing(ThreadHost(volume)) as host, contextlib.closing(host.open_storage()) as silent:
        silent.send({"type": "sync", "path": "t", "algorithms": ["sha256"]})
        assert silent.receive().type == "standing"
        with VolumeClient(host.open_storage()) as client:
            assert client.sync(str(tmp_path / "source"), "t", SyncOptions()).sent == 1
        assert "waiting for another sync" in capsys.readouterr().err
        assert silent.receive().header["error"]["code"] == "sync"


def test_what_appears_at_the_target_during_a_sync_is_carried_over_when_names_are_kept(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a function writes into an excluded directory while a sync runs is not lost."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    options = SyncOptions(exclude=("out/",))
    client.sync(str(source), "t", options)
    (volume / "data/t/out").mkdir()
    (volume / "data/t/out/early").write_text("e")
    (volume / "data/t/out/replaced").write_text("before")
    (source / "a").write_text("22")
    (source / "b").write_text("22")

    def meddle() -> None:
        (volume / "data/t/out/late").write_text("l")
        (volume / "data/t/out/new").write_text("after")
        (volume / "data/t/out/new").rename(volume / "data/t/out/replaced")
        (volume / "data/t/out/deep/er").mkdir(parents=True)
        (volume / "data/t/out/deep/er/f").write_text("f")

    at_step("synced", meddle, monkeypatch)
    client.sync(str(source), "t", options)
    out = volume / "data/t/out"
    assert sorted(os.listdir(out)) == ["deep", "early", "late", "replaced"]
    assert (out / "replaced").read_text() == "after"
    assert (out / "deep/er/f").read_text() == "f"


@pytest.mark.parametrize("options", [SyncOptions(exclude=("out",)), SyncOptions(delete=False)])
def test_what_appears_where_nothing_was_kept_before_is_carried_over_too(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: SyncOptions
) -> None:
    """The first file that a function ever writes beside a mirror is not lost, if a sync runs just then."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    client.sync(str(source), "t", options)
    for name in ("a", "b"):
        (source / name).write_text("22")

    def meddle() -> None:
        (volume / "data/t/out").mkdir()
        (volume / "data/t/out/result").write_text("r")

    at_step("received", meddle, monkeypatch)
    client.sync(str(source), "t", options)
    assert (volume / "data/t/out/result").read_text() == "r"
    assert not client.sync(str(source), "t", options).plan


@pytest.mark.parametrize("step", ["written", "copied", "arriving"])
@pytest.mark.parametrize("how", ["write", "copy", "copy directory", "rename", "create", "append", "mkdir", "touch"])
def test_what_clients_put_into_a_mirror_follows_a_sync(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, step: str
) -> None:
    """A file or directory that is written, copied or renamed into an excluded directory is there afterwards, also
    where a sync replaces that directory in the midst of it."""
    source = tmp_path / "source"
    source.mkdir()
    options = SyncOptions(exclude=("out",))

    def sync() -> None:
        for name in ("a", "b"):
            (source / name).write_text(f"{name}{time.time_ns()}")
        with contextlib.closing(ThreadHost(volume)) as host, VolumeClient(host.open_storage()) as other:
            other.sync(str(source), "t", options)

    sync()
    (volume / "data/t/out").mkdir()
    (volume / "data/d").mkdir()
    (volume / "data/d/f").write_text("new")
    left = [step]

    def meddle() -> None:
        if left:
            left.clear()
            sync()

    at_step(step, meddle, monkeypatch)
    match how:
        case "write":
            client.write("t/out/x", [b"new"])
        case "create":
            file = OpenFile(client.connection, "t/out/x", "create")
            file.write(0, memoryview(b"new"))
            file.close(commit=True)
        case "copy":
            client.copy("d/f", "t/out/x")
        case "copy directory":
            client.copy("d", "t/out/x", recursive=True)
        case "rename":
            client.rename("d/f", "t/out/x")
        case "append":
            file = OpenFile(client.connection, "t/out/x", "append")
            file.write(0, memoryview(b"new"))
            file.close(commit=True)
        case "mkdir":
            client.mkdir("t/out/x")
            assert (volume / "data/t/out/x").is_dir()
            client.write("t/out/x/f", [b"new"])
        case "touch":
            client.set_attributes("t/out/x", create=True)
    below, content = ("x/f" if how in ("mkdir", "copy directory") else "x"), "" if how == "touch" else "new"
    assert (volume / "data/t/out" / below).read_text() == content
    sync()
    assert (volume / "data/t/out" / below).read_text() == content


def test_a_sync_whose_resting_peer_says_nothing_is_made_by_another(volume: Path, tmp_path: Path) -> None:
    """A peer that rested may be dying, with its daemon; nothing has begun then. A second one that does is told."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    host = ThreadHost(volume)
    arranged = Arranged(host, str(source), "t", SyncOptions())

    def keep_dead() -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        host.keep_storage(Channel(ours))

    keep_dead()
    assert arranged.run().plan.put
    host.close()
    keep_dead()
    keep_dead()
    with pytest.raises(HostUnreachable, match="before it answered"):
        arranged.run()
    host.wait()


@pytest.mark.parametrize("size", [100, 3 << 20])
def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, size: int) -> None:
    """What is sent of a file is one state of it, whole, also when it is written in the middle of being read."""
    path = tmp_path / "f"
    path.write_bytes(b"a" * size)
    opened: list[int] = []

    def open_file(name: str, flags: int) -> int:
        descriptor = os.open(name, flags)
        opened.append(descriptor)
        return descriptor

    sent: list[tuple[dict[str, object], list[bytes]]] = []
    real_read = os.read
    meddled = False

    def read(descriptor: int, count: int) -> bytes:
        nonlocal meddled
        content = real_read(descriptor, min(count, max(1, size // 2)))
        if not meddled:
            meddled = True
            path.write_bytes(b"b" * size)
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read)
        send_files([FileRequest(0, str(path), size)], FileReader(open_file), lambda h, b: sent.append((h, list(b))))
    received = bytearray()
    for header, buffers in sent:
        if header["type"] == "files":
            received[:] = buffers[0]
        else:
            del received[int(str(header["offset"])) :]
            received += buffers[0]
    assert received == b"b" * size
    assert len(opened) == 2


def test_a_file_that_never_rests_is_an_error(tmp_path: Path) -> None:
    """A file that is written all the time is refused by name rather than sent torn."""
    path = tmp_path / "f"
    path.write_bytes(b"0")

    def open_file(name: str, flags: int) -> int:
        descriptor = os.open(name, flags)
        return descriptor

    real_read = os.read

    def read(descriptor: int, count: int) -> bytes:
        path.write_bytes(b"%d" % (path.read_bytes() == b"0"))
        return real_read(descriptor, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read)
        with pytest.raises(SyncError, match="changes all the time"):
            send_files([FileRequest(0, str(path), 0)], FileReader(open_file), lambda *_: None)


def test_operations_of_the_client(client: VolumeClient, volume: Path) -> None:
    """Files are written in one step, read in part, looked at and removed; errors are the builtin ones."""
    client.write("a/b", [b"hello ", memoryview(b"world")], mode=0o600, mtime_ns=5)
    assert b"".join(client.read("/data/a/b", offset=6)) == b"world"
    assert b"".join(client.read("a/b", offset=1, length=3)) == b"ell"
    entry = client.status("a/b")
    assert (entry.mode, entry.size, entry.mtime_ns) == (0o600, 11, 5)
    client.write("a/b", [])
    assert stat.S_IMODE((volume / "data/a/b").stat().st_mode) == 0o600
    assert list(client.listdir("a")) == ["b"]
    with pytest.raises(FileNotFoundError, match="/data/nothing"):
        client.stat("nothing")
    with pytest.raises(NotADirectoryError):
        client.listdir("a/b")
    with pytest.raises(IsADirectoryError):
        next(client.read("a"))
    with pytest.raises(IsADirectoryError):
        client.write("a", [b"x"])
    with pytest.raises(OSError, match="not empty"):
        client.remove("a")
    client.remove("a", recursive=True)
    for call in (client.remove, client.stat):
        with pytest.raises(ValueError, match=r"\.\."):
            call("../x")
    assert client.listdir() == []
    assert os.listdir(volume / "staging") == ["locks"]


def test_a_write_that_fails_on_the_clients_side_leaves_the_old_file(client: VolumeClient, volume: Path) -> None:
    """An exception from the content's source leaves the file as it was and the channel usable."""
    client.write("f", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        client.write("f", broken())
    assert (volume / "data/f").read_bytes() == b"old"
    assert b"".join(client.read("f")) == b"old"


def test_a_reader_that_stops_early_closes_the_client(client: VolumeClient) -> None:
    """After an abandoned read the client says that it is closed instead of mixing up answers."""
    client.write("f", [bytes(64 << 20)])
    reader = client.read("f")
    next(reader)
    del reader
    with pytest.raises(HostUnreachable):
        client.stat("f")


def test_a_file_that_has_just_changed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read only when a later change is certain to carry another time stamp."""
    path = tmp_path / "f"
    path.write_bytes(b"x")
    changed_ns = path.stat().st_ctime_ns
    waits: list[float] = []
    monkeypatch.setattr("time.time_ns", lambda: changed_ns + 1_000_000)
    reader = FileReader(os.open, wait_seconds=waits.append)
    reader.small(str(path), 1)
    assert waits == [pytest.approx((FINE_CLOCK_NS - 1_000_000) / 1e9)]
    monkeypatch.setattr("time.time_ns", lambda: changed_ns + FINE_CLOCK_NS + 1)
    reader.small(str(path), 1)
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("ctime_ns", "now_ns", "lasting"),
    [
        (5_000_000_001, 5_010_000_000, False),
        (5_000_000_001, 5_030_000_000, True),
        (5_000_000_000, 5_030_000_000, False),
        (5_000_000_000, 7_030_000_000, True),
        (9_000_000_001, 5_000_000_000, False),
    ],
    ids=["this tick", "ticks ago", "whole seconds, this second", "whole seconds, long ago", "in the future"],
)
def test_only_settled_stamps_are_remembered(ctime_ns: int, now_ns: int, lasting: bool) -> None:
    """A stamp that a change from now on could repeat does not count as known at the next sync."""
    scan = Scan([""], array("q", (0o100644, 1, 1, ctime_ns, 1)))
    kept = index_of(scan, Index("g"), now_ns=now_ns)
    assert kept.same(scan) is lasting


@pytest.mark.parametrize("other", ["a", "a/t", "a/t/below"])
def test_a_sync_waits_for_one_above_or_below_it(
    client: VolumeClient, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """While a target is synced, nobody can exchange it, a directory above it or one below it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("1")
    answers = list[str]()

    def meddle() -> None:
        with serving(volume) as sock:
            channel = Channel(sock)
            channel.send({"type": "sync", "path": other})
            answers.append(channel.receive().type)

    at_step("synced", meddle, monkeypatch)
    client.sync(str(source), "a/t", SyncOptions())
    assert answers == ["waiting"]
