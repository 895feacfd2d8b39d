"""The embedded engine: carries out the schedule's decisions, on one node.

Everything runs in the daemon's event loop. Sockets and pipes of a lease are made when it is granted, so that the
client may write its call before the worker has even been forked: the kernel keeps it until the worker reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from atoll import errors
from atoll.engine import running_calls
from atoll.engine.actions import (
    WHOLE,
    Action,
    EndSandbox,
    EndWorker,
    ForkWorker,
    Grant,
    Reclaim,
    Refuse,
    Release,
    Request,
    Share,
    StartSandbox,
)
from atoll.engine.agent_requests import AgentRequests
from atoll.engine.call_claims import Place
from atoll.engine.contract import Connect, Rows, RunningCall
from atoll.engine.holders import Holders
from atoll.engine.pool_messages import Messages, is_limited_first
from atoll.engine.pool_requests import MachineFacts, WorkerFacts, request_of
from atoll.engine.pool_state import HeldRequests, Lease, PoolSandbox, PoolState, PoolWorker
from atoll.engine.schedule import Schedule
from atoll.environments.built.records import Environment
from atoll.model.records import CallRecord
from atoll.model.specs import LeaseSpec
from atoll.node.node import Node
from atoll.process import is_stopped
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import AGENT, WORKER
from atoll.wire.channel import pair

log = logging.getLogger("atoll.pool")

KILL_SECONDS = 1.0
RELEASE_SECONDS = 5.0
"""Seconds after the grace until a worker is killed, and its sandbox ended, when a released lease's call does not end."""

HELLO_SECONDS = 10.0
FIRST_HELLO_SECONDS = 60.0
"""Seconds for an agent to fork a worker; for a starting sandbox, on a machine that may be full."""

QUIET_SECONDS = 0.2
"""Seconds between looks for the end of a user's sandboxes, if no event comes earlier."""

MAX_WORKER_DESCRIPTORS = 32
"""Descriptors of a worker that may wait for their messages; each message has one at most."""


