"""Snapshots of a volume: what they hold, what they cost, and what they say of one another."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.errors import SnapshotError, SyncError
from atoll.storage.client.volume import VolumeClient
from atoll.storage.content import copy as reflink
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.snapshots import file_access
from atoll.storage.snapshots.values import COPY, Difference, Snapshot, check_name
from atoll.wire.channel import Channel

from ..volumes import serving


class Volume:
    """A volume's directory, and a client whose peer is a thread."""

    def __init__(self, path: Path, client: VolumeClient) -> None:
        self.path = path
        self.data = path / "data"
        self.trees = path / "snapshots" / "trees"
        self.client = client

    def take(self, name: str | None = None, path: str = "/data") -> Snapshot:
        return self.client.snapshot(name, path)

    def diff(self, old: str, new: str | None = None) -> dict[str, Difference]:
        return {one.path: one for one in self.client.diff(old, new)}

    def leftovers(self) -> list[str]:
        return [name for name in os.listdir(self.path / "staging") if name != "locks" and not name.startswith("old-")]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A volume with a few files, and a client of it."""
    root = tmp_path / "volume"
    (root / "data/sub/deep").mkdir(parents=True)
    (root / "data/file").write_text("one")
    (root / "data/sub/other").write_text("two")
    (root / "data/sub/link").symlink_to("other")
    (root / "data/.snapshots").mkdir()
    with serving(root, DAEMON) as sock, VolumeClient(Channel(sock)) as client:
        yield Volume(root, client)


def contents(root: Path) -> dict[str, object]:
    """Return names, kinds, modes, times and contents below a directory, read in the plainest way."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                what: object = (path.read_bytes(), info.st_mode, info.st_mtime_ns)
            elif stat.S_ISLNK(info.st_mode):
                what = (os.readlink(path), info.st_mtime_ns)
            else:
                what = (info.st_mode, info.st_mtime_ns)
            found[str(path.relative_to(root))] = what
    found.pop(".snapshots", None)
    return found


def test_holes_are_compared_without_reading_them(tmp_path: Path) -> None:
    """A file that a function has made huge is compared as fast as it was made."""
    for name, data in (("a", b"x"), ("b", b"x"), ("c", b"y"), ("d", b"")):
        with open(tmp_path / name, "wb") as file:
            file.seek(1 << 39)
            file.write(data)
            file.truncate(1 << 42)
    opened = [os.open(tmp_path / name, os.O_RDONLY) for name in "abcd"]
    assert file_access.same_content(opened[0], opened[1])
    assert file_access.same_content(opened[3], opened[3])
    assert not file_access.same_content(opened[0], opened[2])
    assert not file_access.same_content(opened[3], opened[0])
    for descriptor in opened:
        os.close(descriptor)


def test_a_snapshot_holds_what_was_there_and_stays_so(volume: Volume) -> None:
    """Writes in place, appends and removals that follow leave a snapshot as it is."""
    before = contents(volume.data)
    made = volume.take("first")
    assert contents(volume.trees / "first") == before
    assert (made.name, made.path, made.generation, made.files, made.bytes) == ("first", "/data", 1, 2, 6)
    with open(volume.data / "file", "r+") as file:
        file.write("ONE")
    with open(volume.data / "sub/other", "a") as file:
        file.write("more")
    (volume.data / "sub/link").unlink()
    assert contents(volume.trees / "first") == before
    assert volume.client.snapshots() == [made]
    assert not volume.leftovers()


def test_names_are_checked_and_taken_once(volume: Volume) -> None:
    """A name is of a small alphabet and free; without one the time is the name, whatever happens at the same second."""
    for name in ("", ".hidden", "a/b", "..", "a b", "x" * 201, "a\n", "é"):
        with pytest.raises(ValueError, match="name"):
            volume.take(name)
    volume.take("a")
    with pytest.raises(SnapshotError, match="already") as caught:
        volume.take("a")
    assert caught.value.details["reason"] == "exists"
    named = {volume.take().name for _ in range(3)}
    assert len(named) == 3
    assert all(check_name(name) for name in named)


