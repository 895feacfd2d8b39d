"""The part of nodes of a server: their accounts at `state.parts["nodes"]`, and the routes below `/v1/nodes`."""

from __future__ import annotations

from functools import partial

from atoll.server.nodes import live, rows, vacating
from atoll.server.nodes.accounts import Nodes
from atoll.server.nodes.routes import routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part, after that of accounts."""
    accounts = state.parts["accounts"]
    with accounts.database.writing() as connection:
        rows.add_local(connection)
    nodes = Nodes(accounts)
    state.parts["nodes"] = nodes
    state.routes += routes()
    state.lifespan += [nodes.watching, partial(live.sharing, state), partial(vacating.vacating, state)]
