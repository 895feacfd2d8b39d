"""The embedded engine: carries out what the schedule decides, on one node.

Everything runs in the daemon's event loop. Sockets and pipes of a lease are made when it is granted, so that the
client may write its call before the worker has even been forked: the kernel keeps it until the worker reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from atoll import errors
from atoll.engine import call_claims, report
from atoll.engine.actions import (
    Action,
    EndSandbox,
    EndWorker,
    ForkWorker,
    Grant,
    Reclaim,
    Refuse,
    Release,
    Request,
    StartSandbox,
)
from atoll.engine.gate import Gates
from atoll.engine.limiting import Limiting
from atoll.engine.pool_state import Lease, PoolSandbox, PoolWorker, why
from atoll.engine.preloading import Preloading
from atoll.engine.schedule import Schedule
from atoll.environments.built.records import Environment
from atoll.model.records import CallRecord
from atoll.model.resources import Allotment
from atoll.model.specs import NETWORKS, EnvironmentSpec, LeaseSpec, SandboxKey, WorkerKey
from atoll.node.node import Node, NodeSandbox
from atoll.sandbox.limits.memory_watchdog import first_processes
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed, pair
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.pool")

USAGE_SECONDS = 0.5
KILL_SECONDS = 1.0
RELEASE_SECONDS = 5.0
"""After how long a worker is killed, and its sandbox ended, when what a client has left does not end by itself."""

HELLO_SECONDS = 10.0
FIRST_HELLO_SECONDS = 60.0
"""How long an agent may take to fork a worker; for a sandbox that is only starting, on a machine that may be full."""

PRELOAD_SECONDS = 0.1
"""How long after its first worker a sandbox imports packages ahead: many a sandbox has ended by then."""

QUIET_SECONDS = 0.2
"""How often to look whether a user's sandboxes have ended, where nothing says so earlier."""

MOST_NAME = 128
"""Characters of what an agent says a call's id or function to be."""

MAX_NESTED_CONNECTIONS = 160
"""How many connections to the daemon the code in one worker may have open: more than the SDK has threads."""

MAX_WORKER_DESCRIPTORS = 32
"""How many descriptors of a worker's may wait for the messages that they belong to; each brings one at most."""


Connect = Callable[[Any, str, str], Awaitable[None]]
"""Serves a nested connection: its socket, the user, the worker whose call makes it."""


