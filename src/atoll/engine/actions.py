"""The values that go into the schedule and come out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.model.resources import Needs
from atoll.model.specs import SandboxKey, WorkerKey


@dataclass(frozen=True)
class Share:
    """A user's share of the machine beside other users.

    Args:
        weight: of two users that wait, one with twice the weight gets twice the cores; more than 0.
        workers: leases that the user may hold at a time; 0 for no bound.
    """

    weight: float = 1.0
    workers: int = 0


WHOLE = Share()
"""The share of a user who has the machine for themselves."""


@dataclass(frozen=True)
class Request:
    """A wish for a lease.

    Args:
        parent: the worker whose call makes it, for a nested call.
        needs: of a worker with this key; the same key always has the same needs.
        identity: which function it is for, with its user; counted for `max_concurrency`.
        max_concurrency: how many leases of this identity may be held at a time; 0 for no bound.
        client: the process that asks; one that waits for a lease like its own passes those on itself.
        share: its user's.
    """

    id: str
    key: WorkerKey
    keep_alive_seconds: float
    parent: str | None = None
    needs: Needs = field(default_factory=Needs)
    identity: str = ""
    max_concurrency: int = 0
    client: str = ""
    share: Share = WHOLE


@dataclass(frozen=True)
class StartSandbox:
    sandbox: str
    key: SandboxKey


@dataclass(frozen=True)
class EndSandbox:
    sandbox: str


@dataclass(frozen=True)
class ForkWorker:
    """Fork a worker; the `Grant` of its first lease follows at once. The key names the GPUs that it was given."""

    worker: str
    sandbox: str
    key: WorkerKey


@dataclass(frozen=True)
class EndWorker:
    worker: str


@dataclass(frozen=True)
class Grant:
    request: str
    worker: str
    epoch: int
    fresh: bool


@dataclass(frozen=True)
class Reclaim:
    worker: str
    epoch: int


@dataclass(frozen=True)
class Release:
    """The lease's client is gone: the worker is killed if it is busy for this epoch."""

    worker: str
    epoch: int


@dataclass(frozen=True)
class Refuse:
    """The request can never be granted; `hint` names the way out."""

    request: str
    reason: str
    hint: str = ""


Action = StartSandbox | EndSandbox | ForkWorker | EndWorker | Grant | Reclaim | Release | Refuse
