"""Long use: syncs, volumes and calls leave nothing open, in the client or in the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atoll import LocalHost, Volume, isolated, sync_dir

from ..conftest import Home
from ..waiting import soak

SYNCS = soak(40, 1000)
VOLUMES = soak(40, 800)
CALLS = soak(400, 16_000)
ROUNDS = 20
SLACK = 4
"""Descriptors that a round may have beyond the first half: which connections are idle differs by one or two."""


def descriptors(pid: int | str) -> int:
    """Return the number of descriptors that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.timeout(3600)
def test_long_use_keeps_the_number_of_descriptors(atoll_home: Home, tmp_path: Path) -> None:
    """Client and daemon have as many descriptors in the second half of a long run as in the first."""
    host = LocalHost(atoll_home.path)
    source = tmp_path / "source"
    source.mkdir()

    @isolated(host=host)
    def add(one: int, two: int) -> int:
        return one + two

    counts: list[tuple[int, int]] = []
    for number in range(ROUNDS):
        for step in range(SYNCS // ROUNDS):
            (source / "file").write_text(f"{number} {step}")
            sync_dir(str(source), "flat", host=host)
        for _ in range(VOLUMES // ROUNDS):
            with Volume(host) as volume:
                assert volume.read_text("sync/flat/file") == f"{number} {SYNCS // ROUNDS - 1}"
        assert [add(number, step) for step in range(CALLS // ROUNDS)] == list(range(number, number + CALLS // ROUNDS))
        daemon = atoll_home.daemon_pid()
        assert daemon is not None
        counts.append((descriptors("self"), descriptors(daemon)))
    host.close()
    first, second = counts[: ROUNDS // 2], counts[ROUNDS // 2 :]
    for who in (0, 1):
        assert max(count[who] for count in second) <= max(count[who] for count in first) + SLACK, counts
