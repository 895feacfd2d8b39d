"""A connection of a member that waits for a line: the server begins it with a message, bytes of a WebSocket follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from atoll.server.cluster.links.messages import MessageError, read, write
from atoll.server.cluster.links.preamble import blob_size, read_opening
from atoll.server.line.beginning import begin
from atoll.server.line.connection import Connection
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.wire.websocket import LineError

log = logging.getLogger("atoll.member")

MOST_PREAMBLE = 32 << 20
"""The most of the server's message: the client's first header, of which each character may take six times its bytes."""
IDLE_SECONDS = 600.0
"""Seconds after which an unused connection is dialled anew: what is between may have forgotten it."""


class SpareLine(asyncio.Protocol):
    """A connection that waits.

    Args:
        sessions: of this process.
        connections: those that have a line, which are told to shut down.
        opened: is told of a session that begins, and of its first header's type.
        on_end: is told when this connection waits no longer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        sessions: Sessions,
        connections: set[Any],
        opened: Callable[[Session, str], None],
        on_end: Callable[[SpareLine], None],
    ) -> None:
        self.transport = transport
        self._sessions, self._connections, self._opened, self._on_end = sessions, connections, opened, on_end
        self.used = self.taken = False
        """It waits no longer; it has a line."""
        self._data = bytearray()
        self._message: dict[str, Any] | None = None
        self._size = 0
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take the server's message, and the bytes behind it."""
        self._data += data
        try:
            if self._message is None:
                end = self._data.find(b"\n")
                if end < 0:
                    if len(self._data) > MOST_PREAMBLE:
                        raise MessageError("a connection begins with a message")
                    return
                self._message = read(bytes(self._data[:end]))
                del self._data[: end + 1]
                self._size = blob_size(self._message) if self._message["type"] == "open" else 0
            if len(self._data) >= self._size:
                self._begin(self._message)
        except (MessageError, LineError, KeyError, TypeError, ValueError) as error:
            log.warning("line_refused", extra={"fields": {"error": str(error)[:200]}})
            self.transport.abort()
        except Exception:
            log.exception("line_failed")
            self.transport.abort()

    def _begin(self, message: dict[str, Any]) -> None:
        self._timer.cancel()
        self.used = self.taken = True
        blob, rest = bytes(self._data[: self._size]), bytes(self._data[self._size :])
        self._data.clear()
        self._on_end(self)
        if message["type"] == "resume":
            self._resume(message["session"], message["count"], rest)
            return
        opening = read_opening(message, blob)
        if opening.id in self._sessions.gone:
            raise MessageError("a line whose client was told that it is gone")
        session = self._sessions.take(opening.id, opening.principal)
        session.line.restore(opening.counts, opening.kept)
        header = dict(opening.header)
        closed = header.pop("input_over", False)
        self._opened(session, header["type"])
        if opening.attached:
            connection = self._attach(session, None)
        else:
            session.go_on()
            self.transport.close()
        begin(session, header, opening.early, closed=closed)
        if opening.attached and rest:
            connection.data_received(rest)

    def _resume(self, name: str, count: int, rest: bytes) -> None:
        session = self._sessions.by_id(name)
        if session is None or session.expired:
            self.transport.write(write({"type": "gone" if session is None else "ending"}))
            self.transport.close()
            return
        self.transport.write(write({"type": "taken", "count": session.line.received}))
        connection = self._attach(session, count)
        if rest:
            connection.data_received(rest)

    def _attach(self, session: Session, count: int | None) -> Connection:
        connection = Connection(session, self._sessions, self.transport, self._connections)
        self.transport.set_protocol(connection)
        try:
            session.attach(connection, count)
        except LineError:
            connection.end(1002)
            session.end()
        return connection

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Wait no longer."""
        self._timer.cancel()
        if not self.used:
            self.used = True
            self._on_end(self)
