"""The changed parts of a large file, for a sender: parts that the target's old file has already need not travel.

Theory of operation. The digests of a synced file's blocks are known (`digest`). The new file's blocks are compared
with them from the front, up to the first change; for an equal size, all further blocks are compared in place. For
another size the ends of both files are compared backwards, block by block, so one insertion or removal costs one pass
over the file. A large rest in the middle is cut by content into chunks (FastCDC) on both sides; chunks that both have
need not travel. No decision here is final: the digest of the whole file decides. Chunks are never stored, so the two
ends may cut differently after an upgrade: then more bytes travel.

Source: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data Deduplication", 2016.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from atoll.storage.content.digest import BLOCK_BYTES, DIGEST_BYTES, Hasher, Make

DELTA_BYTES = 1 << 20
"""From this size on a changed file is compared with the target's."""
MIN_CHUNK_BYTES, CHUNK_BYTES, MAX_CHUNK_BYTES = 16 << 10, 64 << 10, 256 << 10
GAP_BYTES = 1 << 20
"""From this size on a changed part is cut into chunks; less is sent whole."""
_SHORT_BYTES = 16
_CHUNK = 4 + _SHORT_BYTES
_WINDOW_BYTES = 4 << 20


class Part(NamedTuple):
    """A part of the new file: `length` bytes at `offset`, equal to the old file's at `start`; -1 for new bytes."""

    offset: int
    length: int
    start: int


def blocks_of(descriptor: int, size: int, make: Make) -> bytes:
    """Return the digests of the blocks of a file of this size.

    Raises:
        OSError: it cannot be read.
    """
    hasher, position = Hasher(make), 0
    while piece := os.pread(descriptor, min(_WINDOW_BYTES, size - position), position):
        hasher.update(piece)
        position += len(piece)
    return hasher.blocks


def cutter() -> Callable[[Any], Iterator[int]] | None:
    """Return a function that cuts a content into the lengths of chunks; None without a compiled FastCDC."""
    try:
        from pyfastcdc import FastCDC
    except ImportError:
        return None
    if FastCDC.__module__.startswith("pyfastcdc.py"):
        return None  # its fallback in Python cuts 200 times slower than a network sends
    cut = FastCDC(CHUNK_BYTES, min_size=MIN_CHUNK_BYTES, max_size=MAX_CHUNK_BYTES).cut_buf
    return lambda content: (chunk.length for chunk in cut(content))


def chunks_of(descriptor: int, start: int, end: int, make: Make) -> bytes:
    """Return the chunks of a part of a file: length and short digest of each, packed.

    Raises:
        OSError: it cannot be read.
    """
    cut, found, position = cutter(), list[bytes](), start
    while cut is not None and position < end:
        wanted = min(_WINDOW_BYTES, end - position)
        window = memoryview(os.pread(descriptor, wanted, position))
        if not window:
            break
        last = len(window) < wanted or position + wanted >= end
        for length in cut(window):
            # a chunk at the end of the window may go on behind it
            if not last and len(window) < MAX_CHUNK_BYTES:
                break
            chunk, window = window[:length], window[length:]
            found.append(length.to_bytes(4, "little") + make(chunk).digest()[:_SHORT_BYTES])
            position += length
    return b"".join(found)


def _table(chunks: bytes, start: int) -> dict[bytes, int]:
    """Return the offset of each chunk of a list that begins at `start`."""
    table: dict[bytes, int] = {}
    for place in range(0, len(chunks) - _CHUNK + 1, _CHUNK):
        table.setdefault(chunks[place : place + _CHUNK], start)
        start += int.from_bytes(chunks[place : place + 4], "little")
    return table


