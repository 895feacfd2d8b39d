"""WebSockets to endpoints: once the caller is known, the bytes of both connections are passed on, untouched.

The function's server makes the handshake: its answer, `101` or another, goes to the client as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

from starlette.requests import HTTPConnection

from atoll import errors
from atoll.server.cluster.links.splice import splice
from atoll.server.endpoints.exchange import HEAD_BYTES
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.passing import Asked, harmless, without_credentials
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
        own_host=not place.prefix,
    )
    head_of = _Head()
    try:
        there = await runner.connect(head_of)
        there.write(asked.head(0)[:-2] + b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        async with asyncio.timeout(revision.options.request_timeout or None):
            first, answered, early = await head_of.whole
    except BaseException as error:
        give_back()
        if isinstance(error, ConnectionError | TimeoutError):
            raise errors.HostUnreachable("the function's server did not answer", hint="see its logs") from error
        raise
    if transport.is_closing():
        there.abort()
        give_back()
        return
    lines = [first, *(name + b": " + value for name, value in harmless(answered, own_host=asked.own_host))]
    transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + early)
    splice(transport, there, connections, _Held(give_back))


class _Head(asyncio.Protocol):
    """The head of the function's answer, before its connection is joined with the client's."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[tuple[bytes, list[tuple[bytes, bytes]], bytes]]
        self.whole = asyncio.get_running_loop().create_future()
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take a piece of it."""
        assert self._transport is not None
        self._data += data
        head, found, early = self._data.partition(b"\r\n\r\n")
        if len(head) > HEAD_BYTES:
            self._transport.abort()
        elif found and not self.whole.done():
            self._transport.pause_reading()
            first, *lines = head.split(b"\r\n")
            pairs = (line.partition(b":") for line in lines)
            headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
            self.whole.set_result((first, headers, early))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that there is none."""
        if not self.whole.done():
            self.whole.set_exception(exc or ConnectionResetError())
