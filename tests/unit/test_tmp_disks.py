"""`/tmp` directories on the disk: which kind there is, counting, and what is left by daemons that ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from atoll import errors
from atoll.model.mounts import Identity
from atoll.node import build_disk, tmp_disks
from atoll.node.tmp_disks import TmpDisks
from atoll.settings import Settings

OWN = Identity(os.getuid() or 1000, os.getgid() or 1000, "user")


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TmpDisks:
    """Those of a machine without the programs that make a file system."""
    monkeypatch.setattr(tmp_disks, "PROGRAMS", "/nonexistent")
    monkeypatch.setattr(tmp_disks, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(build_disk, "LOOK_SECONDS", 0.0)
    return TmpDisks(Settings(tmp_path))


def test_a_directory_is_counted_where_nothing_can_be_mounted(disks: TmpDisks, tmp_path: Path) -> None:
    """The directory is open to the sandbox's user, and its sandbox is ended when it holds too much; then it is removed."""

    async def scenario() -> None:
        await disks.check(32 << 20)
        made = disks.make(32 << 20, OWN)
        assert made is not None
        assert made.prepare == ()
        assert made.source.stat().st_mode & 0o7777 == 0o1777
        assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o700
        killed = asyncio.Event()

        async def kill() -> None:
            killed.set()

        disks.watch(made, os.getpid, kill)
        (made.source / "small").write_bytes(bytes(1 << 20))
        for _ in range(20):
            await asyncio.sleep(0)
        assert made.failure is None
        (made.source / "large").write_bytes(bytes(40 << 20))
        await asyncio.wait_for(killed.wait(), 60)
        assert isinstance(made.failure, errors.WorkerDied)
        assert '`/tmp` holds more than its `disk="32MiB"`: 4' in str(made.failure)
        deep = made.source / "closed"
        deep.mkdir()
        (deep / "file").touch()
        deep.chmod(0)
        made.close()
        await disks.close()
        assert os.listdir(tmp_path / "tmp") == []

    asyncio.run(scenario())


def test_files_without_a_name_count(disks: TmpDisks) -> None:
    """A file that was unlinked while it is open still takes room."""

    async def scenario() -> None:
        await disks.check(32 << 20)
        made = disks.make(32 << 20, OWN)
        assert made is not None
        killed = asyncio.Event()

        async def kill() -> None:
            killed.set()

        path = made.source / "gone"
        path.write_bytes(bytes(40 << 20))
        held = os.open(path, os.O_RDONLY)
        try:
            path.unlink()
            disks.watch(made, os.getpid, kill)
            await asyncio.wait_for(killed.wait(), 60)
        finally:
            os.close(held)
            made.close()
            await disks.close()

    asyncio.run(scenario())


def test_what_ended_daemons_left_is_removed_and_nothing_else(disks: TmpDisks, tmp_path: Path) -> None:
    """Directories and files of processes that have ended go; those of a live one, in a hand-over too, stay."""

    async def scenario() -> None:
        await disks.check(32 << 20)
        live = disks.make(32 << 20, OWN)
        assert live is not None
        (tmp_path / "outside").mkdir()
        (tmp_path / "tmp" / f"{os.getpid()}-1-1").mkdir()  # the number of the process was another's before
        (tmp_path / "tmp" / "4194305-77-1" / "below").mkdir(parents=True)
        (tmp_path / "tmp" / "4194305-77-2").write_bytes(b"image")
        (tmp_path / "tmp" / "4194305-77-3").symlink_to(tmp_path / "outside")
        disks.sweep()
        assert os.listdir(tmp_path / "tmp") == [live.source.name]
        assert (tmp_path / "outside").is_dir()

    asyncio.run(scenario())


def test_no_disk_is_none(disks: TmpDisks, tmp_path: Path) -> None:
    """A function without `disk` has nothing made for it."""

    async def scenario() -> None:
        await disks.check(0)
        assert disks.make(0, OWN) is None
        assert not (tmp_path / "tmp").exists()

    asyncio.run(scenario())
