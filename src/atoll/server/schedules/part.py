"""The part of schedules of a server: the clock, at `state.parts["clock"]`, and the routes below `/v1/schedules`."""

from __future__ import annotations

from atoll.server.endpoints.routes import MOST_BYTES
from atoll.server.schedules.clock import Clock
from atoll.server.schedules.routes import SCHEDULES, routes
from atoll.server.state import ServerState


def install(state: ServerState) -> None:
    """Add the part, after that of endpoints, which has the revisions."""
    runners = state.parts["runners"]
    clock = Clock(state, state.parts["accounts"].database, runners.file)
    state.parts["clock"] = clock
    state.body_bytes[SCHEDULES] = MOST_BYTES
    state.routes[-1:-1] = routes()  # before the addresses of endpoints, which begin with names of users
    state.lifespan.append(clock.running)
