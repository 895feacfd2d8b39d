"""What the pool knows of its leases, workers and sandboxes, and why a worker has ended."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from atoll import errors
from atoll.engine.call_claims import Place
from atoll.model.resources import Allotment
from atoll.model.specs import LeaseSpec, SandboxKey, WorkerKey
from atoll.node.node import NodeSandbox
from atoll.sandbox.limits.limits import Limit
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Socket


@dataclass
class Lease:
    """A client's hold on a worker.

    `descriptors` are the client's ends (data socket, stdout, stderr): whoever takes them owns them. `ended` gets why
    the lease is over: an error as data, or None when the worker gave it up between two calls.
    """

    id: str
    spec: LeaseSpec
    worker: str = ""
    epoch: int = 0
    fresh: bool = True
    nested: bool = False
    descriptors: tuple[int, ...] = ()
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[dict[str, Any] | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass
class PoolWorker:
    """A worker as the pool knows it.

    `inner_end` is the worker's end of its control channel, until it is handed over with the fork; `spec` is what its
    last lease was asked for with.
    """

    id: str
    sandbox: str
    key: WorkerKey
    control: AsyncChannel
    task: asyncio.Task[None]
    inner_end: Socket | None
    place: Place
    spec: LeaseSpec | None = None
    pid: int = 0
    limit: Limit | None = None
    started_at: float = field(default_factory=time.time)
    lease: Lease | None = None
    expired: bool = False
    nested: bool = False
    """Its last lease came from another worker."""
    cancelled: bool = False
    """Its client has asked for its end."""
    connections: int = 0
    """Open connections to the daemon from its code."""
    allotment: Allotment = field(kw_only=True)
    agent: int = 0
    init: int = 0
    """The host's numbers of its parent, and of the first process of its sandbox."""
    last: Lease | None = None
    """The lease that it holds or has held last."""
    spent: bool = False
    """It was refused a process, and serves no further lease."""


@dataclass
class PoolSandbox:
    id: str
    key: SandboxKey
    node: NodeSandbox
    task: asyncio.Task[None]
    started_at: float = field(default_factory=time.time)
    usage: asyncio.Future[dict[str, Any]] | None = None
    lived: bool = False
    """A worker of it has said hello."""
    unwanted: bool = False
    """It was ended on purpose."""


def why(status: int, exceeded: tuple[int, int] | None, allotment: Allotment, reason: str = "") -> errors.CallerError:
    """Say why a worker's process has ended.

    Args:
        exceeded: limit and peak in bytes, when it was ended for its memory.
        reason: why the agent has ended it; empty where it ended by itself.
    """
    details: dict[str, Any] = {"exit_status": status} if status >= 0 else {"signal": -status}
    if reason == "timeout" and exceeded is None:
        return errors.CallTimeout(
            "the call took longer than its timeout", hint="raise `timeout`, or leave it out for calls without an end"
        )
    if exceeded is not None:
        limit, peak = exceeded
        of_type = f" of machine type `{allotment.machine_type}`" if allotment.machine_type else ""
        larger = f'give the function `machine_type="{allotment.next_type}"`' if allotment.next_type else ""
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
