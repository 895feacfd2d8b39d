"""A client's line that has no node yet: its first header is read here, and it waits here for a place.

Theory of operation. The line's state (`wire.line`) is this process's until a node is chosen. Then it goes to the session
there, with the header and the data that came behind it, and the connection is spliced with one of the node's. A
connection that is in the middle of a message when that happens is read on to the message's end: a client whose window is
full sends no more, so an end comes. One that stalls there is told to come back (`DRAINS`), and resumes at the node.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from atoll import errors
from atoll.server.line.early import Early
from atoll.server.line.terms import GRACE_SECONDS, MOST_PARTS, OPENING_SECONDS, OVER_SECONDS
from atoll.server.paces import Paces
from atoll.server.principal import Principal
from atoll.wire.line import DATA, DRAINS, Line
from atoll.wire.websocket import CLOSE, CONTROL, PING, LineError

log = logging.getLogger("atoll.cluster")

BOUNDARY_SECONDS = 2.0
"""Seconds for the rest of a message to come, when the line has a node."""
PROTOCOL_ERROR = 1002


class Arrival:
    """A line without a node.

    Args:
        id: of the session that it becomes.
        early: keeps the data that comes before there is a node, within its user's share.
        place: finds the node and hands the line over; cancelled when the client has gone.
        on_end: is told once, when it is over without having been handed over.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - as in the header
        principal: Principal,
        early: Early,
        place: Callable[[Arrival], Awaitable[None]],
        on_end: Callable[[Arrival], None],
    ) -> None:
        self.id, self.principal, self.early = id, principal, early
        self.line = Line(client=False, control_parts=MOST_PARTS)
        self.header: dict[str, Any] | None = None
        self.since = time.time()
        self.waits = -1, ""
        """Its place among those that wait for a machine, and the reason, as the client was told last."""
        self.closed = False
        """The client has said that it sends no more data."""
        self.connection: ArrivalConnection | None = None
        self._place, self._on_end = place, on_end
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(OPENING_SECONDS, self.end)
        self._moved = self._over = False
        self._boundary: asyncio.Future[None] | None = None

    # --- the client's side -------------------------------------------------------------------------------------------

    def attach(self, connection: ArrivalConnection, count: int) -> None:
        """Go on over a new connection.

        Raises:
            LineError: the client cannot have received so much.
        """
        first = self.line.resume(count)
        old, self.connection = self.connection, connection
        if old is not None:
            old.cut()
        if self.header is not None:
            self._timer.cancel()
        for pieces in first:
            connection.write(pieces)
        if self._over:
            self._timer = self._loop.call_later(OVER_SECONDS, self.end)

    def detach(self, connection: ArrivalConnection) -> None:
        """Note that the connection was lost: the client has its grace to come back."""
        if self.connection is not connection or self._moved:
            return
        self.connection = None
        self._timer.cancel()
        self._timer = self._loop.call_later(GRACE_SECONDS, self.end)
        self._settle()

    def feed(self, data: bytes) -> None:
        """Take bytes of the client.

        Raises:
            LineError: it does not speak the line's protocol.
        """
        for kind, value in self.line.feed(data):
            if self._moved:  # what comes behind the end belongs to nobody
                return
            if kind == CONTROL:
                self._take_header(value)
            elif kind == DATA:
                self._take_data(value)
            elif kind == PING:
                self.write([self.line.pong(value)])
            elif kind == CLOSE:
                self.end(value if 1000 <= value < 1004 else 1000)
                return
            else:
                raise LineError("a client has nothing to send on this channel")
        if not self._moved:
            self.early.gather(self.line.gathering_bytes)
            self._settle()

    def _take_header(self, header: dict[str, Any]) -> None:
        if self.header is None:
            self.header = header
            self._timer.cancel()
            if not self._over:
                self._task = self._loop.create_task(self._run())
        elif header["type"] == "withdrawn":
            self.end()
        elif header["type"] == "closed":
            self.closed = True

    def _take_data(self, piece: Any) -> None:
        if self.header is None:
            raise LineError("a line begins with a header")
        try:
            self.early.take(piece)
        except errors.ResourcesUnavailable as error:
            self.fail(error)

    async def _run(self) -> None:
        try:
            await self._place(self)
        except errors.AtollError as error:
            self.fail(error)
        except Exception:
            log.exception("arrival_failed")
            self.fail(errors.InternalError("the server failed", hint="please report it with the server's log"))

    # --- to the client -----------------------------------------------------------------------------------------------

    def write(self, pieces: list[Any]) -> None:
        """Send pieces, where there is a connection."""
        if self.connection is not None:
            self.connection.write(pieces)

    def say(self, header: dict[str, Any]) -> None:
        """Send a header, or keep it until there is a connection."""
        self.write(self.line.say(header))

    @property
    def over(self) -> bool:
        """True if it has its last header, or is a node's."""
        return self._over or self._moved

    def fail(self, error: errors.AtollError) -> None:
        """Tell the client why it gets no more."""
        self.finish({"type": "failed", "error": error.to_data()})

    def finish(self, header: dict[str, Any]) -> None:
        """Send the last header; a client that has it closes the line."""
        if self._over or self._moved:
            return
        self.say(header)
        self.say({"type": "over"})
        self._over = True
        self._give_up()
        self.early.drop()
        self._timer.cancel()
        self._timer = self._loop.call_later(OVER_SECONDS if self.connection is not None else GRACE_SECONDS, self.end)

    # --- to a node ---------------------------------------------------------------------------------------------------

    async def boundary(self) -> bool:
        """Wait until no message is half received; return whether there is a connection.

        One that is lost, or does not get there, is for the client to resume.
        """
        if self.connection is not None and self.line.between:
            return True
        if self.connection is None:
            return False
        self._boundary = self._loop.create_future()
        try:
            async with asyncio.timeout(BOUNDARY_SECONDS):
                await self._boundary
        except TimeoutError:
            if self.connection is not None:
                self.connection.close(DRAINS)
                self.connection = None
        finally:
            self._boundary = None
        return self.connection is not None

    def _settle(self) -> None:
        waiting = self._boundary
        if waiting is not None and not waiting.done() and (self.connection is None or self.line.between):
            waiting.set_result(None)

    def moved(self) -> asyncio.Transport | None:
        """Let go of the line: it is the node's; return the transport of the connection, if there is one."""
        self._moved = True
        self._timer.cancel()
        self.early.drop()
        connection, self.connection = self.connection, None
        return None if connection is None else connection.let_go()

    def end(self, code: int = 1000) -> None:
        """End the line."""
        if self._moved:
            return
        self._moved = True
        self._timer.cancel()
        self.early.drop()
        self._give_up()
        if self.connection is not None:
            self.connection.close(code)
            self.connection = None
        self._on_end(self)

    def _give_up(self) -> None:
        """Look for a place no longer."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()


class ArrivalConnection(asyncio.Protocol):
    """The WebSocket of an arrival.

    Args:
        paces: of users; one who is in debt is not read for a while.
    """

    def __init__(self, arrival: Arrival, transport: asyncio.Transport, connections: set[Any], paces: Paces) -> None:
        self._arrival, self._transport, self._connections = arrival, transport, connections
        self._paces = paces
        self._resting: asyncio.TimerHandle | None = None
        self._congested = False
        connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Give bytes to the arrival; TLS may bring some after the connection's end, or after another one took its place."""
        arrival = self._arrival
        if arrival.connection is not self:
            return
        try:
            arrival.feed(data)
        except LineError:
            arrival.end(PROTOCOL_ERROR)
            return
        if arrival.connection is self and (seconds := self._paces.pay(arrival.principal.user, arrival.line.price)):
            if self._resting is not None:
                self._resting.cancel()
            self._resting = asyncio.get_running_loop().call_later(seconds, self._rested)
            self._read()

    def _rested(self) -> None:
        self._resting = None
        self._read()

    def pause_writing(self) -> None:
        """Read no more of a client that takes no answers."""
        self._congested = True
        self._read()

    def resume_writing(self) -> None:
        """Read on."""
        self._congested = False
        self._read()

    def _read(self) -> None:
        if self._transport.is_closing():
            return
        if self._congested or self._resting is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Leave the arrival to its grace."""
        self._connections.discard(self)
        self._arrival.detach(self)

    def shutdown(self) -> None:
        """Have the client come back: the server drains."""
        self.close(DRAINS)

    def write(self, pieces: list[Any]) -> None:
        """Send pieces in order."""
        if not self._transport.is_closing():
            self._transport.writelines(pieces)

    def close(self, code: int) -> None:
        """Say `close`, and close the connection."""
        if not self._transport.is_closing():
            self._transport.write(self._arrival.line.close(code))
            self._transport.close()
            asyncio.get_running_loop().call_later(1.0, self._transport.abort)

    def cut(self) -> None:
        """Close the connection without a word."""
        self._transport.abort()

    def let_go(self) -> asyncio.Transport:
        """Return the transport, which is read: another protocol takes it, and minds its user's pace."""
        self._connections.discard(self)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if not self._transport.is_closing():
            self._transport.resume_reading()
        return self._transport