def test_what_is_no_directory_has_no_snapshot(volume: Volume) -> None:
    """A file, nothing, and the snapshots themselves are refused, and leave nothing behind."""
    with pytest.raises(NotADirectoryError):
        volume.take("x", "/data/file")
    with pytest.raises(FileNotFoundError):
        volume.take("x", "/data/nothing")
    (volume.data / "way").symlink_to("/data/.snapshots")
    for path in ("/data/.snapshots", "/data/.snapshots/x", "/data/way"):
        with pytest.raises(PermissionError, match="snapshots cannot be changed"):
            volume.take("x", path)
    assert not os.listdir(volume.trees)
    assert not volume.leftovers()


def test_unchanged_files_are_shared_with_the_previous_snapshot_and_never_with_live_data(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files must be copied, one that has not changed since costs nothing, whether its stamp says so or its content."""
    monkeypatch.setattr(reflink, "clone", lambda *_: False)
    os.utime(volume.data / "sub/other", ns=(1, 1))
    assert volume.take("one").copied_bytes == 6
    info = (volume.data / "sub/other").stat()
    os.replace(_again(volume.data / "sub/other", volume.data / "fresh"), volume.data / "sub/other")
    assert (volume.data / "sub/other").stat().st_ino != info.st_ino
    (volume.data / "file").write_text("ONE")
    second = volume.take("two")
    assert (second.way, second.copied_bytes, second.bytes) == (COPY, 3, 6)
    inodes = {name: (volume.trees / name / "sub/other").stat().st_ino for name in ("one", "two")}
    assert inodes["one"] == inodes["two"]
    live = {path.stat().st_ino for path in volume.data.rglob("*")}
    assert live.isdisjoint(path.lstat().st_ino for path in volume.trees.rglob("*"))
    assert (volume.trees / "one/file").read_text() == "one"


def _again(path: Path, copy: Path) -> Path:
    copy.write_bytes(path.read_bytes())
    info = path.stat()
    copy.chmod(info.st_mode & 0o7777)
    os.utime(copy, ns=(info.st_mtime_ns, info.st_mtime_ns))
    return copy


def test_a_change_that_puts_size_and_time_back_is_seen(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next snapshot holds the new content, although size and modification time are what they were."""
    monkeypatch.setattr(reflink, "clone", lambda *_: False)
    monkeypatch.setattr("atoll.storage.snapshots.peer._MARGIN_NS", -(10**12))  # every stamp is trusted
    volume.take("one")
    info = (volume.data / "file").stat()
    with open(volume.data / "file", "r+") as file:
        file.write("ONE")
    os.utime(volume.data / "file", ns=(info.st_mtime_ns, info.st_mtime_ns))
    volume.take("two")
    assert (volume.trees / "two/file").read_text() == "ONE"


def test_young_stamps_are_not_trusted(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written just before a snapshot is compared by its content at the next one."""
    monkeypatch.setattr(reflink, "clone", lambda *_: False)
    volume.take("one")
    assert not (volume.path / "snapshots/records/one.stamps").read_bytes()


def test_files_with_several_names_keep_them(volume: Volume) -> None:
    """Hard links within the directory are hard links in the snapshot."""
    os.link(volume.data / "file", volume.data / "sub/again")
    volume.take("one")
    assert (volume.trees / "one/file").samefile(volume.trees / "one/sub/again")
    assert not (volume.trees / "one/file").samefile(volume.data / "file")


def test_attributes_holes_and_locked_places_are_copied(volume: Volume) -> None:
    """Extended attributes, holes, and what its owner may not read are in the snapshot, and stay locked."""
    with open(volume.data / "holes", "wb") as file:
        file.seek(100 << 20)
        file.write(b"end")
    os.setxattr(volume.data / "file", "user.note", b"kept")
    (volume.data / "file").chmod(0o000)
    (volume.data / "sub").chmod(0o000)
    os.mkfifo(volume.data / "pipe")
    try:
        made = volume.take("one")
        assert stat.S_IMODE((volume.data / "sub").stat().st_mode) == 0
    finally:
        (volume.data / "sub").chmod(0o755)
    tree = volume.trees / "one"
    assert (tree / "holes").stat().st_size == (100 << 20) + 3
    assert (tree / "holes").stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE((tree / "sub").stat().st_mode) == 0
    assert stat.S_IMODE((tree / "file").stat().st_mode) == 0
    assert made.left_out == 1
    (tree / "file").chmod(0o600)
    assert os.getxattr(tree / "file", "user.note") == b"kept"
    (tree / "sub").chmod(0o755)
    assert (tree / "sub/other").read_text() == "two"


def test_a_directory_has_snapshots_of_its_own(volume: Volume) -> None:
    """A snapshot of a directory holds that directory, and shares with one of the whole volume."""
    made = volume.take("sub-1", "/data/sub")
    assert made.path == "/data/sub"
    assert sorted(os.listdir(volume.trees / "sub-1")) == ["deep", "link", "other"]


def test_differences_name_what_changed_and_how(volume: Volume) -> None:
    """Added, removed, changed and touched paths are told apart; a touched file with its old content is not changed."""
    (volume.data / "same").write_text("same")
    (volume.data / "gone").write_text("x" * 10)
    (volume.data / "kind").write_text("")
    volume.take("old")
    (volume.data / "file").write_text("longer")
    (volume.data / "gone").unlink()
    (volume.data / "new").mkdir()
    (volume.data / "new/inner").write_text("12")
    os.utime(volume.data / "same", ns=(5, 5))
    (volume.data / "sub/other").chmod(0o600)
    (volume.data / "sub/link").unlink()
    (volume.data / "sub/link").symlink_to("elsewhere")
    (volume.data / "kind").unlink()
    (volume.data / "kind").mkdir()
    found = volume.diff("old")
    assert found.pop("/data/file") == Difference("/data/file", "changed", ("mtime",), "f", "f", 3, 6)
    assert found.pop("/data/gone") == Difference("/data/gone", "removed", (), "f", "", 10, 0)
    assert found.pop("/data/new") == Difference("/data/new", "added", (), "", "d", 0, 0)
    assert found.pop("/data/new/inner") == Difference("/data/new/inner", "added", (), "", "f", 0, 2)
    assert found.pop("/data/same") == Difference("/data/same", "attributes", ("mtime",), "f", "f", 4, 4)
    assert found.pop("/data/sub/other") == Difference("/data/sub/other", "attributes", ("mode",), "f", "f", 3, 3)
    assert found.pop("/data/sub/link") == Difference("/data/sub/link", "changed", (), "l", "l", 0, 0)
    assert found.pop("/data/kind") == Difference("/data/kind", "changed", (), "f", "d", 0, 0)
    assert not found
    volume.take("new")
    assert volume.diff("old", "new") == volume.diff("old") == _turned(volume.diff("new", "old"))
    assert not volume.diff("new")


def _turned(found: dict[str, Difference]) -> dict[str, Difference]:
    other = {"added": "removed", "removed": "added"}
    return {
        path: Difference(
            path, other.get(one.change, one.change), one.attributes, one.kind, one.old_kind, one.size, one.old_size
        )
        for path, one in found.items()
    }


def test_snapshots_of_a_directory_and_of_the_volume_are_compared_where_they_overlap(volume: Volume) -> None:
    """The deeper directory is what is compared; two that are apart cannot be."""
    volume.take("whole")
    (volume.data / "sub/other").write_text("changed")
    volume.take("part", "/data/sub")
    assert list(volume.diff("whole", "part")) == ["/data/sub/other"]
    volume.take("deep", "/data/sub/deep")
    (volume.data / "apart").mkdir()
    volume.take("apart", "/data/apart")
    with pytest.raises(SyncError, match="are apart"):
        volume.diff("deep", "apart")


def test_a_removed_snapshot_is_gone_and_the_others_are_whole(volume: Volume) -> None:
    """Removing one takes its tree and records out of sight, and leaves the files that others share with it."""
    before = contents(volume.data)
    for name in ("one", "two"):
        volume.take(name)
    volume.client.remove_snapshot("one")
    assert [one.name for one in volume.client.snapshots()] == ["two"]
    assert contents(volume.trees / "two") == before
    assert sorted(os.listdir(volume.path / "snapshots/records")) == ["two.json", "two.stamps"]
    for act in (lambda: volume.client.remove_snapshot("one"), lambda: volume.diff("one")):
        with pytest.raises(SnapshotError, match="no snapshot"):
            act()
    volume.client.collect()
    assert os.listdir(volume.path / "staging") == ["locks"]
    assert contents(volume.trees / "two") == before
