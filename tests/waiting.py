"""Waiting for events, with limits that a loaded machine keeps, and the size of sweeps: used by tests of every kind."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""The limit of a wait: only a test that fails waits so long."""
POLL_SECONDS = 0.01


def until(condition: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Poll a condition that sends no event; return its first true value.

    Raises:
        AssertionError: it stayed false for `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        select.select([], [], [], POLL_SECONDS)
    return value


def ended(pid: int, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait until a process has ended; return whether it has."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def soak(short: T, long: T) -> T:
    """Return the size of a sweep or a randomised run: `long` where `SOAK=1` asks for the long form."""
    return long if os.environ.get("SOAK", "") not in ("", "0") else short
