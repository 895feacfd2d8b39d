"""Kills of workers: by their agent, else by the daemon itself.

Code of a function may have stopped its agent. A worker that its agent does not kill is killed by its pidfd, which meets
no other process. A worker that has ended while its agent reports no end would hold its slot for ever: its sandbox ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from atoll.engine.pool_state import PoolState, PoolWorker

log = logging.getLogger("atoll.pool")

KILLED_SECONDS = 2.0
"""Seconds for an agent to kill a worker."""

REAPED_SECONDS = 3.0
"""Seconds for an agent to report the end of a worker that has ended."""


class Killing:
    """Kills the workers of one pool.

    Args:
        tell: sends to a sandbox's agent.
    """

    def __init__(self, state: PoolState, tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._state = state
        self._tell = tell

    def kill(self, worker: PoolWorker) -> None:
        """Have a worker killed."""
        self._tell(worker.sandbox, {"type": "kill", "worker": worker.id})
        if not worker.killed:
            worker.killed = True
            asyncio.get_running_loop().call_later(KILLED_SECONDS, self._check, worker, False)

    def _check(self, worker: PoolWorker, was_dead: bool) -> None:
        process = worker.process
        if self._state.workers.get(worker.id) is not worker or process is None:
            return  # a worker that never says hello is `Pool._fork`'s
        dead = not process.lives()
        if dead and was_dead:
            log.warning("sandbox_does_not_reap id=%s worker=%s", worker.sandbox, worker.id)
            self._state.spawn(self._state.sandboxes[worker.sandbox].node.kill())
            return
        process.kill()
        asyncio.get_running_loop().call_later(REAPED_SECONDS, self._check, worker, dead)
