"""Ends of workers: in good order, or killed by their agent, else by the daemon itself.

A worker that ends in good order has a grace for it (`agent.process.end`); one that takes longer is killed.

Code of a function may have stopped its agent. A worker that its agent does not kill is killed by its pidfd, which meets
no other process. A worker that has ended while its agent reports no end would hold its slot for ever: its sandbox ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from atoll import errors
from atoll.agent.process.end import GRACE_SECONDS
from atoll.engine.pool_state import PoolState, PoolWorker

log = logging.getLogger("atoll.pool")

KILLED_SECONDS = 2.0
"""Seconds for an agent to kill a worker."""

END_SECONDS = GRACE_SECONDS + 0.5
"""Seconds for a worker to end in good order, which itself keeps to the grace unless its code holds it up."""

REAPED_SECONDS = 3.0
"""Seconds for an agent to report the end of a worker that has ended."""


class Killing:
    """Kills the workers of one pool.

    Args:
        tell: sends to a sandbox's agent.
        ask: sends to a worker.
    """

    def __init__(
        self,
        state: PoolState,
        tell: Callable[[str, dict[str, Any]], None],
        ask: Callable[[PoolWorker, dict[str, Any]], None],
    ) -> None:
        self._state = state
        self._tell = tell
        self._ask = ask

    def end(self, worker: PoolWorker) -> None:
        """Have a worker end in good order as soon as it is between two calls."""
        if worker.spent or worker.process is None:
            self.kill(worker)
        else:
            self._ask(worker, {"type": "end"})
            self.ends(worker)

    def ends(self, worker: PoolWorker, reason: str = "") -> None:
        """Take note that a worker ends by itself; it is killed if that takes too long."""
        if not worker.ending:
            if reason:
                log.info("worker_retired id=%s reason=%s", worker.id, reason)
            worker.ending = True
            asyncio.get_running_loop().call_later(END_SECONDS, self._check_end, worker)

    async def wait_all(self, usage: dict[str, Any]) -> None:
        """End the workers between two calls in good order, and the calls that run with their graces; wait for it.

        Args:
            usage: reports of the agents, by worker.
        """
        workers = self._state.workers_of(None)
        busy = [one for one in workers if one.lease is not None and usage.get(one.id, {}).get("busy", 1)]
        await asyncio.gather(self.wait(one for one in workers if one not in busy), self._wait_cancelled(busy))

    async def _wait_cancelled(self, workers: Collection[PoolWorker]) -> None:
        graces = [worker.lease.spec.grace_seconds for worker in workers if worker.lease is not None]
        for worker, grace_seconds in zip(workers, graces, strict=True):
            self.cancel(worker, grace_seconds)
        await _wait_ended(workers, max(graces, default=0.0))

    async def wait(self, workers: Iterable[PoolWorker]) -> None:
        """End workers in good order and wait for it, as long as they may take."""
        workers = list(workers)
        for worker in workers:
            self.end(worker)
        await _wait_ended(workers, END_SECONDS)

    def give_up(self, users: Callable[[str], bool], error: errors.AtollError, ended: errors.AtollError) -> None:
        """End the leases of users whose sandboxes are being killed; see `contract.Engine`."""
        for worker in list(self._state.workers.values()):
            if users(worker.key.sandbox.user):
                self._state.end_lease(worker, ended)
        for lease in list(self._state.leases.values()):
            if users(lease.user) and not lease.granted.done():
                lease.granted.set_exception(error)

    def _check_end(self, worker: PoolWorker) -> None:
        if self._state.workers.get(worker.id) is worker:
            log.info("worker_killed id=%s reason=takes_too_long_to_end", worker.id)
            self.kill(worker)

    def cancel(self, worker: PoolWorker, grace_seconds: float) -> None:
        """Have a worker asked to end, and killed after the grace."""
        self._tell(worker.sandbox, {"type": "cancel", "worker": worker.id, "grace_seconds": grace_seconds})
        asyncio.get_running_loop().call_later(grace_seconds + KILLED_SECONDS, self._end_of_grace, worker)

    def cancel_call(self, worker: PoolWorker, call: str, grace_seconds: float) -> None:
        """Have a worker asked to end if it still runs this call, and killed after the grace."""
        worker.cancelled_call = call
        message = {"type": "cancel", "worker": worker.id, "grace_seconds": grace_seconds, "call": call}
        self._tell(worker.sandbox, message)

    def _end_of_grace(self, worker: PoolWorker) -> None:
        if self._state.workers.get(worker.id) is worker:
            self.kill(worker)

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


async def _wait_ended(workers: Collection[PoolWorker], seconds: float) -> None:
    if workers:
        _, late = await asyncio.wait([asyncio.ensure_future(one.ended.wait()) for one in workers], timeout=seconds)
        for one in late:
            one.cancel()
