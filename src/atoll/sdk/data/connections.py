"""Connections of one `Volume` to storage peers; each is used by one thread at a time.

Each connection has a storage peer, a process of its own, at its other end: so a volume has few, and threads wait for
them. When no thread uses any, those without open files go back to the host, which keeps some of their peers a while
for the next client. A forked child uses none of its parent's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from atoll.errors import HostUnreachable
from atoll.wire import nested

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.storage.client.contents import OpenFile
    from atoll.storage.protocol.connection import Connection

MOST = 4
MOST_NESTED = 2
"""The limit in a function, whose worker may have four storage peers in all."""


class Borrowed:
    """One connection, and the thread that uses it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.thread: int | None = threading.get_ident()
        """The current user, None while the connection is idle."""
        self.pid = os.getpid()
        self.garbage: list[OpenFile] = []
        """Files that were collected as garbage in the middle of a request; they are closed after it."""
        self.closed = False
        """True when `VolumeConnections.close` has ended the connection."""


class VolumeConnections:
    """Give threads connections to a host's storage.

    Args:
        host: the volume's host.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._all: list[Borrowed] = []
        self._opening = 0

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Borrowed]:
        """Give this thread a connection for one request, or a few; wait for one while all are in use."""
        if self._pid != os.getpid():
            self._abandon(self._all)
            self._reset()
        borrowed = self._free()
        if borrowed is None:
            try:
                borrowed = Borrowed(self._open())
            finally:
                with self._turn:
                    self._opening -= 1
                    if borrowed is not None:
                        self._all.append(borrowed)
                    self._turn.notify()
        with self._returned(borrowed):
            yield borrowed

    @contextlib.contextmanager
    def use(self, borrowed: Borrowed) -> Iterator[Connection]:
        """Give this thread the connection, which holds a file open.

        Raises:
            ValueError: the connection was closed, with its open files.
            HostUnreachable: the parent of this process opened the connection, or its peer has gone.
        """
        if borrowed.pid != os.getpid():
            raise HostUnreachable("a file of a volume cannot be used in a forked process", hint="open it again there")
        with self._turn:
            if borrowed.thread == threading.get_ident():  # the garbage collector runs in the middle of a request
                raise RuntimeError("a file of a volume was not closed before it was collected")
            self._turn.wait_for(lambda: borrowed.thread is None)
            if borrowed.closed:
                raise ValueError("I/O operation on closed file: its volume has been closed")
            if borrowed not in self._all:
                raise HostUnreachable("the storage peer that held the file open has gone", hint="open the file again")
            borrowed.thread = threading.get_ident()
        with self._returned(borrowed):
            yield borrowed.connection

    def close_file(self, borrowed: Borrowed, file: OpenFile, *, commit: bool) -> None:
        """Close a file that a connection holds open; see `OpenFile.close`."""
        if borrowed.thread == threading.get_ident():
            borrowed.garbage.append(file)
            return
        if borrowed.closed and not commit:  # nothing is lost
            return
        with self.use(borrowed):
            file.close(commit=commit)

    def close(self) -> None:
        """Close all connections with their open files; the next `borrow` opens a new one."""
        with self._turn:
            closed, self._all = self._all, []
            for borrowed in closed:
                borrowed.closed = True
            self._turn.notify_all()
        if self._pid == os.getpid():
            for borrowed in closed:
                borrowed.connection.close()
        else:
            self._abandon(closed)

    def _free(self) -> Borrowed | None:
        """Return an idle connection, borrowed from now on; None is leave to open one."""
        most = MOST_NESTED if nested.inside() else MOST
        with self._turn:
            while True:
                for borrowed in [one for one in self._all if one.thread is None]:
                    if borrowed.connection.usable:
                        borrowed.thread = threading.get_ident()
                        return borrowed
                    self._all.remove(borrowed)  # its peer has gone
                    borrowed.connection.abandon()
                if len(self._all) + self._opening < most:
                    self._opening += 1
                    return None
                self._turn.wait()

    def _open(self) -> Connection:
        from atoll.storage.protocol.connection import Connection

        return Connection(self._host.open_storage(), self._host.keep_storage)

    @contextlib.contextmanager
    def _returned(self, borrowed: Borrowed) -> Iterator[None]:
        connection = borrowed.connection
        try:
            yield
        finally:
            while borrowed.garbage and connection.usable:
                with contextlib.suppress(Exception):
                    borrowed.garbage.pop().close(commit=False)
            with self._turn:
                borrowed.thread = None
                idle: list[Borrowed] = []
                if not connection.usable:
                    if borrowed in self._all:
                        self._all.remove(borrowed)
                    connection.abandon()
                elif not self._opening and all(one.thread is None for one in self._all):
                    idle = [one for one in self._all if not one.connection.handles]
                    self._all = [one for one in self._all if one.connection.handles]
                self._turn.notify_all()
            for one in idle:
                one.connection.close()

    @staticmethod
    def _abandon(all_borrowed: list[Borrowed]) -> None:
        for borrowed in all_borrowed:
            with contextlib.suppress(OSError):
                borrowed.connection.abandon()
