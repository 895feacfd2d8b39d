"""The start of a member whose disk of `/data` has just lost its client."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll import errors
from atoll.server.member import member


class Machine:
    """A daemon that does not start for a while."""

    def __init__(self, failures: int) -> None:
        self.options = SimpleNamespace(volumes_directory=Path("/volumes"))
        self.failures, self.asked = failures, 0

    async def ask(self, _principal: None, name: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        assert name == "fence"
        self.asked += 1
        if self.asked <= self.failures:
            raise errors.StateUnusable("the quotas cannot be read", hint="mend the file")
        return {}


def started(machine: Machine) -> None:
    """Have a member do what it does first."""
    one: Any = SimpleNamespace(_node=machine)
    asyncio.run(member.Member._end_earlier(one))


def test_a_member_waits_for_a_mount_that_has_lost_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries again until the daemon starts; any other failure is told at once, and so is one that lasts."""

    def dead(_path: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(member, "BEAT_SECONDS", 0.01)
    other = Machine(1)
    with pytest.raises(errors.StateUnusable):
        started(other)
    assert other.asked == 1
    monkeypatch.setattr(os, "stat", dead)
    machine = Machine(3)
    started(machine)
    assert machine.asked == 4
    monkeypatch.setattr(member, "MOUNT_SECONDS", 0.05)
    with pytest.raises(errors.StateUnusable):
        started(Machine(10_000))
