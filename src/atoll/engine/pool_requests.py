"""A lease's request as the schedule knows it, with the keys of sandbox and worker that can serve it; and facts of the
worker whose code asks, within which its requests stay."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from atoll.engine import free_shares
from atoll.engine.actions import WHOLE, Action, Request, Share
from atoll.engine.pool_state import Lease, PoolState
from atoll.engine.schedule import Schedule
from atoll.model import secret_values
from atoll.model.resources import Allowance, Needs
from atoll.model.secret_values import SecretValues
from atoll.model.specs import NETWORKS, EnvironmentSpec, LeaseSpec, SandboxKey, WorkerKey
from atoll.node.node import Node

PRESSED_SECONDS = 2.0
"""Seconds for which the last word counts that others wait elsewhere; that is repeated."""


def request_of(
    lease: str,
    user: str,
    spec: LeaseSpec,
    environment: str,
    needs: Needs,
    *,
    parent: str | None,
    client: str,
    share: Share = WHOLE,
) -> Request:
    """Return the request of a lease.

    Args:
        lease: its id.
        environment: the key of its environment.
        parent, client, share: as `Engine.ask` has them.
    """
    sandbox = SandboxKey(
        user,
        environment,
        spec.network or "host",
        spec.mounts,
        preload=spec.preload,
        trusted=spec.trusted,
        start=spec.start,
        disk_bytes=spec.numbers.disk_bytes,
        own=lease if spec.own else "",
    )
    return Request(
        lease,
        WorkerKey(
            sandbox,
            spec.env,
            spec.sources,
            spec.setup,
            spec.machine_type,
            spec.umask,
            spec.numbers,
            spec.secret_values,
        ),
        spec.keep_alive_seconds,
        parent,
        needs=needs,
        identity=f"{user}:{spec.identity}" if spec.max_concurrency else "",
        max_concurrency=spec.max_concurrency,
        client=client,
        share=share,
    )


class WorkerFacts:
    """The part of an engine that answers questions about workers, by their ids."""

    _state: PoolState

    def find(self, user: str, worker: str) -> Lease | None:
        known = self._state.workers.get(worker)
        return known.lease if known is not None and known.key.sandbox.user == user else None

    def environment_of(self, worker: str) -> EnvironmentSpec:
        known = self._state.workers.get(worker)
        return known.spec.environment if known is not None and known.spec is not None else EnvironmentSpec()

    def network_of(self, worker: str) -> str:
        known = self._state.workers.get(worker)
        return known.key.sandbox.network if known is not None else NETWORKS[0]

    def is_trusted(self, worker: str) -> bool:
        known = self._state.workers.get(worker)
        return known is not None and known.key.sandbox.trusted

    def secrets_of(self, worker: str) -> SecretValues:
        known = self._state.workers.get(worker)
        return known.key.secrets if known is not None else secret_values.NONE


class MachineFacts:
    """The part of an engine that knows the machine as a whole: its free shares, and how much of it may be used."""

    _node: Node
    _schedule: Schedule
    _perform: Callable[[list[Action]], None]
    _changes: set[asyncio.Event]
    _pressed = -math.inf
    """When others were last said to wait elsewhere."""

    def capacity(self) -> dict[str, Any]:
        return free_shares.free_shares(self._node.machine.capacity, self._schedule.ledger)

    def load(self) -> dict[str, Any]:
        return free_shares.load(self._node.machine.capacity, self._schedule.ledger, self.waiting())

    def waiting(self, user: str | None = None) -> int:
        return self._schedule.waiting_of(user)

    def allow(self, allowance: Allowance | None) -> bool:
        self._perform(self._schedule.allow(time.monotonic(), allowance))
        return self._schedule.ledger.within_allowance

    def others_wait(self) -> None:
        self._pressed = time.monotonic()
        self._perform(self._schedule.others_wait())

    def wanted(self) -> list[str]:
        is_pressed = time.monotonic() - self._pressed < PRESSED_SECONDS
        return self._schedule.leased() if is_pressed else sorted(self._schedule.wanted)

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._changes.add(event)
        try:
            yield event
        finally:
            self._changes.discard(event)

    def note_change(self) -> None:
        """Wake those who watch for changes."""
        for event in self._changes:
            event.set()
