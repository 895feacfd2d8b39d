"""Calls that wait for a worker, whose environment is built, and that run, as rows.

A call that waits is known from its client's connection, one that runs from its worker (`engine.running_calls`). Of the
calls of a process that wait for the same kind of worker, one asks the daemon: the others are not seen until they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from atoll import errors
from atoll.engine.contract import Engine, EngineLease, RunningCall
from atoll.model import amounts, build_progress
from atoll.model.specs import LeaseSpec, Numbers

MOST_ROWS = 1000
MOST_TEXT = 200
"""Characters of a name, or of a line about a build."""


@dataclass
class WaitingCall:
    """A call that has no worker yet; ends when it gets one, or when its client leaves."""

    call: str
    function: str
    user: str
    parent: str
    queued_at: float
    machine_type: str
    resources: str = ""
    since: float = field(default_factory=time.time)
    building: bool = False
    detail: str = ""
    lease: EngineLease | None = None
    task: asyncio.Task[Any] | None = None
    cancelled: bool = False

    def progress(self, line: str) -> None:
        """Take a line about the build of its environment."""
        if not self.building:
            self.building, self.since = True, time.time()
        self.detail = build_progress.shown(line)[:MOST_TEXT]

    def telling(self, progress: Callable[[str], None]) -> Callable[[str], None]:
        """Return a function that takes lines about the build for `progress` and for this call."""

        def tell(line: str) -> None:
            self.progress(line)
            progress(line)

        return tell

    def built(self, lease: EngineLease) -> None:
        """Take note that it waits for a worker now."""
        if self.building:
            self.building, self.since, self.detail = False, time.time(), ""
        self.lease = lease

    def cancel(self) -> bool:
        """End the wait; return whether it had not ended before."""
        if self.task is None or self.cancelled:
            return False
        self.cancelled = True
        self.task.cancel()
        return True

    def row(self) -> dict[str, Any]:
        """Return the row of this call."""
        return {
            **EMPTY,
            "call": self.call,
            "function": self.function,
            "state": "building" if self.building else "waiting",
            "since": self.since,
            "queued_at": self.queued_at,
            "position": self.lease.position() if self.lease is not None else -1,
            "detail": self.detail or (self.lease.reason() if self.lease is not None else "")[:MOST_TEXT],
            "machine_type": self.machine_type,
            "resources": self.resources,
            "parent": self.parent,
            "user": self.user,
        }


EMPTY = {
    "memory_bytes": 0,
    "peak_bytes": 0,
    "cpu_seconds": 0.0,
    "worker": "",
    "sandbox": "",
    "environment": "",
    "position": -1,
    "detail": "",
    "resources": "",
    "detached": False,
}


class RunningCalls:
    """The calls of a machine that are not over.

    Args:
        engine: runs them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[int, WaitingCall] = {}

    @contextlib.contextmanager
    def waits(self, user: str, spec: LeaseSpec, claim: tuple[str, float, str] | None) -> Iterator[WaitingCall]:
        """Know the call of this task as one that waits, until `started`, or the end of the context.

        Args:
            claim: id, time and parent of the call; None for a lease that is asked for ahead of calls.

        Raises:
            CallCancelled: it was cancelled.
        """
        now = time.time()
        call, at, parent = claim or ("", 0.0, "")
        waiting = WaitingCall(
            call=call,
            function=spec.function[:MOST_TEXT],
            user=user,
            parent=parent,
            queued_at=at if 0 < at <= now else now,
            machine_type=spec.machine_type,
            resources=in_words(spec.numbers),
            task=asyncio.current_task(),
        )
        if claim is not None:
            self._waiting[id(waiting)] = waiting
        try:
            yield waiting
        except asyncio.CancelledError:
            if not waiting.cancelled or waiting.task is None or waiting.task.uncancel():
                raise
            raise _cancelled() from None
        finally:
            self.started(waiting)

    def started(self, waiting: WaitingCall) -> None:
        """Forget a call that waits no more, in its own task: from here on it can be cancelled as one that runs only."""
        self._waiting.pop(id(waiting), None)
        waiting.task = None

    async def running(self, user: str | None) -> list[RunningCall]:
        """Return the calls that run, the oldest first; a worker between two calls has none."""
        return sorted((one for one in await self._engine.running(user) if one.call), key=lambda call: call.since)

    def waiting(self, user: str | None, running: list[RunningCall]) -> list[WaitingCall]:
        """Return the calls that wait: those whose environment is built first, then in the order of their turns.

        Args:
            running: those that have got the worker for which another call of their process had asked.
        """
        ids = {one.call for one in running}
        found = [one for one in self._waiting.values() if user in (None, one.user) and one.call not in ids]
        places: dict[int, tuple[int, float]] = {
            id(one): (one.lease.position() if one.lease is not None else -1, one.since) for one in found
        }
        return sorted(found, key=lambda one: places[id(one)])

    async def rows(self, user: str | None) -> list[dict[str, Any]]:
        """Return a row for each call that is not over, of one user or of all; those that run first."""
        running = await self.running(user)
        rows = [running_row(one) for one in running] + [one.row() for one in self.waiting(user, running)]
        return rows[:MOST_ROWS]


def in_words(numbers: Numbers) -> str:
    """Return a function's resources in plain numbers, as its options have them; empty for none."""
    parts = []
    if numbers.millicores:
        parts.append(f"cpu={numbers.millicores / 1000:g}")
    if numbers.memory_bytes:
        parts.append(f"memory={amounts.shown(numbers.memory_bytes)}")
    if numbers.gpus > 0:
        parts.append(f"gpu={numbers.card}:{numbers.gpus}" if numbers.card else f"gpu={numbers.gpus}")
    if numbers.disk_bytes:
        parts.append(f"disk={amounts.shown(numbers.disk_bytes)}")
    return " ".join(parts)


def running_row(call: RunningCall) -> dict[str, Any]:
    """Return the row of a call that runs."""
    return {
        **EMPTY,
        "call": call.call,
        "function": call.function,
        "state": "running",
        "since": call.since,
        "queued_at": call.queued_at,
        "memory_bytes": call.memory_bytes,
        "peak_bytes": call.peak_bytes,
        "cpu_seconds": round(call.cpu_seconds, 3),
        "worker": call.worker,
        "sandbox": call.sandbox,
        "environment": call.environment,
        "machine_type": call.machine_type,
        "resources": in_words(call.lease.spec.numbers),
        "parent": call.parent,
        "user": call.user,
    }


def _cancelled() -> errors.CallCancelled:
    return errors.CallCancelled("the call was cancelled with `atoll cancel`", hint="nothing to do: it was asked for")
