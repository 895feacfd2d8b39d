"""What functions write into a tree that a sync has replaced under them is brought along when that tree goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.errors import DiskFull, SyncError, VolumeBusy
from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync.client import SyncOptions
from atoll.storage.volume import staging
from atoll.storage.volume.locks import holding, target_key
from atoll.storage.volume.staging import ReplacedTree
from atoll.wire.channel import Channel

from ..volumes import serving

OPTIONS = SyncOptions(exclude=("out",))


class Mirror:
    """A mirror, and a process's hold on a directory of it."""

    def __init__(self, client: VolumeClient, root: Path, source: Path) -> None:
        self.client = client
        self.staging = root / "staging"
        self.target = root / "data/a/t"
        self.source = source

    def sync(self) -> None:
        for name in ("x", "y"):
            (self.source / name).write_text(f"{name}{time.time_ns()}")
        self.client.sync(str(self.source), "a/t", OPTIONS)

    @contextlib.contextmanager
    def held(self, path: str = "") -> Iterator[Path]:
        """Give a path that goes on leading to a directory of now."""
        descriptor = os.open(self.target / path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)

    def olds(self) -> list[str]:
        return [name for name in os.listdir(self.staging) if name.startswith("old-")]


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A mirror that has been synced once, with an excluded directory at the target."""
    root, source = tmp_path / "volume", tmp_path / "source"
    (root / "data").mkdir(parents=True)
    (source / "sub").mkdir(parents=True)
    (source / "sub/z").write_text("z")
    with serving(root, DAEMON) as sock, VolumeClient(Channel(sock)) as client:
        made = Mirror(client, root, source)
        made.sync()
        (made.target / "out").mkdir()
        (made.target / "out/best").write_text("first")
        yield made


def test_what_is_written_through_a_held_directory_is_brought_along(mirror: Mirror) -> None:
    """Files and symlinks that are made by relative names in a tree that was replaced get their names in the mirror."""
    with mirror.held() as here:
        mirror.sync()
        before = (mirror.target / "out").stat().st_mtime_ns
        (here / "out/2.pt").write_text("weights")
        os.symlink("2.pt", here / "out/latest")
        (here / "out/deep/er").mkdir(parents=True)
        (here / "out/deep/er/f").write_text("f")
        os.utime(here / "out/deep/er/f", (1, 1))
        mirror.sync()
    mirror.client.collect()
    assert sorted(os.listdir(mirror.target)) == ["out", "sub", "x", "y"]
    assert sorted(os.listdir(mirror.target / "out")) == ["2.pt", "best", "deep", "latest"]
    assert (mirror.target / "out/2.pt").read_text() == "weights"
    assert os.readlink(mirror.target / "out/latest") == "2.pt"
    assert (mirror.target / "out/deep/er/f").stat().st_mtime == 1
    assert (mirror.target / "out").stat().st_mtime_ns == before
    assert not mirror.olds()


def test_nothing_is_overwritten(mirror: Mirror) -> None:
    """What has the name of something in the mirror comes to stand beside it."""
    with mirror.held() as here:
        mirror.sync()
        (here / "out/new").write_text("second")
        (here / "out/new").rename(here / "out/best")
        (here / "x").write_text("mine")
    content = (mirror.target / "x").read_text()
    mirror.client.collect()
    assert (mirror.target / "x").read_text() == content
    assert (mirror.target / "out/best").read_text() == "first"
    (beside,) = [name for name in os.listdir(mirror.target / "out") if name.startswith("best.replaced-")]
    assert (mirror.target / "out" / beside).read_text() == "second"


def test_what_only_syncs_have_touched_is_not_brought_back(mirror: Mirror) -> None:
    """Trees that nobody has written to leave nothing, in whatever order they go, and however their files are linked."""
    (mirror.source / "sub/w").write_text("w")
    for name in ("1", "2", "3"):
        mirror.sync()
        os.utime(mirror.source / "sub", (5, 5))
        (mirror.source / "gone").write_text(name)
        mirror.sync()
        (mirror.source / "gone").unlink()
        (mirror.source / "sub" / name).mkdir()
    (mirror.source / "sub/w").unlink()
    mirror.sync()
    for old in sorted(name for name in mirror.olds() if not name.endswith(".json")):
        mirror.client.collect(before_ns=int(old.split("-")[1]) + 1)
    assert not mirror.olds()
    assert sorted(os.listdir(mirror.target)) == ["out", "sub", "x", "y"]
    assert sorted(os.listdir(mirror.target / "sub")) == ["1", "2", "3", "z"]
    assert not mirror.client.sync(str(mirror.source), "a/t", OPTIONS).plan


def test_a_directory_that_has_gone_from_the_mirror_comes_back_for_what_was_written(mirror: Mirror) -> None:
    """What is written in a directory that the source has no more is there until the next sync."""
    with mirror.held("sub") as here:
        (mirror.source / "sub/z").unlink()
        (mirror.source / "sub").rmdir()
        mirror.client.sync(str(mirror.source), "a/t", OPTIONS)
        assert not (mirror.target / "sub").exists()
        (here / "late").write_text("l")
    mirror.client.collect()
    assert (mirror.target / "sub/late").read_text() == "l"
    assert not (mirror.target / "sub/z").exists()


@pytest.mark.parametrize("with_others", [True, False])
def test_what_appears_in_a_directory_that_a_sync_takes_away_is_not_lost(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, with_others: bool
) -> None:
    """An excluded name that a function makes, while a sync runs, below what the source has no more comes back."""

    def meddle(step: str, _: object) -> None:
        if step == "received":
            (mirror.target / "sub/out").mkdir()
            (mirror.target / "sub/out/result").write_text("r")

    monkeypatch.setattr(crash_points, "_report", meddle)
    (mirror.source / "sub/z").unlink()
    (mirror.source / "sub").rmdir()
    if with_others:
        mirror.sync()
        assert (mirror.target / "sub/out/result").read_text() == "r"
    else:  # the directory itself is what is switched
        mirror.client.sync(str(mirror.source), "a/t", OPTIONS)
    mirror.client.collect()
    assert (mirror.target / "sub/out/result").read_text() == "r"
    assert not (mirror.target / "sub/z").exists()


def test_while_a_sync_is_under_way_the_tree_stays(mirror: Mirror, tmp_path: Path) -> None:
    """A replaced tree with something to bring along waits for who is at work at its target."""
    with mirror.held() as here:
        mirror.sync()
        (here / "out/late").write_text("l")
    locks = os.open(mirror.staging / "locks", os.O_RDONLY)
    with holding(locks, target_key("a/t"), exclusive=True, wait=None) as held:
        assert held
        mirror.client.collect()
        assert not (mirror.target / "out/late").exists()
        assert mirror.olds()
    os.close(locks)
    mirror.client.collect()
    assert (mirror.target / "out/late").read_text() == "l"
    assert not mirror.olds()


def test_nothing_is_brought_to_where_the_mirror_is_no_more(mirror: Mirror, tmp_path: Path) -> None:
    """A mirror that was removed, or is a symlink now, gets nothing; the tree goes."""
    for stands in ("nothing", "a symlink"):
        mirror.sync()
        with mirror.held() as here:
            mirror.sync()
            (here / "late").write_text("l")
        mirror.target.rename(tmp_path / stands.replace(" ", ""))
        if stands == "a symlink":
            (tmp_path / "volume/data/other").mkdir()
            mirror.target.symlink_to("../other")
        mirror.client.collect()
        assert not mirror.olds()
        if stands == "a symlink":
            assert os.listdir(tmp_path / "volume/data/other") == []


def at_step(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], object]) -> None:
    """Do something once, when a sync reaches a step."""
    done: list[str] = []

    def meddle(step: str, _: object) -> None:
        if step == name and not done:
            done.append(step)
            work()

    monkeypatch.setattr(crash_points, "_report", meddle)


@pytest.mark.parametrize("step", ["received", "recorded"])
def test_what_came_during_a_sync_and_was_deleted_stays_deleted(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The journal of a transaction that was open while a sync ran does not come back when the old tree is collected."""
    journal = mirror.target / "out/db-journal"
    at_step(monkeypatch, step, lambda: journal.write_text("old pages"))
    mirror.sync()
    assert journal.read_text() == "old pages"
    journal.unlink()
    mirror.client.collect()
    assert sorted(os.listdir(mirror.target / "out")) == ["best"]
    assert not mirror.olds()


