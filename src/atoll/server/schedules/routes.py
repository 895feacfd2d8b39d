"""Routes below `/v1/schedules`: functions are scheduled, and schedules and their activations looked at."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.accounts.routes import insufficient
from atoll.server.database.database import Database
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.receiving import Receiver
from atoll.server.principal import ADMIN, Principal
from atoll.server.schedules import bodies, rows
from atoll.server.schedules.clock import Clock
from atoll.server.schedules.output import stream
from atoll.server.state import ServerState, principal_of, state_of
from atoll.server.typed import typed

SCHEDULES = "/v1/schedules"
SHOWN = 15
"""Activations that are listed by default, as the program of 2023 did."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    one = f"{SCHEDULES}/{{schedule}}"
    return [
        Route(SCHEDULES, register, methods=["POST"]),
        typed(SCHEDULES, "GET", list_schedules, answer=bodies.Schedules),
        typed(one, "GET", show_schedule, answer=bodies.Schedule),
        typed(one, "DELETE", cancel_schedule, answer=bodies.Schedule),
        typed(f"{one}/pause", "POST", pause_schedule, answer=bodies.Schedule),
        typed(f"{one}/resume", "POST", resume_schedule, answer=bodies.Schedule),
        typed(f"{one}/activations", "GET", list_activations, answer=bodies.Activations),
        Route(f"{one}/activations/{{activation}}/logs", show_logs, methods=["GET"]),
    ]


async def owner_of(request: Request) -> Principal:
    """Return the user of a request that changes what runs.

    Raises:
        NotAuthorized: the key calls functions only.
    """
    principal = await principal_of(request)
    if principal.scope != ADMIN:
        raise insufficient("a key of the scope API calls functions, and schedules and deploys none")
    return principal


def _parts(request: Request) -> tuple[Database, Clock]:
    return _of_state(state_of(request))


def _of_state(state: ServerState) -> tuple[Database, Clock]:
    parts = state.parts
    return parts["accounts"].database, parts["clock"]


async def register(request: Request) -> Response:
    """Schedule a function: a JSON line that says when it is called, and then its spool."""
    import msgspec

    principal, (database, clock) = await owner_of(request), _parts(request)
    name = str(uuid4())
    with Receiver(state_of(request).parts["runners"].directory) as receiver:
        new, (received,) = await receiver.receive(request, bodies.NewSchedule, lambda _: [name], lambda _: [])
        rows.check(new.rule)

        def add(connection: Connection) -> bodies.Schedule:
            found = endpoint_rows.plain(name, new.function, received.size_bytes)
            endpoint_rows.add(connection, principal.user, found, "")
            made = rows.find(connection, principal.user, rows.add(connection, principal.user, name, new.rule))
            audit(connection, principal, "schedule.add", made.id, {"function": made.function, "cron": new.rule.cron})
            return made

        made = await database.run(add)
        receiver.keep()
    clock.put(made.id, made.next_run)
    return Response(msgspec.json.encode(made), 201, media_type="application/json")


async def list_schedules(request: Request) -> bodies.Schedules:
    """List the caller's schedules, the newest first."""
    principal, (database, _) = await principal_of(request), _parts(request)
    return bodies.Schedules(await database.run(partial(rows.all_of, user=principal.user), writes=False))


async def show_schedule(request: Request) -> bodies.Schedule:
    """Show a schedule."""
    principal, (database, _) = await principal_of(request), _parts(request)
    name = request.path_params["schedule"]
    return await database.run(partial(rows.find, user=principal.user, name=name), writes=False)


async def cancel_schedule(request: Request) -> bodies.Schedule:
    """Cancel a schedule for good; its history stays, and a run that has begun goes on."""
    return await _set(request, rows.CANCELLED, "schedule.cancel")


async def pause_schedule(request: Request) -> bodies.Schedule:
    """Let a schedule have no runs until it is resumed."""
    return await _set(request, rows.PAUSED, "schedule.pause")


async def resume_schedule(request: Request) -> bodies.Schedule:
    """Let a schedule that was paused run again, from its next moment on."""
    return await _set(request, rows.ACTIVE, "schedule.resume")


async def _set(request: Request, state: str, act: str) -> bodies.Schedule:
    principal = await owner_of(request)
    return await changed(state_of(request), principal, request.path_params["schedule"], state, act)


async def changed(server: ServerState, principal: Principal, name: str, state: str, act: str) -> bodies.Schedule:
    """Pause, resume or cancel a user's schedule, and return it.

    Args:
        act: as the audit names it.

    Raises:
        CallerError: the user has none of this id, or it is cancelled.
    """
    database, clock = _of_state(server)

    def change(connection: Connection) -> bodies.Schedule:
        found = rows.set_state(connection, principal.user, name, state)
        audit(connection, principal, act, name, {"function": found.function})
        return found

    found = await database.run(change)
    clock.put(found.id, found.next_run)
    return found


async def list_activations(request: Request) -> bodies.Activations:
    """List the activations of a schedule, the newest first; `limit` says how many."""
    principal, (database, _) = await principal_of(request), _parts(request)
    text = request.query_params.get("limit", str(SHOWN))
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= rows.MOST_KEPT):
        raise errors.CallerError(f"`limit` is a number from 1 to {rows.MOST_KEPT}", hint=f"leave it out for {SHOWN}")
    name = request.path_params["schedule"]

    def read(connection: Connection) -> list[bodies.Activation]:
        rows.find(connection, principal.user, name)
        return rows.history(connection, name, int(text))

    return bodies.Activations(await database.run(read, writes=False))


async def show_logs(request: Request) -> Response:
    """Show the output of an activation, as it is now."""
    principal, (database, _) = await principal_of(request), _parts(request)
    name, wanted = request.path_params["schedule"], request.path_params["activation"]

    def read(connection: Connection) -> bodies.Activation:
        rows.find(connection, principal.user, name)
        return rows.activation(connection, name, wanted)

    found = await database.run(read, writes=False)
    return await stream(state_of(request), principal, found.id)
