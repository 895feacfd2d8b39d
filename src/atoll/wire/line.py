"""A resumable line: control and a few channels of bytes over one WebSocket after the other; the same at both ends, no I/O.

Theory of operation. The subprotocol `atoll.1` knows these messages; those of a client are masked, by zeros where nothing
between the ends could mistake bytes for another protocol (TLS, loopback):

    text            one JSON header with a `type`, as on the daemon's socket; `closed`: the data is over, of a `channel` that
                    a client names: nobody reads it; `over`: all is
    binary          a byte that names the channel (0 data, 1 stdout, 2 stderr), and a piece of that channel
    pong, 8 bytes   unsolicited: "I have passed on N bytes"
    ping            answered by a pong with the same text; ours have none
    close           the clean end of the line, not of a connection alone; 1012: the server drains, resume elsewhere; 4401:
                    the key is not valid any more

Each end counts the bytes that it has received, of binary messages as they come, of text when it is whole. It keeps what it
has sent until the other end has it. A new connection begins with both counts, in the headers of the upgrade, and with what
the other end lacks, from the very byte. What was not acknowledged also bounds both ends' memory: past `WINDOW` an end
stops reading its source (`full`), and a receiver that cannot pass bytes on does not acknowledge them. So no connection is
filled with bytes that nobody takes, and a `kill` behind them arrives.

Headers stand for descriptors that travel on the daemon's socket: `bytes` in a `request` or an `answer` announces so many
bytes in channel 0 right after it, a spool or a file; `certificates_text` in an opening message is that file's text.
`terminal` with `size` (rows, columns), ahead of a call, asks for a pseudo terminal at the server, whose text comes in
channel 1, or gives it another size. A `shell` and an `exec` have stdin in channel 0; with `terminal` in the opening
message they have one from the beginning. `keep`, `have`, `has` and `kept` are in `wire.repeats`. The stream of a `dial` that was cut off ends with `over`, and without `closed`.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from atoll.wire.bounds import parts_of
from atoll.wire.frames import FrameError
from atoll.wire.websocket import (
    BINARY_CODE,
    CLOSE_CODE,
    CONTROL,
    PIECE,
    PING,
    PING_CODE,
    PONG,
    PONG_CODE,
    TEXT_CODE,
    Event,
    LineError,
    Reader,
    binary,
    head,
)

PROTOCOL = "atoll.1"
WINDOW = 4 << 20
"""Bytes, with `MESSAGE_COST` for each message, that may be on their way or wait at the other end."""
CONTROL_BYTES = 4 << 20
"""The most of one text; the first of a line has certificates and requirements."""
MESSAGE_COST = 512
"""Bytes that a message counts for the window beside its own: many tiny ones fill memory too."""
PIECE_COST = 128
"""Bytes of memory that a kept piece takes beside its own, at most."""
MOST_PINGS = 16
"""Pings of one read that are all answered; RFC 6455 asks for the answer to the last one."""
HEADER_PRICE = 50
"""The price of a header in that of a piece: it is read as JSON, and may be passed on to another process."""
PARTS_OF_PIECE, BYTES_OF_PIECE = 8, 2048
"""Parts, and bytes, of a JSON text that cost as much as a piece: server and node read, check and write each of them."""
DATA, STDOUT, STDERR = 0, 1, 2
DRAINS = 1012
"""The code of a close after which the client comes back."""
KEY_ENDED = 4401
"""The code of a close because the client's key is not valid any more."""

