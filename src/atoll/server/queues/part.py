"""The part of queues of a server: routes below `/v1/queues`, for what waits for a user's own functions.

Requests to endpoints wait in the server's queue, spawned calls of deployed functions on the machine that makes them
(decision 52). Both are seen and ended here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.apps import rows as app_rows
from atoll.server.apps.bodies import CALLED, SERVED
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.principal import Principal
from atoll.server.queue.order import OVER, WAITING
from atoll.server.queue.queue import Queue as ServersQueue
from atoll.server.queues.bodies import Entry, Flushed, Queue, Queues, Shown
from atoll.server.schedules.routes import owner_of
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.typed import typed
from atoll.terminal_text import cell

QUEUES = "/v1/queues"
MOST_SHOWN = 1000
"""Entries of one answer."""


def install(state: ServerState) -> None:
    """Add the part."""
    one = f"{QUEUES}/{{name:path}}"
    state.routes += [
        typed(QUEUES, "GET", list_queues, answer=Queues),
        typed(one, "GET", show_queue, answer=Shown),
        typed(one, "DELETE", flush_queue, answer=Flushed),
    ]


def _names(connection: Connection, user: str) -> dict[str, str]:
    """Return the names of a user's queues, and their kinds."""
    found = {alias: SERVED for alias, _, _ in endpoint_rows.aliases_of(connection, user)}
    for app in app_rows.all_of(connection, user):
        found |= {f"{app.app}/{one.name}": CALLED for one in app.functions if one.kind == CALLED}
    return found


async def _of(request: Request, principal: Principal) -> dict[str, str]:
    database = state_of(request).parts["accounts"].database
    found: dict[str, str] = await database.run(partial(_names, user=principal.user), writes=False)
    return found


async def _called(request: Request, principal: Principal) -> Mapping[str, Mapping[str, int]]:
    """Return how many calls wait and run, by the deployed function."""
    answer = await state_of(request).asks.ask(principal, "detached.queues", {})
    found: Mapping[str, Mapping[str, int]] = answer["queues"]
    return found


def _served(request: Request, user: str, alias: str) -> list[Any]:
    queue: ServersQueue = state_of(request).parts["queue"]
    return [one for one in queue.entries.values() if (one.owner, one.alias) == (user, alias) and one.state != OVER]


async def list_queues(request: Request) -> Queues:
    """List the caller's queues by name: of endpoints, and of deployed functions that programs call."""
    principal = await principal_of(request)
    names, called = await _of(request, principal), await _called(request, principal)
    found = []
    for name in sorted({*names, *called}):
        kind = names.get(name, CALLED)  # calls of a function that is deployed no more go on
        if kind == SERVED:
            states = [one.state for one in _served(request, principal.user, name)]
            waiting = states.count(WAITING)
            found.append(Queue(name, kind, waiting, len(states) - waiting))
        else:
            counts = called.get(name, {})
            found.append(Queue(name, kind, counts.get("waiting", 0), counts.get("running", 0)))
    return Queues(found)


async def _kind_of(request: Request, principal: Principal) -> tuple[str, str]:
    name = request.path_params["name"]
    kind = (await _of(request, principal)).get(name, "")
    if not kind and name in await _called(request, principal):
        kind = CALLED
    if not kind:
        raise errors.CallerError(f"there is no queue `{cell(name, 140)}`", hint="see `atoll queue list`", status=404)
    return name, kind


async def show_queue(request: Request) -> Shown:
    """Show a queue: those that run, and the first that wait, with their positions."""
    principal = await principal_of(request)
    name, kind = await _kind_of(request, principal)
    if kind == SERVED:
        queue: ServersQueue = state_of(request).parts["queue"]
        mine = _served(request, principal.user, name)
        entries = [
            Entry(
                one.id,
                "waiting" if one.state == WAITING else "running",
                queue.position(one) if one.state == WAITING else 0,
                one.submitted,
                attempts=one.attempts,
            )
            for one in mine
        ]
        waiting = sum(one.state == "waiting" for one in entries)
        entries.sort(key=lambda one: (one.state == "waiting", one.position, one.queued_at))
        return Shown(name, kind, waiting, len(entries) - waiting, entries[:MOST_SHOWN])
    counts = (await _called(request, principal)).get(name, {})
    return await _shown(request, principal, name, counts)


async def _shown(request: Request, principal: Principal, name: str, counts: Mapping[str, int]) -> Shown:
    """Return the queue of a deployed function."""
    asked = {"deployed": name, "states": ["waiting", "running"], "limit": MOST_SHOWN}
    rows = (await state_of(request).asks.ask(principal, "detached.list", asked))["calls"]
    rows = [row for row in rows if row.get("deployed") == name][::-1]  # the oldest first
    waits = [row for row in rows if row["state"] in ("waiting", "building")]
    before = max(counts.get("waiting", 0) - len(waits), 0)  # older ones, which this answer has not
    positions = {row["call"]: before + place for place, row in enumerate(waits)}
    entries = [
        Entry(
            row["call"],
            row["state"],
            positions.get(row["call"], 0),
            row["queued_at"],
            row["started_at"],
            row["attempts"],
            row.get("detail", ""),
        )
        for row in sorted(rows, key=lambda row: row["call"] in positions)
    ]
    return Shown(name, CALLED, before + len(waits), counts.get("running", 0), entries)


async def flush_queue(request: Request) -> Flushed:
    """Cancel all that waits in a queue; those that run go on."""
    principal = await owner_of(request)
    name, kind = await _kind_of(request, principal)
    state = state_of(request)
    if kind == SERVED:
        count = await state.parts["queue"].flush(principal.user, name)
    else:
        count = (await state.asks.ask(principal, "detached.flush", {"deployed": name}))["calls"]
    details = {"cancelled": count}
    await state.parts["accounts"].database.run(
        lambda connection: audit(connection, principal, "queue.flush", name, details)
    )
    return Flushed(name, count)
