"""Messages as bytes: no I/O.

A frame is a fixed prefix, the lengths of its buffers, a JSON header and the raw buffers, all integers big-endian:

    magic "AT" | version u8 | flags u8 | header bytes u32 | buffer count u32 | length u64 ... | header | buffers ...

The header is an object with a `type`. Everything is bounded before it is allocated, so that a hostile peer can
neither exhaust memory nor make the decoder loop. The same frames travel on a Unix socket, inside an HTTP body,
and between machines.

Between two processes of one machine the buffers of a large frame may travel beside the stream (`flags`, see
`atoll.wire.shared_ring`). The lengths of the chunks, u32 each, then follow the header; a length announces that its chunk
can be fetched.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from atoll.wire.bounds import object_of

VERSION = 1
MAGIC = b"AT"
PREFIX = struct.Struct("!2sBBII")
MAX_HEADER_BYTES = 4 << 20
MAX_BUFFERS = 1 << 16
MAX_BUFFER_BYTES = 1 << 40
BESIDE = 1
"""Flag: the buffers come in chunks beside the stream."""
NEW_RING = 2
"""Flag: two descriptors came with the frame, those of the ring that carries chunks from now on."""
CHUNK = struct.Struct("!I")
MAX_CHUNK_BYTES = 1 << 20
LARGE_BYTES = 1 << 20
"""Buffers of this size have memory of their own, where a decoder is told so."""
UNMEASURED_BYTES = 64 << 20
"""Frames up to this size are received without a look at the free memory."""
SMALL_BYTES = 32 << 10
"""Frames of this size are written in one piece: copying them costs less than handing over several."""

_encode_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_decode_json = json.JSONDecoder().raw_decode
_LENGTHS = tuple(struct.Struct(f"!{count}Q") for count in range(17))
_NOTHING: tuple[Any, ...] = ()


class FrameError(ValueError):
    """The bytes are not a frame, or one that is too large; the stream cannot be used any further."""


class FrameTooLarge(FrameError):
    """The frame's buffers exceed the memory for them; none of them has been read.

    Args:
        size_bytes: of the buffers together.
        most_bytes: the memory for them.
    """

    def __init__(self, size_bytes: int, most_bytes: int) -> None:
        super().__init__(f"buffers of {size_bytes} bytes are over {most_bytes}")
        self.size_bytes = size_bytes
        self.most_bytes = most_bytes


class HeaderTooLarge(FrameError):
    """The frame's header, or the number of its buffers, is over the limit; nothing of it has been read."""

    def __init__(self, size_bytes: int, buffers: int, most_bytes: int) -> None:
        super().__init__(f"a header of {size_bytes} bytes with {buffers} buffers is over the limit of {most_bytes}")
        self.size_bytes = size_bytes
        self.most_bytes = most_bytes