class Pool(WorkerFacts, MachineFacts):
    """Grants workers to leases; see `contract.Engine`.

    Args:
        node: runs the sandboxes.
        on_connect: serves the connections that code inside workers opens.
        on_record: takes the records of calls that are over.
    """

    def __init__(
        self, node: Node, on_connect: Connect, on_record: Callable[[CallRecord], None] = lambda _: None
    ) -> None:
        self._node = node
        self._schedule = Schedule(node.machine.bounds())
        self._state = PoolState()
        self._changes = set()
        self._messages = Messages(self._state, self._schedule, self._perform, node, on_record, on_connect)
        self._held = HeldRequests()
        self._holders = Holders(self._state, self._messages.usage)
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def idle(self) -> bool:
        return self._schedule.idle and not self._state.sandboxes

    def oldest_sandbox(self, user: str) -> float | None:
        return min((one.started_at for one in self._state.sandboxes_of(user)), default=None)

    def ask(
        self,
        user: str,
        spec: LeaseSpec,
        environment: Environment,
        parent: str | None,
        client: str = "",
        relayed: bool = False,
        share: Share = WHOLE,
    ) -> Lease:
        needs = self._node.machine.allot(spec.machine_type, spec.numbers).needs
        self._count += 1
        lease = Lease(f"l{self._count}", spec, self, nested=parent is not None, relayed=relayed, user=user)
        self._state.leases[lease.id] = lease
        self._state.environments[environment.key] = environment
        request = request_of(lease.id, user, spec, environment.key, needs, parent=parent, client=client, share=share)
        if not self._held.takes(user, request):
            self._ask(request)
        return lease

    def _ask(self, request: Request) -> None:
        self._perform(self._schedule.ask(request, time.monotonic()))

    def give_up(self, users: Callable[[str], bool], error: errors.AtollError, ended: errors.AtollError) -> None:
        self._messages.ends.give_up(users, error, ended)

    def renew_workers(self, user: str | None) -> None:
        for worker in self._state.workers_of(user):
            self._perform(self._schedule.worker_spent(worker.id))

    # --- requests of leases: `pool_state.LeaseOwner` ------------------------------------------------------------

    def position(self, lease: Lease) -> int:
        return self._schedule.position(lease.id)

    def reason(self, lease: Lease) -> str:
        if self._held.has(lease.id):
            return "the restore of its volume"
        return self._holders.reason(lease, self._schedule.wait_of(lease.id))

    def release(self, lease: Lease) -> None:
        self._state.leases.pop(lease.id, None)
        lease.close_descriptors()
        if not lease.granted.done():
            lease.granted.cancel()
        self._held.withdraw(lease.id)
        self._perform(self._schedule.withdraw(lease.id))

    def cancel(self, lease: Lease) -> None:
        worker = self._state.workers.get(lease.worker)
        if worker is not None and worker.last is lease:
            worker.cancelled = True
            self._messages.cancel(worker, lease.spec.grace_seconds)

    def kill(self, lease: Lease) -> None:
        worker = self._state.workers.get(lease.worker)
        if worker is not None and worker.last is lease:
            worker.cancelled = True
            self._messages.kill(worker)

    def may_run(self, lease: Lease) -> bool:
        worker = self._state.workers.get(lease.worker)
        return worker is not None and worker.lease is None and worker.last is lease

    async def dial(self, lease: Lease, port: int) -> socket.socket:
        worker = self._state.workers.get(lease.worker)
        sandbox = self._state.sandboxes.get(worker.sandbox) if worker is not None and worker.lease is lease else None
        if sandbox is None:
            raise errors.WorkerDied("the worker has ended, or serves another lease", hint="call the function again")
        return await self._messages.dial(sandbox, port)

    # --- quiet --------------------------------------------------------------------------------------------------

    def is_quiet(self, user: str) -> bool:
        return self._held.holds(user)

    @contextlib.asynccontextmanager
    async def quiet(self, user: str, busy: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        if not self._held.begin(user):
            raise errors.VolumeBusy("another restore of the same volume is under way", hint="try again after it")
        state = self._state
        try:
            while state.sandboxes_of(user):
                for worker in state.workers_of(user):
                    self._perform(self._schedule.worker_spent(worker.id))
                for sandbox in state.sandboxes_of(user):
                    if not state.workers_in(sandbox.id):
                        self._end_sandbox(sandbox)
                state.changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(state.changed.wait(), QUIET_SECONDS)
                if any(state.workers_in(sandbox.id) for sandbox in state.sandboxes_of(user)):
                    await busy()
            yield
        finally:
            self._held.end(user, self._ask)

    async def running(self, user: str | None) -> list[RunningCall]:
        usage = await self._messages.usage(user)
        return running_calls.found(self._state.workers_of(user), usage)

    def cancel_call(self, call: RunningCall) -> None:
        worker = self._state.workers.get(call.worker)
        if worker is not None and worker.lease is call.lease:
            self._state.spawn(running_calls.cancel(worker, call, self._messages))

    @property
    def inside(self) -> AgentRequests:
        return self._messages.asking

    async def watch(self) -> None:
        await self._messages.limiting.watch()

    async def close(self) -> None:
        self._closing = True
        for sandbox in (sandboxes := list(self._state.sandboxes.values())):
            sandbox.unwanted = True
        if self._timer is not None:
            self._timer.cancel()
        if self._state.workers:
            await self._messages.ends.wait_all(await self._messages.usage(None))
        await asyncio.gather(*(sandbox.node.kill() for sandbox in sandboxes), return_exceptions=True)
        await self._messages.nested.close()
        await self._state.cancel_tasks()

    def longest_grace_seconds(self) -> float:
        held = [worker.lease.spec for worker in self._state.workers.values() if worker.lease is not None]
        return max((spec.grace_seconds for spec in held), default=0.0)

    async def status(self, user: str | None = None) -> tuple[Rows, Rows]:
        usage = await self._messages.usage(user)
        return self._state.sandbox_rows(user), self._state.worker_rows(user, usage, self._state_of)

    def _state_of(self, worker: str, busy: bool) -> str:
        """Return `busy`, `leased` (between two calls), `lending` (waits for a nested call), `idle` or `ending`."""
        with contextlib.suppress(KeyError):
            state = self._schedule.state_of(worker)
            return "busy" if state == "leased" and busy else state
        return "ending"

    # --- actions ------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        if self._closing:  # else the end of a sandbox would start another one for a request that waits
            return
        workers, sandboxes = self._state.workers, self._state.sandboxes
        for action in actions:
            match action:
                case StartSandbox():
                    self._start_sandbox(action)
                case ForkWorker():
                    self._prepare_worker(action)
                case Grant():
                    self._grant(action)
                case Reclaim() if action.worker in workers:
                    self._messages.to_worker(workers[action.worker], {"type": "reclaim", "epoch": action.epoch})
                case Release() if action.worker in workers:
                    self._release(workers[action.worker], action.epoch)
                case EndWorker() if action.worker in workers:
                    self._messages.ends.end(workers[action.worker])
                case EndSandbox() if action.sandbox in sandboxes:
                    self._end_sandbox(sandboxes[action.sandbox])
                case Refuse():
                    lease = self._state.leases.pop(action.request, None)
                    if lease is not None and not lease.granted.done():
                        lease.granted.set_exception(
                            errors.ResourcesUnavailable(f"the call can never start: {action.reason}", hint=action.hint)
                        )
        self._schedule_tick()
        self.note_change()

    def _release(self, worker: PoolWorker, epoch: int) -> None:
        """Take a lease from a worker; later, kill a worker that has not left it, and end its sandbox."""
        worker.lease = None
        grace = worker.spec.grace_seconds if worker.spec is not None else 0.0
        release = {"type": "release", "worker": worker.id, "epoch": epoch, "grace_seconds": grace}
        self._messages.to_agent(worker.sandbox, release)

        def kill() -> None:
            if self._has_left(worker, epoch) and not worker.ending:
                self._messages.kill(worker)

        def end() -> None:  # its code has stopped both agent and worker
            if self._has_left(worker, epoch):
                log.warning("sandbox_does_not_answer id=%s worker=%s", worker.sandbox, worker.id)
                self._state.spawn(self._state.sandboxes[worker.sandbox].node.kill())

        _later(grace + KILL_SECONDS, kill)
        _later(grace + RELEASE_SECONDS, end)

    def _has_left(self, worker: PoolWorker, epoch: int) -> bool:
        return worker.id in self._state.workers and self._schedule.is_leaving(worker.id, epoch)

    def _end_sandbox(self, sandbox: PoolSandbox) -> None:
        sandbox.unwanted = True
        self._state.spawn(self._end_in_order(sandbox))

    async def _end_in_order(self, sandbox: PoolSandbox) -> None:
        await self._messages.ends.wait(self._state.workers_in(sandbox.id))
        await sandbox.node.kill()

    def _schedule_tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._schedule.next_deadline()) is not None and not self._closing:
            self._timer = _later(max(0.0, deadline - time.monotonic()) + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._schedule.tick(time.monotonic()))

    def _start_sandbox(self, action: StartSandbox) -> None:
        environment = self._state.environments[action.key.environment]
        node = self._node.start_sandbox(action.key, environment)
        node.channel.set_pace(AGENT.pace(self._messages.paces_of(action.key.user)[0]))
        self._state.sandboxes[action.sandbox] = PoolSandbox(action.sandbox, action.key, node)
        self._state.spawn(self._messages.watch_sandbox(action.sandbox, node))
        log.info("sandbox_started id=%s user=%s environment=%s", action.sandbox, action.key.user, environment.key)

    def _prepare_worker(self, action: ForkWorker) -> None:
        ours, theirs = pair()
        messages, records = self._messages.paces_of(action.key.sandbox.user)
        control = AsyncChannel(ours, WORKER, WORKER.pace(messages))
        control.learn_sender()
        control.bound_descriptors(MAX_WORKER_DESCRIPTORS)
        self._state.spawn(self._messages.listen(action.worker, control))
        place = Place(action.key.sandbox, action.sandbox, action.worker, users=records)
        allotment = self._node.machine.allot(action.key.machine_type, action.key.numbers)
        worker = PoolWorker(action.worker, action.sandbox, action.key, control, theirs, place, allotment)
        self._state.workers[action.worker] = worker

    def _grant(self, action: Grant) -> None:
        lease, worker = self._state.leases[action.request], self._state.workers[action.worker]
        client, inside = pair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self._node.give_streams(worker.key.sandbox.user, (out_write, err_write))
        lease.worker, lease.epoch, lease.fresh, lease.granted_at = worker.id, action.epoch, action.fresh, time.time()
        lease.descriptors = (client.detach(), out_read, err_read)
        message, descriptors = lease.message(), [inside.fileno(), out_write, err_write]
        if worker.last is not None:
            worker.makers.add(worker.last.maker)
        worker.lease = worker.last = lease
        worker.spec, worker.nested = lease.spec, lease.nested
        if worker.inner_end is None:
            self._messages.to_worker(worker, message, descriptors)
            if is_stopped(worker.pid) and not self._node.pauses.stops(worker.key.sandbox.user, worker.pid):
                # By code of an earlier call: this one would never begin.
                worker.expired = True  # the lease counts as given back, and its call goes to another worker
                self._messages.kill(worker)
        else:
            self._fork(worker, message, descriptors)
        inside.close()
        os.close(out_write)
        os.close(err_write)
        if not lease.granted.done():
            lease.granted.set_result(None)

    def _fork(self, worker: PoolWorker, message: dict[str, Any], descriptors: list[int]) -> None:
        """Have the agent fork a worker that starts with its first lease."""
        assert worker.inner_end is not None
        machine = self._node.machine
        fork = {
            **message,
            "type": "fork",
            "worker": worker.id,
            "env": {**worker.key.variables, **machine.gpus.variables(worker.key.sandbox.gpus)},
            "hold": is_limited_first(worker.allotment),
            "processes": machine.process_wall(worker.allotment),
            # A function's own variables may change how packages are imported, unless it names the packages.
            "preloaded": not worker.key.late_env or worker.key.sandbox.preload is not None,
            "umask": worker.key.umask,
        }
        self._messages.limiting.admit(worker)
        self._messages.to_agent(worker.sandbox, fork, [worker.inner_end.fileno(), *descriptors])
        worker.inner_end.close()
        worker.inner_end = None

        def check() -> None:  # its code may have stopped the agent; the call goes to a new sandbox
            if worker.id in self._state.workers and not worker.pid:
                log.warning("sandbox_does_not_fork id=%s worker=%s", worker.sandbox, worker.id)
                self._state.spawn(self._state.sandboxes[worker.sandbox].node.kill())

        lived = self._state.sandboxes[worker.sandbox].lived
        _later(HELLO_SECONDS if lived else FIRST_HELLO_SECONDS, check)


def _later(seconds: float, work: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, work)
