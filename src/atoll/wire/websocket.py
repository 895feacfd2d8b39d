"""Messages of one WebSocket (RFC 6455): bytes in, events out; no I/O, and nothing that the line does not need.

Binary messages begin with the number of a channel, and are passed on in pieces as they come; texts are passed on whole.
"""

from __future__ import annotations

import os
from typing import Any

from atoll.wire.frames import FrameError

CHANNELS = 3
PIECE = 256 << 10
"""The most of one binary message, besides the byte that names its channel."""
TEXT_CODE, BINARY_CODE, CLOSE_CODE, PING_CODE, PONG_CODE = 1, 2, 8, 9, 10
CONTROL, PING, CLOSE, PONG = -1, -2, -3, -4
"""Kinds of events besides the channels: a text, the texts of a ping and of a pong, the code of a close (0 for none)."""
MAX_SHORT_BYTES = 125
"""The most of a ping, pong or close."""
MOST_PARTS = 1024
"""Frames of one message. No client of Atoll's divides one; a proxy may."""
_NO_MASK = b"\0\0\0\0"
_VIEWED_BYTES = 16 << 10
"""Input above this size is not copied when it is cut."""
_WHOLE_BINARY = 0x80 | BINARY_CODE
"""The first byte of a binary message in one frame."""

Event = tuple[int, Any]


class LineError(FrameError):
    """The other end does not speak the line's protocol, or exceeds its bounds; the connection must be closed."""


def head(code: int, size: int, text: bytes = b"", *, client: bool, hidden: bool = False) -> bytes:
    """Return the head of a message, and the text after it.

    Args:
        size: of the whole message; what `text` lacks follows, for masks of zeros only.
        client: the sender is the client, whose messages are masked.
        hidden: by a mask that is not zeros.
    """
    masked = 0x80 if client else 0
    if size < 126:
        found = bytes((0x80 | code, masked | size))
    elif size < 1 << 16:
        found = bytes((0x80 | code, masked | 126)) + size.to_bytes(2, "big")
    else:
        found = bytes((0x80 | code, masked | 127)) + size.to_bytes(8, "big")
    if not client:
        return found + text
    if not hidden:
        return found + _NO_MASK + text
    key = os.urandom(4)
    return found + key + _masked(text, key, 0)


def binary(channel: int, piece: Any, *, client: bool) -> bytes:
    """Return a whole binary message below 64 KiB; a client's has a mask of zeros."""
    size = len(piece) + 1
    if size < 126:
        return (b"\x82%c\0\0\0\0%c%b" if client else b"\x82%c%c%b") % (size | 0x80 if client else size, channel, piece)
    length = size.to_bytes(2, "big")
    return (b"\x82\xfe%b\0\0\0\0%c%b" if client else b"\x82\x7e%b%c%b") % (length, channel, piece)


