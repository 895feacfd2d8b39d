"""WebSockets to endpoints: once the caller is known, the bytes of both connections are passed on, untouched.

The function's server makes the handshake: its answer, `101` or another, goes to the client as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from starlette.requests import HTTPConnection

from atoll.server.cluster.links.splice import splice
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.passing import Asked, without_credentials
from atoll.server.state import ServerState


class _Held(set[Any]):
    """The connection to the runner: its end gives the place back."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        super().__init__()
        self._on_end = on_end

    def discard(self, element: Any) -> None:
        if element in self:
            super().discard(element)
            self._on_end()


def read_head(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return target and headers, names in lower case, of a request's head as uvicorn gives it."""
    first, *lines = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first.split(b" ")[1], [(name.strip().lower(), value.strip()) for name, _, value in pairs]


async def pass_on(
    gateway: Gateway,
    state: ServerState,
    head: bytes,
    transport: asyncio.Transport,
    connections: set[Any],
    client: tuple[str, int],
) -> None:
    """Join a client's connection with one to a runner.

    Args:
        state: of the server.
        head: of the client's request.

    Raises:
        AtollError: there is no such endpoint, the client may not call it, or no runner has a place.
    """
    target, headers = read_head(head)
    path, _, query = target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "websocket",
        "app": SimpleNamespace(state=SimpleNamespace(server=state)),
        "headers": headers,
        "raw_path": path,
        "path": unquote(path.decode("latin-1")),
        "query_string": query,
        "client": client,
        "scheme": "wss" if transport.get_extra_info("ssl_object") is not None else "ws",
    }
    place = gateway.place(scope)
    if place is None:
        raise gateway.unknown()
    revision, caller = await gateway.admit(HTTPConnection(scope), place)
    pool = gateway.runners.pool(revision)
    runner = await pool.take()
    given = False

    def give_back() -> None:
        nonlocal given
        if not given:
            given = True
            pool.give_back(runner)

    try:
        there = await runner.connect()
    except BaseException:
        give_back()
        raise
    kept = without_credentials(query)
    asked = Asked(
        "GET",
        b"/" + place.rest + (b"?" + kept if kept else b""),
        headers,
        "",
        caller.user if caller is not None else "",
        client[0],
        scope["scheme"].replace("ws", "http"),
        place.prefix,
        is_public=revision.auth == "public",
    )
    there.write(asked.head(0)[:-2] + b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n")
    if transport.is_closing():
        there.abort()
        give_back()
        return
    with contextlib.suppress(RuntimeError):
        there.pause_reading()
    splice(transport, there, connections, _Held(give_back))
