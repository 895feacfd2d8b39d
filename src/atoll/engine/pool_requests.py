"""A lease's request as the schedule knows it, with the keys of the sandbox and the worker that can serve it. Pure."""

from __future__ import annotations

from atoll.engine.actions import Request
from atoll.model.resources import Needs
from atoll.model.specs import LeaseSpec, SandboxKey, WorkerKey


def request_of(
    lease: str, user: str, spec: LeaseSpec, environment: str, needs: Needs, *, parent: str | None, client: str
) -> Request:
    """Return the request of a lease.

    Args:
        lease: its id.
        environment: the key of its environment.
        parent, client: as `Engine.ask` has them.
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
    )
    return Request(
        lease,
        WorkerKey(sandbox, spec.env, spec.sources, spec.setup, spec.machine_type, spec.umask, spec.numbers),
        spec.keep_alive_seconds,
        parent,
        needs=needs,
        identity=f"{user}:{spec.identity}" if spec.max_concurrency else "",
        max_concurrency=spec.max_concurrency,
        client=client,
    )
