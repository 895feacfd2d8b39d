"""Connections that speak HTTP/2: each is spliced to the socket of the process that speaks gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from atoll import errors
from atoll.server.cluster.links.splice import Half
from atoll.server.controller.child import Controller


class _Early(asyncio.Protocol):
    """What the child sends before the connections are joined: its settings come at once."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.data.append(data)


class _Counted(Half):
    """The client's side, which counts until it is closed."""

    leave: Callable[[], None]

    def connection_lost(self, error: Exception | None) -> None:
        self.leave()
        super().connection_lost(error)


class Handover(asyncio.Protocol):
    """A client's connection that waits for the child.

    Args:
        controller: the child.
        transport: the connection.
        first: bytes that it has brought.
        leave: counts it no longer.
        connections: uvicorn's, which it tells to shut down.
    """

    def __init__(
        self,
        controller: Controller,
        transport: asyncio.Transport,
        first: bytes,
        leave: Callable[[], None],
        connections: set[Any],
    ) -> None:
        self._controller, self._transport = controller, transport
        self._data = [first]
        self._leave, self._connections = leave, connections
        self._ended = False
        connections.add(self)
        transport.pause_reading()
        transport.set_protocol(self)
        self._task = asyncio.ensure_future(self._join())

    def data_received(self, data: bytes) -> None:
        """Keep what comes: uvloop reads on although it was told to pause."""
        self._data.append(data)

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection."""
        self._ended = True
        self._connections.discard(self)
        self._leave()

    def shutdown(self) -> None:
        """End with the server."""
        self._transport.abort()

    async def _join(self) -> None:
        try:
            path = await self._controller.path()
            made = await asyncio.get_running_loop().create_unix_connection(_Early, path)
        except (OSError, errors.AtollError):
            self._transport.abort()
            return
        node, early = made[0], made[1]
        if self._ended or self._transport.is_closing():
            node.abort()
            return
        client, other = _Counted(self._transport, self._connections), Half(node, set())
        client.leave = self._leave
        client.other, other.other = other, client
        self._connections.discard(self)
        self._transport.set_protocol(client)
        node.set_protocol(other)
        for data in early.data:
            self._transport.write(data)
        for data in self._data:
            node.write(data)
        self._transport.resume_reading()
