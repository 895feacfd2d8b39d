"""State of the pool: its leases, workers and sandboxes, requests held up by a restore, and rows for `atoll status`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from atoll import errors
from atoll.engine.actions import Request
from atoll.engine.call_claims import Makers, Place
from atoll.engine.contract import Rows
from atoll.environments.built.records import Environment
from atoll.model.resources import Allotment
from atoll.model.specs import LeaseSpec, SandboxKey, WorkerKey
from atoll.node.node import NodeSandbox
from atoll.sandbox.held_process import HeldProcess, Member
from atoll.sandbox.limits.limits import Limit
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Socket


class LeaseOwner(Protocol):
    """The pool, as its leases call it."""

    def position(self, lease: Lease) -> int: ...

    def reason(self, lease: Lease) -> str: ...

    def may_run(self, lease: Lease) -> bool: ...

    def cancel(self, lease: Lease) -> None: ...

    def kill(self, lease: Lease) -> None: ...

    def release(self, lease: Lease) -> None: ...

    async def dial(self, lease: Lease, port: int) -> socket.socket: ...


@dataclass
class Lease:
    """A client's hold on a worker; see `contract.EngineLease`."""

    id: str
    spec: LeaseSpec
    owner: LeaseOwner
    worker: str = ""
    epoch: int = 0
    fresh: bool = True
    nested: bool = False
    relayed: bool = False
    user: str = ""
    first_call: str = ""
    maker: str | None = ""
    first_recorded: bool = False
    never_began: bool = False
    granted_at: float = 0.0
    descriptors: tuple[int, ...] = ()
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[dict[str, Any] | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def message(self) -> dict[str, Any]:
        """Return the message that gives a worker this lease."""
        return {
            "type": "lease",
            "epoch": self.epoch,
            "keep_alive_seconds": self.spec.keep_alive_seconds,
            "grace_seconds": self.spec.grace_seconds,
            "relayed": self.relayed,
        }

    def position(self) -> int:
        return self.owner.position(self)

    def reason(self) -> str:
        return self.owner.reason(self)

    def may_run(self) -> bool:
        return self.owner.may_run(self)

    def cancel(self) -> None:
        self.owner.cancel(self)

    def kill(self) -> None:
        self.owner.kill(self)

    def release(self) -> None:
        self.owner.release(self)

    async def dial(self, port: int) -> socket.socket:
        return await self.owner.dial(self, port)

    def close_descriptors(self) -> None:
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = ()


@dataclass
class PoolWorker:
    """A worker as the pool knows it.

    Args:
        inner_end: the worker's end of its control channel, until the fork message carries it away.
        spec: its last lease was asked for with this.
        nested: its last lease came from another worker.
        cancelled: its client has asked for its end.
        process: its process, proven by the kernel; None until it has said hello.
        killed: its agent was asked to kill it.
        cancelled_call: the call that somebody else than its client has cancelled; empty for none.
        agent, init: pids on the host of its parent, and of the first process of its sandbox.
        last: the lease that it holds or has held last.
        spent: it was refused a process, and serves no further lease.
        ending: it ends by itself.
        ended: set when it is gone.
        makers: those of the calls of its leases.
    """

    id: str
    sandbox: str
    key: WorkerKey
    control: AsyncChannel
    inner_end: Socket | None
    place: Place
    allotment: Allotment
    spec: LeaseSpec | None = None
    pid: int = 0
    limit: Limit | None = None
    started_at: float = field(default_factory=time.time)
    lease: Lease | None = None
    expired: bool = False
    nested: bool = False
    cancelled: bool = False
    process: Member | None = None
    killed: bool = False
    cancelled_call: str = ""
    agent: int = 0
    init: int = 0
    last: Lease | None = None
    spent: bool = False
    ending: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    makers: Makers = field(default_factory=Makers)


@dataclass
class PoolSandbox:
    """A sandbox as the pool knows it.

    Args:
        lived: a worker of it has said hello.
        unwanted: it was ended on purpose.
        init: the first process of the sandbox, held since the first hello.
        dials: connections that its agent was asked for and has not answered, given-up ones included.
    """

    id: str
    key: SandboxKey
    node: NodeSandbox
    started_at: float = field(default_factory=time.time)
    usage: asyncio.Future[dict[str, Any]] | None = None
    lived: bool = False
    unwanted: bool = False
    init: HeldProcess | None = None
    dials: dict[int, asyncio.Future[socket.socket]] = field(default_factory=dict)


class PoolState:
    """Everything alive in a pool, by id, and the tasks that watch over it."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        self.workers: dict[str, PoolWorker] = {}
        self.sandboxes: dict[str, PoolSandbox] = {}
        self.environments: dict[str, Environment] = {}
        """Those that were asked for, by key."""
        self.changed = asyncio.Event()
        """Set when a worker or a sandbox has ended."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def sandboxes_of(self, user: str | None) -> list[PoolSandbox]:
        """Return the sandboxes of a user, or all."""
        return [one for one in self.sandboxes.values() if user in (None, one.key.user)]

    def workers_of(self, user: str | None) -> list[PoolWorker]:
        """Return the workers of a user, or all."""
        return [one for one in self.workers.values() if user in (None, one.key.sandbox.user)]

    def workers_in(self, sandbox: str) -> list[PoolWorker]:
        return [one for one in self.workers.values() if one.sandbox == sandbox]

    def worker_of(self, sandbox: str, worker: str) -> PoolWorker | None:
        """Return a worker that a sandbox's agent names; None when it is gone, or another sandbox's."""
        known = self.workers.get(worker)
        return known if known is not None and known.sandbox == sandbox else None

    def end_lease(self, worker: PoolWorker, error: errors.AtollError | None) -> None:
        """Tell a worker's lease that the worker has left."""
        lease, worker.lease = worker.lease, None
        if lease is not None:
            self.leases.pop(lease.id, None)
            if not lease.ended.done():
                lease.ended.set_result(error.to_data() if error is not None else None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as a task that `cancel_tasks` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._tasks.discard)

    async def cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def sandbox_rows(self, user: str | None) -> Rows:
        """Return a row for each sandbox of a user, or for all."""
        return [
            {
                "id": one.id,
                "user": one.key.user,
                "environment": one.key.environment,
                "network": one.key.network,
                "results": "pickle" if one.key.trusted else "data",
                "pid": one.node.pid or None,
                "started_at": one.started_at,
                "workers": len(self.workers_in(one.id)),
            }
            for one in self.sandboxes_of(user)
        ]

    def worker_rows(self, user: str | None, usage: dict[str, Any], state: Callable[[str, bool], str]) -> Rows:
        """Return a row for each worker of a user, or for all; `pid` is None until it has said hello.

        Args:
            usage: reports of the agents, by worker.
            state: returns a worker's state from its id and whether it runs a call.
        """
        rows = []
        for one in self.workers_of(user):
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


class HeldRequests:
    """Requests of users whose calls are held up; nested requests pass, since a running call waits for them."""

    def __init__(self) -> None:
        self._held: dict[str, deque[Request]] = {}

    def begin(self, user: str) -> bool:
        """Hold up a user's requests from now on; False when they are held up already."""
        if user in self._held:
            return False
        self._held[user] = deque()
        return True

    def end(self, user: str, ask: Callable[[Request], None]) -> None:
        """Hold up no more; ask for the held requests in the order in which they came."""
        for request in self._held.pop(user, ()):
            ask(request)

    def takes(self, user: str, request: Request) -> bool:
        """Return whether the request is held up from now on."""
        held = self._held.get(user)
        if held is None or request.parent is not None:
            return False
        held.append(request)
        return True

    def withdraw(self, request: str) -> None:
        """Forget a request."""
        for held in self._held.values():
            for one in [one for one in held if one.id == request]:
                held.remove(one)

    def holds(self, user: str) -> bool:
        return user in self._held

    def has(self, request: str) -> bool:
        return any(one.id == request for held in self._held.values() for one in held)


def never_served(sandbox: PoolSandbox) -> errors.SandboxUnavailable:
    """Return the error for a sandbox whose agent has ended before its first worker."""
    log = "see `sandboxes.log` beside the daemon's log"
    if names := ", ".join(f"`{name}`" for name, _ in sandbox.key.start):
        return errors.SandboxUnavailable(
            f"Python did not start with the variables {names}", hint=f"correct them in the function's `env`; {log}"
        )
    return errors.SandboxUnavailable(
        "the sandbox's agent ended before it served a call", hint=f"{log}, and run `atoll doctor`"
    )


def cancelled_elsewhere() -> errors.CallCancelled:
    """Return the error of a call that somebody else than its caller has cancelled."""
    return errors.CallCancelled("the call was cancelled with `atoll cancel`", hint="nothing to do: it was asked for")


def why_ended(
    status: int, exceeded: tuple[int, int] | None, allotment: Allotment, reason: str = ""
) -> errors.CallerError:
    """Return the error for a worker's end.

    Args:
        status: exit status, or minus the signal.
        exceeded: limit and peak in bytes, when it was ended for its memory.
        reason: the agent's reason to end it; empty where it ended by itself.
    """
    details: dict[str, Any] = {"exit_status": status} if status >= 0 else {"signal": -status}
    if reason == "timeout" and exceeded is None:
        return errors.CallTimeout(
            "the call took longer than its timeout", hint="raise `timeout`, or leave it out for calls without an end"
        )
    if reason == "cancelled" and exceeded is None:
        return errors.WorkerDied(
            "the worker was asked to end before it answered, and has ended",
            hint="its client cancelled the call, or the daemon was stopped",
            **details,
        )
    if exceeded is not None:
        limit, peak = exceeded
        of_type = f" of machine type `{allotment.machine_type}`" if allotment.machine_type else ""
        option, size = (
            ("memory", allotment.next_memory) if allotment.next_memory else ("machine_type", allotment.next_type)
        )
        larger = f'give the function `{option}="{size}"`' if size else ""
        return errors.OutOfMemory(
            f"the worker{of_type} used more memory than it may: limit {limit >> 20} MiB, peak {peak >> 20} MiB",
            hint=f"use less memory at a time, or {larger or 'a machine with more of it'}",
            limit_bytes=limit,
            peak_bytes=peak,
            machine_type=allotment.machine_type,
            next_type=allotment.next_type,
            **details,
        )
    if status >= 0:
        return errors.WorkerDied(
            f"the worker exited with status {status} before it answered",
            hint="the function, or a library it uses, ended the process: see its last output",
            **details,
        )
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return errors.WorkerDied(
        f"the worker was ended by {name} before it answered",
        hint="a crash in native code, or someone killed it: see its last output",
        **details,
    )
