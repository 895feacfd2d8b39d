"""What `sync_dir` says of a directory that it cannot upload."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from atoll import sync_dir
from atoll.errors import SourceNotFound


def test_a_missing_source_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host is started for it, and what caused the error is one line without frames of Atoll's own."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    with pytest.raises(SourceNotFound, match="missing") as caught:
        sync_dir(tmp_path / "missing", "x")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert len(traceback.format_exception(caught.value.__cause__)) == 1
    assert not (tmp_path / "home").exists()
