"""The part of gRPC of a server: its child, which is started when a client asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from atoll.server.controller.child import Controller, is_possible
from atoll.server.controller.handover import Handover
from atoll.server.state import ServerState

SOCKET = "server.sock"
"""In `run/`: the server's, for its child."""


def install(state: ServerState) -> None:
    """Add the part, where its packages are installed."""
    if not is_possible():
        return
    home = state.node.options.home
    controller = Controller(
        home / "run" / SOCKET, home / "run" / "controller.sock", home / "logs" / "controller.log", state.options.domain
    )

    def take(transport: asyncio.Transport, first: bytes, leave: Callable[[], None], connections: set[Any]) -> None:
        Handover(controller, transport, first, leave, connections)

    state.parts["controller"], state.parts["grpc"] = controller, take
    state.lifespan.append(controller.serving)
