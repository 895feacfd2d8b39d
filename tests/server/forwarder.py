"""A forwarder between clients and a server: counts bytes, and cuts connections."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self


class Forwarder:
    """Forwards connections to a port of this machine, while its context is open.

    Attributes:
        up, down: bytes that clients have sent, and received.
        connections: how many there were.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up = self.down = self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.cut_after: int | None = None
        """Bytes from the client after which its connection is cut, once."""

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """End all connections as a failing network does."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._forward, args=[ours])
            self._threads.append(thread)
            thread.start()

    def _forward(self, ours: socket.socket) -> None:
        with ours, socket.create_connection(("127.0.0.1", self._to)) as theirs:
            self._open += [ours, theirs]
            with contextlib.suppress(OSError):
                while True:
                    readable, _, _ = select.select([ours, theirs], [], [])
                    for sock in readable:
                        if not (data := sock.recv(1 << 18)):
                            return
                        if sock is ours:
                            self.up += len(data)
                            theirs.sendall(data)
                        else:
                            self.down += len(data)
                            ours.sendall(data)
                    if self.cut_after is not None and self.up >= self.cut_after:
                        self.cut_after = None
                        return