class Pool:
    """Lends workers to calls.

    Args:
        node: where sandboxes run.
        on_connect: serves the connections that code inside workers opens.
        on_record: takes the records of calls that are over.
    """

    def __init__(
        self, node: Node, on_connect: Connect, on_record: Callable[[CallRecord], None] = lambda _: None
    ) -> None:
        self._node = node
        self._schedule = Schedule(node.machine.bounds())
        self._on_connect = on_connect
        self._on_record = on_record
        self._environments: dict[str, Environment] = {}
        self._leases: dict[str, Lease] = {}
        self._workers: dict[str, PoolWorker] = {}
        self.limiting = Limiting(node.limits, self._workers, self._worker_spent)
        self._sandboxes: dict[str, PoolSandbox] = {}
        gpu_variables = node.machine.gpus.variables
        self._preloading = Preloading(self._sandboxes, self._environments, gpu_variables, self._tell)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gates = Gates()
        self._changed = asyncio.Event()
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def idle(self) -> bool:
        """Nothing is alive and nothing waits."""
        return self._schedule.idle and not self._sandboxes

    def oldest_sandbox(self, user: str) -> float | None:
        """When the oldest sandbox of a user that lives was started, seconds since the epoch; None where none lives."""
        return min((one.started_at for one in self._sandboxes.values() if one.key.user == user), default=None)

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return len(self._schedule.waiting)

    def ask(self, user: str, spec: LeaseSpec, environment: Environment, parent: str | None, client: str = "") -> Lease:
        """Ask for a worker; the lease's `granted` says when it is there.

        `granted` fails with `ResourcesUnavailable` when the lease can never be.

        Raises:
            ResourcesUnavailable: this machine has nothing of the machine type.
        """
        allotment = self._node.machine.allot(spec.machine_type)
        self._count += 1
        sandbox = SandboxKey(user, environment.key, spec.network or "host", spec.mounts, preload=spec.preload)
        key = WorkerKey(sandbox, spec.env, spec.sources, spec.setup, machine_type=spec.machine_type)
        lease = Lease(f"l{self._count}", spec, nested=parent is not None)
        self._leases[lease.id] = lease
        self._environments[environment.key] = environment
        request = Request(
            lease.id,
            key,
            spec.keep_alive_seconds,
            parent,
            needs=allotment.needs,
            identity=f"{user}:{spec.identity}" if spec.max_concurrency else "",
            max_concurrency=spec.max_concurrency,
            client=client,
        )
        if not self._gates.holds(user, request):
            self._ask(request)
        return lease

    def _ask(self, request: Request) -> None:
        self._perform(self._schedule.ask(request))

    def is_quiet(self, user: str) -> bool:
        """Whether a user's calls are held up, because somebody has asked for `quiet`."""
        return self._gates.is_shut(user)

    def position(self, lease: Lease) -> int:
        """Return how many requests are before this one; -1 once it is granted."""
        return self._schedule.position(lease.id)

    def release(self, lease: Lease) -> None:
        """End a lease, waiting or granted: a call that runs under it is killed, an idle worker is kept."""
        self._leases.pop(lease.id, None)
        self.close_descriptors(lease)
        if not lease.granted.done():
            lease.granted.cancel()
        self._gates.withdraw(lease.id)
        self._perform(self._schedule.withdraw(lease.id))

    def kill(self, lease: Lease) -> None:
        """Kill the lease's worker, whatever it does, and also where it says that it is idle."""
        worker = self._workers.get(lease.worker)
        if worker is not None and worker.last is lease:
            worker.cancelled = True
            self._tell(worker.sandbox, {"type": "kill", "worker": worker.id})

    def may_run(self, lease: Lease) -> bool:
        """Whether the lease's worker has given it up and has no other: what it says of itself need not be true."""
        worker = self._workers.get(lease.worker)
        return worker is not None and worker.lease is None and worker.last is lease

    def environment_of(self, worker: str) -> EnvironmentSpec:
        """Return what the environment of a worker was asked for with: code in it asks on the same terms."""
        known = self._workers.get(worker)
        return known.spec.environment if known is not None and known.spec is not None else EnvironmentSpec()

    def network_of(self, worker: str) -> str:
        """Return the network policy of a worker's sandbox; the strictest for a worker that is gone."""
        known = self._workers.get(worker)
        return known.key.sandbox.network if known is not None else NETWORKS[0]

    # --- quiet --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def quiet(self, user: str, busy: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Have no sandbox of a user live: end those that are idle, and wait for the calls that run.

        Calls that come meanwhile begin afterwards, but for those that running ones make and wait for.

        Args:
            busy: is awaited again and again while calls run; raises to give up.

        Raises:
            VolumeBusy: another waits for the same, or has it.
        """
        if not self._gates.shut(user):
            raise errors.VolumeBusy("another restore of the same volume is under way", hint="try again after it")
        try:
            while self._of(user):
                for worker in [one for one in self._workers.values() if one.key.sandbox.user == user]:
                    self._perform(self._schedule.worker_spent(worker.id))
                for sandbox in self._of(user):
                    if not any(one.sandbox == sandbox.id for one in self._workers.values()):
                        sandbox.unwanted = True
                        self._spawn(sandbox.node.kill())
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), QUIET_SECONDS)
                if any(one.sandbox in {sandbox.id for sandbox in self._of(user)} for one in self._workers.values()):
                    await busy()
            yield
        finally:
            self._gates.open(user, self._ask)

    def _of(self, user: str) -> list[PoolSandbox]:
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.key.user == user]

    async def running(self, user: str) -> list[dict[str, str]]:
        """Return the calls of a user that run now, as far as the agents say: `call` and `function` of each."""
        usage = await self._usage()
        found = []
        for worker in self._workers.values():
            said = usage.get(worker.id, {})
            if worker.key.sandbox.user == user and worker.lease is not None and said.get("busy", 1):
                name = said.get("function") or (worker.spec.function if worker.spec is not None else "")
                found.append({"call": str(said.get("call", "")), "function": name})
        return found

    async def close(self) -> None:
        """End every sandbox and wait until they are gone."""
        self._closing = True
        for sandbox in self._sandboxes.values():
            sandbox.unwanted = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(sandbox.node.kill() for sandbox in self._sandboxes.values()), return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def status(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what lives, as JSON-compatible lists of sandboxes and workers; times are seconds since the epoch."""
        usage = await self._usage()
        sandboxes, workers = self._sandboxes.values(), self._workers.values()
        return report.sandbox_rows(sandboxes, workers), report.worker_rows(workers, usage, self._state)

    async def _usage(self) -> dict[str, Any]:
        """Ask the agents what their workers have done; one that does not answer in time is left out."""
        asked = {}
        for sandbox in self._sandboxes.values():
            if sandbox.usage is None or sandbox.usage.done():
                sandbox.usage = asyncio.get_running_loop().create_future()
                self._tell(sandbox.id, {"type": "usage"})
            asked[sandbox.id] = sandbox.usage
        if asked:
            await asyncio.wait(asked.values(), timeout=USAGE_SECONDS)
        found: dict[str, Any] = {}
        for name, answer in asked.items():
            if answer.done() and not answer.cancelled():
                for worker, said in answer.result().items():
                    if self._worker_of(name, worker) is not None and isinstance(said, dict):
                        found[worker] = {word: number for word, number in said.items() if type(number) is int}
                        for word in ("call", "function"):
                            found[worker][word] = str(said.get(word, ""))[:MOST_NAME]
        return found

    def _worker_of(self, sandbox: str, worker: str) -> PoolWorker | None:
        """Return a worker that a sandbox's agent speaks of; None when it is gone, or another sandbox's."""
        known = self._workers.get(worker)
        return known if known is not None and known.sandbox == sandbox else None

    def _state(self, worker: str, busy: bool) -> str:
        """Return `busy`, `leased` (between two calls), `lending` (waits for a nested call), `idle` or `ending`."""
        with contextlib.suppress(KeyError):
            state = self._schedule.state_of(worker)
            return "busy" if state == "leased" and busy else state
        return "ending"

    # --- actions --------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartSandbox():
                    self._start_sandbox(action)
                case ForkWorker():
                    self._prepare_worker(action)
                case Grant():
                    self._grant(action)
                case Reclaim():
                    worker = self._workers.get(action.worker)
                    if worker is not None:
                        self._post(worker, {"type": "reclaim", "epoch": action.epoch})
                case Release():
                    worker = self._workers.get(action.worker)
                    if worker is not None:
                        worker.lease = None
                        self._tell(worker.sandbox, {"type": "release", "worker": action.worker, "epoch": action.epoch})
                        self._later(KILL_SECONDS, self._kill_unreleased, action.worker, action.epoch)
                        self._later(RELEASE_SECONDS, self._check_released, action.worker, action.epoch)
                case EndWorker():
                    worker = self._workers.get(action.worker)
                    if worker is not None:
                        self._tell(worker.sandbox, {"type": "kill", "worker": action.worker})
                case EndSandbox():
                    sandbox = self._sandboxes.get(action.sandbox)
                    if sandbox is not None:
                        sandbox.unwanted = True
                        self._spawn(sandbox.node.kill())
                case Refuse():
                    lease = self._leases.pop(action.request, None)
                    if lease is not None and not lease.granted.done():
                        lease.granted.set_exception(
                            errors.ResourcesUnavailable(f"the call can never start: {action.reason}", hint=action.hint)
                        )
        self._schedule_tick()

    def _later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, what, *arguments)

    def _kill_unreleased(self, name: str, epoch: int) -> None:
        """Have a worker killed that is still not idle after its lease has ended."""
        worker = self._workers.get(name)
        if worker is not None and self._schedule.is_leaving(name, epoch):
            self._tell(worker.sandbox, {"type": "kill", "worker": name})

    def _check_hello(self, name: str) -> None:
        """End a sandbox whose agent does not fork, as when its code has stopped it; the call goes to a new one."""
        worker = self._workers.get(name)
        if worker is not None and not worker.pid:
            log.warning("sandbox_does_not_fork id=%s worker=%s", worker.sandbox, name)
            self._spawn(self._sandboxes[worker.sandbox].node.kill())

    def _check_released(self, name: str, epoch: int) -> None:
        """End a sandbox whose agent and worker do not give a lease up, as when their code has stopped them."""
        worker = self._workers.get(name)
        if worker is not None and self._schedule.is_leaving(name, epoch):
            log.warning("sandbox_does_not_answer id=%s worker=%s", worker.sandbox, name)
            self._spawn(self._sandboxes[worker.sandbox].node.kill())

    def _schedule_tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._schedule.next_deadline()
        if deadline is not None and not self._closing:
            delay = max(0.0, deadline - _now())
            self._timer = asyncio.get_running_loop().call_later(delay + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._schedule.tick(_now()))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _start_sandbox(self, action: StartSandbox) -> None:
        environment = self._environments[action.key.environment]
        node = self._node.start_sandbox(action.key, environment)
        sandbox = PoolSandbox(action.sandbox, action.key, node, self._spawn(self._watch_sandbox(action.sandbox, node)))
        self._sandboxes[action.sandbox] = sandbox
        log.info("sandbox_started id=%s user=%s environment=%s", sandbox.id, action.key.user, environment.key)

    def _prepare_worker(self, action: ForkWorker) -> None:
        ours, theirs = pair()
        control = AsyncChannel(ours)
        control.learn_sender()
        control.bound_descriptors(MAX_WORKER_DESCRIPTORS)
        task = self._spawn(self._listen(action.worker, control))
        place = call_claims.Place(action.key.sandbox, action.sandbox, action.worker)
        allotment = self._node.machine.allot(action.key.machine_type)
        worker = PoolWorker(
            action.worker, action.sandbox, action.key, control, task, theirs, place, allotment=allotment
        )
        self._workers[action.worker] = worker

    def _grant(self, action: Grant) -> None:
        lease, worker = self._leases[action.request], self._workers[action.worker]
        client, inside = pair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        lease.worker, lease.epoch, lease.fresh = worker.id, action.epoch, action.fresh
        lease.descriptors = (client.detach(), out_read, err_read)
        message = {"type": "lease", "epoch": action.epoch, "keep_alive_seconds": lease.spec.keep_alive_seconds}
        descriptors = [inside.fileno(), out_write, err_write]
        worker.lease = worker.last = lease
        worker.spec, worker.nested = lease.spec, lease.nested
        if worker.inner_end is None:
            self._post(worker, message, descriptors)
        else:
            fork = {
                **message,
                "type": "fork",
                "worker": worker.id,
                "env": {**dict(worker.key.env), **self._node.machine.gpus.variables(worker.key.sandbox.gpus)},
                "hold": _held(worker.allotment),
                "processes": self._node.machine.process_wall(worker.allotment),
                # A function's own variables may change how packages are imported, unless it says which it wants.
                "preloaded": not worker.key.env or worker.key.sandbox.preload is not None,
            }
            self._tell(worker.sandbox, fork, [worker.inner_end.fileno(), *descriptors])
            worker.inner_end.close()
            worker.inner_end = None
            lived = self._sandboxes[worker.sandbox].lived
            self._later(HELLO_SECONDS if lived else FIRST_HELLO_SECONDS, self._check_hello, worker.id)
        inside.close()
        os.close(out_write)
        os.close(err_write)
        if not lease.granted.done():
            lease.granted.set_result(None)

    def _tell(self, sandbox: str, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Send to a sandbox's agent; one that does not take messages is ended."""
        known = self._sandboxes.get(sandbox)
        if known is None:
            return
        try:
            known.node.channel.post(message, descriptors or [])
        except ChannelClosed:
            self._spawn(known.node.kill())

    def _post(self, worker: PoolWorker, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        try:
            worker.control.post(message, descriptors or [])
        except ChannelClosed:
            self._tell(worker.sandbox, {"type": "kill", "worker": worker.id})

    def close_descriptors(self, lease: Lease) -> None:
        """Close the client's ends here: they have been handed over, or nobody wants them."""
        for descriptor in lease.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        lease.descriptors = ()

    # --- what sandboxes and workers say -----------------------------------------------------------------------------

    async def _watch_sandbox(self, name: str, node: NodeSandbox) -> None:
        """Serve the agent's messages until the sandbox is gone, and tell whoever waits for what was in it."""
        failure: errors.AtollError | None = errors.InternalError("the sandbox was lost", hint="see `atoll logs`")
        try:
            with contextlib.suppress(ChannelClosed, FrameError, ValueError):
                await self._listen_to_agent(name, node)
            await node.kill()
            failure = await node.failure()
        finally:
            node.close()
            self._sandbox_gone(name, failure)

    async def _listen_to_agent(self, name: str, node: NodeSandbox) -> None:
        while True:
            message = (await node.channel.receive()).header
            if message.get("type") == "exited":
                self._worker_exited(name, str(message.get("worker")), int(str(message.get("status", 0))), message)
            elif message.get("type") == "usage":
                pending = self._sandboxes[name].usage
                if pending is not None and not pending.done() and isinstance(message.get("workers"), dict):
                    pending.set_result(message["workers"])
            elif message.get("type") == "preloaded":
                self._preloading.finished(name, message)

    def _sandbox_gone(self, name: str, failure: errors.AtollError | None) -> None:
        sandbox = self._sandboxes.pop(name)
        self._preloading.ended(name)
        if failure is None and not sandbox.lived and not sandbox.unwanted:
            failure = errors.SandboxUnavailable(
                "the sandbox's agent ended before it served a call",
                hint="see `sandboxes.log` beside the daemon's log, and run `atoll doctor`",
            )
        if failure is not None:
            log.warning("sandbox_failed id=%s error=%s", name, failure)
        for worker in [one for one in self._workers.values() if one.sandbox == name]:
            started = worker.pid != 0  # else its lease's call has not begun, and is sent again
            died = errors.WorkerDied(
                "the sandbox of the call has ended, and its worker with it",
                hint="call again: a new one is started",
                signal=9,
            )
            self._end_worker(worker, failure or (died if started else None))
        log.info("sandbox_ended id=%s", name)
        self._changed.set()
        self._perform(self._schedule.sandbox_ended(name))

    def _worker_exited(self, sandbox: str, name: str, status: int, message: dict[str, Any]) -> None:
        worker = self._worker_of(sandbox, name)
        if worker is None:
            return
        exceeded = worker.limit.exceeded() if worker.limit is not None else None
        reason = str(message.get("reason", ""))
        error = why(status, exceeded, worker.allotment, reason) if reason != "idle" else None
        left = worker.cancelled or worker.lease is None
        for record in worker.place.last_records(message, nested=worker.nested, error=error, left=left):
            self._on_record(record)
        self._end_worker(worker, error)
        self._perform(self._schedule.worker_ended(_now(), name, expired=worker.expired))

    def _end_worker(self, worker: PoolWorker, error: errors.AtollError | None) -> None:
        self._workers.pop(worker.id, None)
        self._changed.set()
        self.limiting.ended(worker)
        self._end_lease(worker, None if worker.expired else error)
        worker.control.close()
        if worker.limit is not None:
            worker.limit.close()

    def _end_lease(self, worker: PoolWorker, error: errors.AtollError | None) -> None:
        lease, worker.lease = worker.lease, None
        if lease is not None:
            self._leases.pop(lease.id, None)
            if not lease.ended.done():
                lease.ended.set_result(error.to_data() if error is not None else None)

    async def _listen(self, name: str, control: AsyncChannel) -> None:
        """Serve one worker's own messages until it is gone; one that does not keep to the protocol is killed."""
        try:
            while True:
                message = (await control.receive()).header
                worker = self._workers.get(name)
                if worker is None:
                    return
                self._hear(worker, message, control)
                control.drop_descriptors()
                await asyncio.sleep(0)  # code that never stops sending has its turn, and no more
        except ChannelClosed:
            pass
        except (FrameError, ValueError, TypeError, KeyError) as error:
            log.warning("worker_broke_protocol id=%s error=%r", name, error)
            worker = self._workers.get(name)
            if worker is not None:
                self._tell(worker.sandbox, {"type": "kill", "worker": name})

    def _hear(self, worker: PoolWorker, message: dict[str, Any], control: AsyncChannel) -> None:
        match message.get("type"):
            case "hello":
                if worker.pid:  # once, before any code of a function runs: a child of it could name itself
                    return
                worker.pid = control.sender_pid
                sandbox = self._sandboxes[worker.sandbox]
                worker.init, worker.agent = first_processes(worker.pid, sandbox.node.pid)
                if not sandbox.lived:
                    sandbox.lived = True
                    self._later(PRELOAD_SECONDS, self._preloading.begin, sandbox.id)
                if _held(worker.allotment):
                    self._spawn(self._let_go(worker))
            case "idle":
                epoch = int(message["epoch"])
                if worker.lease is None or worker.lease.epoch == epoch:
                    self._end_lease(worker, None)
                    self._perform(self._schedule.worker_idle(_now(), worker.id, epoch))
            case "paused" | "resumed" as kind:
                paused = kind == "paused"
                self._perform(self._schedule.worker_paused(worker.id, int(message["epoch"]), paused=paused))
            case "expired":
                worker.expired = True
            case "imported":
                self._preloading.imported(worker, message)
            case "records":
                for record in worker.place.reported(message, nested=worker.nested):
                    self._on_record(record)
            case "connect":
                connection = _connection(control)
                if worker.connections >= MAX_NESTED_CONNECTIONS or self._nested_connections >= _most_nested():
                    connection.close()
                else:
                    self._spawn(self._serve_nested(worker, connection))

    @property
    def _nested_connections(self) -> int:
        return sum(worker.connections for worker in self._workers.values())

    async def _let_go(self, worker: PoolWorker) -> None:
        """Let a worker begin its first call, once it is under its limit."""
        try:
            await self.limiting.begin(worker)
        finally:
            self._post(worker, {"type": "go"})

    async def _serve_nested(self, worker: PoolWorker, connection: socket.socket) -> None:
        worker.connections += 1
        try:
            await self._on_connect(connection, worker.key.sandbox.user, worker.id)
        finally:
            worker.connections -= 1

    def _worker_spent(self, worker: PoolWorker) -> None:
        if not worker.spent:
            worker.spent = True
            log.info("worker_spent id=%s reason=processes", worker.id)
            self._perform(self._schedule.worker_spent(worker.id))


def _held(allotment: Allotment) -> bool:
    """Whether a worker waits for its limit before its first call."""
    return bool(allotment.machine_type)


def _connection(control: AsyncChannel) -> socket.socket:
    """Take the connection that a worker has sent.

    Raises:
        FrameError: it is none: closing a socket of another family could wait for its peer.
    """
    try:
        (descriptor,) = control.take_descriptors(1)
    except ChannelClosed as error:
        raise FrameError("`connect` came without a connection") from error
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise FrameError("`connect` came with something else than a connection") from error
    if connection.family != socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
        connection.close()
        raise FrameError("`connect` came with a socket of another kind")
    return connection


def _most_nested() -> int:
    """Return how many connections the code in all workers may have open: half of the descriptors that there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // 2 if soft != resource.RLIM_INFINITY else 1 << 20


def _now() -> float:
    return time.monotonic()
