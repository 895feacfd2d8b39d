"""Lines: WebSockets of clients, each relayed to one connection of the node; see `session`."""

from __future__ import annotations

from atoll.server.line.sessions import Sessions
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the sessions, which the upgrade of connections uses."""
    state.parts["sessions"] = sessions = Sessions(state.node)
    state.lifespan.append(sessions.serving)
