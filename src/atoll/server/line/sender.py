"""Bytes on their way to a descriptor, written without waiting, and kept where a handover finds what is unsent.

The event loop's own transports would hold unsent bytes that nobody can take out again, as a handover must.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, MutableSequence
from typing import Any

JOINED_BYTES = 4 << 10
"""Pieces up to this size become one: each has some 100 bytes of memory beside its own."""
VIEWED_PART = 4
"""A view of less than one of so many parts of its bytes is copied: all of them stay in memory with it."""


def keep(pieces: MutableSequence[Any], piece: Any) -> None:
    """Append bytes in a form whose memory is in proportion to their number, however a client has cut them."""
    size = len(piece)
    if size < JOINED_BYTES:
        if pieces and type(pieces[-1]) is bytes and len(pieces[-1]) + size <= JOINED_BYTES:
            pieces[-1] += bytes(piece)
        else:
            pieces.append(bytes(piece))
    elif type(piece) is memoryview and VIEWED_PART * size < memoryview(piece.obj).nbytes:
        pieces.append(bytes(piece))
    else:
        pieces.append(piece)


class Sender(abc.ABC):
    """The writing half of an end; a peer that is gone gets no bytes.

    Args:
        on_room: is told when all unsent bytes have been taken, and when nothing more is written.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_room = on_room
        self.unsent: deque[Any] = deque()
        self.unsent_bytes = 0
        self.finishes = False
        """Nothing is written behind the unsent bytes."""
        self.closed = False
        self._broken = False

    @abc.abstractmethod
    def fileno(self) -> int:
        """Return the descriptor that is written to."""

    @abc.abstractmethod
    def _send(self, piece: Any) -> int:
        """Write what the peer takes now; return the number of bytes.

        Raises:
            OSError: the peer is gone; `BlockingIOError` where it takes none now.
        """

    @abc.abstractmethod
    def _finish(self) -> None:
        """Tell the peer that nothing more comes."""

    @abc.abstractmethod
    def hold(self, *, hold: bool) -> None:
        """Stop reading, or go on."""

    def write(self, data: Any) -> None:
        """Write bytes, now or later."""
        if self.closed or self._broken or self.finishes:
            return
        if not self.unsent:
            try:
                count = self._send(data)
            except BlockingIOError:
                count = 0
            except OSError:
                self._break()
                return
            if count == len(data):
                return
            data = memoryview(data)[count:]
            self._loop.add_writer(self.fileno(), self._flush)
        keep(self.unsent, data)
        self.unsent_bytes += len(data)

    def _flush(self) -> None:
        unsent = self.unsent
        while unsent:
            piece = unsent[0]
            try:
                count = self._send(piece)
            except BlockingIOError:
                return
            except OSError:
                self._loop.remove_writer(self.fileno())
                self._break()
                return
            self.unsent_bytes -= count
            if count < len(piece):
                unsent[0] = memoryview(piece)[count:]
                return
            unsent.popleft()
        self._loop.remove_writer(self.fileno())
        if self.finishes:
            self._end()
        self._on_room()

    def _break(self) -> None:
        self._broken = True
        self._forget()
        self._on_room()

    def finish(self) -> None:
        """Tell the peer that nothing more comes, behind what is unsent."""
        if self.finishes or self.closed:
            return
        self.finishes = True
        if not self.unsent:
            self._end()
            self._on_room()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._finish()

    @property
    def written(self) -> bool:
        """True if nothing is written any more."""
        return self.closed or self._broken or (self.finishes and not self.unsent)

    def freeze(self) -> None:
        """Read and write no more; the descriptor and the unsent bytes stay."""
        self.hold(hold=True)
        if self.unsent and not self.closed:
            self._loop.remove_writer(self.fileno())

    def close(self) -> None:
        """Close the descriptor."""
        if self.closed:
            return
        self.hold(hold=True)
        self.closed = True
        if self.unsent:
            self._loop.remove_writer(self.fileno())
            self._forget()
        self._close()

    @abc.abstractmethod
    def _close(self) -> None: ...

    def _forget(self) -> None:
        self.unsent.clear()
        self.unsent_bytes = 0