class Reader:
    """The receiving half of one connection; `messages` counts those that were whole, `frames` their parts and all others.

    Args:
        masked: the other end is a client.
    """

    def __init__(self, *, masked: bool) -> None:
        self.messages = self.frames = 0
        self._masked = 0x80 if masked else 0
        self._rest = b""
        """The beginning of a head."""
        self._left = -1
        """Bytes of the frame that are to come; -1 between frames."""
        self._code = 0
        self._last = True
        self._open = 0
        """The code of a message whose last frame has not come."""
        self._size = 0
        """Bytes of that message so far."""
        self._parts = 0
        self._channel = -1
        self._key = b""
        self._position = 0
        self._text = bytearray()
        self._short = bytearray()

    @property
    def gathering_bytes(self) -> int:
        """Bytes of a text that has not come whole."""
        return len(self._text)

    @property
    def between(self) -> bool:
        """See `line.Line.between`."""
        return self._left < 0 and not self._open and not self._rest

    def due(self, channel: int) -> int:
        """See `line.Line.due`."""
        if self._channel != channel or self._code != BINARY_CODE or self._key or self._rest:
            return 0
        return max(self._left, 0)

    def took(self, count: int) -> None:
        """See `line.Line.took`."""
        self._left -= count
        if not self._left:
            self._end_frame([])

    def feed(self, data: Any, control_bytes: int) -> list[Event]:
        """Take bytes; return the events that they complete.

        Args:
            control_bytes: the most of one text.

        Raises:
            LineError: see there.
        """
        if self._rest:
            data = self._rest + bytes(data)
            self._rest = b""
        elif len(data) > _VIEWED_BYTES:
            data = memoryview(data)
        elif self._left < 0 and not self._open and (found := self._whole(data)):
            return found
        events: list[Event] = []
        at, end = 0, len(data)
        while at < end:
            if self._left < 0:
                size = self._read_head(data, at, end, control_bytes)
                if not size:
                    self._rest = bytes(data[at:])
                    break
                at += size
            count = min(self._left, end - at)
            if count:
                piece = data[at : at + count]
                at += count
                self._left -= count
                if self._key:
                    piece = self._unmask(piece)
                if self._code == BINARY_CODE:
                    if self._channel < 0:
                        self._channel = piece[0]
                        if self._channel >= CHANNELS:
                            raise LineError(f"there is no channel {self._channel}")
                        piece = piece[1:]
                    if len(piece):
                        events.append((self._channel, piece))
                elif self._code == TEXT_CODE:
                    self._text += piece
                else:
                    self._short += piece
            if not self._left:
                self._end_frame(events)
        return events

    def _whole(self, data: Any) -> list[Event]:
        """Return the event of one small binary message, without the steps of others, if that is all that came."""
        end = len(data)
        if end < 4 or data[0] != _WHOLE_BINARY or data[1] & 0x80 != self._masked:
            return []
        size, at = data[1] & 127, 2
        if size > 125:
            if size == 127 or (size := data[2] << 8 | data[3]) < 126:
                return []
            at = 4
        if self._masked:
            if data[at : at + 4] != _NO_MASK:
                return []
            at += 4
        if size < 2 or at + size != end or data[at] >= CHANNELS:
            return []
        self.messages += 1
        return [(data[at], data[at + 1 :])]

    def _read_head(self, data: Any, at: int, end: int, control_bytes: int) -> int:
        """Begin a frame; return the size of its head, 0 where it has not come whole."""
        if end - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        size = second & 127
        head = 2 if size < 126 else 4 if size == 126 else 10
        if second & 0x80 != self._masked:
            raise LineError("a client's messages are masked, a server's are not")
        if first & 0x70:
            raise LineError("an extension is used that nobody has asked for")
        code, last = first & 15, bool(first & 0x80)
        if end - at < head + (4 if self._masked else 0):
            return 0
        if size > 125:
            least = 126 if size == 126 else 1 << 16
            size = int.from_bytes(data[at + 2 : at + head], "big")
            if size < least:
                raise LineError("a length has more bytes than it needs")
        if code & 8:
            if code > PONG_CODE or not last or size > MAX_SHORT_BYTES:
                raise LineError("a ping, pong or close is malformed")
        else:
            self._begin_part(code, size, control_bytes)
            code = self._open
        if self._masked:
            self._key = bytes(data[at + head : at + head + 4])
            self._position = 0
            head += 4
            if self._key == _NO_MASK:
                self._key = b""
        self._code, self._last, self._left = code, last, size
        self.frames += 1
        return head

    def _begin_part(self, code: int, size: int, control_bytes: int) -> None:
        """Begin a frame of a text or binary message."""
        if code == 0:
            if not self._open:
                raise LineError("a message goes on that has not begun")
        elif code in {TEXT_CODE, BINARY_CODE} and not self._open:
            self._open, self._size, self._parts, self._channel = code, 0, 0, -1
        else:
            raise LineError("a message begins within another, or is of an unknown kind")
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise LineError(f"a message has more than {MOST_PARTS} parts")
        self._size += size
        most = control_bytes if self._open == TEXT_CODE else PIECE + 1
        if self._size > most:
            raise LineError(f"a message has {self._size} bytes, and may have {most}")

    def _end_frame(self, events: list[Event]) -> None:
        self._left = -1
        code = self._code
        if code & 8:
            text, self._short = bytes(self._short), bytearray()
            if code == CLOSE_CODE:
                events.append((CLOSE, int.from_bytes(text[:2], "big")))
            else:
                events.append((PING if code == PING_CODE else PONG, text))
        elif self._last:
            self._open = 0
            self.messages += 1
            if code == TEXT_CODE:
                events.append((CONTROL, bytes(self._text)))
                self._text = bytearray()
            elif self._channel < 0:
                raise LineError("a binary message without a channel")

    def _unmask(self, piece: Any) -> bytes:
        found = _masked(piece, self._key, self._position)
        self._position += len(piece)
        return found


def _masked(data: Any, key: bytes, position: int) -> bytes:
    """Return bytes with a mask put on or taken off, from a position of the message on: a sum of two large numbers."""
    size = len(data)
    turn = position % 4
    stream = (key[turn:] + key[:turn]) * (size // 4 + 1)
    return (int.from_bytes(data, "little") ^ int.from_bytes(stream[:size], "little")).to_bytes(size, "little")


def accepted(key: str) -> str:
    """Return `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key`."""
    import base64  # once for each connection
    import hashlib  # as above

    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
