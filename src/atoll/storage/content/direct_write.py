"""The writer of one large file from front to back: hashed as it comes, written by a thread past the page cache.

Content is gathered in aligned buffers, used in turn. The writer's thread writes a full buffer with `O_DIRECT` while
the sender fills the next one: a durable file costs one pass over the disk instead of a copy into the page cache and a
long `fsync`. On file systems without such writes, and for smaller files, the buffers go through the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import queue
import threading
from typing import Any

from atoll.storage.content.digest import Hasher, Make

BUFFER_BYTES = 4 << 20
BUFFERS = 3
DIRECT_BYTES = 16 << 20
"""From this size on a file is written past the page cache."""
_BLOCK = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)

READ_BACK_BYTES = 8 << 20


class ReadBack:
    """Files written past the page cache, to be read into it after the sync, up to a quarter of the machine's memory.

    A function usually loads an uploaded model soon, or the next upload is compared with it.
    """

    def __init__(self) -> None:
        self._left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        self._files: list[tuple[int, int]] = []

    def add(self, descriptor: int, size: int) -> None:
        """Add a complete file."""
        if size <= self._left and len(self._files) < 100:
            self._left -= size
            self._files.append((os.dup(descriptor), size))

    def begin(self) -> None:
        """Ask the kernel to read them, in a thread."""
        files, self._files = self._files, []
        if files:
            threading.Thread(target=_read_back, args=(files,), daemon=True).start()

    def close(self) -> None:
        """Close the files that are not read."""
        files, self._files = self._files, []
        for descriptor, _ in files:
            os.close(descriptor)


def _read_back(files: list[tuple[int, int]]) -> None:
    for descriptor, size in files:
        with contextlib.suppress(OSError):
            for offset in range(0, size, READ_BACK_BYTES):
                os.posix_fadvise(descriptor, offset, READ_BACK_BYTES, os.POSIX_FADV_WILLNEED)
        os.close(descriptor)


class LargeFile:
    """A file being written; owns the descriptor.

    Args:
        descriptor: the file, open for writing.
        make: makes the hasher.
        size: expected size in bytes.
        position: bytes that are there already.
        hasher: a hasher of those bytes.
    """

    def __init__(self, descriptor: int, make: Make, size: int, position: int = 0, hasher: Hasher | None = None) -> None:
        self.descriptor = descriptor
        self.position = position
        self._make = make
        self._hasher = hasher if hasher is not None else Hasher(make)
        self._written = position
        self._filled = 0
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._failed: OSError | None = None
        self._thread: threading.Thread | None = None
        self._size = size
        count = BUFFERS if size > BUFFER_BYTES else 1
        self._buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(count)]
        for buffer in self._buffers:
            self._free.put(memoryview(buffer))
        self._current: Any = None
        self.past_cache = False
        """True if some of it went past the page cache."""
        self._direct = size >= DIRECT_BYTES and position % _BLOCK == 0 and self._set_direct(on=True)
        if count > 1:
            self._thread = threading.Thread(target=self._write_all, daemon=True)
            self._thread.start()

    def _set_direct(self, *, on: bool) -> bool:
        if not _O_DIRECT:
            return False
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
        except OSError:
            return False
        return True

    def write(self, content: Any) -> None:
        """Append content.

        Raises:
            OSError: it, or something before it, cannot be written.
        """
        view = memoryview(content)
        self._hasher.update(view)
        while view:
            space = self._space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self._wrote(count)
            view = view[count:]

    def copy(self, source: int, offset: int, length: int) -> None:
        """Append a part of another file.

        Raises:
            OSError: as `write`; or the other file ends before.
        """
        while length > 0:
            space = self._space()[:length]
            count = os.preadv(source, [space], offset)
            if count == 0:
                raise OSError(errno.ESTALE, "the old file changed while it was read")
            self._hasher.update(space[:count])
            self._wrote(count)
            offset += count
            length -= count

    def _space(self) -> Any:
        """Return the rest of the buffer that is being filled."""
        if self._current is None:
            self._current = self._free.get()
            self._filled = 0
            if self._failed is not None:
                raise self._failed
        return self._current[self._filled :]

    def _wrote(self, count: int) -> None:
        self._filled += count
        self.position += count
        if self._filled == BUFFER_BYTES:
            self._pass_on()

    def _pass_on(self) -> None:
        if self._current is None:
            return
        piece = (self._current, self._filled, self.position - self._filled)
        self._current = None
        if self._thread is None:
            self._write(*piece)
            if self._failed is not None:
                raise self._failed
        else:
            self._full.put(piece)

    def _write_all(self) -> None:
        while (piece := self._full.get()) is not None:
            self._write(*piece)

    def _write(self, buffer: Any, count: int, position: int) -> None:
        try:
            if self._failed is None:
                self._write_piece(buffer, count, position)
        except OSError as error:
            self._failed = error
        finally:
            self._free.put(buffer)

    def _write_piece(self, buffer: Any, count: int, position: int) -> None:
        start = 0
        while start < count:
            if self._direct and ((position + start) % _BLOCK or start % _BLOCK or (count - start) < _BLOCK):
                self._direct = not self._set_direct(on=False)
            end = count - (count - start) % _BLOCK if self._direct else count
            try:
                start += os.pwrite(self.descriptor, buffer[start:end], position + start)
                self.past_cache = self.past_cache or self._direct
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._direct = not self._set_direct(on=False)

    def restart(self) -> None:
        """Begin again from the start, without the content so far."""
        self._drain()
        self._hasher = Hasher(self._make)
        self.position = 0
        os.ftruncate(self.descriptor, 0)
        self._direct = self._size >= DIRECT_BYTES and self._set_direct(on=True)

    def _drain(self) -> None:
        """Wait until all that was handed over is written."""
        if self._current is not None:
            if self._filled:
                self._pass_on()
            else:
                self._free.put(self._current)
                self._current = None
        held = [self._free.get() for _ in self._buffers]
        for buffer in held:
            self._free.put(buffer)
        if self._failed is not None:
            raise self._failed

    def finish(self) -> bytes:
        """Wait until all is written; return the digest.

        Raises:
            OSError: something could not be written.
        """
        self._drain()
        return self._hasher.digest()

    @property
    def blocks(self) -> bytes:
        """The digests of the blocks so far."""
        return self._hasher.blocks

    def close(self) -> None:
        """End the writer and close the file."""
        if self._thread is not None:
            with contextlib.suppress(OSError):
                self._drain()
            self._full.put(None)
            self._thread.join()
            self._thread = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
