"""Routes below `/v1/apps`: the functions of a file are deployed together, looked at, scaled and rolled back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from uuid import uuid4

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.apps import bodies, removal, rows
from atoll.server.apps.bodies import CALLED, SCHEDULED, SERVED
from atoll.server.database.database import Database
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.bodies import AUTHS, Removed
from atoll.server.endpoints.receiving import Receiver
from atoll.server.endpoints.routes import REVISIONS
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.outputs.runners import calls_of
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.output import stream
from atoll.server.schedules.routes import owner_of
from atoll.server.state import principal_of, state_of
from atoll.server.typed import typed
from atoll.terminal_text import cell

APPS = "/v1/apps"
MOST_FUNCTIONS = 200
"""Functions of one app."""


def routes() -> list[BaseRoute]:
    """Return the routes."""
    one = f"{APPS}/{{app}}"
    return [
        Route(APPS, deploy, methods=["POST"]),
        typed(APPS, "GET", list_apps, answer=bodies.Apps),
        typed(one, "GET", show_app, answer=bodies.App),
        typed(one, "DELETE", delete_app, answer=bodies.App),
        typed(f"{one}/scale", "POST", scale_app, body=bodies.Scale, answer=bodies.App),
        typed(f"{one}/rollback", "POST", roll_back_app, body=bodies.Rollback, answer=bodies.App),
        typed(REVISIONS, "DELETE", removal.remove_unused, answer=Removed),
        typed(f"{REVISIONS}/{{revision}}", "DELETE", removal.remove_revision, answer=Removed),
        Route(f"{one}/functions/{{function}}/call", read_function, methods=["GET"]),
        Route(f"{one}/functions/{{function}}/logs", read_logs, methods=["GET"]),
    ]


def _database(request: Request) -> Database:
    found: Database = state_of(request).parts["accounts"].database
    return found


def check(new: bodies.NewDeployment) -> None:
    """Check a deployment.

    Raises:
        CallerError: something about it is wrong.
    """
    endpoint_rows.check_alias(new.app, "the name of an app")
    if not 0 < len(new.functions) <= MOST_FUNCTIONS:
        raise errors.CallerError(
            f"an app has 1 to {MOST_FUNCTIONS} functions", hint="mark functions of the file with `@isolated`"
        )
    for what, names in (
        ("functions", [one.name for one in new.functions]),
        ("functions of the alias", [one.alias for one in new.functions if one.kind == SERVED]),
    ):
        name, count = Counter(names).most_common(1)[0] if names else ("", 0)
        if count > 1:
            raise errors.CallerError(f"there are two {what} `{cell(name, 70)}`", hint="rename one of them")
    for one in new.functions:
        if not one.name.isidentifier() or len(one.name) > 200 or one.kind not in (SERVED, SCHEDULED, CALLED):
            raise errors.CallerError(f"`{cell(one.name, 70)}` is described wrongly", hint="upgrade the client")
        if one.kind == SERVED:
            endpoint_rows.check_alias(one.alias)
            if one.auth not in AUTHS or not 0 < one.port < 1 << 16:
                raise errors.CallerError(f"`{one.name}` is served wrongly", hint=f"`auth` is one of {', '.join(AUTHS)}")
        if (one.kind == SCHEDULED) != (one.rule is not None):
            raise errors.CallerError(f"`{one.name}` has no schedule", hint="upgrade the client")
        if one.rule is not None:
            schedule_rows.check(one.rule)


async def deploy(request: Request) -> Response:
    """Deploy the functions of a file as an app, all or none: a JSON line that says what they are, and their spools."""
    principal, database = await owner_of(request), _database(request)
    revised: dict[str, tuple[str, int]] = {}

    def names(new: bodies.NewDeployment) -> list[str]:
        check(new)
        revised.update({one.name: (str(uuid4()), one.size_bytes) for one in new.functions})
        return [revision for revision, _ in revised.values()]

    with Receiver(state_of(request).parts["runners"].directory) as receiver:
        sizes = lambda new: [one.size_bytes for one in new.functions]  # noqa: E731 - in one line
        new, _ = await receiver.receive(request, bodies.NewDeployment, names, sizes)

        def change(connection: Connection) -> tuple[bodies.App, rows.Changes]:
            found = rows.deploy(connection, principal.user, new, revised)
            audit(connection, principal, "app.deploy", new.app, {"deployment": found[0].deployment})
            return found

        app, changes = await database.run(change)
        receiver.keep()
    await _follow(request, changes)
    return Response(msgspec.json.encode(app), 201, media_type="application/json")


async def _follow(request: Request, changes: rows.Changes) -> None:
    """Let those who serve know of a change."""
    parts = state_of(request).parts
    parts["gateway"].forget()
    found = await _database(request).run(
        lambda connection: [endpoint_rows.by_id(connection, one) for one in changes.pointed], writes=False
    )
    for revision in found:
        if revision is not None:
            parts["runners"].renew(revision)
    for name in changes.retired:
        parts["runners"].retire(name)
    for name, at in changes.next_runs.items():
        parts["clock"].put(name, at)
    for name in changes.unneeded:
        parts["runners"].removed(name)


async def list_apps(request: Request) -> bodies.Apps:
    """List the caller's apps by name."""
    principal = await principal_of(request)
    found = await _database(request).run(partial(rows.all_of, user=principal.user), writes=False)
    return bodies.Apps([_with_runners(request, one) for one in found])


