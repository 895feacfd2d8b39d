"""Calls that run: the claims of their workers, and what the daemon measures of their processes.

Calls do not pass through the daemon. The agents are asked when somebody looks, and a call itself costs nothing for it.
A worker may lie about its own call. It cannot take the id of a call of another program, as with records.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Iterable
from typing import Any, Protocol

from atoll.agent.usage import RUNNING
from atoll.engine.call_claims import maker_of
from atoll.engine.contract import RunningCall
from atoll.engine.killing import KILLED_SECONDS
from atoll.engine.pool_state import PoolWorker

MOST_NAME = 128
"""Characters that are kept of an id or a name, and that a worker's sheet has room for."""

MOST_COUNT = 1 << 62
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Asker(Protocol):
    """The pool's messages, as far as a cancellation needs them."""

    async def usage(self, user: str | None) -> dict[str, Any]: ...

    def cancel_call(self, worker: PoolWorker, call: str, grace_seconds: float) -> None: ...

    def kill(self, worker: PoolWorker) -> None: ...


def used(workers: Iterable[PoolWorker], claims: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return an agent's claims about its own workers, bounded, and no more of them than there is a use for."""
    claimed = {worker.id: claims.get(worker.id) for worker in workers}
    return {name: _checked(one) for name, one in claimed.items() if isinstance(one, dict)}


def _checked(claimed: dict[str, Any]) -> dict[str, Any]:
    counts = {word: claimed.get(word) for word in ("busy", "calls")}
    numbers = {word: claimed.get(word) for word in RUNNING[3:]}
    return {
        **{word: min(abs(one), MOST_COUNT) for word, one in counts.items() if type(one) is int},
        **{word: float(one) for word, one in numbers.items() if type(one) is float and 0 <= one < math.inf},
        **{word: str(claimed.get(word, ""))[:MOST_NAME] for word in RUNNING[:3]},
        **({"between": True} if claimed.get("between") is True else {}),
    }


def found(workers: Iterable[PoolWorker], usage: dict[str, Any]) -> list[RunningCall]:
    """Return the calls that these workers run.

    Args:
        usage: reports of the agents, by worker; a worker without one counts as busy.
    """
    return [
        _running(worker, usage.get(worker.id, {}))
        for worker in workers
        if worker.lease is not None and usage.get(worker.id, {}).get("busy", 1)
    ]


def _running(worker: PoolWorker, claimed: dict[str, Any]) -> RunningCall:
    lease = worker.lease
    assert lease is not None
    claim, now = str(claimed.get("call", "")), time.time()
    call = claim
    if claimed.get("between"):
        call = ""
    elif not claim or (lease.maker is not None and maker_of(claim) != lease.maker):  # not begun yet, or forged
        call = lease.first_call
    memory, peak, cpu = _measured(worker)
    since = min(claimed.get("started_at") or now, now)
    return RunningCall(
        call=call,
        claim=claim,
        function=claimed.get("function") or (lease.spec.function[:MOST_NAME]),
        parent=claimed.get("parent", "") if worker.nested else "",
        user=worker.key.sandbox.user,
        queued_at=min(claimed.get("queued_at") or since, since),
        since=since,
        memory_bytes=memory,
        peak_bytes=max(peak, memory),
        cpu_seconds=max(cpu - claimed.get("cpu", 0.0), 0.0),
        worker=worker.id,
        sandbox=worker.sandbox,
        environment=worker.key.sandbox.environment,
        machine_type=worker.key.machine_type,
        lease=lease,
    )


def _measured(worker: PoolWorker) -> tuple[int, int, float]:
    """Return memory now and at most, and CPU seconds, of a worker's process."""
    memory = peak = 0
    cpu = 0.0
    if worker.process is not None and worker.process.lives():
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):  # it ends just now: no memory is left
            with open(f"/proc/{worker.pid}/stat", "rb") as stat:
                cpu = sum(map(int, stat.read().rsplit(b") ", 1)[1].split()[11:15])) / _TICKS
            with open(f"/proc/{worker.pid}/status", "rb") as status:
                fields = dict(line.split(b":", 1) for line in status)
            memory, peak = (int(fields[name].split()[0]) << 10 for name in (b"VmRSS", b"VmHWM"))
    if worker.limit is not None:
        memory = max(worker.limit.memory_bytes(), memory)
    return memory, peak, cpu


async def cancel(worker: PoolWorker, call: RunningCall, asker: Asker) -> None:
    """Ask a worker to end that runs a call; kill it if it runs the same call after the grace still."""
    lease = call.lease
    grace_seconds = worker.spec.grace_seconds if worker.spec is not None else 0.0
    asker.cancel_call(worker, call.claim, grace_seconds)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.ended.wait(), grace_seconds + KILLED_SECONDS)
    if worker.ended.is_set() or worker.lease is not lease:
        return
    claimed = (await asker.usage(call.user)).get(worker.id)
    if worker.lease is lease and (claimed is None or claimed.get("call") == call.claim):
        asker.kill(worker)