class Comparison:
    """Compares a new file with the blocks of an old one.

    Args:
        read: returns a part of the new file, by offset and length; shorter where it ends.
        size: the new file's size.
        blocks, old_size: of the old file.
        chunks: returns the chunk list of a part of the old file, by start and end.
        make: makes the hashes of `blocks`.

    Attributes:
        hasher: has hashed the new file when `parts` is exhausted.
    """

    def __init__(
        self,
        read: Callable[[int, int], Any],
        size: int,
        blocks: bytes,
        old_size: int,
        chunks: Callable[[int, int], bytes],
        make: Make,
    ) -> None:
        self._read = read
        self._size = size
        self._blocks = blocks
        self._old_size = old_size
        self._chunks = chunks
        self._make = make
        self.hasher = Hasher(make)
        if len(blocks) != DIGEST_BYTES * -(-old_size // BLOCK_BYTES):
            self._blocks, self._old_size = b"", 0

    def _is_block(self, number: int, content: Any) -> bool:
        start = number * DIGEST_BYTES
        return self._make(content).digest() == self._blocks[start : start + DIGEST_BYTES]

    def parts(self) -> Iterator[tuple[Part, Any]]:
        """Yield the parts of the new file in order, new ones with their content.

        Adjacent parts that the target has are merged within a window.
        """
        offset = yield from self._front()
        if offset >= self._size:
            return
        if self._size == self._old_size:
            yield from self._in_place(offset)
            return
        back, shift = self._back(offset), self._size - self._old_size
        old_end = back - shift
        yield from self._middle(offset, back, min(offset, old_end), old_end)
        for position in range(back, self._size, _WINDOW_BYTES):
            content = self._read(position, min(_WINDOW_BYTES, self._size - position))
            self.hasher.update(content)
            yield Part(position, len(content), position - shift), None

    def _front(self) -> Generator[tuple[Part, Any], None, int]:
        """Yield the parts before the first change; return its offset."""
        offset = 0
        while offset < min(self._size, self._old_size):
            window = memoryview(self._read(offset, min(_WINDOW_BYTES, self._size - offset)))
            equal = 0
            while equal < len(window):
                number = (offset + equal) // BLOCK_BYTES
                block = window[equal : equal + BLOCK_BYTES]
                if not self._is_block(number, block):
                    break
                equal += len(block)
            if equal:
                self.hasher.update(window[:equal])
                yield Part(offset, equal, offset), None
            offset += equal
            if equal < len(window) or not window:
                break
        return offset

    def _back(self, front: int) -> int:
        """Return the offset from which on the file equals the end of the old one."""
        shift = self._size - self._old_size
        number = -(-self._old_size // BLOCK_BYTES) - 1
        back = self._size
        while number >= 0:
            start = number * BLOCK_BYTES + shift
            if start < front:
                break
            block = self._read(start, back - start)
            if len(block) != back - start or not self._is_block(number, block):
                break
            back = start
            number -= 1
        return back

    def _in_place(self, offset: int) -> Iterator[tuple[Part, Any]]:
        while offset < self._size:
            window = memoryview(self._read(offset, min(_WINDOW_BYTES, self._size - offset)))
            if not window:
                return
            self.hasher.update(window)
            for start in range(0, len(window), BLOCK_BYTES):
                block = window[start : start + BLOCK_BYTES]
                equal = self._is_block((offset + start) // BLOCK_BYTES, block)
                yield Part(offset + start, len(block), offset + start if equal else -1), None if equal else block
            offset += len(window)

    def _middle(self, start: int, end: int, old_start: int, old_end: int) -> Iterator[tuple[Part, Any]]:
        """Yield the parts between front and back, cut by content if there is enough of it."""
        cut = cutter() if end - start >= GAP_BYTES and old_end - old_start >= MAX_CHUNK_BYTES else None
        table = _table(self._chunks(old_start, old_end), old_start) if cut is not None else {}
        offset = start
        while offset < end:
            wanted = min(_WINDOW_BYTES, end - offset)
            window = memoryview(self._read(offset, wanted))
            if not window:
                return
            if cut is None or not table:
                self.hasher.update(window)
                yield Part(offset, len(window), -1), window
                offset += len(window)
                continue
            last = len(window) < wanted or offset + wanted >= end
            for length in cut(window):
                if not last and len(window) < MAX_CHUNK_BYTES:
                    break
                chunk, window = window[:length], window[length:]
                self.hasher.update(chunk)
                key = length.to_bytes(4, "little") + self._make(chunk).digest()[:_SHORT_BYTES]
                place = table.get(key, -1)
                yield Part(offset, length, place), chunk if place < 0 else None
                offset += length
