"""The client's indexes, as files."""

from __future__ import annotations

import os
import time
from pathlib import Path

from atoll.storage.sync import index
from atoll.storage.sync.index import Index, index_path
from atoll.storage.volume.staging import KEPT_SECONDS


def test_indexes_of_sources_that_are_gone_go(tmp_path: Path) -> None:
    """A first sync of a source removes indexes that none has read for months; reading renews one."""
    used, unused, new = (index_path(tmp_path, "local", source, "target") for source in ("used", "unused", "new"))
    months_ago = time.time() - KEPT_SECONDS - 60
    for path in (used, unused):
        index.save(path, Index("generation"))
    for path in (used, unused):
        os.utime(path, (months_ago,) * 2)
    assert index.load(used).generation == "generation"
    index.save(new, Index("another"))
    assert sorted(path.name for path in (tmp_path / "sync").iterdir()) == sorted([used.name, new.name])
