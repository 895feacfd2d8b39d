"""Messages as bytes: no I/O.

A frame is a fixed prefix, the lengths of its buffers, a JSON header and the raw buffers, all integers big-endian:

    magic "AT" | version u8 | flags u8 | header bytes u32 | buffer count u32 | length u64 ... | header | buffers ...

The header is an object with a `type`. Everything is bounded before it is allocated, so that a hostile peer can
neither exhaust memory nor make the decoder loop. The same frames travel on a Unix socket, inside an HTTP body,
and between machines.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

VERSION = 1
MAGIC = b"AT"
PREFIX = struct.Struct("!2sBBII")
MAX_HEADER_BYTES = 4 << 20
MAX_BUFFERS = 1 << 16
MAX_BUFFER_BYTES = 1 << 40

_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class FrameError(ValueError):
    """The bytes are not a frame, or one that is too large; the stream cannot be used any further."""


class Message(NamedTuple):
    """One decoded frame: its header, and its buffers as writable byte arrays."""

    header: dict[str, Any]
    buffers: list[bytearray]

    @property
    def type(self) -> str:
        return str(self.header.get("type", ""))


def encode(header: dict[str, Any], buffers: Sequence[Any] = ()) -> list[Any]:
    """Return the pieces of a frame, to be written in order; buffers are not copied.

    Raises:
        FrameError: the header or the number of buffers is over its limit.
    """
    text = _encode_json(header).encode("utf-8", "surrogatepass")
    if len(text) > MAX_HEADER_BYTES or len(buffers) > MAX_BUFFERS:
        raise FrameError(f"a header of {len(text)} bytes with {len(buffers)} buffers is too large for a frame")
    if not buffers:
        return [PREFIX.pack(MAGIC, VERSION, 0, len(text), 0) + text]
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    lengths = struct.pack(f"!{len(views)}Q", *(view.nbytes for view in views))
    return [PREFIX.pack(MAGIC, VERSION, 0, len(text), len(views)) + lengths + text, *views]


class Decoder:
    """Turn a stream of bytes into messages without copying large buffers.

    Ask `space` for where the next bytes may go, write there, say how many with `wrote`, take what `messages` holds.

    Args:
        max_buffer_bytes: the most that the buffers of one message may add up to.
    """

    _SCRATCH_BYTES = 64 << 10
    _CHUNK_BYTES = 64 << 20

    def __init__(self, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> None:
        self.messages: list[Message] = []
        self._max_buffer_bytes = max_buffer_bytes
        self._scratch = bytearray(self._SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._lengths: tuple[int, ...] = ()
        self._header_bytes = -1
        self._header: dict[str, Any] | None = None
        self._buffers: list[bytearray] = []
        self._filled = 0

    @property
    def between_messages(self) -> bool:
        """Whether the stream may end here."""
        return self._header_bytes < 0 and self._start == self._end

    def space(self) -> memoryview:
        """Return where the next received bytes go; never empty."""
        if self._header is not None:
            buffer = self._buffers[-1]
            if self._filled == len(buffer):  # grow step by step: a length that was only claimed costs nothing
                want = self._lengths[len(self._buffers) - 1]
                buffer.extend(bytes(min(want - len(buffer), max(self._CHUNK_BYTES, len(buffer)))))
            return memoryview(buffer)[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._scratch):
            self._compact()
        return self._view[self._end :]

    def _compact(self) -> None:
        pending = bytes(self._view[self._start : self._end])
        if len(pending) * 2 > len(self._scratch):
            self._view.release()
            self._scratch = bytearray(len(self._scratch) * 2)
            self._view = memoryview(self._scratch)
        self._scratch[: len(pending)] = pending
        self._start, self._end = 0, len(pending)

    def wrote(self, count: int) -> None:
        """Take `count` bytes that were written to `space`.

        Raises:
            FrameError: they are not a frame within the limits.
        """
        if self._header is not None:
            self._filled += count
            self._next_buffer()
        else:
            self._end += count
        while self._header is None and self._parse():
            pass

    def _parse(self) -> bool:
        available = self._end - self._start
        if self._header_bytes < 0:
            if available < PREFIX.size:
                return False
            magic, version, _flags, header_bytes, count = PREFIX.unpack_from(self._scratch, self._start)
            if magic != MAGIC:
                raise FrameError("the stream does not carry Atoll's frames")
            if version != VERSION:
                raise FrameError(f"frame version {version} is not {VERSION}")
            if header_bytes > MAX_HEADER_BYTES or count > MAX_BUFFERS:
                raise FrameError(f"a header of {header_bytes} bytes with {count} buffers is over the limit")
            if available < PREFIX.size + 8 * count:
                return False
            self._lengths = struct.unpack_from(f"!{count}Q", self._scratch, self._start + PREFIX.size)
            if sum(self._lengths) > self._max_buffer_bytes:
                raise FrameError(f"buffers of {sum(self._lengths)} bytes are over {self._max_buffer_bytes}")
            self._start += PREFIX.size + 8 * count
            self._header_bytes = header_bytes
            available = self._end - self._start
        if available < self._header_bytes:
            return False
        text = bytes(self._view[self._start : self._start + self._header_bytes])
        self._start += self._header_bytes
        try:
            header = json.loads(text.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise FrameError(f"the header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise FrameError("the header is not an object")
        self._header = header
        self._buffers = []
        if not self._lengths:
            self._finish()
            return True
        self._open_buffer()
        self._next_buffer()
        return True

    def _open_buffer(self) -> None:
        """Begin the next buffer with what scratch already holds of it."""
        want = self._lengths[len(self._buffers)]
        take = min(want, self._end - self._start)
        buffer = bytearray(min(want, max(take, self._CHUNK_BYTES)))
        buffer[:take] = self._view[self._start : self._start + take]
        self._start += take
        self._filled = take
        self._buffers.append(buffer)

    def _next_buffer(self) -> None:
        while self._filled == self._lengths[len(self._buffers) - 1]:
            if len(self._buffers) == len(self._lengths):
                self._finish()
                return
            self._open_buffer()

    def _finish(self) -> None:
        assert self._header is not None
        self.messages.append(Message(self._header, self._buffers))
        self._header = None
        self._header_bytes = -1
        self._lengths = ()
        self._buffers = []
