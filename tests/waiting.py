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
LONGEST_POLL_SECONDS = 1.0
REST = 2
"""How long a condition rests, by the time that it took."""


def until(condition: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """Poll a condition that sends no event; return its first true value.

    One that takes long is asked the more seldom: it would take the processor from what it waits for.

    Raises:
        AssertionError: it stayed false for `seconds`.
    """
    began = time.monotonic()
    deadline = began + seconds
    while not (value := condition()):
        now = time.monotonic()
        assert now < deadline, f"still not so after {seconds:.0f} s"
        select.select([], [], [], max(POLL_SECONDS, min(REST * (now - began), LONGEST_POLL_SECONDS)))
        began = time.monotonic()
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