async def show_app(request: Request) -> bodies.App:
    """Show an app, with what is where."""
    principal, app = await principal_of(request), request.path_params["app"]
    found = await _database(request).run(partial(rows.find, user=principal.user, app=app), writes=False)
    return _with_runners(request, found)


def _with_runners(request: Request, app: bodies.App) -> bodies.App:
    runners: Runners = state_of(request).parts["runners"]
    functions = []
    for one in app.functions:
        count, failing = runners.state(one.revision)
        functions.append(msgspec.structs.replace(one, runners=count, failing=failing))
    return msgspec.structs.replace(app, functions=functions)


async def scale_app(request: Request, asked: bodies.Scale) -> bodies.App:
    """Give served functions of an app other options; later deployments have them, too."""
    details = {"function": asked.function, "options": asked.options}
    return await _change(request, "app.scale", details, partial(rows.scale, asked=asked))


async def roll_back_app(request: Request, asked: bodies.Rollback) -> bodies.App:
    """Let an app be as in an earlier deployment; by default as in the one before the present one."""
    return await _change(request, "app.rollback", {}, partial(rows.roll_back, wanted=asked.deployment))


async def delete_app(request: Request) -> bodies.App:
    """Delete an app: its aliases go, and its schedules are cancelled; calls that run go on."""
    return await _change(request, "app.delete", {}, rows.delete)


async def _change(
    request: Request,
    act: str,
    details: Mapping[str, object],
    work: Callable[..., tuple[bodies.App, rows.Changes]],
) -> bodies.App:
    principal, name = await owner_of(request), request.path_params["app"]

    def change(connection: Connection) -> tuple[bodies.App, rows.Changes]:
        found = work(connection, user=principal.user, app=name)
        audit(connection, principal, act, name, {**details, "deployment": found[0].deployment})
        return found

    app, changes = await _database(request).run(change)
    await _follow(request, changes)
    return app


async def _function(request: Request) -> bodies.Function:
    principal = await principal_of(request)
    app, name = request.path_params["app"], request.path_params["function"]
    return await _database(request).run(partial(rows.function, user=principal.user, app=app, name=name), writes=False)


async def read_function(request: Request) -> Response:
    """Read the stored call of a function that programs call: bytes that the server does not look into."""
    found = await _function(request)
    if found.kind == SERVED:
        raise errors.CallerError(
            f"`{found.name}` is served: requests call it, and programs do not",
            hint="see its address with `atoll apps show NAME`",
        )
    file = state_of(request).parts["runners"].file(found.revision)
    if not file.is_file():
        raise errors.StateUnusable("the function's file is gone", hint="deploy it again")
    return FileResponse(file, media_type="application/octet-stream", headers={"Atoll-Revision": found.revision})


async def read_logs(request: Request) -> Response:
    """Read the output of a function: of its last run by the clock, or of its newest runner."""
    principal, found = await principal_of(request), await _function(request)
    state, call = state_of(request), ""
    if found.kind == SCHEDULED:

        def last(connection: Connection) -> str:
            app = rows.find(connection, principal.user, request.path_params["app"])
            name = next((one.schedule for one in app.functions if one.name == found.name), "")
            runs = schedule_rows.history(connection, name, schedule_rows.MOST_KEPT)
            return next((one.id for one in runs if one.state in ("running", "finished")), "")

        call = await _database(request).run(last, writes=False)
    elif found.kind == SERVED:  # a runner's batch is its revision
        call = next((str(row["call"]) for row in await calls_of(state, principal, found.revision)), "")
    else:
        raise errors.CallerError(
            f"the output of `{found.name}` goes to the programs that call it",
            hint="see `atoll calls list` and `atoll logs CALL`",
        )
    if not call:
        return Response(b"", media_type="text/plain")
    return await stream(state, principal, call)
