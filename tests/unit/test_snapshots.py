"""Snapshots of a main module that are written by several threads at the same moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.agent import snapshots
from atoll.agent.questions import Questions
from atoll.payload.program import namespaces

if TYPE_CHECKING:
    import pytest


def test_two_threads_write_the_same_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither takes away the file that the other one writes."""
    monkeypatch.setattr(snapshots, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(namespaces, "child_spec", None)
    written = snapshots.Snapshots(Questions())
    content: tuple[Any, ...] = ({}, {"name": b"pickle"}, {}, [])
    rename, others = os.rename, [threading.Thread(target=written._store, args=(content,))]

    def interrupted(source: str, target: str) -> None:
        if others:
            other = others.pop()
            other.start()
            other.join()
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    name = written._store(content)
    assert sorted(os.listdir(tmp_path)) == [f"{name}.pickles", f"{name}.py"]
