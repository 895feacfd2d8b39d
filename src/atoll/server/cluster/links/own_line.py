"""A line of the server's own to a machine: a request with a file, or a dialled port as a transport.

Theory of operation. The server is the client of a session there. It begins the line as it hands over one that has arrived:
with the state of an end that has read the first header. A connection that is lost is not taken up again: what it was for
fails, and whoever asked begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from typing import Any

from atoll import errors
from atoll.server.cluster.links.link import Link
from atoll.server.cluster.links.preamble import Opening, write_opening
from atoll.server.principal import Principal
from atoll.wire.line import DATA, Line
from atoll.wire.websocket import CLOSE, CONTROL, PIECE, PING, LineError

ACKNOWLEDGED_BYTES = 256 << 10
"""Bytes that come before the next acknowledgement."""


class OwnLine(asyncio.Transport, asyncio.Protocol):
    """One line; for a dialled port a transport whose protocol is set by `carry`."""

    def __init__(self, transport: asyncio.Transport, line: Line) -> None:
        super().__init__()
        self._transport, self._line = transport, line
        self._headers: deque[dict[str, Any]] = deque()
        self._early: deque[bytes] = deque()
        self._changed: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._protocol: asyncio.Protocol | None = None
        self._paused = self._is_over = self._is_closing = False

    # --- the connection -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes of the machine."""
        try:
            events = self._line.feed(data)
        except LineError:
            self._end()
            return
        for kind, value in events:
            if kind == CONTROL:
                self._take(value)
            elif kind == DATA:
                self._give(bytes(value))
            elif kind == PING:
                self._transport.write(self._line.pong(value))
            elif kind == CLOSE:
                self._end()
                return
        if not self._paused:
            self._acknowledge()
        if not self._line.full and not self._room.is_set():
            self._room.set()
            if self._protocol is not None:
                self._protocol.resume_writing()

    def _take(self, header: dict[str, Any]) -> None:
        if header.get("type") == "over":
            self._end()
        elif header.get("type") == "closed" and self._protocol is not None:
            if not self._protocol.eof_received():
                self._end(clean=True)
        else:
            self._headers.append(header)
            self._tell()

    def _give(self, piece: bytes) -> None:
        if self._protocol is not None and not self._paused:
            self._protocol.data_received(piece)
        else:
            self._early.append(piece)

    def _acknowledge(self) -> None:
        if told := self._line.acknowledgement(ACKNOWLEDGED_BYTES):
            self._transport.write(told)

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the line is over either way
        """Note that the connection is gone."""
        self._end()

    def _end(self, *, clean: bool = False) -> None:
        if self._is_over:
            return
        self._is_over = self._is_closing = True
        self._room.set()
        self._tell()
        with contextlib.suppress(RuntimeError):
            self._transport.write(self._line.close())
        self._transport.close()
        asyncio.get_running_loop().call_later(1.0, self._transport.abort)
        if self._protocol is not None:
            self._protocol.connection_lost(None if clean else ConnectionResetError("the machine's connection ended"))

    def _tell(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # --- headers ------------------------------------------------------------------------------------------------------

    async def header(self) -> dict[str, Any]:
        """Return the next header.

        Raises:
            HostUnreachable: the line ended first.
        """
        while not self._headers:
            if self._is_over:
                raise errors.HostUnreachable("the machine does not answer", hint="try again")
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        return self._headers.popleft()

    async def answer(self) -> dict[str, Any]:
        """Return the header that answers the opening one.

        Raises:
            AtollError: as the machine answers.
        """
        while True:
            header = await self.header()
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            if header.get("type") in ("answer", "granted"):
                return header

    async def send(self, data: Any) -> None:
        """Send bytes, as the machine takes them."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            if self._line.full:
                self._room.clear()
                await self._room.wait()
            if self._is_over:
                return
            self._transport.writelines(self._line.send(DATA, bytes(view[start : start + PIECE])))

    # --- a transport --------------------------------------------------------------------------------------------------

    def carry(self, protocol: asyncio.Protocol) -> None:
        """Be the transport of a protocol from here on."""
        self._protocol = protocol
        protocol.connection_made(self)
        self._flush()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `asyncio.Transport`."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol
        self._flush()

    def _flush(self) -> None:
        while self._early and not self._paused and self._protocol is not None:
            self._protocol.data_received(self._early.popleft())

    def write(self, data: Any) -> None:
        """See `asyncio.Transport`."""
        if self._is_over:
            return
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            self._transport.writelines(self._line.send(DATA, bytes(view[start : start + PIECE])))
        if self._line.full and self._room.is_set():
            self._room.clear()
            if self._protocol is not None:
                self._protocol.pause_writing()

    def pause_reading(self) -> None:
        """Acknowledge nothing more: the machine sends at most a window."""
        self._paused = True

    def resume_reading(self) -> None:
        """Read on."""
        self._paused = False
        self._flush()
        if not self._is_over:
            self._acknowledge()

    def is_closing(self) -> bool:
        """See `asyncio.Transport`."""
        return self._is_closing

    def close(self) -> None:
        """End the line."""
        self._is_closing = True
        asyncio.get_running_loop().call_soon(self._end)

    abort = close

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Keep the window: it is the line's own."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.Transport`."""
        return self._transport.get_extra_info(name, default)


async def open_line(link: Link, principal: Principal, header: dict[str, Any]) -> OwnLine:
    """Begin a line at a machine.

    Raises:
        HostUnreachable: the machine gives no connection.
    """
    ours, theirs = Line(client=True), Line(client=False)
    for piece in ours.say(header):
        theirs.feed(piece)
    counts, kept = theirs.state()
    spare = await link.connection()
    written = write_opening(Opening(secrets.token_urlsafe(24), principal, counts, kept, header))
    spare.transport.writelines(written)
    transport = spare.taken()
    line = OwnLine(transport, ours)
    transport.set_protocol(line)
    transport.resume_reading()
    return line
