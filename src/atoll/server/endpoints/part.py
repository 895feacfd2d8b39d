"""The part of endpoints of a server: runners, the gateway, and the routes to register functions."""

from __future__ import annotations

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from atoll.server.database.database import DIRECTORY
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.routes import MOST_BYTES, REVISIONS, routes
from atoll.server.endpoints.runners import Runners
from atoll.server.endpoints.tokens import Tokens
from atoll.server.state import ServerState

MOST_BODY_BYTES = 1 << 40
"""Of a request for an endpoint: it is passed on as it comes."""


class Endpoints(BaseRoute):
    """The route of all addresses of endpoints.

    Args:
        by_host: for requests whose host is an endpoint's; else for those whose path is.
    """

    def __init__(self, gateway: Gateway, *, by_host: bool) -> None:
        self.path = "/{owner}/{alias}/{rest}"
        self._gateway, self._by_host = gateway, by_host

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for an endpoint."""
        if scope["type"] != "http":
            return Match.NONE, {}
        found = self._gateway.is_named(scope) if self._by_host else self._gateway.place(scope) is not None
        return (Match.FULL if found else Match.NONE), {"route": self}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it."""
        await self._gateway(scope, receive, send)


def install(state: ServerState) -> None:
    """Add the part, after all others: its addresses begin with names of users."""
    accounts = state.parts["accounts"]
    database = accounts.database
    runners = Runners(state, state.node.options.home / DIRECTORY / "revisions", database)
    gateway = Gateway(database, runners, Tokens(accounts.pepper), state.options.domain)
    state.parts |= {"runners": runners, "gateway": gateway}
    state.routes += routes()
    state.body_bytes[REVISIONS] = MOST_BYTES
    most = state.body_bytes["/"]
    for route in state.routes:  # their bodies are bounded as before, those of endpoints are not
        if isinstance(route, Route) and (first := route.path.split("/")[1]):
            state.body_bytes.setdefault(f"/{first}", most)
    state.body_bytes["/"] = MOST_BODY_BYTES
    state.lifespan.append(runners.serving)
    state.routes.insert(0, Endpoints(gateway, by_host=True))
    state.routes.append(Endpoints(gateway, by_host=False))
