"""The part of nodes of a server: their accounts at `state.parts["nodes"]`, and the routes below `/v1/nodes`."""

from __future__ import annotations

from functools import partial

from atoll import errors
from atoll.server.nodes import live, rows, vacating
from atoll.server.nodes.accounts import Nodes
from atoll.server.nodes.routes import routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part, after that of accounts.

    Raises:
        StateUnusable: the state directory is a node's of another server.
    """
    options = state.node.options
    if (options.run_directory / "joined").exists():
        raise errors.StateUnusable(
            f"`{options.home}` is, or was, the state directory of a node of another server",
            hint="give another `--home`: calls of that server's users may be left here",
        )
    accounts = state.parts["accounts"]
    with accounts.database.writing() as connection:
        rows.add_local(connection)
    nodes = Nodes(accounts)
    state.parts["nodes"] = nodes
    state.routes += routes()
    state.lifespan += [nodes.watching, partial(live.sharing, state), partial(vacating.vacating, state)]
