"""What dead storage peers leave in staging is found and removed, and what living ones work on is not."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.storage.sync import target_state
from atoll.storage.sync.cleanup import clean, collect, worth_collecting
from atoll.storage.sync.index import Index
from atoll.storage.volume import removal
from atoll.storage.volume.removal import Pace
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import KEPT_SECONDS


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[VolumeRoot]:
    """A volume."""
    with VolumeRoot(str(tmp_path)) as root:
        yield root


def leftovers(staging: Path) -> list[str]:
    return sorted(name for name in os.listdir(staging) if name != "locks")


@pytest.mark.parametrize("name", ["file-1", "tree-1"])
def test_what_a_killed_writer_leaves_is_collected(volume: VolumeRoot, tmp_path: Path, name: str) -> None:
    """A file or tree that nobody writes any more is worth collecting, though no sync comes; a locked one stays."""
    staging, now = tmp_path / "staging", time.time_ns()
    made = staging / name
    if name.startswith("tree"):
        (made / "deep").mkdir(parents=True)
        (made / "deep/file").write_text("x")
    else:
        made.write_text("x")
    assert not worth_collecting(staging, now)  # whoever writes it may be at it
    os.utime(made, (time.time() - 60,) * 2)
    assert worth_collecting(staging, now)
    descriptor = os.open(made, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    collect(volume)
    assert leftovers(staging) == [name]
    os.close(descriptor)
    collect(volume)
    assert leftovers(staging) == []


def test_a_sync_is_not_held_up_by_a_large_tree_that_was_left(
    volume: VolumeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its own work a peer removes a part of such a tree; a slow collection does the rest."""
    staging, files = tmp_path / "staging", 1600
    monkeypatch.setattr(removal, "nearly_full", lambda _: False)
    (staging / "tree-1").mkdir()
    for number in range(files):
        (staging / f"tree-1/{number}").touch()
    clean(volume)
    (left,) = leftovers(staging)
    assert left.startswith("trash-")
    assert 0 < len(os.listdir(staging / left)) < files
    assert worth_collecting(staging, 0)
    pauses = list[float]()
    collect(volume, 0, Pace(wait=pauses.append))
    assert leftovers(staging) == []
    assert pauses


def test_indexes_of_targets_that_are_gone_go(volume: VolumeRoot, tmp_path: Path) -> None:
    """One that no sync has read for months is worth collecting; reading renews one."""
    staging, now = tmp_path / "staging", time.time_ns()
    months_ago = time.time() - KEPT_SECONDS - 60
    for key in ("used", "unused"):
        target_state.save(volume, key, Index("generation"))
        os.utime(staging / f"index-{key}", (months_ago,) * 2)
    assert worth_collecting(staging, now)
    assert target_state.load(volume, "used").generation == "generation"
    collect(volume)
    assert leftovers(staging) == ["index-used"]
    assert not worth_collecting(staging, now)
