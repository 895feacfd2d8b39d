"""The machines of a server on its page for operators: what is free, what runs, and which takes new calls."""

from __future__ import annotations

from sqlalchemy import Connection
from starlette.responses import Response
from starlette.routing import BaseRoute

from atoll.server.nodes import acts, bodies, live, rows
from atoll.server.nodes.accounts import Nodes
from atoll.server.pages.visit import Visit, forbidden, route


def routes() -> list[BaseRoute]:
    """Return the routes of its forms."""
    return [
        route("/admin/machines/drain", drain, method="POST"),
        route("/admin/machines/uncordon", uncordon, method="POST"),
    ]


async def machines_of(visit: Visit) -> list[bodies.NodeRow]:
    """Return a row for each machine; none where the server has its own one alone."""
    nodes: Nodes = visit.state.parts["nodes"]
    known = nodes.known()
    return await live.rows_of(visit.state, known) if len(known) > 1 else []


async def drain(visit: Visit) -> Response:
    """Give a machine no new calls."""
    return await _changed(visit, rows.DRAINING, "node.drain", "drained")


async def uncordon(visit: Visit) -> Response:
    """Give a machine calls again."""
    return await _changed(visit, rows.ACTIVE, "node.uncordon", "uncordoned")


async def _changed(visit: Visit, state: str, act: str, done: str) -> Response:
    if not visit.user.may_administer:
        raise forbidden()
    nodes: Nodes = visit.state.parts["nodes"]
    name = visit.form.get("name", "")

    def change(connection: Connection) -> bodies.NodeRow:
        return acts.changed(connection, visit.user, name, state, act)

    await nodes.change(change)
    return visit.go("/admin", done)
