"""Storage clients of this process, lent to one thread at a time.

Each client has a storage peer, a process of its own, at its other end: so there are few, and threads wait for them.
When no thread works any more, those without open files go back to the host, which keeps some of their peers a while for
who comes next. A forked child has none of its parent's.
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
    from atoll.storage.client.volume import VolumeClient

MOST = 4
MOST_NESTED = 2
"""In a function; its worker may have four storage peers in all."""


class Lent:
    """One client, and the thread that uses it."""

    def __init__(self, client: VolumeClient) -> None:
        self.client = client
        self.thread: int | None = threading.get_ident()
        """Who uses it now."""
        self.pid = os.getpid()
        self.left: list[tuple[str, int]] = []
        """Files that were collected as garbage in the middle of a request; they are closed after it."""
        self.closed = False
        """Whether `StorageClients.close` has ended it."""


class StorageClients:
    """Lend clients of a host's storage to threads.

    Args:
        host: whose storage.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._turn = threading.Condition()
        self._all: list[Lent] = []
        self._opening = 0

    @contextlib.contextmanager
    def lend(self) -> Iterator[Lent]:
        """Lend a client to this thread for one request, or a few; waits for one while all are lent."""
        if self._pid != os.getpid():
            self._abandon(self._all)
            self._reset()
        lent = self._free()
        if lent is None:
            try:
                lent = Lent(self._open())
            finally:
                with self._turn:
                    self._opening -= 1
                    if lent is not None:
                        self._all.append(lent)
                    self._turn.notify()
        with self._returned(lent):
            yield lent

    @contextlib.contextmanager
    def use(self, lent: Lent) -> Iterator[VolumeClient]:
        """Lend this client, which holds a file open, to this thread.

        Raises:
            ValueError: it was closed, with what it held open.
            HostUnreachable: it was opened by the parent of this process, or its peer has gone.
        """
        if lent.pid != os.getpid():
            raise HostUnreachable("a file of a volume cannot be used in a forked process", hint="open it again there")
        with self._turn:
            if lent.thread == threading.get_ident():  # the garbage collector runs in the middle of a request
                raise RuntimeError("a file of a volume was not closed before it was collected")
            self._turn.wait_for(lambda: lent.thread is None)
            if lent.closed:
                raise ValueError("I/O operation on closed file: its volume has been closed")
            if lent not in self._all:
                raise HostUnreachable("the storage peer that held the file open has gone", hint="open the file again")
            lent.thread = threading.get_ident()
        with self._returned(lent):
            yield lent.client

    def close_file(self, lent: Lent, path: str, handle: int, *, commit: bool) -> None:
        """Close a file that a client holds open; see `VolumeClient.close_file`."""
        if lent.thread == threading.get_ident():
            lent.left.append((path, handle))
            return
        if lent.closed and not commit:  # nothing is lost
            return
        with self.use(lent) as client:
            client.close_file(path, handle, commit=commit)

    def close(self) -> None:
        """Close all clients, and what they hold open; the next `lend` opens a new one."""
        with self._turn:
            closed, self._all = self._all, []
            for lent in closed:
                lent.closed = True
            self._turn.notify_all()
        if self._pid == os.getpid():
            for lent in closed:
                lent.client.close()
        else:
            self._abandon(closed)

    def _free(self) -> Lent | None:
        """Return a client that is not lent, lent now; None for leave to open one."""
        most = MOST_NESTED if nested.inside() else MOST
        with self._turn:
            while True:
                for lent in [lent for lent in self._all if lent.thread is None]:
                    if lent.client.usable:
                        lent.thread = threading.get_ident()
                        return lent
                    self._all.remove(lent)  # its peer has gone
                    lent.client.abandon()
                if len(self._all) + self._opening < most:
                    self._opening += 1
                    return None
                self._turn.wait()

    def _open(self) -> VolumeClient:
        from atoll.storage.client.volume import VolumeClient

        return VolumeClient(self._host.open_storage(), self._host.keep_storage)

    @contextlib.contextmanager
    def _returned(self, lent: Lent) -> Iterator[None]:
        try:
            yield
        finally:
            while lent.left and lent.client.usable:
                with contextlib.suppress(Exception):
                    lent.client.close_file(*lent.left.pop(), commit=False)
            with self._turn:
                lent.thread = None
                resting: list[Lent] = []
                if not lent.client.usable:
                    if lent in self._all:
                        self._all.remove(lent)
                    lent.client.abandon()
                elif not self._opening and all(one.thread is None for one in self._all):
                    resting = [one for one in self._all if not one.client.handles]
                    self._all = [one for one in self._all if one.client.handles]
                self._turn.notify_all()
            for one in resting:
                one.client.close()

    @staticmethod
    def _abandon(clients: list[Lent]) -> None:
        for lent in clients:
            with contextlib.suppress(OSError):
                lent.client.abandon()
