"""The part of schedules of a server: the clock, at `state.parts["clock"]`, and the routes below `/v1/schedules`."""

from __future__ import annotations

from pathlib import Path

from atoll.server.endpoints.routes import MOST_BYTES
from atoll.server.schedules.clock import Clock
from atoll.server.schedules.routes import SCHEDULES, routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part, before that of endpoints, whose addresses begin with names of users."""

    def file(revision: str) -> Path:
        found: Path = state.parts["runners"].file(revision)
        return found

    clock = Clock(state, state.parts["accounts"].database, file)
    state.parts["clock"] = clock
    state.body_bytes[SCHEDULES] = MOST_BYTES
    state.routes += routes()
    state.lifespan.append(clock.running)
