"""Holders of the resources that requests wait for: the calls that workers run, by their own claims."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from atoll.engine import waits
from atoll.engine.pool_state import Lease, PoolState
from atoll.engine.waits import Holder, Wait

LOOK_SECONDS = 0.5
"""Seconds between two questions to the agents, and only while somebody waits."""


class Holders:
    """Puts waits into words; a claim that has not come yet is left out of them.

    Args:
        state: workers and leases that live now; looked at, never changed.
        usage: asks the agents for the calls that run, by worker.
    """

    def __init__(self, state: PoolState, usage: Callable[[None], Awaitable[dict[str, Any]]]) -> None:
        self._state = state
        self._usage = usage
        self._claims: dict[str, Any] = {}
        self._looked = 0.0
        self._looking = False

    def reason(self, lease: Lease, wait: Wait | None) -> str:
        """Return what a lease waits for, in one line; empty for one that does not wait."""
        if wait is None:
            return ""
        if not self._looking and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looking = True
            self._state.spawn(self._look())
        return waits.reason(wait, lease.spec.function, self._holder)

    async def _look(self) -> None:
        try:
            self._claims = await self._usage(None)
        finally:
            self._looked = time.monotonic()
            self._looking = False

    def _holder(self, name: str) -> Holder | None:
        worker = self._state.workers.get(name)
        if worker is None:
            return None
        user, lease, claimed = worker.key.sandbox.user, worker.last, self._claims.get(name, {})
        function = claimed.get("function") or (worker.spec.function if worker.spec is not None else "")
        seconds = time.time() - lease.granted_at if lease is not None and lease.granted_at else 0.0
        return Holder(user, function, claimed.get("call", ""), seconds)
