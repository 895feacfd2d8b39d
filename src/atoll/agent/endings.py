"""Ends of workers: a signal and a grace for the call that runs, then SIGKILL.

A call ends before its time by its deadline, by its client's wish (`cancel`), or because its client is gone
(`release`). The worker and the processes that it has started are then asked to end: by a `KeyboardInterrupt` or by
their own handlers (see `interrupts`). What still lives after the grace is killed. A worker that was asked to end serves
no other call, whatever its function makes of the signal: the word `ENDING` tells the worker so.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from typing import NamedTuple

from atoll.agent import usage
from atoll.agent.interrupts import interrupt
from atoll.agent.leftovers import interrupt_started, kill_left_behind
from atoll.agent.shared_memory import BUSY, DEADLINE, ENDING, GRACE, SharedMemory

RELEASE_CHECKS_SECONDS = (0.0, 0.02, 0.1, 0.3)
"""When to look, after a lease ended, whether its worker runs a call for it: a call may just be arriving."""

MOST_GRACE_SECONDS = 600.0
"""The longest grace (`model.spec_fields.MOST_GRACE_SECONDS`), whatever a worker writes into its word."""


class Child(NamedTuple):  # not a dataclass: their module would cost every cold start 8 ms
    """A worker that this process has forked."""

    pid: int
    pidfd: int
    memory: SharedMemory


class Endings:
    """Ends the workers of one agent.

    Args:
        workers: the agent's, by name.
    """

    def __init__(self, workers: dict[str, Child]) -> None:
        self._workers = workers
        self._checks: list[tuple[float, str, int, float]] = []
        self._overdue: set[str] = set()
        self._kill_at: dict[str, float] = {}

    def times(self) -> list[float]:
        """Return when `check` is due."""
        times = [deadline / 1e9 for deadline in self._deadlines().values()]
        times.extend(at for at in self._kill_at.values() if at < math.inf)
        if self._checks:
            times.append(min(self._checks)[0])
        return times

    def _deadlines(self) -> dict[str, int]:
        """Return when the running calls that have a timeout must have ended."""
        found = {name: one.memory.words[DEADLINE] for name, one in self._workers.items()}
        return {name: deadline for name, deadline in found.items() if deadline and name not in self._overdue}

    def check(self) -> None:
        """End the calls whose time has come."""
        now = time.monotonic()
        for name, deadline in self._deadlines().items():
            if deadline <= now * 1e9:
                self._overdue.add(name)
                self.cancel(name, self._workers[name].memory.words[GRACE] / 1e9)
        due = [check for check in self._checks if check[0] <= now]
        if due:
            self._checks = [check for check in self._checks if check[0] > now]
            for _, name, epoch, grace_seconds in due:
                known = self._workers.get(name)
                if known is not None and known.memory.words[BUSY] == epoch:
                    self.cancel(name, grace_seconds)
        for name in [name for name, at in self._kill_at.items() if at <= now]:
            self._kill_at[name] = math.inf
            self.kill(name)

    def release(self, name: str, epoch: int, grace_seconds: float) -> None:
        """End the call that a worker runs, or is about to run, under this epoch."""
        now = time.monotonic()
        self._checks.extend((now + delay, name, epoch, grace_seconds) for delay in RELEASE_CHECKS_SECONDS)

    def cancel(self, name: str, grace_seconds: float, call: str = "") -> None:
        """Ask a worker to end, once; kill it after the grace.

        Args:
            call: only if it runs this one; any if empty.
        """
        if name not in self._workers:
            return
        if call and usage.running(self._workers[name].memory.sheet).get("call") != call:
            return  # it has been answered meanwhile
        if not grace_seconds > 0:
            self.kill(name)
            return
        if name in self._kill_at:
            return
        child = self._workers[name]
        self._kill_at[name] = time.monotonic() + min(grace_seconds, MOST_GRACE_SECONDS)
        child.memory.words[ENDING] = 1
        interrupt(child.pid, child.pidfd)
        interrupt_started(name, child.pid)

    def kill(self, name: str) -> None:
        """Kill a worker and the processes that it has started."""
        if name in self._workers:
            child = self._workers[name]
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            kill_left_behind(name, child.pid)

    def ended(self, name: str) -> str:
        """Forget a worker that has ended; return why it was asked to, if it was: `timeout` or `cancelled`."""
        asked = self._kill_at.pop(name, None) is not None
        if name in self._overdue:
            self._overdue.discard(name)
            return "timeout"
        return "cancelled" if asked else ""

    def close(self) -> None:
        """Close what belongs to the workers, in a process that was forked."""
        for child in self._workers.values():
            os.close(child.pidfd)
            child.memory.close()
