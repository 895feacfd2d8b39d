"""A socket that is relayed: read while it is wanted, written without waiting, and handed over with what is unsent.

The event loop's own transports would hold unsent bytes that nobody can take out again, as a handover must.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.wire.websocket import PIECE


class _Handed(bytes):
    """Bytes that go with a descriptor, which is closed when they have gone."""

    descriptor = -1


class SocketEnd:
    """The server's end of a worker's or storage peer's socket.

    Args:
        sock: owned from here on.
        on_data: takes at most `PIECE` bytes that came.
        on_end: is told once that nothing more comes.
        on_room: is told when all unsent bytes have been taken.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._on_data, self._on_end, self._on_room = on_data, on_end, on_room
        self.unsent: deque[Any] = deque()
        self.unsent_bytes = 0
        self.closed = False
        self._reads = False
        self._broken = False

    def hold(self, *, hold: bool) -> None:
        """Stop reading, or go on."""
        if hold != self._reads or self.closed:
            return
        self._reads = not hold
        if hold:
            self._loop.remove_reader(self.socket.fileno())
        else:
            self._loop.add_reader(self.socket.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self.close()
            self._on_end()

    def write(self, data: Any) -> None:
        """Send bytes, now or later; a peer that is gone gets none."""
        if self.closed or self._broken:
            return
        if not self.unsent:
            try:
                count = self.socket.send(data)
            except BlockingIOError:
                count = 0
            except OSError:
                self._broken = True
                return
            if count == len(data):
                return
            data = memoryview(data)[count:]
            self._loop.add_writer(self.socket.fileno(), self._flush)
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    def hand(self, data: bytes, descriptor: int) -> None:
        """Send bytes with a descriptor, which is owned from here on."""
        handed = _Handed(data)
        handed.descriptor = descriptor
        if self.closed or self._broken:
            os.close(descriptor)
            return
        self.unsent.append(handed)
        self.unsent_bytes += len(data)
        self._loop.add_writer(self.socket.fileno(), self._flush)
        self._flush()

    def _send(self, piece: Any) -> int:
        if type(piece) is not _Handed:
            return self.socket.send(piece)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [piece.descriptor]))
        count = self.socket.sendmsg([piece], [rights])
        os.close(piece.descriptor)
        return count

    def _flush(self) -> None:
        unsent = self.unsent
        while unsent:
            piece = unsent[0]
            try:
                count = self._send(piece)
            except BlockingIOError:
                return
            except OSError:
                self._broken = True
                self._forget()
                break
            self.unsent_bytes -= count
            if count < len(piece):
                unsent[0] = memoryview(bytes(piece) if type(piece) is _Handed else piece)[count:]
                return
            unsent.popleft()
        self._loop.remove_writer(self.socket.fileno())
        self._on_room()

    def freeze(self) -> None:
        """Read and write no more; the socket and the unsent bytes stay."""
        self.hold(hold=True)
        if self.unsent and not self.closed:
            self._loop.remove_writer(self.socket.fileno())

    def close(self) -> None:
        """Close the socket."""
        if self.closed:
            return
        self.hold(hold=True)
        self.closed = True
        if self.unsent:
            self._loop.remove_writer(self.socket.fileno())
            self._forget()
        self.socket.close()

    def _forget(self) -> None:
        for piece in self.unsent:
            if type(piece) is _Handed:
                os.close(piece.descriptor)
        self.unsent.clear()
        self.unsent_bytes = 0
