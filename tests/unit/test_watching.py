"""When a watched directory is looked at again, and when its watcher wakes."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.errors import SyncError
from atoll.sdk.data.watch import Failed, Synced, _WatchedSync
from atoll.storage.files.scan import Scan
from atoll.storage.files.tree import FILE, Entry
from atoll.storage.sync.plan import Plan
from atoll.storage.sync.watch import Watcher

CHANGED = Plan(put={"file": Entry(FILE, 0o644, 1, 1)})


class Mirror:
    """Stands for what is synced; each run takes the next of `results`."""

    def __init__(self, *results: Plan | Exception) -> None:
        self.source, self.options = "", SimpleNamespace(exclude=(), leave_out="")
        self.results = list(results)

    def run(self) -> Any:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(plan=result, sent=1, sent_bytes=1, vanished=(), unheld=False, source=Scan())


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def kinds(keeper: _WatchedSync, *, changed: bool) -> list[type]:
    return [type(one) for one in keeper._sync_if_needed(changed=changed)]


def test_after_each_change_there_is_one_more_look() -> None:
    """What came while a directory was not yet watched is found when it is quiet; then there is rest."""
    mirror = Mirror(CHANGED, Plan(), CHANGED, CHANGED, Plan())
    keeper = _WatchedSync(mirror)  # type: ignore[arg-type]
    assert kinds(keeper, changed=True) == [Synced]
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 3
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 3
    assert kinds(keeper, changed=True) == [Synced]
    assert kinds(keeper, changed=False) == [Synced]
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 1


def test_a_failure_is_told_once_and_tried_again_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change a failed sync is tried again after 1, 2, 4 … seconds, and told again only if it is another."""
    clock = Clock(monkeypatch)
    first, second = SyncError("one"), SyncError("two")
    mirror = Mirror(first, first, second, Plan(), Plan())
    keeper = _WatchedSync(mirror)  # type: ignore[arg-type]
    assert kinds(keeper, changed=True) == [Failed]
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 4
    clock.now += 1.0
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 3
    clock.now += 1.9
    assert kinds(keeper, changed=False) == []
    assert len(mirror.results) == 3
    clock.now += 0.1
    assert kinds(keeper, changed=False) == [Failed]
    clock.now += 4.0
    assert kinds(keeper, changed=False) == [Synced]  # all is well again
    assert kinds(keeper, changed=False) == []


def test_names_that_are_left_out_wake_nobody(tmp_path: Path) -> None:
    """Excluded paths are never told; those that new rules take in are, from the change of the rules on."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/.atollignore").write_text("*.log\n")
    told: set[str] = set()
    stage = 0
    for paths in Watcher(str(tmp_path), ("cache/",), "state", lambda *_: None).changes():
        told |= paths
        if stage == 0:
            for name in ("cache/a", "state", "deep/x.log", "deep/seen"):
                (tmp_path / name).write_text("x")
            stage = 1
        elif stage == 1 and "deep/seen" in told:
            assert not {"cache/a", "state", "deep/x.log"} & told
            (tmp_path / "deep/.atollignore").write_text("")
            stage = 2
        elif stage == 2 and "deep/.atollignore" in told:
            (tmp_path / "deep/x.log").write_text("y")
            stage = 3
        elif "deep/x.log" in told:
            break
    assert "cache/a" not in told


@pytest.mark.parametrize("replaced", [True, False])
def test_a_watcher_ends_with_its_directory(tmp_path: Path, replaced: bool) -> None:
    """When the directory is gone, or another one is in its place, nothing more is told of the old one."""
    source = tmp_path / "source"
    source.mkdir()
    deadline = time.monotonic() + 120.0
    for _ in Watcher(str(source), (), "", lambda *_: None).changes():
        assert time.monotonic() < deadline
        if not (tmp_path / "old").exists():
            source.rename(tmp_path / "old")
            if replaced:
                source.mkdir()
    assert source.exists() is replaced
