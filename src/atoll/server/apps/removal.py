"""Removal of revisions that nothing needs: no alias, no schedule and no deployment of an app."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select
from starlette.requests import Request

from atoll import errors
from atoll.server.accounts.audit import audit
from atoll.server.apps.bodies import Function
from atoll.server.apps.tables import deployments
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.bodies import Removed
from atoll.server.endpoints.tables import aliases, revisions
from atoll.server.schedules.routes import owner_of
from atoll.server.schedules.tables import schedules
from atoll.server.state import state_of
from atoll.terminal_text import cell

_SCHEDULE = "the schedule"


def remove(connection: Connection, user: str, name: str) -> list[str]:
    """Remove a revision of a user's; with an empty name all that nothing needs. Return their ids.

    What an alias would go back to is needed, too, unless it is named, and what somebody listens to (`fal run`).

    Raises:
        CallerError: there is none, or something needs it.
    """
    endpoint_rows.lock(connection, user)
    mine = set(connection.execute(select(revisions.c.id).where(revisions.c.user == user)).scalars())
    if name and name not in mine:
        raise errors.CallerError(
            f"there is no revision `{cell(name, 40)}`", hint="see `atoll function list`", status=404
        )
    needs = _needs(connection, user)
    if name and name in needs:
        hint = (
            "end it with `atoll crons cancel ID`; what it ran is kept for up to 90 days, and the revision with it"
            if needs[name].startswith(_SCHEDULE)
            else "remove that first"
        )
        raise errors.CallerError(f"the revision is that of {needs[name]}", hint=hint, status=409)
    if name:
        unneeded = [name]
    else:
        before = connection.execute(select(aliases.c.previous).where(aliases.c.user == user)).scalars()
        listened = {one.id for one in endpoint_rows.all_of(connection, user) if one.options.ephemeral}
        unneeded = sorted(mine - needs.keys() - set(before) - listened)
    endpoint_rows.forget(connection, unneeded)
    return unneeded


def _needs(connection: Connection, user: str) -> dict[str, str]:
    """Return what needs each revision that is needed."""
    found: dict[str, str] = {}
    query = select(deployments.c.functions, deployments.c.app).where(deployments.c.user == user)
    for text, app in connection.execute(query).all():
        for one in msgspec.json.decode(text, type=list[Function]):
            found[one.revision] = f"the app `{app}`"
    for name, revision in connection.execute(
        select(schedules.c.id, schedules.c.revision).where(schedules.c.user == user)
    ).all():
        found[revision] = f"{_SCHEDULE} `{name}`, or of its history"
    for alias, revision in connection.execute(
        select(aliases.c.alias, aliases.c.revision).where(aliases.c.user == user)
    ).all():
        found[revision] = f"the alias `{alias}`"
    return found


async def remove_revision(request: Request) -> Removed:
    """Remove a revision that nothing needs: it takes no further requests, and its runners end when they have none."""
    return await _removed(request, request.path_params["revision"])


async def remove_unused(request: Request) -> Removed:
    """Remove all revisions of the caller's that nothing needs, and that no alias would go back to."""
    if request.query_params.get("unused") != "1":
        raise errors.CallerError("name a revision, or give `unused=1`", hint="see `atoll function delete --help`")
    return await _removed(request, "")


async def _removed(request: Request, name: str) -> Removed:
    principal, parts = await owner_of(request), state_of(request).parts

    def change(connection: Connection) -> list[str]:
        found = remove(connection, principal.user, name)
        for one in found:
            audit(connection, principal, "revision.remove", one, {})
        return found

    found = await parts["accounts"].database.run(change)
    parts["gateway"].forget()
    for one in found:
        parts["runners"].removed(one)
    return Removed(found)
