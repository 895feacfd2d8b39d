"""Messages between the pool and its sandboxes: their agents and workers.

Nothing that arrives is trusted: code of a function shares its sandbox with the agent. A message may end its own
sandbox or worker, and says nothing about those of another sandbox.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from atoll import errors
from atoll.engine import running_calls
from atoll.engine.actions import Action
from atoll.engine.agent_requests import AgentRequests
from atoll.engine.call_claims import USER_RECORDS
from atoll.engine.contract import Connect
from atoll.engine.killing import Killing
from atoll.engine.limiting import Limiting
from atoll.engine.nested_connections import NestedConnections, received
from atoll.engine.pool_state import PoolSandbox, PoolState, PoolWorker, cancelled_elsewhere, never_served, why_ended
from atoll.engine.preloading import Preloading
from atoll.engine.schedule import Schedule
from atoll.model.records import CallRecord
from atoll.model.resources import Allotment
from atoll.node.node import Node, NodeSandbox
from atoll.sandbox.held_process import hold
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import USER_BURST, USER_RATE, Pace
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.pool")

PRELOAD_SECONDS = 0.1
"""Seconds after its first worker until a sandbox imports packages ahead: many sandboxes have ended by then."""

USAGE_SECONDS = 0.5
"""Seconds for agents to report usage."""

DIAL_SECONDS = 10.0
"""Seconds for an agent to connect to a port."""

MAX_DIALS = 64
"""Connections that an agent may owe."""

MAX_NAME = 128
"""Characters that are kept of a name from an agent."""

LEARN_TOKENS = 100.0
"""The cost of a message that the daemon writes to the disk for (see `wire.bounds.Pace`)."""

_NO_LINGER = struct.pack("ii", 0, 0)


class Messages:
    """Sends to agents and workers, and handles their messages.

    Args:
        state: changed when a worker or sandbox starts to live or ends.
        schedule: told of these events; `perform` carries its actions out.
        on_record: takes the records of calls that are over.
        on_connect: serves the connections that code inside workers opens.
    """

    def __init__(
        self,
        state: PoolState,
        schedule: Schedule,
        perform: Callable[[list[Action]], None],
        node: Node,
        on_record: Callable[[CallRecord], None],
        on_connect: Connect,
    ) -> None:
        self._state = state
        self._schedule = schedule
        self._perform = perform
        self._on_record = on_record
        self.nested = NestedConnections(on_connect)
        self.ends = Killing(state, self.to_agent, self.to_worker)
        self.cancel, self.cancel_call, self.kill = self.ends.cancel, self.ends.cancel_call, self.ends.kill
        self._paces: dict[str, tuple[Pace, Pace]] = {}  # of each user
        self._dial_count = 0
        self.limiting = Limiting(node.limits, state.workers, state.sandboxes, self._worker_spent, self._sandbox_worn)
        self.asking = AgentRequests(node.machine, state, self.to_agent, self.limiting)
        variables = node.machine.gpus.variables
        self._preloading = Preloading(state.sandboxes, state.environments, variables, self.to_agent)

    # --- to agents and workers ----------------------------------------------------------------------------------

    def to_agent(self, sandbox: str, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send to a sandbox's agent; a sandbox whose agent does not read is ended."""
        known = self._state.sandboxes.get(sandbox)
        if known is None:
            return
        try:
            known.node.channel.post(message, descriptors)
        except ChannelClosed:
            self._state.spawn(known.node.kill())

    def to_worker(self, worker: PoolWorker, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send to a worker; one that does not read is killed."""
        try:
            worker.control.post(message, descriptors)
        except ChannelClosed:
            self.kill(worker)

    def paces_of(self, user: str) -> tuple[Pace, Pace]:
        """Return the paces of all messages that come from a user's sandboxes, and of the records in them."""
        if user not in self._paces:
            self._paces[user] = Pace(USER_RATE, USER_BURST), Pace(USER_RECORDS, USER_RECORDS)
        return self._paces[user]

    async def usage(self, user: str | None) -> dict[str, Any]:
        """Ask the agents for usage, by worker; an agent that does not answer in time is left out."""
        asked = {}
        for sandbox in self._state.sandboxes_of(user):
            if sandbox.usage is None or sandbox.usage.done():
                sandbox.usage = asyncio.get_running_loop().create_future()
                self.to_agent(sandbox.id, {"type": "usage"})
            asked[sandbox.id] = sandbox.usage
        if asked:
            await asyncio.wait(asked.values(), timeout=USAGE_SECONDS)
        return {
            worker: claimed
            for answer in asked.values()
            if answer.done() and not answer.cancelled()
            for worker, claimed in answer.result().items()
        }

    async def dial(self, sandbox: PoolSandbox, port: int) -> socket.socket:
        """Have a sandbox's agent connect to a port of its loopback; see `contract.EngineLease.dial`."""
        if len(sandbox.dials) >= MAX_DIALS:
            raise errors.PortUnreachable("the sandbox does not answer: too many connections wait", hint="try again")
        self._dial_count += 1
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        sandbox.dials[self._dial_count] = answer
        sandbox.node.channel.bound_descriptors(len(sandbox.dials))  # one for each answer that is still to come
        self.to_agent(sandbox.id, {"type": "dial", "number": self._dial_count, "port": port})
        try:
            return await asyncio.wait_for(answer, DIAL_SECONDS)
        except TimeoutError as error:
            raise errors.PortUnreachable(
                f"the sandbox does not answer: no connection to port {port}", hint="try again"
            ) from error

    # --- from agents --------------------------------------------------------------------------------------------

    async def watch_sandbox(self, name: str, node: NodeSandbox) -> None:
        """Handle an agent's messages until its sandbox is gone, then wake all that wait for a worker of it."""
        failure: errors.AtollError | None = errors.InternalError("the sandbox was lost", hint="see `atoll logs`")
        try:
            try:
                while True:
                    self._from_agent(name, (await node.channel.receive()).header, node.channel)
                    node.channel.drop_descriptors()
            except ChannelClosed:
                pass
            except Exception as error:  # code in the sandbox may send anything
                log.warning("agent_broke_protocol id=%s error=%s", name, _short(error))
            await node.kill()
            failure = await node.failure()
        finally:
            node.close()
            self._sandbox_gone(name, failure)

    def _from_agent(self, name: str, message: dict[str, Any], channel: AsyncChannel) -> None:
        match message.get("type"):
            case "exited":
                self._worker_exited(name, str(message.get("worker")), int(str(message.get("status", 0))), message)
            case "usage":
                pending = self._state.sandboxes[name].usage
                if pending is not None and not pending.done() and isinstance(message.get("workers"), dict):
                    pending.set_result(running_calls.used(self._state.workers_in(name), message["workers"]))
            case "preloaded":
                channel.pay(LEARN_TOKENS)
                self._preloading.finished(name, message)
            case "refused":
                channel.pay(LEARN_TOKENS)
                self._preloading.refused(name, message)
            case "answered":
                self.asking.answered(name, message)
            case "dialled":
                self._dialled(self._state.sandboxes[name], message, channel)

    def _dialled(self, sandbox: PoolSandbox, message: dict[str, Any], channel: AsyncChannel) -> None:
        number = message.get("number")
        answer = sandbox.dials.pop(number, None) if type(number) is int else None
        if answer is None:
            raise FrameError("`dialled` answers no request")
        try:
            if "error" in message:
                failure = errors.PortUnreachable(
                    f"nothing answers inside the sandbox: {str(message['error'])[:MAX_NAME]}",
                    hint="the function must listen on that port of `127.0.0.1` or of every address",
                )
                if not answer.done():
                    answer.set_exception(failure)
                return
            dialled = received(channel, "dialled", socket.AF_INET)
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)  # else `close` could wait for its peer
            dialled.setblocking(True)
            if answer.done():  # given up meanwhile
                dialled.close()
            else:
                answer.set_result(dialled)
        finally:
            channel.bound_descriptors(len(sandbox.dials))

    def _sandbox_gone(self, name: str, failure: errors.AtollError | None) -> None:
        sandbox = self._state.sandboxes.pop(name)
        self._preloading.ended(name)
        if failure is None and not sandbox.lived and not sandbox.unwanted:
            failure = never_served(sandbox)
        if failure is not None:
            log.warning("sandbox_failed id=%s error=%s", name, failure)
        died = errors.WorkerDied(
            "the sandbox of the call has ended, and its worker with it",
            hint="call again: a new one is started",
            signal=9,
        )
        exceeded = sandbox.node.limit.exceeded()
        for worker in self._state.workers_in(name):
            started = worker.pid != 0  # else its lease's call has not begun, and is sent again
            ended = why_ended(-9, exceeded, worker.allotment) if exceeded is not None else died
            self._end_worker(worker, failure or (ended if started else None))
        for answer in sandbox.dials.values():
            if not answer.done():
                answer.set_exception(died)
        self.asking.ended(name)
        if sandbox.init is not None:
            sandbox.init.close()
        log.info("sandbox_ended id=%s", name)
        self._state.changed.set()
        self._perform(self._schedule.sandbox_ended(name))

    def _worker_exited(self, sandbox: str, name: str, status: int, message: dict[str, Any]) -> None:
        worker = self._state.worker_of(sandbox, name)
        if worker is None:
            return
        if worker.process is not None and worker.process.lives():  # the agent has reaped it, or lies
            log.warning("worker_ended_by_claim_only id=%s", name)
            worker.process.kill()
        limit = worker.limit or self._state.sandboxes[sandbox].node.limit
        exceeded = limit.exceeded()
        reason = str(message.get("reason", ""))
        error = why_ended(status, exceeded, worker.allotment, reason) if reason != "idle" else None
        if worker.cancelled_call and exceeded is None and _runs(message, worker.cancelled_call):
            error = cancelled_elsewhere()
        left = worker.cancelled or worker.lease is None
        self._record(worker, worker.place.last_records(message, nested=worker.nested, error=error, left=left))
        if worker.cancelled and worker.lease is not None:
            worker.lease.never_began = not worker.lease.first_recorded
        self._end_worker(worker, error)
        self._perform(self._schedule.worker_ended(time.monotonic(), name, expired=worker.expired))

    def _record(self, worker: PoolWorker, records: Iterable[CallRecord]) -> None:
        lease = worker.last
        if lease is not None:
            worker.makers.add(lease.maker)
        for record in worker.makers.made(records, worker.id):
            if lease is not None and record.call == lease.first_call:
                lease.first_recorded = True
            self._on_record(record)

    def _end_worker(self, worker: PoolWorker, error: errors.AtollError | None) -> None:
        self._state.workers.pop(worker.id, None)
        worker.ended.set()
        self._state.changed.set()
        self.limiting.ended(worker)
        self._state.end_lease(worker, None if worker.expired else error)
        self.nested.ended(worker.id)
        worker.control.close()
        if worker.process is not None:
            worker.process.close()
        if worker.limit is not None:
            worker.limit.close()

    # --- from workers -------------------------------------------------------------------------------------------

    async def listen(self, name: str, control: AsyncChannel) -> None:
        """Handle one worker's messages until it is gone; one that does not keep to the protocol is killed."""
        try:
            while True:
                message = (await control.receive()).header
                worker = self._state.workers.get(name)
                if worker is None:
                    return
                self._from_worker(worker, message, control)
                control.drop_descriptors()
        except ChannelClosed:
            pass
        except Exception as error:  # code in the worker may send anything
            log.warning("worker_broke_protocol id=%s error=%s", name, _short(error))
            worker = self._state.workers.get(name)
            if worker is not None:
                self.kill(worker)

    def _from_worker(self, worker: PoolWorker, message: dict[str, Any], control: AsyncChannel) -> None:
        match message.get("type"):
            case "hello":
                if worker.process is None:  # once, before any code of a function runs: a child could name itself
                    self._hello(worker, control)
            case "idle":
                epoch = _epoch(message)
                if worker.lease is None or worker.lease.epoch == epoch:
                    self._state.end_lease(worker, None)
                    self._perform(self._schedule.worker_idle(time.monotonic(), worker.id, epoch))
            case "paused" | "resumed" as kind:
                paused = kind == "paused"
                self._perform(self._schedule.worker_paused(worker.id, _epoch(message), paused=paused))
            case "expired":
                worker.expired = True
                self.ends.ends(worker)
                self._perform(self._schedule.worker_expired(time.monotonic(), worker.id, _epoch(message)))
            case "ending":
                self.ends.ends(worker, str(message.get("reason", ""))[:MAX_NAME])
            case "imported":
                control.pay(LEARN_TOKENS)
                self._preloading.imported(worker, message)
            case "records":
                self._record(worker, worker.place.reported(message, nested=worker.nested))
            case "connect":
                connection = received(control, "connect", socket.AF_UNIX)
                user = worker.key.sandbox.user
                self.nested.open(connection, user, worker.sandbox, worker.id, self.paces_of(user)[0])

    def _hello(self, worker: PoolWorker, control: AsyncChannel) -> None:
        """Hold the process that has sent a worker's greeting.

        Raises:
            FrameError: it is not inside the worker's sandbox.
        """
        sandbox = self._state.sandboxes[worker.sandbox]
        process = sandbox.node.identify(*control.take_sender())
        if process is None:
            raise FrameError("`hello` comes from no process of the sandbox")
        worker.process = process
        worker.pid, worker.init, worker.agent = process.pid, process.init, process.agent
        if sandbox.init is None:
            sandbox.init = hold(process.init, sandbox.node.pid)
        if not sandbox.lived:
            sandbox.lived = True
            asyncio.get_running_loop().call_later(PRELOAD_SECONDS, self._preloading.begin, sandbox.id)
        if is_limited_first(worker.allotment):
            self._state.spawn(self._limit_and_start(worker))

    async def _limit_and_start(self, worker: PoolWorker) -> None:
        """Let a worker begin its first call, once it is under its limit."""
        try:
            await self.limiting.begin(worker)
        finally:
            self.to_worker(worker, {"type": "go"})

    def _sandbox_worn(self, name: str) -> None:
        log.info("sandbox_worn id=%s reason=memory", name)
        self._perform(self._schedule.sandbox_worn(time.monotonic(), name))

    def _worker_spent(self, worker: PoolWorker) -> None:
        if not worker.spent:
            worker.spent = True
            log.info("worker_spent id=%s reason=processes", worker.id)
            self._perform(self._schedule.worker_spent(worker.id))


def is_limited_first(allotment: Allotment) -> bool:
    """Return whether a worker waits for its limit before its first call."""
    return allotment.limited


def _runs(message: dict[str, Any], call: str) -> bool:
    """Return whether an agent names this call as the one that its ended worker was running."""
    claimed = message.get("call")
    return isinstance(claimed, list) and claimed[:1] == [call]


def _epoch(message: dict[str, Any]) -> int:
    epoch = message["epoch"]
    if type(epoch) is not int:
        raise ValueError("`epoch` must be a number")
    return epoch


def _short(error: Exception) -> str:
    """Return an error for the log, which code in a sandbox must not be able to fill."""
    return repr(error)[:200]