class Rope:
    """A buffer in several parts, which the receiver gets as one."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.nbytes = sum(memoryview(part).nbytes for part in parts)

    def __len__(self) -> int:
        return self.nbytes


class Message(NamedTuple):
    """One decoded frame: its header, and its buffers, writable: byte arrays, or maps of memory where they are large."""

    header: dict[str, Any]
    buffers: list[Any]

    @property
    def type(self) -> str:
        return str(self.header.get("type", ""))


Header = Any
"""The header of a message: a dictionary, or its JSON text as bytes."""


def encode(header: Header, buffers: Sequence[Any] = (), flags: int = 0) -> list[Any]:
    """Return the pieces of a frame, to be written in order; buffers are not copied, but for small ones.

    Args:
        flags: with `BESIDE` the pieces after the first one are to be sent beside the stream.

    Raises:
        FrameError: the header or the number of buffers is over its limit.
    """
    text = header if type(header) is bytes else _encode_json(header).encode("utf-8", "surrogatepass")
    if len(text) > MAX_HEADER_BYTES or len(buffers) > MAX_BUFFERS:
        raise FrameError(f"a header of {len(text)} bytes with {len(buffers)} buffers is too large for a frame")
    if not buffers:
        return [PREFIX.pack(MAGIC, VERSION, flags, len(text), 0) + text]
    if not flags and len(buffers) < len(_LENGTHS):
        size = 0
        for buffer in buffers:
            if type(buffer) is not bytes:
                break
            size += len(buffer)
        else:
            if size <= SMALL_BYTES:
                packed = _LENGTHS[len(buffers)].pack(*map(len, buffers))
                return [b"".join((PREFIX.pack(MAGIC, VERSION, 0, len(text), len(buffers)), packed, text, *buffers))]
    views: list[Any] = []
    sizes = []
    for buffer in buffers:
        if type(buffer) is Rope:
            views.extend(memoryview(part).cast("B") for part in buffer.parts)
            sizes.append(buffer.nbytes)
        else:
            view = memoryview(buffer).cast("B")
            views.append(view)
            sizes.append(view.nbytes)
    lengths = struct.pack(f"!{len(sizes)}Q", *sizes)
    return [PREFIX.pack(MAGIC, VERSION, flags, len(text), len(sizes)) + lengths + text, *views]


def own_memory(size: int) -> Any:
    """Return `size` writable bytes: a map of anonymous memory where they are many, in large pages where there are some.

    Unwritten pages cost nothing, and all of the memory is freed with its last view.

    Raises:
        FrameError: the machine has no such amount of memory.
    """
    if size < LARGE_BYTES:
        return bytearray(size)
    import mmap  # large payloads only

    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, size)
        found = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise FrameError(f"no memory for {size} bytes: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


class Decoder:
    """Turn a stream of bytes into messages without copying large buffers.

    Ask `space` for a buffer, write there, report the number with `wrote`, take the `messages`.
    While `beside` is not 0, the next bytes are that many of a chunk beside the stream.

    Args:
        max_buffer_bytes: the most that the buffers of one message may add up to; 0 for messages without any.
        payloads: buffers may come beside the stream, and large ones get maps of memory.
        free_bytes: returns the memory for a message over `UNMEASURED_BYTES`; None for no limit.
        max_header_bytes: the most of one header.
        scratch_bytes: memory that the decoder holds between messages; a larger header has more until it is complete.
    """

    _STEP_BYTES = 64 << 20

    def __init__(
        self,
        max_buffer_bytes: int = MAX_BUFFER_BYTES,
        *,
        payloads: bool = False,
        free_bytes: Callable[[], int] | None = None,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_header_parts: int = 0,
        scratch_bytes: int = 64 << 10,
    ) -> None:
        self.reserve: Callable[[int], bool] | None = None
        """Asked before scratch grows by some bytes, and told, with a negative number, that it has shrunk."""
        self.messages: list[Message] = []
        self.beside = 0
        self.new_rings = 0
        """The number of frames with `NEW_RING`; the fetcher of chunks keeps the same count."""
        self._max_buffer_bytes = max_buffer_bytes
        self._payloads = payloads
        self._free_bytes = free_bytes
        self._small_counts = len(_LENGTHS) if max_buffer_bytes else 1
        self._max_header_bytes = max_header_bytes
        self._max_header_parts = max_header_parts
        self._scratch_bytes = scratch_bytes
        self._scratch = bytearray(scratch_bytes)
        self._view = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._flags = 0
        self._lengths: tuple[int, ...] = ()
        self._header_bytes = -1
        self._header: dict[str, Any] | None = None
        self._buffers: list[Any] = []
        self._filled = 0
        self._missing = 0

    @property
    def between_messages(self) -> bool:
        """True if the stream may end here."""
        return self._header_bytes < 0 and self._start == self._end

    def space(self) -> memoryview:
        """Return where the next received bytes go; never empty."""
        if self._header is not None and (self.beside or not self._flags & BESIDE):
            buffer = self._buffers[-1]
            if self._filled == len(buffer):  # grow step by step: a length that was only claimed costs nothing
                want = self._lengths[len(self._buffers) - 1]
                buffer.extend(bytes(min(want - len(buffer), max(self._STEP_BYTES, len(buffer)))))
            return memoryview(buffer)[self._filled : self._filled + self.beside if self.beside else None]
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._scratch) > self._scratch_bytes:
                self._resize(self._scratch_bytes)
        elif self._end == len(self._scratch):
            self._compact()
        if self._header_bytes > self._scratch_bytes:  # no further messages into memory that this header alone needs
            return self._view[self._end : self._start + self._header_bytes]
        return self._view[self._end :]

    def _compact(self) -> None:
        pending = bytes(self._view[self._start : self._end])
        if len(pending) * 2 > len(self._scratch):
            self._resize(len(self._scratch) * 2)
        self._scratch[: len(pending)] = pending
        self._start, self._end = 0, len(pending)

    def _resize(self, size: int) -> None:
        """Replace scratch by an empty one of another size, if `reserve` has memory for it."""
        if self.reserve is not None and not self.reserve(size - len(self._scratch)):
            raise FrameError("no memory is left for large messages of this peer")
        self._view.release()
        self._scratch = bytearray(size)
        self._view = memoryview(self._scratch)

    def wrote(self, count: int) -> None:
        """Take `count` bytes that were written to `space`.

        Raises:
            FrameError: they are not a frame within the limits.
        """
        if self._header is None:
            self._end += count
        elif not self._flags & BESIDE:
            self._filled += count
            self._next_buffer()
        elif self.beside:
            self.beside -= count
            self._missing -= count
            self._filled += count
            self._next_buffer()
        else:
            self._end += count
        while True:
            if self._parse_whole():
                if self._start == self._end:  # the usual end of a small message
                    return
            elif not self._parse():
                return

    def _parse_whole(self) -> bool:
        """Take a small frame that scratch holds whole, without the steps that larger ones need; return whether."""
        start, end = self._start, self._end
        if self._header_bytes >= 0 or end - start < PREFIX.size:
            return False
        magic, version, flags, header_bytes, count = PREFIX.unpack_from(self._scratch, start)
        if magic != MAGIC or version != VERSION or flags or count >= self._small_counts:
            return False  # `_parse` raises for any fault of it
        first = start + PREFIX.size + 8 * count
        if first + header_bytes > end:
            return False
        lengths = _LENGTHS[count].unpack_from(self._scratch, start + PREFIX.size) if count else _NOTHING
        at = first + header_bytes
        size = sum(lengths)
        if (
            at + size > end
            or size >= LARGE_BYTES
            or size > self._max_buffer_bytes
            or header_bytes > self._max_header_bytes
        ):
            return False
        try:
            header, used = _decode_json(text := self._scratch[first:at].decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return False
        if used != len(text) or type(header) is not dict:
            return False
        buffers = []
        for length in lengths:
            buffers.append(self._scratch[at : at + length])
            at += length
        self._start = at
        self.messages.append(Message(header, buffers))
        return True

    def _parse(self) -> bool:
        """Parse the bytes in scratch; return whether there may be more to read."""
        if self._header is None:
            return self._parse_header()
        if self.beside or not self._flags & BESIDE or self._end - self._start < CHUNK.size:
            return False
        (size,) = CHUNK.unpack_from(self._scratch, self._start)
        if not 0 < size <= min(MAX_CHUNK_BYTES, self._missing):
            raise FrameError(f"a chunk of {size} bytes where {self._missing} are missing")
        self._start += CHUNK.size
        self.beside = size
        return False

    def _parse_header(self) -> bool:
        available = self._end - self._start
        if self._header_bytes < 0:
            if available < PREFIX.size:
                return False
            magic, version, flags, header_bytes, count = PREFIX.unpack_from(self._scratch, self._start)
            if magic != MAGIC:
                raise FrameError("the stream does not carry Atoll's frames")
            if version != VERSION:
                raise FrameError(f"frame version {version} is not {VERSION}")
            if flags not in ((0, BESIDE, BESIDE | NEW_RING) if self._payloads else (0,)):
                raise FrameError(f"frames with flags {flags} do not travel here")
            if header_bytes > self._max_header_bytes or count > (MAX_BUFFERS if self._max_buffer_bytes else 0):
                raise HeaderTooLarge(header_bytes, count, self._max_header_bytes)
            if available < PREFIX.size + 8 * count:
                return False
            self._lengths = struct.unpack_from(f"!{count}Q", self._scratch, self._start + PREFIX.size)
            self._check_size(sum(self._lengths))
            self._start += PREFIX.size + 8 * count
            self._header_bytes = header_bytes
            self._flags = flags
            available = self._end - self._start
        if available < self._header_bytes:
            return False
        text = bytes(self._view[self._start : self._start + self._header_bytes])
        self._start += self._header_bytes
        try:
            self._header = object_of(text, self._max_header_parts)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"the header is not JSON: {error}") from error
        self._buffers = []
        if self._flags & NEW_RING:
            self.new_rings += 1
        if not self._lengths:
            self._finish()
            return True
        self._open_buffer()
        self._next_buffer()
        return True

    def _check_size(self, size: int) -> None:
        if size > self._max_buffer_bytes:
            raise FrameTooLarge(size, self._max_buffer_bytes)
        if size > UNMEASURED_BYTES and self._free_bytes is not None and size > (most := self._free_bytes()):
            raise FrameTooLarge(size, most)
        self._missing = size

    def _open_buffer(self) -> None:
        """Begin the next buffer with its bytes in scratch."""
        want = self._lengths[len(self._buffers)]
        take = 0 if self._flags & BESIDE else min(want, self._end - self._start)
        buffer = own_memory(want) if self._payloads else bytearray(min(want, max(take, self._STEP_BYTES)))
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
        self._flags = 0
        self._lengths = ()
        self._buffers = []
