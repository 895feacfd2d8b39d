"""Processes that a worker has started; the agent ends them with it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection

from atoll.agent.interrupts import interrupt

STOP_ROUNDS = 100
"""Rounds of looking for new processes of a worker while their number grows."""


def kill_left_behind(name: str, session: int, *, alone: bool = False, keep: Collection[int] = ()) -> None:
    """Kill the processes that worker `name` started and that outlived it.

    These are the processes of its session and those with its mark in their environment; where it was `alone`, every
    process but the agent's own. All are stopped before any is killed: a stopped process starts nothing and still
    counts against the number of processes that there may be, so that a fork bomb runs out of places.

    Args:
        keep: sessions of the agent's own processes, besides its own session.
    """
    own = {os.getsid(0), *keep}  # no code of a function runs there: each worker begins a session of its own
    stopped: set[int] = set()
    for _ in range(STOP_ROUNDS):
        found = _left_behind(name, session, alone, own) - stopped
        if not found:
            break
        for pid in found:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal(pid, signal.SIGKILL)


def interrupt_started(name: str, session: int) -> None:
    """Ask the processes that worker `name` has started to end."""
    for pid in _left_behind(name, session, False, {os.getsid(0)}):
        interrupt(pid)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _left_behind(name: str, session: int, alone: bool, own: set[int]) -> set[int]:
    mark = f"ATOLL_WORKER_ID={name}\0".encode()
    found = set()
    for entry in os.listdir("/proc"):
        pid = int(entry) if entry.isdigit() else 0
        if pid in (0, 1, os.getpid(), session):
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                state, _parent, _group, of_session = stat.read().rsplit(b") ", 1)[1].split()[:4]
            if int(of_session) in own:
                continue
            belongs = alone or int(of_session) == session
            if not belongs:
                with open(f"/proc/{entry}/environ", "rb") as environ:
                    belongs = mark in environ.read() + b"\0"
        except (OSError, ValueError, IndexError):
            continue
        if belongs and state not in (b"Z", b"X"):
            found.add(pid)
    return found
