"""What lives in a pool, as JSON-compatible rows for `atoll status`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from atoll.engine.pool_state import PoolSandbox, PoolWorker


def sandbox_rows(sandboxes: Collection[PoolSandbox], workers: Collection[PoolWorker]) -> list[dict[str, Any]]:
    """Return a row for each sandbox; times are seconds since the epoch."""
    return [
        {
            "id": one.id,
            "user": one.key.user,
            "environment": one.key.environment,
            "network": one.key.network,
            "pid": one.node.pid or None,
            "started_at": one.started_at,
            "workers": sum(1 for worker in workers if worker.sandbox == one.id),
        }
        for one in sandboxes
    ]


def worker_rows(
    workers: Collection[PoolWorker], usage: dict[str, Any], state: Callable[[str, bool], str]
) -> list[dict[str, Any]]:
    """Return a row for each worker; `pid` is None until it has said hello.

    Args:
        usage: what the agents say of them, by id.
        state: returns a worker's state from its id and whether it runs a call.
    """
    rows = []
    for one in workers:
        used = usage.get(one.id, {})
        rows.append(
            {
                "id": one.id,
                "sandbox": one.sandbox,
                "function": one.spec.function if one.spec is not None else "",
                "machine_type": one.key.machine_type,
                "gpus": list(one.key.sandbox.gpus),
                "state": state(one.id, bool(used.get("busy"))),
                "pid": one.pid or None,
                "started_at": one.started_at,
                "memory_bytes": one.limit.memory_bytes() if one.limit is not None else 0,
                "calls": used.get("calls", 0),
            }
        )
    return rows
