"""Rows of running calls whose worker ends while they are made."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any

from atoll.engine import running_calls


def test_a_worker_that_has_just_ended_has_no_memory() -> None:
    """Its process is still there for whoever started it, without memory, and no error of the daemon."""
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        worker: Any = SimpleNamespace(process=SimpleNamespace(lives=lambda: True), pid=child.pid, limit=None)
        assert running_calls._measured(worker)[:2] == (0, 0)