@pytest.mark.parametrize("step", ["exchanged", "won"])
def test_what_is_deleted_while_a_sync_ends_stays_deleted(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A name that the new tree has had is not brought again out of the old one, neither then nor later."""
    (mirror.target / "out/deep").mkdir()

    def delete() -> None:
        (mirror.target / "out/best").unlink()
        (mirror.target / "out/deep").rmdir()

    at_step(monkeypatch, step, delete)
    mirror.sync()
    assert os.listdir(mirror.target / "out") == []
    mirror.client.collect()
    assert os.listdir(mirror.target / "out") == []


def test_what_was_brought_along_at_once_and_deleted_is_not_brought_twice(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two looks for what came late a function may delete it."""
    late = mirror.target / "out/late"

    def meddle(step: str, fields: dict[str, object]) -> None:
        if step == "recorded":
            late.write_text("l")
        if step == "carried over" and fields["path"] == "out/late":
            late.unlink()

    monkeypatch.setattr(crash_points, "_report", meddle)
    mirror.sync()
    mirror.client.collect()
    assert os.listdir(mirror.target / "out") == ["best"]


def test_a_file_that_is_replaced_again_and_again_leaves_no_copies(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints that are written beside and renamed, while syncs run, are there once, the last one."""
    best = mirror.target / "out/best"

    def write(text: str) -> None:
        (mirror.target / "out/temporary").write_text(text)
        (mirror.target / "out/temporary").rename(best)

    for number in range(3):
        at_step(monkeypatch, "recorded", functools.partial(write, f"during {number}"))
        mirror.sync()
        assert best.read_text() == f"during {number}"
        write(f"after {number}")
    mirror.client.collect()
    assert best.read_text() == "after 2"
    assert os.listdir(mirror.target / "out") == ["best"]


def test_what_a_function_appends_to_and_deletes_stays_deleted(mirror: Mirror) -> None:
    """A file that both trees have is the mirror's: its removal there is final, though the old tree has it yet."""
    mirror.sync()
    with (mirror.target / "out/best").open("a") as file:
        file.write("more")
    (mirror.target / "out/best").unlink()
    mirror.client.collect()
    assert os.listdir(mirror.target / "out") == []


def test_what_is_moved_in_without_being_written_is_brought_along(mirror: Mirror, tmp_path: Path) -> None:
    """A file from elsewhere in the volume, and one that is renamed to its last name, keep their old times."""
    elsewhere = tmp_path / "volume/data/elsewhere"
    elsewhere.write_text("moved in")
    (mirror.target / "out/best.tmp").write_text("second")
    with mirror.held("out") as here:
        mirror.sync()
        elsewhere.rename(here / "result")
        (here / "best.tmp").rename(here / "best")
    mirror.client.collect()
    assert (mirror.target / "out/result").read_text() == "moved in"
    assert (mirror.target / "out/best").read_text() == "first"
    (beside,) = (mirror.target / "out").glob("best.replaced-*")
    assert beside.read_text() == "second"


def test_where_no_note_can_be_written_the_record_is_one(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that has no inode left a replaced tree is known all the same."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(ReplacedTree, "write", full)
    with mirror.held("out") as here:
        mirror.sync()
        (mirror.target / "out/best").unlink()
        (here / "late").write_text("l")
    mirror.client.collect()
    assert os.listdir(mirror.target / "out") == ["late"]
    assert not mirror.olds()


def test_a_tree_that_cannot_be_noted_stays_for_recovery(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no way to remember what a tree was, it is not given away; the next sync does it."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with mirror.held("out") as here, monkeypatch.context() as patched:
        patched.setattr(ReplacedTree, "write", full)
        patched.setattr(staging, "_link_note", full)
        with pytest.raises(DiskFull):
            mirror.sync()
        (here / "late").write_text("l")
    mirror.sync()
    mirror.client.collect()
    assert sorted(os.listdir(mirror.target / "out")) == ["best", "late"]
    assert not mirror.olds()


def make_deep(directory: Path) -> None:
    """Nest directories until nobody can name the last one."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_directories_without_end_are_an_error_and_can_be_removed(mirror: Mirror) -> None:
    """A sync does not read what a function has nested more deeply than names can tell, and says where it is."""
    make_deep(mirror.target / "out")
    with pytest.raises(SyncError, match=r"nested too deeply: `out/ddd"):
        mirror.sync()
    mirror.client.remove(f"a/t/out/{'d' * 250}", recursive=True)
    mirror.sync()


def test_directories_without_end_in_a_replaced_tree_go_with_it(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function nests in the old tree while it is replaced, and afterwards, keeps no sync and no collection up."""
    at_step(monkeypatch, "recorded", lambda: make_deep(mirror.target / "out"))
    mirror.sync()
    assert os.listdir(mirror.target / "out") == ["best"]
    with mirror.held("out") as here:
        mirror.sync()
        make_deep(here)
    mirror.client.collect()
    assert not mirror.olds()
    assert os.listdir(mirror.target / "out") == ["best"]


def test_a_lease_of_a_function_is_an_error_that_says_so(mirror: Mirror) -> None:
    """A file on which a process holds a lease cannot be opened just now: by name, and with a next step."""
    descriptor = os.open(mirror.target / "out/best", os.O_WRONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        signals = signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            with pytest.raises(VolumeBusy, match="a function holds a lease on `best`") as caught:
                b"".join(mirror.client.read("a/t/out/best"))
            assert "atoll stop" in caught.value.hint
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, signals)
    finally:
        os.close(descriptor)
    assert (mirror.target / "out/best").read_text() == "first"
