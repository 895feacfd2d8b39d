"""Storage peers in threads of this process, and a host that has such peers only."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atoll.storage.peer.main import Peer
from atoll.storage.protocol.replies import FUNCTION
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel


@contextlib.contextmanager
def serving(
    volume: Path,
    client: str = FUNCTION,
    connect: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
) -> Iterator[socket.socket]:
    """Serve a volume from a thread while the block runs; yield the client's end of the stream.

    Args:
        volume: its directory, which exists.
        client: the peer's kind of client (`rights`).
        connect: makes the two ends.
    """
    root = VolumeRoot(str(volume))
    ours, theirs = connect()
    with root, theirs:
        thread = threading.Thread(target=Peer(root, Channel(theirs), client).serve, name="peer")
        thread.start()
        try:
            yield ours
        finally:
            ours.close()
            thread.join()


class ThreadHost:
    """Serves one volume.

    Args:
        volume: its directory, which exists.
    """

    name = "threads"

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.data = volume / "data"
        self.opened = 0
        """How many peers were started."""
        self._kept: list[Channel] = []
        self._threads: list[threading.Thread] = []

    def open_storage(self) -> Channel:
        """Return a channel that is kept, or start a peer."""
        with contextlib.suppress(IndexError):
            return self._kept.pop()
        ours, theirs = socket.socketpair()
        self.opened += 1
        thread = threading.Thread(target=self._serve, args=[theirs])
        thread.start()
        self._threads.append(thread)
        return Channel(ours)

    def keep_storage(self, channel: Channel) -> None:
        """Keep a peer for the next client."""
        self._kept.append(channel)

    def close(self) -> None:
        """End the peers that are kept."""
        while self._kept:
            self._kept.pop().close()

    def _serve(self, sock: socket.socket) -> None:
        with sock, VolumeRoot(str(self.volume)) as root:
            Peer(root, Channel(sock)).serve()

    def staged(self) -> list[str]:
        """Return what is in staging."""
        return [name for name in os.listdir(self.volume / "staging") if name != "locks"]

    def wait(self) -> None:
        """Wait until all peers have ended."""
        self.close()
        for thread in self._threads:
            thread.join()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
