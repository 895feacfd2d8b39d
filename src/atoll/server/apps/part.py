"""The part of apps of a server: the routes below `/v1/apps`."""

from __future__ import annotations

from atoll.server.apps.routes import APPS, routes
from atoll.server.endpoints.routes import MOST_BYTES
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part."""
    state.body_bytes[APPS] = MOST_BYTES
    state.routes += routes()
