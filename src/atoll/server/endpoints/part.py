"""The part of endpoints of a server: runners, the gateway, and the routes to register functions."""

from __future__ import annotations

from starlette.routing import Route

from atoll.server.database.database import DIRECTORY
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.routes import MOST_BYTES, REVISIONS, routes
from atoll.server.endpoints.runners import Runners
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part, after all others: its addresses begin with names of users."""
    runners = Runners(state, state.node.options.home / DIRECTORY / "revisions")
    gateway = Gateway(state.parts["accounts"].database, runners)
    state.parts |= {"runners": runners, "gateway": gateway}
    state.body_bytes[REVISIONS] = MOST_BYTES
    state.routes += routes()
    state.lifespan.append(runners.serving)
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    for path in ("/{owner}/{alias}", "/{owner}/{alias}/{rest:path}"):
        route = Route(path, gateway, methods=methods, include_in_schema=False)
        state.routes.append(route)
