"""A follower of frames in a stream that passes through: it finds headers, and neither copies nor keeps payloads.

The streams belong to a client and its worker, who check what they get. So a follower that meets anything else than
frames follows no further, and says nothing.
"""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from atoll.wire.frames import MAGIC, MAX_BUFFERS, MAX_HEADER_BYTES, PREFIX

LOOK_BYTES = 8 << 10
"""The beginning of a header, which has its type and mostly the call's id."""
MOST_FRAMES = 4000
"""Frames that are followed in one piece, which then have 65 bytes on average: the loop waits for their headers.

Clients and workers send larger ones. Beyond it no more are followed: the stream goes on, and output is in no record.
"""
_MOST_ID = 200
_CALL = re.compile(rb'"call":"([^"\\]{1,200})"')
_LAST_CALL = re.compile(rb',"call":"([\w.-]{1,200})","at":[\d.e+-]+}')
"""The end of a header as this version writes it."""
_LENGTHS = tuple(struct.Struct(f"!{count}Q") for count in range(17))


class Follower:
    """Follows one direction of a stream of frames."""

    def __init__(self) -> None:
        self._head = bytearray()
        """The beginning of a frame that has come in pieces; it grows in place, as a table of lengths has 512 KiB."""
        self._left = 0
        """Bytes of the present frame that are of no interest."""
        self._lost = False

    def feed(self, data: Any) -> list[bytes]:
        """Return the beginnings of the headers that are complete with these bytes."""
        at, size = 0, len(data)
        if not (self._left or self._head or self._lost) and (header := _whole(data, size)):
            return [header]
        found: list[bytes] = []
        while at < size and not self._lost:
            if len(found) >= MOST_FRAMES:
                self._lost = True
                return []
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            if self._head:
                lacking = self._lacking()
                piece = data[at : at + lacking]
                self._head += piece
                at += len(piece)
                if len(piece) == lacking:
                    joined, self._head = self._head, bytearray()
                    self._begin(joined, 0, len(joined), found)
            else:
                at += self._begin(data, at, size, found)
        return found

    def _lacking(self) -> int:
        """Return how many bytes the kept beginning lacks for the next step."""
        return _needed(self._head, 0, len(self._head)) - len(self._head)

    def _begin(self, data: Any, at: int, end: int, found: list[bytes]) -> int:
        """Begin a frame, or keep its beginning; return the bytes that were used."""
        needed = _needed(data, at, end)
        if needed < 0:
            self._lost = True
            return end - at
        if end - at < needed:
            self._head = bytearray(data[at:end])
            return end - at
        _, _, _, header, count = PREFIX.unpack_from(data, at)
        first = PREFIX.size + 8 * count
        found.append(bytes(data[at + first : at + first + min(header, LOOK_BYTES)]))
        total = first + header + sum(struct.unpack_from(f"!{count}Q", data, at + PREFIX.size))
        step: int = min(total, end - at)
        self._left = total - step
        return step

    def state(self) -> list[Any]:
        """Return the place in the stream as JSON-compatible data; `restore` takes it."""
        return [self._head.hex(), self._left, self._lost]

    def restore(self, state: list[Any]) -> None:
        """Go on where another follower has stopped."""
        self._head, self._left, self._lost = bytearray.fromhex(state[0]), int(state[1]), bool(state[2])


def _whole(data: Any, size: int) -> bytes:
    """Return the header of a small frame, without the steps of others, if that is all that came; else nothing."""
    if size < PREFIX.size:
        return b""
    magic, _, flags, header, count = PREFIX.unpack_from(data)
    first = PREFIX.size + 8 * count
    if magic != MAGIC or flags or header > LOOK_BYTES or count >= len(_LENGTHS) or first + header > size:
        return b""
    if first + header + sum(_LENGTHS[count].unpack_from(data, PREFIX.size)) != size:
        return b""
    return bytes(data[first : first + header])


def _needed(data: Any, at: int, end: int) -> int:
    """Return how many bytes of a frame are needed to see its header's beginning; -1 where there is no frame."""
    if end - at < PREFIX.size:
        return PREFIX.size
    magic, _, flags, header, count = PREFIX.unpack_from(data, at)
    if magic != MAGIC or flags or header > MAX_HEADER_BYTES or count > MAX_BUFFERS:
        return -1
    return PREFIX.size + 8 * int(count) + min(int(header), LOOK_BYTES)


def call_of(header: bytes) -> str:
    """Return the id of the call that a header begins; empty where it begins none."""
    if not header.startswith(b'{"type":"call"'):
        return ""
    if len(header) < LOOK_BYTES:
        at = header.rfind(b',"call":"')
        if at > 0 and (last := _LAST_CALL.fullmatch(header, at)) is not None:
            return last[1].decode("utf-8", "replace")
        try:
            found = json.loads(header).get("call", "")
        except (ValueError, RecursionError):
            return ""
        return found if isinstance(found, str) and len(found) <= _MOST_ID else ""
    match = _CALL.search(header)
    return match[1].decode("utf-8", "replace") if match is not None else ""


def answers(header: bytes) -> bool:
    """Return whether a worker's header ends a call."""
    return header.startswith((b'{"type":"result"', b'{"type":"error"', b'{"type":"exiting"'))
