"""The copies of the package that sandboxes see, one for each version."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from atoll.engine import agent_files


def test_what_no_daemon_holds_is_removed(tmp_path: Path) -> None:
    """Of the versions' directories those stay that a running daemon holds, and what may be half made."""
    mine, hold = agent_files.hold(tmp_path)
    other = tmp_path / "0.0.9-aaaa"
    for name in ("0.0.9-aaaa", "0.0.8-bbbb", ".stage-new", ".stage-old"):
        (tmp_path / name / "atoll").mkdir(parents=True)
        (tmp_path / name / "atoll" / "errors.py").touch()
    os.utime(tmp_path / ".stage-old", (0, time.time() - 2 * agent_files.STAGE_SECONDS))
    other_hold = os.open(other, os.O_RDONLY)
    fcntl.flock(other_hold, fcntl.LOCK_SH)
    agent_files.remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "0.0.9-aaaa", ".stage-new"}
    os.close(other_hold)
    agent_files.remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, ".stage-new"}
    os.close(hold)
    agent_files.remove_unused(tmp_path)
    again, hold = agent_files.hold(tmp_path)
    assert again == mine
    os.close(hold)