_COPIED_BYTES = 32 << 10
"""Pieces up to this size are written together with their heads."""
_MOST_COUNT = 1 << 62
_SESSION = re.compile(r"[A-Za-z0-9_-]{16,128}")
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Line:
    """One end of a line, over all of its connections.

    Args:
        client: this end is the client, whose messages are masked.
        hidden: the client's mask is a real one; see the module.
        control_bytes: the most of one text that is received.
        control_parts: the most parts of one, as `parts_of` counts them; 0 for no bound.
    """

    def __init__(
        self,
        *,
        client: bool,
        hidden: bool = False,
        control_bytes: int = CONTROL_BYTES,
        control_parts: int = 0,
    ) -> None:
        self.hidden = hidden
        self.control_bytes = control_bytes
        self._control_parts = control_parts
        self.received = 0
        """Bytes that have come, which this end names when it resumes."""
        self._client = client
        self.price = 0
        """The price of the messages of the last `feed`, in that of one piece."""
        self._told = 0
        """The count of the last acknowledgement."""
        self.untold = 0
        """What has come since the last acknowledgement, as the window counts."""
        self._kept: deque[tuple[int, Any]] = deque()
        self._start = self._end = 0
        """The counts before the first kept byte and after the last one."""
        self._acknowledged = 0
        self._reader = Reader(masked=not client)

    # --- what this end sends -----------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while no more than control should be sent."""
        return self._end - self._acknowledged + MESSAGE_COST * len(self._kept) > WINDOW

    @property
    def sent(self) -> int:
        """The count after the last byte that was sent or kept."""
        return self._end

    @property
    def unacknowledged(self) -> int:
        """Bytes that the other end has not passed on, as far as is known."""
        return self._end - self._acknowledged

    @property
    def kept_bytes(self) -> int:
        """About the memory that they take: tiny pieces more than their bytes."""
        return self.unacknowledged + PIECE_COST * len(self._kept)

    def keep(self, channel: int, piece: Any) -> None:
        """Keep a piece until the other end has it; where there is a connection, send its `frame` too.

        Args:
            piece: 1 to `PIECE` bytes, which do not change any more; of `CONTROL` a text.
        """
        self._kept.append((channel, piece))
        self._end += len(piece)

    def send(self, channel: int, piece: Any) -> list[Any]:
        """Keep a piece; return what to write for it."""
        self._kept.append((channel, piece))
        self._end += len(piece)
        return self.frame(channel, piece)

    def say(self, header: dict[str, Any]) -> list[Any]:
        """Keep a header; return what to write for it.

        Raises:
            FrameError: it is too large.
        """
        return self.send(CONTROL, text_of(header))

    def frame(self, channel: int, piece: Any) -> list[Any]:
        """Return what to write for a piece that is kept."""
        if channel == CONTROL:
            return [self._head(TEXT_CODE, len(piece), piece)]
        size = len(piece)
        if size <= _COPIED_BYTES and not self.hidden:
            return [binary(channel, piece, client=self._client)]
        if self.hidden:
            return [self._head(BINARY_CODE, size + 1, b"%c%b" % (channel, piece))]
        return [self._head(BINARY_CODE, size + 1) + bytes((channel,)), piece]

    def ping(self) -> bytes:
        """Return a message that keeps the connection in use."""
        return self._head(PING_CODE, 0)

    def pong(self, text: bytes) -> bytes:
        """Return the answer to a ping."""
        return self._head(PONG_CODE, len(text), text)

    def close(self, code: int = 1000) -> bytes:
        """Return the message that ends the connection, and the line unless the code is `DRAINS`."""
        return self._head(CLOSE_CODE, 2, code.to_bytes(2, "big"))

    def _head(self, code: int, size: int, text: bytes = b"") -> bytes:
        return head(code, size, text, client=self._client, hidden=self.hidden)

    # --- what comes --------------------------------------------------------------------------------------------------

    def feed(self, data: Any) -> list[Event]:
        """Take bytes of the connection; return what they say, in order.

        The events are `(channel, piece)`, `(CONTROL, header)`, `(PING, text)` and `(CLOSE, code)`. Pieces are bytes, or
        views of `data`.

        Raises:
            LineError: see there.
        """
        events = self._reader.feed(data, self.control_bytes)
        self.price = max(len(events), self._reader.frames)  # a part that completes nothing was read, too
        self._reader.frames = 0
        again = False
        pings = 0
        for kind, value in events:
            if kind >= 0:
                self.received += len(value)
            elif kind == CONTROL:
                self.received += len(value)
                parts = parts_of(value)
                self.price += price_of(parts, len(value))
                if self._control_parts and parts > self._control_parts:
                    raise LineError(f"a text has more than {self._control_parts} parts")
                again = True
            elif kind == PING:
                pings += 1
            elif kind == PONG:
                again = True
                if len(value) == 8:
                    self._acknowledge(int.from_bytes(value, "big"))
        self.untold = self.received - self._told + MESSAGE_COST * self._reader.messages
        if self.received - self._told > WINDOW + PIECE + CONTROL_BYTES:
            raise LineError("the other end sends on although nothing is acknowledged")
        if pings > MOST_PINGS:  # a flood gets one pong for each read
            last = max(place for place, event in enumerate(events) if event[0] == PING)
            events = [event for place, event in enumerate(events) if event[0] != PING or place == last]
        if not again:
            return events
        return [(kind, header_of(value) if kind == CONTROL else value) for kind, value in events if kind != PONG]

    @property
    def gathering_bytes(self) -> int:
        """Bytes in memory of a text that has not come whole."""
        return self._reader.gathering_bytes

    @property
    def between(self) -> bool:
        """True if no message is half received on the connection."""
        return self._reader.between

    def due(self, channel: int) -> int:
        """Return how many bytes of this channel come next and need no unmasking: for whoever reads them into their place."""
        return self._reader.due(channel)

    def took(self, count: int) -> None:
        """Take note of bytes that were `due` and have been read elsewhere."""
        self._reader.took(count)
        self.received += count
        self.untold += count

    def acknowledgement(self, least: int = 0) -> bytes:
        """Return the message for what has come, which this end has passed on; empty where it is at most `least`."""
        if self.untold <= least or self.received == self._told:
            return b""
        self._told = self.received
        self.untold = self._reader.messages = 0
        return self._head(PONG_CODE, 8, self._told.to_bytes(8, "big"))

    def _acknowledge(self, count: int) -> None:
        if count > self._end:
            raise LineError(f"{count} bytes are acknowledged, and {self._end} were sent")
        if count > self._acknowledged:
            self._acknowledged = count
            self._free(count)

    def _free(self, count: int) -> None:
        kept = self._kept
        while kept and self._start + len(kept[0][1]) <= count:
            self._start += len(kept.popleft()[1])

    # --- connections -------------------------------------------------------------------------------------------------

    def resume(self, count: int) -> Iterator[list[Any]]:
        """Begin a connection in place of another; return what to write first.

        Args:
            count: the bytes that the other end has received.

        Raises:
            LineError: it cannot have.
        """
        if not self._start <= count <= self._end:
            raise LineError(f"{count} bytes cannot have come: of {self._end}, those before {self._start} are not kept")
        self._free(count)
        self._reader = Reader(masked=not self._client)
        return self._again(count)

    def state(self) -> tuple[list[int], list[tuple[int, Any]]]:
        """Return counts and kept pieces, by which `restore` goes on with the line in another process."""
        return [self.received, self._told, self._start, self._acknowledged], list(self._kept)

    def restore(self, counts: list[int], kept: list[tuple[int, Any]]) -> None:
        """Go on where another process has stopped; a connection then begins with `resume`."""
        self.received, self._told, self._start, self._acknowledged = counts
        self.untold = self.received - self._told
        self._kept = deque(kept)
        self._end = self._start + sum(len(piece) for _, piece in kept)

    def _again(self, count: int) -> Iterator[list[Any]]:
        if self._told:  # the last acknowledgement may be lost, and the other end waits for it
            yield [self._head(PONG_CODE, 8, self._told.to_bytes(8, "big"))]
        at = self._start
        for channel, piece in list(self._kept):
            size = len(piece)
            yield self.frame(channel, piece[count - at :] if at < count else piece)
            at += size


