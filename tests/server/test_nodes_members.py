"""Operators' acts on a machine that runs: a removed one is cut off, whatever it does, and its process ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.nodes.node import REFUSED_STATUS

from ..conftest import needs_outbound
from ..waiting import until
from .functions import Leased
from .members import Member, cluster
from .process import Server

pytestmark = needs_outbound


@pytest.fixture(scope="module")
def solo() -> Iterator[tuple[Server, Member]]:
    """A server that runs nothing itself, and one machine."""
    with cluster("solo") as (server, members):
        yield server, members["solo"]


def add(a: int, b: int) -> int:
    return a + b


def row(server: Server) -> dict[str, Any]:
    """Return the row of the machine, as operators see it."""
    return next(one for one in server.ask("GET", "/v1/nodes")[1]["nodes"] if one["name"] == "solo")


def connections(member: Member, server: Server) -> int:
    """Return the number of open connections between a machine's process and its server."""
    numbers = {os.readlink(path) for path in Path(f"/proc/{member.process.pid}/fd").iterdir() if path.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port, established = f":{server.port:04X}", "01"
    return sum(
        1 for one in lines if one[2].endswith(port) and one[3] == established and f"socket:[{one[9]}]" in numbers
    )


def test_figures_of_a_machine_are_told(solo: tuple[Server, Member]) -> None:
    """Operators see a linked machine with its size, what is free, and its lines; the owner of the server's directory, too."""
    server, member = solo
    leased = Leased(server, add, 1, 2)
    try:
        found = until(lambda: found if (found := row(server))["free"] and found["lines"] else None)
        assert found is not None
        assert (found["linked"], found["state"], found["apart"]) == (True, "active", False)
        assert found["has"]["millicores"] > 0
        shared = server.home.path / "run" / "nodes.json"
        until(
            lambda: (
                shared.exists()
                and any(one["name"] == "solo" and one["free"] for one in json.loads(shared.read_bytes()))
            )
        )
        assert shared.stat().st_mode & 0o077 == 0
        assert leased.call() == 3
    finally:
        leased.line.close()
    assert member.process.runs


def test_a_removed_machine_is_cut_off(solo: tuple[Server, Member]) -> None:
    """The link and the lines of a removed machine end at once, also if it no longer does as it is told; later it ends itself."""
    server, member = solo
    leased = Leased(server, add, 1, 2)
    try:
        assert leased.call() == 3
        os.kill(member.process.pid, signal.SIGSTOP)
        assert connections(member, server) >= 2
        assert server.ask("DELETE", "/v1/nodes/solo")[0] == 200
        until(lambda: connections(member, server) == 0)
    finally:
        os.kill(member.process.pid, signal.SIGCONT)
        leased.line.close()
    until(lambda: not member.process.runs)
    assert member.end() == REFUSED_STATUS
    text = member.log.read_text()
    assert "was removed from this server" in text
    assert "`atoll node join` here" in text
