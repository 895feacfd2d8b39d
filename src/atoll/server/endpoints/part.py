"""The part of endpoints of a server: runners, the gateway, and the routes to register functions."""

from __future__ import annotations

from atoll.server.database.database import DIRECTORY
from atoll.server.endpoints.callers.tokens import Tokens
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.routes import MOST_BYTES, REVISIONS, routes
from atoll.server.endpoints.runners.runners import Runners
from atoll.server.endpoints.websockets import Sockets
from atoll.server.state import ServerState

MOST_BODY_BYTES = 1 << 40
"""Of a request for an endpoint: it is passed on as it comes."""


def install(state: ServerState) -> None:
    """Add the part, after all others: its addresses begin with names of users."""
    accounts = state.parts["accounts"]
    database = accounts.database
    runners = Runners(state, state.node.options.home / DIRECTORY / "revisions", database)
    gateway = Gateway(database, runners, Tokens(accounts.pepper), state.options.domain)
    sockets = Sockets()
    accounts.holders.append(sockets)
    state.parts |= {"runners": runners, "gateway": gateway, "sockets": sockets}
    state.routes += routes()
    state.body_bytes[REVISIONS] = MOST_BYTES
    most = state.body_bytes["/"]
    own = {getattr(route, "path", "/").split("/")[1] for route in state.routes}
    gateway.reserved = frozenset(name.encode() for name in own)
    for first in own - {""}:  # their bodies are bounded as before, those of endpoints are not
        state.body_bytes.setdefault(f"/{first}", most)
    state.body_bytes["/"] = MOST_BODY_BYTES
    state.lifespan.append(runners.serving)
    accounts.holders.append(runners)
