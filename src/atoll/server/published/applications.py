"""Acts on registered functions that gRPC has and `/v1` had not: other options of an alias, and its schedule."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.routing import BaseRoute

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.endpoints import rows
from atoll.server.endpoints.bodies import Alias, Options
from atoll.server.endpoints.routes import check_options
from atoll.server.endpoints.tables import revisions
from atoll.server.schedules import bodies as schedule_bodies
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.routes import owner_of
from atoll.server.state import state_of
from atoll.server.typed import typed


class Changed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of an alias that change; those that are left out stay."""

    min_concurrency: int | None = None
    max_concurrency: int | None = None
    max_multiplexing: int | None = None
    keep_alive: float | None = None
    startup_timeout: float | None = None
    request_timeout: float | None = None


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        typed("/v1/aliases/{alias}/options", "PATCH", change_options, body=Changed, answer=Alias),
        typed(
            "/v1/revisions/{revision}/schedules",
            "POST",
            schedule,
            body=schedule_bodies.Rule,
            answer=schedule_bodies.Schedule,
            status=201,
        ),
    ]


async def change_options(request: Request, body: Changed) -> Alias:
    """Change options of the revision that an alias points to."""
    principal, parts = await owner_of(request), state_of(request).parts
    alias = request.path_params["alias"]
    changed = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}

    def change(connection: Connection) -> rows.Revision:
        found = next((one for one in rows.all_of(connection, principal.user) if one.alias == alias), None)
        if found is None:
            raise rows.no_alias(alias)
        options = msgspec.convert({**msgspec.structs.asdict(found.options), **changed}, type=Options)
        check_options(options)
        values: dict[str, Any] = {"options": msgspec.json.encode(options).decode()}
        connection.execute(revisions.update().where(revisions.c.id == found.id).values(**values))
        audit(connection, principal, "alias.options", alias, changed)
        again = rows.by_id(connection, found.id)
        assert again is not None
        return again

    found = await parts["accounts"].database.run(change)
    parts["gateway"].forget()
    parts["runners"].renew(found)
    count, failing = parts["runners"].state(found.id)
    return Alias(alias, found.id, found.function, found.auth, found.created, count, found.options, failing)


async def schedule(request: Request, rule: schedule_bodies.Rule) -> schedule_bodies.Schedule:
    """Schedule a registered function; it has no arguments."""
    principal, parts = await owner_of(request), state_of(request).parts
    name = request.path_params["revision"]
    schedule_rows.check(rule)

    def add(connection: Connection) -> schedule_bodies.Schedule:
        if name not in {one.id for one in rows.all_of(connection, principal.user)}:
            raise errors.CallerError("there is no such revision", hint="see `atoll function list`", status=404)
        made = schedule_rows.find(connection, principal.user, schedule_rows.add(connection, principal.user, name, rule))
        audit(connection, principal, "schedule.add", made.id, {"function": made.function, "cron": rule.cron})
        return made

    made: schedule_bodies.Schedule = await parts["accounts"].database.run(add)
    parts["clock"].put(made.id, made.next_run)
    return made
