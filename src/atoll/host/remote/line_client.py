"""A client's end of a line: one socket after the other, without a thread of its own.

Theory of operation. One thread receives (`pump`), any may send. Whoever receives also mends: it connects again after a
loss, with both counts, and sends again what the server lacks. Senders that find the connection lost keep their bytes and
leave the mending to it. TLS allows no two threads inside one connection, so that all use of it is under a lock, which
nobody holds while waiting for the server.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from atoll import errors
from atoll.host.remote.patience import PING_SECONDS, SILENT_SECONDS
from atoll.host.remote.server import CONNECT_SECONDS, Refused, Server, Upgraded
from atoll.host.remote.sockets import Stream
from atoll.wire.channel import ChannelClosed
from atoll.wire.line import DATA, DRAINS, KEY_ENDED, WINDOW, Line, resume_text, text_of
from atoll.wire.websocket import CLOSE, CONTROL, PIECE, PING, LineError

DIRECT_BYTES = 64 << 10
"""Bytes of a piece from which on it is read into its place."""
KEPT_BYTES = 16 << 10
"""Bytes of answers that a server may keep for the line until the next call acknowledges them."""
TELL_SECONDS = ROOM_SECONDS = 1.0


class LineClient:
    """One line; see the module.

    Args:
        server: to connect to.
        opening: the first header.
        take: takes pieces of the data channel, views that are only valid meanwhile.
        space: returns where the next bytes of data go, and `wrote` is told of them; for large pieces. None for `take` alone.
        printed: takes channel and bytes of the other channels.

    Raises:
        AtollError: the server cannot be reached, or refuses.
    """

    def __init__(
        self,
        server: Server,
        opening: dict[str, Any],
        take: Callable[[Any], None],
        *,
        space: Callable[[], memoryview] | None = None,
        wrote: Callable[[int], None] | None = None,
        printed: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.control: deque[dict[str, Any]] = deque()
        """Headers that have come."""
        self.data_over = self.over = False
        self.whole = False
        """The data has ended in order."""
        self.reason: errors.AtollError | None = None
        self._said = ""  # by a server that could not resume the line for now
        """The reason of the line's end, where the server has refused to go on."""
        self._server = server
        self._take = take
        self._space = space
        self._wrote = wrote
        self._printed = printed
        self._line = Line(client=True, hidden=server.hides)
        self._lock = threading.RLock()
        self._room: threading.Condition | None = None
        self.closed = False
        self._closing = threading.Event()
        self._later: deque[dict[str, Any]] = deque()
        self._session = ""
        self._held: list[Stream] = []
        """The connection of now, where there is one: what the finalizer closes."""
        self._finalizer = weakref.finalize(self, _close_all, self._held)
        self._finalizer.atexit = False
        self.heard = self._pinged = 0.0
        self._open(opening)

    def _open(self, opening: dict[str, Any]) -> None:
        pieces = self._line.say(opening)
        attempts = self._server.attempts(self._closing)
        while True:
            try:
                self._use(self._server.open_line())
                break
            except (Refused, OSError, http.client.HTTPException) as error:
                self._server.wait_after(error, attempts)
        with contextlib.suppress(OSError):
            self._write(pieces)

    def _use(self, upgraded: Upgraded) -> None:
        """Go on over a new connection."""
        _close_all(self._held)  # one that the server has closed at once
        self._held.append(Stream(upgraded.socket, self._line.close()))
        self._session = upgraded.session
        self.heard = time.monotonic()
        if upgraded.rest:
            self._feed(upgraded.rest)

    def _mend(self, why: Exception) -> None:
        """Connect again and resume; with the lock held.

        Raises:
            ChannelClosed: the line is over.
        """
        _close_all(self._held)
        attempts, said = self._server.attempts(self._closing), ""
        while not self.closed and not self.over and attempts.left > 0:
            try:
                upgraded = self._server.open_line(
                    min(CONNECT_SECONDS, attempts.left), resume_text(self._session, self._line.received)
                )
                pieces = self._line.resume(upgraded.taken)
                self._use(upgraded)
                for one in pieces:
                    self._write(one)
                while self._later:
                    self._write(self._line.say(self._later.popleft()))
                return
            except Refused as refused:
                if not refused.passes:
                    self.reason = None if refused.status == 410 else refused.error
                    self._said = said or refused.error.message
                    break
                said = refused.error.message
            except LineError:
                _close_all(self._held)
                break
            except (OSError, http.client.HTTPException):
                _close_all(self._held)
                said = ""
            if not attempts.wait(f"says that {said}" if said else "does not answer, as while it restarts"):
                break
        self.over = True
        raise ChannelClosed("the connection to the server was lost", self.reason) from why

    def lost(self) -> errors.AtollError:
        """Return the error of work that the line's end has cut off."""
        why = f", since {self._said}" if self._said else ""
        return self.reason or errors.HostUnreachable(
            f"the connection to {self._server.shown} was lost and cannot be resumed{why}", hint="call again"
        )

    # --- sending -----------------------------------------------------------------------------------------------------

    def _write(self, pieces: Sequence[Any]) -> None:
        """Write pieces; with the lock held. Raises `OSError`."""
        self._stream().write(pieces)

    def _put(self, pieces: Sequence[Any]) -> None:
        """Write pieces; with the lock held. A connection that is lost is mended by the thread that receives."""
        try:
            self._write(pieces)
        except OSError:
            self._lose()

    def _stream(self) -> Stream:
        if not self._held:
            raise ConnectionResetError("there is no connection")
        return self._held[0]

    def _lose(self) -> None:
        """Have the thread that receives find the connection lost, and mend it."""
        for stream in self._held:
            stream.lose()

    def _check(self) -> None:
        if self.over or self.closed:
            raise ChannelClosed("the line is over", self.reason)

    def tell(self, header: dict[str, Any]) -> None:
        """Send a header; from any thread. While the connection is mended, the mending sends it."""
        self._check()
        self._later.append(header)
        if not self._lock.acquire(timeout=TELL_SECONDS):
            return
        try:
            while self._later:
                self._put(self._line.say(self._later.popleft()))
        finally:
            self._lock.release()

    def send(self, pieces: Sequence[Any]) -> None:
        """Send pieces in the data channel, and headers in order with them; while the window is full, take what comes.

        Raises:
            ChannelClosed: the line is over.
        """
        for whole in pieces:
            if type(whole) is dict:
                self._send(text_of(whole), CONTROL)
            elif type(whole) is bytes and len(whole) <= PIECE:
                self._send(whole)
            else:
                view = memoryview(whole).cast("B")
                for at in range(0, view.nbytes, PIECE):
                    self._send(bytes(view[at : at + PIECE]))  # a copy: what is kept must not change

    def _send(self, piece: bytes, channel: int = DATA) -> None:
        line = self._line
        while line.full:
            self._check()
            self.pump(None)
        self._check()
        with self._lock:
            written = line.send(channel, piece)
            if line.untold > KEPT_BYTES:
                written.insert(0, line.acknowledgement())
            self._put(written)

    def offer(self, piece: bytes) -> None:
        """Send a piece from another thread than the one that receives, which makes the room in the window.

        Args:
            piece: `PIECE` bytes at most.

        Raises:
            ChannelClosed: the line is over.
        """
        room = self._room = self._room or threading.Condition()
        with room:
            while self._line.full:
                self._check()
                room.wait(ROOM_SECONDS)  # a line that ends elsewhere tells nobody
        self._send(piece)

    def settle(self) -> None:
        """Acknowledge what has come, where that lets the server forget much."""
        if self._line.untold > DIRECT_BYTES:
            with self._lock, contextlib.suppress(OSError):
                self._write([self._line.acknowledgement()])

    # --- receiving ---------------------------------------------------------------------------------------------------

    def pump(self, milliseconds: float | None, *, mends: bool = True) -> bool:
        """Take what has come, or wait for it; return whether there was something.

        Args:
            mends: False to leave a lost connection as it is.

        Raises:
            ChannelClosed: the line is over; without `mends` also where the connection is lost.
        """
        most = 1000 * PING_SECONDS
        for stream in self._held[:1]:
            if not stream.wait(most if milliseconds is None else min(milliseconds, most)):
                if milliseconds is None or milliseconds > most:
                    self._keep_in_use()
                return False
        with self._lock:
            self._check()
            try:
                self._receive()
                if self._line.untold > WINDOW // 4:
                    self._write([self._line.acknowledgement()])
            except LineError as error:
                self.over = True
                _close_all(self._held)
                self.reason = errors.ProtocolMismatch(
                    f"{self._server.shown} does not keep to the protocol: {error}", hint="upgrade the older side"
                )
                raise ChannelClosed(str(error), self.reason) from error
            except OSError as error:
                if not mends:
                    _close_all(self._held)
                    raise ChannelClosed("the connection was lost") from error
                self._mend(error)
        if self._room is not None and not self._line.full:
            with self._room:
                self._room.notify_all()
        return True

    def _receive(self) -> None:
        """Read once. Raises `OSError` where the connection is lost."""
        line, stream = self._line, self._stream()
        if self._space is not None and (due := line.due(DATA)) >= DIRECT_BYTES:
            with self._space() as space, space[:due] as part:
                count = stream.read_into(part)
            if count:
                line.took(count)
                self.heard = time.monotonic()
                assert self._wrote is not None
                self._wrote(count)
                return
            data = None if count is None else b""
        else:
            data = stream.read()
        if data is None:
            return
        if not data:
            raise ConnectionResetError("the connection was closed")
        self.heard = time.monotonic()
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        for kind, value in self._line.feed(data):
            if kind == DATA:
                self._take(value)
            elif kind > DATA:
                if self._printed is not None:
                    self._printed(kind, bytes(value))
            elif kind == CONTROL:
                if value["type"] == "closed":
                    self.whole = self.data_over = True
                elif value["type"] == "over":
                    self.over = self.data_over = True
                else:
                    self.control.append(value)
            elif kind == PING:
                self._write([self._line.pong(value)])
            elif kind == CLOSE:
                if value != DRAINS:
                    self.over = self.data_over = True
                    self.reason = self._server.key_ended() if value == KEY_ENDED else self.reason
                raise ConnectionResetError("the server has closed the connection")

    def _keep_in_use(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self.heard > SILENT_SECONDS:
                self._lose()
            elif now - max(self.heard, self._pinged) >= PING_SECONDS - 1:
                self._pinged = now
                self._put([self._line.ping()])

    def alive(self, seconds: float) -> bool:
        """Return whether the server answers now."""
        heard = self.heard
        end = time.monotonic() + seconds
        try:
            with self._lock:
                self._write([self._line.ping()])
            while self.heard == heard and (left := end - time.monotonic()) > 0:
                self.pump(1000 * left)
        except (OSError, ChannelClosed):
            return False
        return self.heard != heard

    def header(self, milliseconds: float | None) -> dict[str, Any] | None:
        """Return the next header; None where none comes in time.

        Raises:
            ChannelClosed: there will be none.
        """
        end = None if milliseconds is None else time.monotonic() + milliseconds / 1000
        while not self.control:
            if self.over:
                raise ChannelClosed("the line is over", self.reason)
            left = None if end is None else 1000 * (end - time.monotonic())
            if left is not None and left < 0:
                return None
            self.pump(left)
        return self.control.popleft()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.closed = True
        self._closing.set()

    def withdraw(self, header: dict[str, Any] | None) -> None:
        """Send a last header, if there is one, and end the line; from any thread. The thread that receives is woken."""
        self._end()
        if not self._lock.acquire(timeout=TELL_SECONDS):
            return
        try:
            if self._held and not self.over:
                last = self._line.say(header) if header is not None else []
                with contextlib.suppress(OSError):
                    self._write([*last, self._line.close()])
            self._lose()
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the line, and say so to the server."""
        self._end()
        with self._lock:
            for stream in self._held:
                stream.finish()
            _close_all(self._held)

    def forget(self) -> None:
        """In a forked child: close the copy of the parent's connection, and say nothing."""
        self._end()
        self._lock = threading.RLock()
        while self._held:
            self._held.pop().forget()


def _close_all(held: list[Stream]) -> None:
    while held:
        held.pop().close()
