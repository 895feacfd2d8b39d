"""One WebSocket of a line, past its upgrade: bytes between a transport and its session."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.wire.line import DRAINS, WINDOW
from atoll.wire.websocket import LineError

WRITE_BYTES = 3 * WINDOW
"""Unsent bytes of a connection, beyond which the worker is not read; the window alone bounds them to less.

uvloop's TLS tells of room below another limit than its socket's own with the next write only.
"""
CLOSE_SECONDS = 1.0
"""Seconds for the last bytes of a connection to go out, and for TLS to end in order."""
PROTOCOL_ERROR, INTERNAL_ERROR = 1002, 1011

log = logging.getLogger("atoll.lines")


class Connection(asyncio.Protocol):
    """The protocol of a WebSocket's transport.

    Args:
        server_connections: uvicorn's open connections, which it tells to shut down.
    """

    def __init__(
        self, session: Session, sessions: Sessions, transport: asyncio.Transport, server_connections: set[Any]
    ) -> None:
        self._session = session
        self._sessions = sessions
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._server_connections = server_connections
        self._ending = False
        self._resting: asyncio.TimerHandle | None = None
        self._congested = False
        self._early = deque[bytes]()
        """What came while the user's messages had to wait."""
        server_connections.add(self)
        transport.set_write_buffer_limits(high=WRITE_BYTES)

    def data_received(self, data: bytes) -> None:
        """Give bytes to the session, unless the user's messages, on all lines, have to wait."""
        if self._ending:
            return
        seconds = self._sessions.paces.debt(self._session.principal.user)
        if seconds or self._early:
            self._early.append(data)
            self._session.unread += len(data)
            self._rest(seconds)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            self._session.feed(self, data)
        except LineError:
            self.end(PROTOCOL_ERROR)
            self._session.end()
            return
        except Exception:  # the transport would be torn down without the session's end
            log.exception("line_failed")
            self.end(INTERNAL_ERROR)
            self._session.end()
            return
        self._sessions.unsettled.add(self._session)
        seconds = self._sessions.paces.pay(self._session.principal.user, self._session.line.price)
        if seconds:
            self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        if self._resting is None:
            self._resting = self._loop.call_later(seconds, self._rested)
            self._read()

    def _rested(self) -> None:
        self._resting = None
        while self._early and self._resting is None and not self._ending:
            seconds = self._sessions.paces.debt(self._session.principal.user)
            if seconds:  # other lines of the user were read meanwhile
                self._rest(seconds)
                return
            data = self._early.popleft()
            self._session.unread -= len(data)
            self._take(data)
        self._read()

    def _read(self) -> None:
        """Read on, unless this end has to wait for the client's reading, or the user's messages cost too much."""
        if self._ending or self._transport.is_closing():
            return
        if self._congested or self._resting is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Leave the session to its grace."""
        self._ending = True
        if self._resting is not None:
            self._resting.cancel()
        self._server_connections.discard(self)
        self._session.unread -= sum(map(len, self._early))
        self._early.clear()
        self._session.detach(self)

    def pause_writing(self) -> None:
        """Have the session send no more; past the window only answers to a client's own messages gather so."""
        self._congested = True
        self._read()
        self._session.congest(congested=True)

    def resume_writing(self) -> None:
        """Have the session send on."""
        self._congested = False
        self._read()
        self._session.congest(congested=False)

    def write(self, pieces: list[Any]) -> None:
        """Send pieces in order."""
        if self._ending:
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    def shutdown(self) -> None:
        """Have the client come back: the server drains."""
        self.end(DRAINS)
        self._session.detach(self)

    def end(self, code: int) -> None:
        """Say `close`, unless the code is 0, and close the connection.

        TLS would wait for the other end's close, which a client that is gone never sends: it has a moment.
        """
        if self._ending:
            return
        if code:
            self._transport.write(self._session.line.close(code))
        self._ending = True
        if code:
            self._transport.close()
            self._loop.call_later(CLOSE_SECONDS, self._cut)
        else:
            self._cut()

    def _cut(self) -> None:
        self._transport.abort()
