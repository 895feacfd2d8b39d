"""A byte stream to a port in a sandbox of a server: a socket of the caller's, whose other end is relayed over a line.

Theory of operation. The two ends are a TCP connection on this machine's loopback: as with a socket that leads straight to
the port, each direction ends by itself, and a stream that was cut off is a `ConnectionResetError`, no end of file. One
thread takes what the line brings and waits for the caller to read it; meanwhile nothing is acknowledged. The other one
reads the caller's end. Both end with the stream, or when the caller closes the socket.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from typing import Any

from atoll import errors
from atoll.host.dial import check
from atoll.host.remote.line_client import LineClient
from atoll.host.remote.server import Server
from atoll.wire.channel import ChannelClosed
from atoll.wire.websocket import PIECE

PROBE_SECONDS = 30
"""Seconds after which the kernel looks whether a caller's end still exists."""


def dial(server: Server, worker: str, port: int) -> socket.socket:
    """Return a socket that is relayed to `port` of 127.0.0.1 in the sandbox of `worker`.

    Raises:
        ValueError: port or worker cannot be one.
        PortUnreachable, WorkerDied: as the server answers.
        HostUnreachable: it cannot be reached.
    """
    check(worker, port)
    stream = _Stream(server, {"type": "dial", "worker": worker, "port": port})
    return stream.start()


class _Stream:
    """One stream.

    Args:
        opening: the message that asks.
    """

    def __init__(self, server: Server, opening: dict[str, Any]) -> None:
        self._came: deque[bytes] = deque()
        self._line = LineClient(server, opening, self._take)

    def _take(self, piece: Any) -> None:
        self._came.append(bytes(piece))

    def start(self) -> socket.socket:
        """Wait for the port's connection; return the caller's end."""
        line = self._line
        try:
            header = line.header(None) or {}
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            theirs, self._ours = _pair()
        except ChannelClosed as error:
            line.close()
            raise line.lost() from error
        except BaseException:
            line.close()
            raise
        fetching = threading.Thread(target=self._fetch, daemon=True)
        fetching.start()
        threading.Thread(target=self._bring, args=(fetching,), daemon=True).start()
        return theirs

    def _bring(self, fetching: threading.Thread) -> None:
        """Write what the line brings to the caller's end."""
        line, ours = self._line, self._ours
        ended = False
        with contextlib.suppress(ChannelClosed, OSError):
            while True:
                while self._came:
                    ours.sendall(self._came.popleft())
                if line.whole and not ended:  # also when the line's own end has come with this one
                    ended = True
                    ours.shutdown(socket.SHUT_WR)
                if line.over or (not line.pump(None) and ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    break
        line.close()
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RD)  # wakes the other thread
            if not ended:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        fetching.join()
        ours.close()

    def _fetch(self) -> None:
        """Send what the caller writes."""
        line, ours = self._line, self._ours
        try:
            while data := ours.recv(PIECE):
                line.offer(data)
            line.tell({"type": "closed"})
        except ChannelClosed:
            pass
        except OSError:  # the caller has closed the socket with bytes in it
            line.withdraw(None)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return two sockets that are connected to each other: the caller's, and the relayed one."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        theirs = socket.create_connection(listener.getsockname())
        try:
            while True:
                ours, address = listener.accept()
                if address == theirs.getsockname():
                    break
                ours.close()  # another program of this machine
        except BaseException:
            theirs.close()
            raise
    for one in (theirs, ours):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            ours.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), PROBE_SECONDS)
    return theirs, ours
