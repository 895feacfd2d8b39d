"""The programs in `benchmarks/` run, without what they compare with where that is not installed.

That they fit the package is checked by types (`make check`); each is run in the long form.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Home
from ..waiting import soak

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {
    *("copiers.py", "disk.py", "million.py", "peers.py", "servers.py", "snapshotting.py", "table.py", "trees.py"),
    *("drawing.py", "machines.py", "policies.py", "workload.py"),
    *("remote_bytes.py", "remote_connections.py", "remote_rates.py", "ray_tasks.py", "queue_peers.py"),
    "cluster_environments.py",  # minutes, for decision 48 alone: it has no peers
}


LONG = {"calls.py", "cluster.py", "gateway.py", "payloads.py", "queueing.py", "remote.py", "schedules.py", "sync.py"}
"""Run with `SOAK` alone: they take 10 to 60 seconds, and show as little of the harness that the others have not shown."""
if not soak(0, 1):
    PARTS |= LONG


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in PARTS))
def test_a_benchmark_runs_to_its_table(atoll_home: Home, name: str) -> None:
    """`--tiny` measures as little as shows that it runs, and prints the table with its headings."""
    done = atoll_home.python(str(BENCHMARKS / name), "--tiny", cwd=BENCHMARKS)
    assert "Atoll" in done.stdout
    assert " aim" in done.stdout
    assert " GiB, Linux " in done.stdout
