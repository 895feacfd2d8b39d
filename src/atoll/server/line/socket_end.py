"""A socket that is relayed: read while it is wanted, written without waiting, and handed over with what is unsent."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from typing import Any

from atoll.server.line.sender import Sender
from atoll.wire.websocket import PIECE


class _Handed(bytes):
    """Bytes that go with a descriptor, which is closed when they have gone."""

    descriptor = -1


class SocketEnd(Sender):
    """The server's end of the socket of a worker, a storage peer, or a port in a sandbox.

    Args:
        sock: owned from here on.
        on_data: takes at most `PIECE` bytes that came.
        on_end: is told once that nothing more comes.
        on_room: see `Sender`.
        halves: the socket is written to although its peer sends nothing more, until `finish`.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_data: Callable[[bytes], None],
        on_end: Callable[[], None],
        on_room: Callable[[], None],
        *,
        halves: bool = False,
    ) -> None:
        super().__init__(on_room)
        sock.setblocking(False)
        self.socket = sock
        self._on_data, self._on_end = on_data, on_end
        self._halves = halves
        self.read_over = False
        """Nothing more comes, and the socket is not closed."""
        self.lost = False
        """The peer has gone without an end of its bytes."""
        self._reads = False

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def hold(self, *, hold: bool) -> None:
        """Stop reading, or go on."""
        if hold != self._reads or self.closed or self.read_over:
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
            self.lost = True
            data = b""
        if data:
            self._on_data(data)
            return
        if self._halves and not self.lost:
            self.hold(hold=True)
            self.read_over = True
        else:
            self.close()
        self._on_end()

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

    def _break(self) -> None:
        super()._break()
        if self._halves and not self.closed:
            self.lost = True
            self.close()
            self._on_end()

    def _finish(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        self.socket.close()

    def _forget(self) -> None:
        for piece in self.unsent:
            if type(piece) is _Handed:
                os.close(piece.descriptor)
        super()._forget()
