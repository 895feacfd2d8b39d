"""Spliced connections: bytes between a client's connection and a node's, untouched, with back pressure both ways."""

from __future__ import annotations

import asyncio
from typing import Any

WRITE_BYTES = 1 << 20
"""Unsent bytes of one side, beyond which the other side is not read."""
LAST_SECONDS = 10.0
"""Seconds for the bytes that are on their way when the other side has ended: a client that reads nothing holds no more."""


class Half(asyncio.Protocol):
    """One side of a splice; `splice` makes both.

    Args:
        connections: the set that it belongs to while it is open.
    """

    other: Half

    def __init__(self, transport: asyncio.Transport, connections: set[Any]) -> None:
        self.transport = transport
        self._connections = connections
        self._write = transport.write
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        self.other._write(data)

    def pause_writing(self) -> None:
        """Have the other side not be read."""
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Have the other side be read again."""
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """End the other side, behind the bytes that are on their way."""
        self._connections.discard(self)
        transport = self.other.transport
        transport.close()
        if self.other in self.other._connections:
            asyncio.get_running_loop().call_later(LAST_SECONDS, transport.abort)

    def end_soon(self) -> None:
        """End both sides in a while: while one is not read, nobody hears that the other has ended."""
        if self in self._connections:
            asyncio.get_running_loop().call_later(LAST_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """End with the server: the client comes back, and the node keeps the session for it."""
        self.transport.abort()


def splice(client: asyncio.Transport, node: asyncio.Transport, connections: set[Any], of_node: set[Any]) -> Half:
    """Join two connections; return the node's side.

    Args:
        connections: uvicorn's, which it tells to shut down.
        of_node: those to the node, which end when it is removed.
    """
    first, second = Half(client, connections), Half(node, of_node)
    first.other, second.other = second, first
    client.set_protocol(first)
    node.set_protocol(second)
    node.resume_reading()
    if client.is_closing():  # nobody tells the protocol that it has just got
        node.abort()
    return second
