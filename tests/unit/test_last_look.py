"""The names that a sync leaves alone are in the new tree exactly as the old one had them at the exchange."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.sync.client import SyncOptions
from atoll.storage.sync.pause import Pause
from atoll.wire.channel import Channel

from ..volumes import serving

Change = Callable[[Path], object]


def replace(path: Path, text: str) -> None:
    """Put another file at a path, as programs do."""
    path.with_name(".new").write_text(text)
    os.replace(path.with_name(".new"), path)


def renew_symlink(out: Path) -> None:
    os.symlink("journal", out / ".link")
    os.replace(out / ".link", out / "latest")


def to_directory(out: Path) -> None:
    (out / "journal").unlink()
    (out / "journal").mkdir()
    (out / "journal/in").write_text("in")


def to_file(out: Path) -> None:
    shutil.rmtree(out / "runs")
    (out / "runs").write_text("file")


def make_deep(out: Path) -> None:
    (out / "a/b").mkdir(parents=True)
    replace(out / "a/b/c", "c")


def remove_all(out: Path) -> None:
    shutil.rmtree(out)
    out.mkdir()


CHANGES: dict[str, Change] = {
    "a journal is removed": lambda out: os.unlink(out / "journal"),
    "a journal is made": lambda out: (out / "other").write_text("pages"),
    "a file is replaced": lambda out: replace(out / "db", "new"),
    "a file is written": lambda out: (out / "db").write_text("in place"),
    "a symlink is replaced": renew_symlink,
    "a symlink is removed": lambda out: os.unlink(out / "latest"),
    "a directory goes with what is in it": lambda out: shutil.rmtree(out / "runs"),
    "a directory is renamed": lambda out: os.rename(out / "runs", out / "old"),
    "a file is moved to another directory": lambda out: os.rename(out / "journal", out / "runs/1/journal"),
    "an empty directory comes": lambda out: os.mkdir(out / "empty"),
    "directories come with a file": make_deep,
    "a file becomes a directory": to_directory,
    "a directory becomes a file": to_file,
    "all goes": remove_all,
}


def tree(root: Path) -> dict[str, tuple[int, object]]:
    found: dict[str, tuple[int, object]] = {}
    for path in root.rglob("*"):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_text()
        found[str(path.relative_to(root))] = (0 if path.is_dir() else info.st_ino, content)
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[VolumeClient]:
    """A client of a volume with a mirror, and directories of functions in it."""
    for name in ("x", "y", "sub/z"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    (tmp_path / "volume").mkdir()
    with serving(tmp_path / "volume") as sock, VolumeClient(Channel(sock)) as made:
        made.sync(str(tmp_path / "source"), "t", SyncOptions())
        out = tmp_path / "volume/data/t/out"
        (out / "runs/1").mkdir(parents=True)
        for name in ("db", "journal", "runs/1/log", "runs/best"):
            (out / name).write_text(name)
        os.symlink("db", out / "latest")
        yield made


@pytest.mark.parametrize("moment", ["before the first look", "between the looks", "at both"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_functions_do_until_the_exchange_is_in_the_mirror(
    client: VolumeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, moment: str
) -> None:
    """Files keep their inodes, so that who has one open goes on; what was removed does not come back."""
    out, left, acted = tmp_path / "volume/data/t/out", [moment], list[bool]()
    seen: dict[str, tuple[int, object]] = {}

    def act() -> None:
        change(out)
        acted.append(True)
        seen.clear()
        seen.update(tree(out))

    def report(step: str, _: object) -> None:
        if step == "synced" and left:
            left.clear()
            if moment == "at both":
                (out / "journal").unlink()
                (out / "journal").write_text("another")
                (out / "runs/2").mkdir()
                (out / "runs/2/log").write_text("2")
            else:
                act()

    @contextlib.contextmanager
    def held(_: Pause) -> Iterator[None]:
        act()
        yield

    if moment != "between the looks":
        monkeypatch.setattr(crash_points, "_report", report)
    if moment != "before the first look":
        monkeypatch.setattr(Pause, "held", held)
    for name in ("x", "y"):
        (tmp_path / "source" / name).write_text(f"new {name}")
    client.sync(str(tmp_path / "source"), "t", SyncOptions(exclude=("out",)))
    assert acted
    assert tree(out) == seen
    monkeypatch.undo()
    again = client.sync(str(tmp_path / "source"), "t", SyncOptions(exclude=("out",)))
    assert not again.plan
    assert tree(out) == seen
