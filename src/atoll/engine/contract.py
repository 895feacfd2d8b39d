"""The contract of an engine: leases of workers, as the daemon's services and a server ask for them.

An engine runs in one event loop: every method is called there, and none blocks the loop. Each user sees and holds only
leases of their own. `tests/conformance/test_engine.py` runs against every implementation.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from atoll import errors
from atoll.engine.accounts import Opener
from atoll.engine.actions import WHOLE, Share
from atoll.environments.built.records import Environment
from atoll.model.resources import Allowance
from atoll.model.secret_values import SecretValues
from atoll.model.specs import EnvironmentSpec, LeaseSpec

Rows = list[dict[str, Any]]
"""JSON-compatible rows; times are seconds since the epoch."""

Started = Callable[[], None]

Connect = Callable[[socket.socket, Opener], Awaitable[None]]
"""Serves a nested connection: its socket, and the code that has opened it."""


class EngineLease(Protocol):
    """A client's hold on one worker."""

    first_call: str
    """The call that the lease was asked for, as its client claims; empty where it claims none."""

    maker: str | None
    """The maker of its calls (`call_claims.maker_of`), None for any: calls of others get no record of its worker."""

    @property
    def id(self) -> str: ...

    @property
    def spec(self) -> LeaseSpec: ...

    @property
    def worker(self) -> str:
        """The worker's id; empty until the lease is granted."""

    @property
    def epoch(self) -> int:
        """The number that each call of the lease carries."""

    @property
    def fresh(self) -> bool:
        """True if the worker was forked for this lease."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The client's ends (data socket, stdout, stderr), until `close_descriptors`; empty before the grant."""

    @property
    def granted(self) -> asyncio.Future[None]:
        """Done when the worker is there; fails with `ResourcesUnavailable` when the lease can never be granted."""

    @property
    def ended(self) -> asyncio.Future[dict[str, Any] | None]:
        """Done when the worker has left: an error as data, or None when it gave the lease up between two calls."""

    @property
    def never_began(self) -> bool:
        """True if the worker was killed for the client before it began the first call: nobody else records that."""

    def position(self) -> int:
        """Return how many requests are before this one; -1 once it is granted."""

    def reason(self) -> str:
        """Return what the request waits for and who holds it, in one line that is safe to print; empty once granted.

        Functions of other users are not named.
        """

    def may_run(self) -> bool:
        """True if the worker claims to have left the lease and serves no other: its call may still run."""

    def close_descriptors(self) -> None:
        """Close the client's ends here, after they were sent to the client."""

    def cancel(self) -> None:
        """Ask the worker to end, idle or busy, unless it serves another lease meanwhile; kill it after its grace."""

    def kill(self) -> None:
        """Kill the worker at once, idle or busy, unless it serves another lease meanwhile."""

    def release(self) -> None:
        """End the lease, waiting or granted: a call that runs under it is cancelled, an idle worker is kept."""

    async def dial(self, port: int) -> socket.socket:
        """Connect to `port` of 127.0.0.1 inside the worker's sandbox; the caller owns the socket, which blocks.

        A sandbox with network `host` shares the machine's ports.

        Raises:
            PortUnreachable: nothing listens there, or the sandbox does not answer.
            WorkerDied: the lease has no worker any more.
        """


@dataclass(frozen=True)
class RunningCall:
    """A call that runs.

    Args:
        call, function, parent: as its worker claims, bounded; `call` is empty where none is known, and not the id of a
            call of another program.
        claim: the id that its worker claims.
        queued_at, since: when it was made and began, in seconds since the epoch.
        memory_bytes, peak_bytes, cpu_seconds: of its worker's processes, measured from outside.
        lease: the client's hold on the worker.
    """

    call: str
    claim: str
    function: str
    parent: str
    user: str
    queued_at: float
    since: float
    memory_bytes: int
    peak_bytes: int
    cpu_seconds: float
    worker: str
    sandbox: str
    environment: str
    machine_type: str
    lease: EngineLease


class Inside(Protocol):
    """Questions to the sandboxes of running calls."""

    async def stacks(self, call: RunningCall) -> str:
        """Return the Python stacks of all threads of a call's worker, as `faulthandler` writes them; a claim of its.

        Raises:
            ResourcesUnavailable: the call is over, or its worker does not answer.
        """

    async def execute(
        self,
        call: RunningCall,
        command: Sequence[str],
        descriptors: Sequence[int],
        *,
        terminal: bool,
        on_start: Started,
    ) -> int:
        """Run a command, or a shell if it has no words, in the sandbox of a running call; return its exit status.

        It is one of the worker's processes, under its limits, and ends with it; a cancellation of this task ends it too.

        Args:
            descriptors: its stdin, stdout and stderr; the caller closes its own.
            terminal: they are a terminal, which it controls.
            on_start: called when it begins.

        Raises:
            ResourcesUnavailable: the call is over, or its sandbox ends meanwhile.
        """