def price_of(parts: int, size: int) -> int:
    """Return the price of a JSON text in that of a piece.

    Args:
        parts: as `parts_of` counts them.
        size: in bytes.
    """
    return HEADER_PRICE + parts // PARTS_OF_PIECE + size // BYTES_OF_PIECE


def text_of(header: dict[str, Any]) -> bytes:
    """Return a header as text.

    Raises:
        FrameError: it is too large.
    """
    text = _encode(header).encode()
    if len(text) > CONTROL_BYTES:
        raise FrameError(f"a header of {len(text)} bytes is over the limit of {CONTROL_BYTES}")
    return text


def header_of(text: bytes) -> dict[str, Any]:
    """Return the header in a text.

    Raises:
        LineError: it has none.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LineError(f"a text is no JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("type"), str):
        raise LineError("a text is no object with a `type`")
    return header


def resume_text(session: str, received: int) -> str:
    """Return the value of the client's header `Atoll-Resume`."""
    return f"{session} {received}"


def read_resume(value: str) -> tuple[str, int]:
    """Return the session and the client's count, from the header `Atoll-Resume`.

    Raises:
        LineError: it names none.
    """
    session, _, count = value.partition(" ")
    return read_session(session), read_count(count)


def read_session(value: str) -> str:
    """Return the session that a header names.

    Raises:
        LineError: it names none.
    """
    if not _SESSION.fullmatch(value):
        raise LineError("the header names no session")
    return value


def read_count(value: str) -> int:
    """Return the count in a header.

    Raises:
        LineError: it is none.
    """
    if not value.isascii() or not value.isdigit() or len(value) > 19 or int(value) > _MOST_COUNT:
        raise LineError("the header has no count of bytes")
    return int(value)
