"""Large payloads between two processes of one machine: one copy on each side, through a small piece of shared memory.

Theory of operation. The sender has a memory file of a few slots. It copies a chunk of the payload into a slot, writes
the chunk's length to the stream of frames, and goes on with the next slot; the receiver copies the chunk to where it
belongs and gives the slot back on a socket pair of its own. The two copies run at the same time on two processors, the
slots stay in their cache, and nobody ever has a payload twice.

Neither side maps the file: it is read and written by `pread` and `pwrite`, so that a peer that truncates it causes a
short read and no SIGBUS. The bytes are copied out before anybody looks at them, so a peer that changes them later
changes nothing. A peer's descriptors are used only if the kernel reports the expected types: reading a pipe, or
writing to a file, could block for ever. Received bytes are ordinary private memory of the
receiver: its limit counts it, forks copy it, and it is gone when the last view of it is.

The cost of a new page of memory decides which is faster; docs/decisions/0009 has measurements.
"""

from __future__ import annotations

import _socket
import os
import select
from typing import Any

from atoll.wire.frames import CHUNK, MAX_CHUNK_BYTES, FrameError

SLOTS = 4
SLOT_BYTES = MAX_CHUNK_BYTES
_IOV_MAX = 512
_DONT_WAIT = getattr(_socket, "MSG_DONTWAIT", 0)
_GONE = getattr(select, "POLLHUP", 0) | getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLERR", 0)

Socket = _socket.socket


class Outlet:
    """The sender's side of a ring; used by one thread at a time.

    Raises:
        OSError: this machine has no memory files, or no descriptors left.
    """

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("no memory files here")
        self._file = os.memfd_create("atoll-payload")
        try:
            os.ftruncate(self._file, SLOTS * SLOT_BYTES)
            self._returned, self._theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        except BaseException:
            os.close(self._file)
            raise
        self._free = SLOTS
        self._next = 0

    @property
    def descriptors(self) -> tuple[int, int]:
        """The receiver's descriptors; to be sent once, before `given`."""
        return self._file, self._theirs.fileno()

    def given(self) -> None:
        """Say that the descriptors are on their way."""
        self._theirs.close()

    def write(self, stream: Socket, views: list[Any]) -> None:
        """Send the bytes of `views`, and their chunks' lengths on `stream`.

        Raises:
            ConnectionError: the receiver is gone, or does not behave.
            OSError: there is no memory for the slots.
        """
        number, offset = 0, 0
        while number < len(views):
            parts: list[Any] = []
            size = 0
            while number < len(views) and size < SLOT_BYTES and len(parts) < _IOV_MAX:
                part = views[number][offset : offset + SLOT_BYTES - size]
                parts.append(part)
                size += part.nbytes
                offset += part.nbytes
                if offset == views[number].nbytes:
                    number, offset = number + 1, 0
            if not size:
                continue
            if not self._free:
                self._wait(stream)
            place = self._next * SLOT_BYTES
            if os.pwritev(self._file, parts, place) != size:
                raise OSError("a chunk was written in part")
            self._next = (self._next + 1) % SLOTS
            self._free -= 1
            stream.sendall(CHUNK.pack(size))

    def _wait(self, stream: Socket) -> None:
        """Wait until a slot is free again."""
        waiting = select.poll()
        waiting.register(self._returned, select.POLLIN)
        waiting.register(stream, _GONE)
        while not self._free:
            for descriptor, _ in waiting.poll():
                if descriptor != self._returned.fileno():
                    raise BrokenPipeError("the receiver is gone")
                self._free += len(self._returned.recv(SLOTS + 1)) or SLOTS + 1
        if self._free > SLOTS:
            raise BrokenPipeError("the receiver is gone, or gives back more than it got")

    def close(self) -> None:
        os.close(self._file)
        self._returned.close()
        self._theirs.close()


class Inlet:
    """The receiver's side of a ring, of descriptors that a peer sent; owns them from here on.

    Raises:
        FrameError: they are not those of an `Outlet`.
    """

    def __init__(self, file: int, returns: int) -> None:
        import fcntl

        self._file = file
        self._next = 0
        self._read = 0
        try:
            try:
                # Only files in memory have seals, and reading these never waits for anybody.
                fcntl.fcntl(file, getattr(fcntl, "F_GET_SEALS", 1034))
                self._returns = Socket(fileno=returns)
            except OSError as error:
                os.close(returns)
                raise FrameError(f"what came with the frame is not a ring: {error}") from error
            if self._returns.family != _socket.AF_UNIX or self._returns.type != _socket.SOCK_STREAM:
                self._returns.close()
                raise FrameError("what came with the frame is not a ring")
        except FrameError:
            os.close(file)
            raise

    def read(self, view: memoryview) -> int:
        """Copy the next bytes of the current chunk to `view`, which is no larger than the rest of the chunk.

        Raises:
            FrameError: it is not there.
        """
        try:
            count = os.preadv(self._file, [view], self._next * SLOT_BYTES + self._read)
        except OSError as error:
            raise FrameError(f"a chunk cannot be read: {error}") from error
        if not count:
            raise FrameError("a chunk is not there")
        self._read += count
        return count

    def done(self) -> None:
        """Give the chunk's slot back."""
        self._next = (self._next + 1) % SLOTS
        self._read = 0
        try:
            self._returns.send(b"\0", _DONT_WAIT)
        except BlockingIOError as error:
            raise FrameError("the sender does not take its slots back") from error
        except ConnectionError:  # the peer is gone; its earlier bytes in the stream are still to be read
            pass
        except OSError as error:
            raise FrameError(f"a slot cannot be given back: {error}") from error

    def close(self) -> None:
        os.close(self._file)
        self._returns.close()
