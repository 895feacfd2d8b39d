"""Lines: WebSockets of clients, each relayed to one connection of the node; see `session`."""

from __future__ import annotations

import resource

from atoll.server.line.sessions import Sessions
from atoll.server.state import ServerState

DESCRIPTOR_SHARE = 12
"""Of so many descriptors that this process may have one can be a line: it has up to four besides its connection."""


def install(state: ServerState) -> None:
    """Add the sessions, which the upgrade of connections uses."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE
    state.parts["sessions"] = sessions = Sessions(state.node, most)
    state.lifespan.append(sessions.serving)
