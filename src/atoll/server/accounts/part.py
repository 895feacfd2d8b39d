"""The part of accounts of a server: its routes, and authentication by the users' keys."""

from __future__ import annotations

from atoll import settings
from atoll.server.accounts.accounts import Accounts
from atoll.server.accounts.routes import routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part: `state.parts["accounts"]` and `["page_sessions"]`, and who may ask."""
    accounts = Accounts(state.node.options.home, state.options.database or settings.variable("ATOLL_DATABASE_URL"))
    state.parts["accounts"] = accounts
    state.parts["page_sessions"] = accounts.sessions
    state.authenticate = accounts.authenticate
    state.routes += routes()
    state.lifespan.append(accounts.watching)
