"""WebSockets to endpoints: once the caller is known, the bytes of both connections are passed on, untouched.

The function's server makes the handshake. Only its answer `101` joins the connections: behind another one a client could
write requests that no gateway has looked at, in anybody's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from starlette.requests import HTTPConnection
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from atoll import errors
from atoll.server.cluster.links.splice import splice
from atoll.server.endpoints.exchange import Exchange
from atoll.server.endpoints.gateway import Gateway
from atoll.server.endpoints.passing import HOP, Asked, harmless, without_credentials
from atoll.server.principal import Principal
from atoll.server.state import ServerState

WRITE_BYTES = 64 << 10
"""Unsent bytes of one side, beyond which the other side is not read."""
REFUSAL_BYTES = 64 << 10
"""The most of the body of an answer that makes no WebSocket."""
REFUSED_SECONDS = 10.0
"""Seconds for its client to take it."""
_FRAMING = (b"content-length", b"transfer-encoding")


class _Held(set[Any]):
    """The connection to the runner: its end gives the place back."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        super().__init__()
        self._on_end = on_end

    def discard(self, element: Any) -> None:
        if element in self:
            super().discard(element)
            self._on_end()


class Sockets:
    """WebSockets of callers who have shown a key: holders of keys, like lines."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Transport, tuple[str, str]] = {}

    def add(self, transport: asyncio.Transport, caller: Principal | None) -> None:
        """Hold the key of a caller while the connection is open."""
        if caller is not None:
            self._open[transport] = caller.user, caller.key

    def remove(self, transport: asyncio.Transport) -> None:
        """Hold it no longer."""
        self._open.pop(transport, None)

    def held(self) -> set[tuple[str, str]]:
        """Return user and key of each connection."""
        return set(self._open.values())

    def end_of(self, user: str, key: str) -> None:
        """End the connections of a key."""
        for transport in [one for one, pair in self._open.items() if pair == (user, key)]:
            transport.abort()


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
    leave: Callable[[], None],
) -> None:
    """Join a client's connection with one to a runner.

    Args:
        state: of the server.
        head: of the client's request.
        leave: counts the client's connection no longer.

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
    pool, sockets = gateway.runners.pool(revision), state.parts["sockets"]
    runner = await pool.take()
    given = False
    sockets.add(transport, caller)

    def give_back() -> None:
        nonlocal given
        if not given:
            given = True
            pool.give_back(runner)
            leave()
            sockets.remove(transport)

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
    exchange = Exchange(upgrades=True)
    try:
        await runner.connect(exchange)
        async with asyncio.timeout(revision.options.request_timeout or None):
            status, answered = await exchange.ask(
                asked.head(0)[:-2] + b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n", None
            )
            body = b"" if exchange.early is not None else await _whole(exchange, status)
    except BaseException as error:
        exchange.close()
        give_back()
        if isinstance(error, ConnectionError | TimeoutError):
            raise errors.HostUnreachable("the function's server did not answer", hint="see its logs") from error
        raise
    lines = [
        name + b": " + value for name, value in harmless(answered, own_host=asked.own_host) if name not in _FRAMING
    ]
    if exchange.early is None or transport.is_closing():
        exchange.close()
        give_back()
        bare = [line for line in lines if line.partition(b":")[0] not in HOP]
        transport.write(_refusal(status, bare, body))
        transport.close()
        asyncio.get_running_loop().call_later(REFUSED_SECONDS, transport.abort)
        return
    transport.write(b"\r\n".join([b"HTTP/1.1 101 Switching Protocols", *lines]) + b"\r\n\r\n" + exchange.early)
    node = splice(transport, exchange.transport, connections, _Held(give_back))
    for one in (node, node.other):
        one.transport.set_write_buffer_limits(high=WRITE_BYTES)


async def _whole(exchange: Exchange, status: int) -> bytes:
    """Return the body of an answer that is no WebSocket.

    Raises:
        HostUnreachable: it has too many bytes.
    """
    body = bytearray()
    if status in (101, 204, 304):
        return b""
    async for piece in exchange.pieces():
        body += piece
        if len(body) > REFUSAL_BYTES:
            raise errors.HostUnreachable("the function's server has made no WebSocket", hint="see its logs")
    return bytes(body)


def _refusal(status: int, lines: list[bytes], body: bytes) -> bytes:
    """Return an answer that makes no WebSocket; it ends the connection.

    A program on the way would else give it to another client, whose requests the function's server would get.
    """
    status = status if status != HTTPStatus.SWITCHING_PROTOCOLS else HTTPStatus.BAD_GATEWAY
    first = STATUS_LINE[status].rstrip(b"\r\n")
    return b"\r\n".join([first, *lines, b"content-length: %d" % len(body), b"connection: close", b"", body])
