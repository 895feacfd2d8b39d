"""One HTTP/1.1 connection to a runner's port, which is used for one request after the other.

Theory of operation. The answer is handed on as it comes. What the client has not taken is bounded: the socket is not read
meanwhile, so the function's own server waits. In the other direction the body waits until the socket takes it.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import httptools

from atoll import errors

HIGH_BYTES, LOW_BYTES = 256 << 10, 64 << 10
"""Bytes of an answer that wait for the client: above the first the socket is not read, below the second again."""
REST_SECONDS = 1.5
"""The longest rest of a connection before another request. Servers close idle ones after 2 s (gunicorn), or 5 s (uvicorn)."""
HEAD_BYTES = 256 << 10
"""The most of an answer's head."""

Headers = Sequence[tuple[bytes, bytes]]


class RunnerGone(errors.HostUnreachable):
    """The connection ended before the answer was whole.

    In the details `began` tells whether the head of the answer has come.
    """


class NotReached(RunnerGone):
    """The runner had ended before it got anything of the request."""


class Exchange(asyncio.Protocol):
    """A connection to a runner's port.

    Args:
        upgrades: its request asks for another protocol, and may be answered by 101.
    """

    def __init__(self, *, upgrades: bool = False) -> None:
        self._upgrades = upgrades
        self.early: bytes | None = None
        """Bytes behind the answer 101, which has made the connection another protocol's; None without one."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._paused = False
        self._is_head = self._is_whole = self._is_lost = False
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.expired = False
        """True once an answer took too long to begin."""
        self.reusable = True
        """False once another request must have another connection."""
        self._poll: select.poll | None = None
        self.rest_since = 0.0
        """When its last answer was whole."""

    # --- asyncio's callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse a piece of the answer."""
        if self.early is not None:
            self.early += data  # uvloop reads on although it was told to pause
            return
        if self._parser is None or self._is_whole:  # nobody has asked anything
            self._lose()
            return
        if not self._is_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._upgrades or self._transport is None:
                self._lose()
                return
            self._transport.pause_reading()
            self.early, self._is_whole, self.reusable = data[upgrade.args[0] :], True, False
        except httptools.HttpParserError:
            self._lose()
        if not self._is_head and self._head_bytes > HEAD_BYTES:
            self._lose()
        if self._waiting_bytes > HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def eof_received(self) -> bool:
        """Note the end of the answers; one without a length ends so."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        if self._is_head and exc is None and not self._has_length:
            self._is_whole = True
        self._is_lost, self.reusable = True, False
        self._tell()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        """Let the body wait."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let it go on."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- httptools' callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse what comes behind the answer: it would be taken for that of the next request.

        Raises:
            ValueError: for the parser, which ends there.
        """
        if self._is_head:
            raise ValueError("there is one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Note that the head is there; one of an interim answer is dropped.

        Raises:
            ValueError: for the parser, which ends there: it is no status.
        """
        status = self._parser.get_status_code()
        if status // 100 == 1 and not (status == 101 and self._upgrades):
            self._headers = []
            return
        if not 100 <= status < 600:
            raise ValueError("no status")
        names = {name for name, _ in self._headers}
        self._has_length = b"content-length" in names or b"transfer-encoding" in names
        self._is_head = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        if not self._is_head:  # an interim one
            return
        self._is_whole = True
        if not self._parser.should_keep_alive():
            self.reusable = False

    # --- a request ----------------------------------------------------------------------------------------------------

    async def ask(self, head: bytes, body: AsyncIterator[bytes] | None) -> tuple[int, Headers]:
        """Send a request, and return the status and the headers of its answer.

        Raises:
            RunnerGone: the connection ended first.
        """
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces.clear()
        self._headers, self._head_bytes, self._waiting_bytes = [], 0, 0
        self._is_head = self._is_whole = self._has_length = False
        self._transport.write(head)
        sending = None if body is None else asyncio.ensure_future(self._send(body))
        if sending is not None:
            sending.add_done_callback(self._sent)
        try:
            while not (self._is_head or self._is_lost):
                if sending is not None and sending.done():
                    sending.result()  # the client has gone: nobody waits for an answer
                await self._change()
            if not self._is_head:
                text = "the function's server ended the connection"
                raise RunnerGone(text, hint="see the endpoint's logs", began=False)
            if sending is not None and sending.done():
                sending.result()
            elif sending is not None:  # it has answered before the body was whole
                self.reusable = False
        finally:
            if sending is not None:
                self._sending = sending
                if not sending.done() and not self._is_head:
                    sending.cancel()
        return int(self._parser.get_status_code()), self._headers

    def _sent(self, sending: asyncio.Task[None]) -> None:
        """Note that the body is sent, or never will be."""
        if not sending.cancelled() and sending.exception() is not None:
            self.reusable = False
        self._tell()

    async def _send(self, body: AsyncIterator[bytes]) -> None:
        assert self._transport is not None
        async for piece in body:
            if self._is_lost:
                return
            self._transport.write(piece)
            if self._writable is not None:
                await self._writable

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body of the answer, as it comes.

        Raises:
            RunnerGone: the connection ended before that was whole.
        """
        while True:
            if self._pieces:
                piece = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
                self._pieces.clear()
                self._waiting_bytes = 0
                if self._paused and self._transport is not None and not self._is_lost:
                    self._paused = False
                    self._transport.resume_reading()
                yield piece
            elif self._is_whole:
                return
            elif self._is_lost:
                raise RunnerGone(
                    "the function's server ended before its answer", hint="see the endpoint's logs", began=True
                )
            else:
                await self._change()

    def rest(self) -> bytes | None:
        """Return all that is left of the answer's body, if that has come; None while more is to come."""
        if not self._is_whole or self._is_lost:
            return None
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return found

    def expire(self) -> None:
        """End the connection: the answer does not begin in time."""
        self.expired = True
        self._lose()
        self._tell()

    def can_ask(self, now: float) -> bool:
        """Return whether a request can be sent: a used connection is still open, as far as this machine knows.

        Args:
            now: by the clock of `rest_since`.
        """
        if not self.reusable or now - self.rest_since > REST_SECONDS:
            return False
        if self._poll is None:
            connected = self.transport.get_extra_info("socket")
            if connected is None:  # one to another machine
                return True
            self._poll = select.poll()
            self._poll.register(connected.fileno(), select.POLLIN | select.POLLRDHUP)
        return not self._poll.poll(0)  # an end, or bytes that nobody asked for, which the loop has not seen yet

    @property
    def transport(self) -> asyncio.Transport:
        """The connection itself."""
        assert self._transport is not None
        return self._transport

    @property
    def is_whole(self) -> bool:
        """True when all of the answer has come."""
        return self._parser is None or (self._is_whole and not self._pieces)

    async def _change(self) -> None:
        self._changed = self._loop.create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    def _tell(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _lose(self) -> None:
        self.reusable = False
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection."""
        sending = getattr(self, "_sending", None)
        if sending is not None and not sending.done():
            sending.cancel()
        if self._transport is not None:
            self._transport.abort()