class Engine(Protocol):
    """A place that finds or starts workers for leases."""

    @property
    def idle(self) -> bool:
        """True if nothing is alive and nothing waits."""

    def waiting(self, user: str | None = None) -> int:
        """Return how many requests wait for a worker, of one user or of all."""

    def ask(
        self,
        user: str,
        spec: LeaseSpec,
        environment: Environment,
        parent: str | None,
        client: str = "",
        relayed: bool = False,
        share: Share = WHOLE,
    ) -> EngineLease:
        """Ask for a worker.

        Args:
            parent: the worker whose call asks, for a nested call.
            client: names the process that asks; it passes leases on by itself.
            relayed: a server passes the bytes of the lease on: all of them travel in the stream.
            share: the user's beside other users.

        Raises:
            ResourcesUnavailable: this engine has nothing of the machine type.
        """

    def find(self, user: str, worker: str) -> EngineLease | None:
        """Return the lease that a worker of this user serves now."""

    def environment_of(self, worker: str) -> EnvironmentSpec:
        """Return the environment that the worker's lease named: nested calls use the same interpreter and indexes."""

    def network_of(self, worker: str) -> str:
        """Return the network policy of a worker's sandbox; the strictest for a worker that is gone."""

    def is_trusted(self, worker: str) -> bool:
        """Return whether a worker's sandbox is trusted (see `SandboxKey`); False for a worker that is gone."""

    def secrets_of(self, worker: str) -> SecretValues:
        """Return the secrets that a worker has: nested calls have no others; none for a worker that is gone."""

    def renew_workers(self, user: str | None) -> None:
        """End the idle workers of a user, or of all, and each busy one when its call is over.

        For changed variables, and for nodes that are to be empty. One whose call waits for a nested one gives its lease up
        only when it is asked again.
        """

    def give_up(self, users: Callable[[str], bool], error: errors.AtollError, ended: errors.AtollError) -> None:
        """End the leases of users whose sandboxes are being killed from outside.

        Args:
            error: of those that wait.
            ended: of those that were granted.
        """

    def is_quiet(self, user: str) -> bool:
        """Return whether `quiet` holds the user's calls."""

    def quiet(self, user: str, busy: Callable[[], Awaitable[None]]) -> AbstractAsyncContextManager[None]:
        """End the user's idle sandboxes, wait for their calls, and hold new calls up while the context is open.

        Nested calls of running calls still start, since those wait for them.

        Args:
            busy: awaited again and again while calls run; raises to give up.

        Raises:
            VolumeBusy: another `quiet` of this user is open.
        """

    async def running(self, user: str | None) -> list[RunningCall]:
        """Return the calls that run now, of one user or of all, as far as the sandboxes report."""

    def cancel_call(self, call: RunningCall) -> None:
        """Ask a call to end if it still runs, for somebody else than its client; kill it after its grace.

        Its lease then ends with `CallCancelled`.
        """

    @property
    def inside(self) -> Inside:
        """What can be asked of the sandboxes of running calls."""

    async def status(self, user: str | None = None) -> tuple[Rows, Rows]:
        """Return sandboxes and workers that live, of one user or of all."""

    def capacity(self) -> dict[str, Any]:
        """Return what functions may use here, what of it is free, and how many workers of each machine type fit now:
        see `free_shares`."""

    def load(self) -> dict[str, Any]:
        """Return what a server's placement needs to know now, as `server.cluster.contract.NodeLoad` without `taken`."""

    def changes(self) -> AbstractContextManager[asyncio.Event]:
        """Give an event that is set whenever `load` may have changed, while the context is open."""

    def allow(self, allowance: Allowance | None) -> bool:
        """Use no more than a part of the machine from now on, None for all of it; return whether it is so already.

        Calls that run go on, and nothing new begins beyond it. Idle workers beyond it end, and sandboxes with other
        GPUs when their calls are over.
        """

    def others_wait(self) -> None:
        """Ask all leases back after their present calls: somebody waits elsewhere for a place on this machine.

        Those who still need one ask anew, and wait for their turn.
        """

    def wanted(self) -> list[str]:
        """Return the workers whose leases were asked back, and that hold what somebody still waits for."""

    def oldest_sandbox(self, user: str) -> float | None:
        """Return when the user's oldest live sandbox was started, in seconds since the epoch; None without any."""

    async def watch(self) -> None:
        """Keep workers within their limits; runs until cancelled."""

    def longest_grace_seconds(self) -> float:
        """Return the longest grace of the calls that may run now."""

    async def close(self) -> None:
        """Ask running calls to end, then end every sandbox, and wait until they are gone."""
