"""A connected socket that does not block, plain or with TLS, on every platform; its owner allows one thread at a time."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import time
import weakref
from collections.abc import Sequence
from typing import Any

from atoll.host.remote import farewells

SEND_SECONDS = 30.0
"""Seconds for the network to take bytes."""
READ_BYTES = 256 << 10
MOST_UNREAD = 64
"""Reads of a connection that is about to be closed."""
_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


_all: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """The socket of one connection.

    Args:
        sock: owned from here on.
        farewell: what the other end is told when this one closes it in order.
    """

    def __init__(self, sock: Any, farewell: bytes) -> None:
        self._socket = sock
        self._farewell = farewell
        _all.add(self)
        self._number = sock.fileno()
        self._secure = isinstance(sock, ssl.SSLSocket)
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._number, select.POLLIN)
            self._poll: Any = poll.poll
        else:
            self._poll = lambda milliseconds: select.select([self._number], [], [], milliseconds / 1000)[0]

    def wait(self, milliseconds: float) -> bool:
        """Wait until there is something to read, or the connection is lost; return whether that is so; any thread may."""
        if self._secure:
            with contextlib.suppress(OSError, ValueError):
                if self._socket.pending():
                    return True
        return bool(self._poll(milliseconds))

    def write(self, pieces: Sequence[Any]) -> None:
        """Write pieces in order. Raises `OSError`."""
        send = self._socket.send
        for piece in pieces:
            try:
                sent = send(piece)
            except _BLOCKED:
                sent = 0
            if sent != len(piece):
                self._write_on(memoryview(piece)[sent:])

    def _write_on(self, view: memoryview) -> None:
        end = time.monotonic() + SEND_SECONDS
        reads = False
        while view:
            if time.monotonic() > end:
                raise TimeoutError("the network takes no bytes")
            self._wait_for_room(reads=reads)
            try:
                view = view[self._socket.send(view) :]
            except _BLOCKED as blocked:
                reads = isinstance(blocked, ssl.SSLWantReadError)

    def _wait_for_room(self, *, reads: bool) -> None:
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._number, select.POLLIN if reads else select.POLLOUT)
            poll.poll(1000)
        else:
            one = [self._number]
            select.select(one if reads else [], [] if reads else one, [], 1.0)

    def read(self) -> bytes | None:
        """Read once; None where nothing has come, empty at the end. Raises `OSError`."""
        try:
            found: bytes = self._socket.recv(READ_BYTES)
        except _BLOCKED:
            return None
        except ValueError as error:  # a TLS connection that is closed
            raise ConnectionResetError(str(error)) from error
        return found

    def read_into(self, space: memoryview) -> int | None:
        """Read once; return how many bytes came, None and 0 as `read`. Raises `OSError`."""
        try:
            count: int = self._socket.recv_into(space)
        except _BLOCKED:
            return None
        except ValueError as error:
            raise ConnectionResetError(str(error)) from error
        return count

    def lose(self) -> None:
        """Have whoever waits find the connection lost."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of TLS would make it a plain socket

    def finish(self) -> None:
        """Say farewell and close."""
        with contextlib.suppress(OSError):
            self._socket.send(self._farewell)
        self.close()

    def close(self) -> None:
        """Close the connection; unread bytes would have the kernel cut it before the last that was sent arrives."""
        _all.discard(self)
        with contextlib.suppress(OSError):
            for _ in range(MOST_UNREAD):
                if not self.read():
                    break
        with contextlib.suppress(OSError):
            self._socket.close()

    def forget(self) -> None:
        """Close this process's copy of a connection that is another's, and say nothing."""
        _all.discard(self)
        with contextlib.suppress(OSError):
            socket.close(self._socket.detach())


def _finish_all() -> None:
    """Close the connections of a program that ends: a server would keep their workers for a while."""
    for stream in list(_all):
        stream.finish()


def _forget_all() -> None:
    for stream in list(_all):
        stream.forget()


farewells.add(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
