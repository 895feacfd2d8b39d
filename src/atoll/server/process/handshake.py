"""TLS handshakes within bounds: a connection counts from its beginning, before anybody has said a word.

uvicorn's own listener tells its protocols of a connection after the handshake, so that nothing counts those whose
clients send nothing, and gives each a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from uvicorn.protocols.utils import get_remote_addr

from atoll.server.http import HEAD_SECONDS, Connections, Http
from atoll.server.process import tls


class Handshake(asyncio.Protocol):
    """A connection whose handshake is under way.

    Args:
        make: returns the HTTP connection that it becomes.
        bounds: count it.
        connections: uvicorn's, which it tells to shut down.
        context: of the server's certificate.
    """

    def __init__(
        self, make: Callable[[], Http], bounds: Connections, connections: set[Any], context: ssl.SSLContext
    ) -> None:
        self._make = make
        self._bounds = bounds
        self._connections = connections
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._first: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        plain = cast("asyncio.Transport", transport)  # uvloop's are of another type
        address = get_remote_addr(plain)
        leave = self._bounds.enter(address[0] if address is not None else "")
        if leave is None:
            plain.abort()
            return
        plain.pause_reading()
        self._connections.add(self)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._shake(plain, leave))
        loop.call_soon(self._hand_on, plain)  # right behind the task's first step

    def data_received(self, data: bytes) -> None:
        """Keep what comes before the handshake has the connection: uvloop reads on although it was told to pause."""
        self._first.append(data)

    def _hand_on(self, transport: asyncio.Transport) -> None:
        """Give the first bytes to the protocol that `start_tls` has set."""
        protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())  # uvloop's is of another type
        if not hasattr(protocol, "get_buffer"):  # the connection is lost already
            return
        for data in self._first:
            left = memoryview(data)
            while left:
                room = memoryview(protocol.get_buffer(len(left)))
                count = min(len(room), len(left))
                room[:count] = left[:count]
                protocol.buffer_updated(count)
                left = left[count:]
        self._first.clear()

    async def _shake(self, transport: asyncio.Transport, leave: Callable[[], None]) -> None:
        early, secured = _Early(), None
        try:
            with contextlib.suppress(OSError):  # `SSLError` among them: no TLS, no common version, nothing in time
                secured = await asyncio.get_running_loop().start_tls(
                    transport, early, self._context, server_side=True, ssl_handshake_timeout=HEAD_SECONDS
                )
        finally:
            self._connections.discard(self)
            if secured is None or early.lost:
                leave()
                transport.abort()
        if secured is not None and not early.lost:
            http = self._make()
            http.entered = leave
            is_grpc = secured.get_extra_info("ssl_object").selected_alpn_protocol() == tls.GRPC
            early.become(http, secured, is_grpc=is_grpc)

    def shutdown(self) -> None:
        """End: the server drains."""
        if self._task is not None:
            self._task.cancel()


class _Early(asyncio.Protocol):
    """What comes between the handshake's end and the step in which its task goes on."""

    def __init__(self) -> None:
        self.lost = False
        self._data: list[bytes] = []
        self._ended = False

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def eof_received(self) -> bool:
        self._ended = True
        return True  # the connection's own protocol decides

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True

    def become(self, http: Http, transport: asyncio.Transport, *, is_grpc: bool = False) -> None:
        """Give the connection its protocol, and the protocol all that has come."""
        transport.set_protocol(http)
        http.connection_made(transport)
        if is_grpc:
            http.become_grpc(b"".join(self._data))
            if self._ended:
                transport.close()
            return
        for data in self._data:
            http.data_received(data)
        if self._ended:
            http.eof_received()
            transport.close()


def secured(http: type[Http], context: ssl.SSLContext) -> Any:
    """Return the factory of a server's connections over TLS."""

    def begin(**arguments: Any) -> Handshake:
        return Handshake(partial(http, **arguments), http.bounds, arguments["server_state"].connections, context)

    return begin
