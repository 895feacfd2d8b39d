"""The page of the server itself, for operators: users, machines, queue."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll.server.accounts import acts, bodies, rows
from atoll.server.nodes import acts as node_acts
from atoll.server.nodes import bodies as node_bodies
from atoll.server.nodes import live
from atoll.server.nodes import rows as node_rows
from atoll.server.nodes.accounts import Nodes
from atoll.server.pages.keys import accounts_of
from atoll.server.pages.visit import Visit, forbidden, route

MOST_ROWS = 200


def routes() -> list[BaseRoute]:
    """Return the routes of this page."""
    return [
        route("/admin", shown),
        route("/admin/users", add, method="POST"),
        route("/admin/users/remove", remove, method="POST"),
        route("/admin/users/revoke", revoke, method="POST"),
        route("/admin/machines/drain", drain, method="POST"),
        route("/admin/machines/uncordon", uncordon, method="POST"),
    ]


async def shown(visit: Visit, added: bodies.AddedUser | None = None) -> Response:
    """Show users, machine and queue.

    Args:
        added: a user who was just added, with a first key.
    """
    if not visit.user.may_administer:
        raise forbidden()
    status: dict[str, Any] = await visit.ask("status", {}, own=False)
    users = await accounts_of(visit).database.run(rows.all_users, writes=False)
    calls = status["calls"]
    return visit.page(
        "admin.html",
        users=users,
        names={user.id: user.name for user in users},
        running={user.id: sum(call["user"] == user.id for call in calls) for user in users},
        node=status,
        machines=await machines_of(visit),
        calls=calls[:MOST_ROWS],
        count=len(calls),
        added=added,
        now=time.time(),
    )


async def add(visit: Visit) -> Response:
    """Add a user, and show the first key this once."""
    if not visit.user.may_administer:
        raise forbidden()
    accounts = accounts_of(visit)
    asked = bodies.NewUser(visit.form.get("name", "").strip()[:64], operator=visit.form.get("operator") == "yes")
    made = await accounts.database.run(
        lambda connection: acts.added_user(connection, accounts.pepper, visit.user, asked, visit.state.node.options)
    )
    return await shown(visit, made)


async def remove(visit: Visit) -> Response:
    """Remove a user with all keys, end the user's calls, and put the volume aside."""
    if not visit.user.may_administer:
        raise forbidden()
    name = visit.form.get("name", "")
    gone = await accounts_of(visit).change(lambda connection: acts.removed_user(connection, visit.user, name))
    await visit.state.parts["at_node"].removed(gone, keep=True)
    return visit.go("/admin", "removed")


async def revoke(visit: Visit) -> Response:
    """Revoke all keys of a user, with the sessions that began with them."""
    if not visit.user.may_administer:
        raise forbidden()
    name = visit.form.get("name", "")
    await accounts_of(visit).change(lambda connection: acts.revoked_keys(connection, visit.user, name))
    return visit.go("/admin", "revoked")


async def machines_of(visit: Visit) -> list[node_bodies.NodeRow]:
    """Return a row for each machine; none where the server has its own one alone."""
    nodes: Nodes = visit.state.parts["nodes"]
    known = nodes.known()
    return await live.rows_of(visit.state, known) if len(known) > 1 else []


async def drain(visit: Visit) -> Response:
    """Give a machine no new calls."""
    return await _turned(visit, node_rows.DRAINING, "node.drain", "drained")


async def uncordon(visit: Visit) -> Response:
    """Give a machine calls again."""
    return await _turned(visit, node_rows.ACTIVE, "node.uncordon", "uncordoned")


async def _turned(visit: Visit, state: str, act: str, done: str) -> Response:
    if not visit.user.may_administer:
        raise forbidden()
    nodes: Nodes = visit.state.parts["nodes"]
    name = visit.form.get("name", "")

    def change(connection: Connection) -> node_bodies.NodeRow:
        return node_acts.changed(connection, visit.user, name, state, act)

    await nodes.change(change)
    return visit.go("/admin", done)
