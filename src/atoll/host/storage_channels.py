"""Channels to storage peers that wait for their next client: starting a peer takes longer than most requests.

A returned channel serves the next opener of storage. Its peer knows how long to wait, and ends by
itself then, which also ends the connection that asked for it: nothing here has to run for that, and no daemon is kept
from leaving.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from typing import Any

from atoll.wire import nested
from atoll.wire.channel import Channel, ChannelClosed

REST_SECONDS = 10.0
"""Seconds that a peer waits for its next client."""
MARGIN_SECONDS = 2.0
"""Seconds before the peer's end in which its channel is not reused."""
MOST = 2
MOST_NESTED = 1
"""Idle channels at a time; each is a process. In a function they count as its worker's."""


class StorageChannel(Channel):
    """A channel to a storage peer, which lives as long as the connection that asked for it."""

    def __init__(self, sock: Any, control: Channel) -> None:
        super().__init__(sock)
        self._lease = control

    def close(self) -> None:
        super().close()
        self._lease.close()


class WarmStorage:
    """The resting channels of one host; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting: list[tuple[str, float, Channel]] = []
        _all.add(self)

    def take(self, home: str) -> Channel | None:
        """Return a channel whose peer waits, for the state directory `home`; None where there is none."""
        while True:
            with self._lock:
                place = next((i for i, item in enumerate(self._resting) if item[0] == home), -1)
                if place < 0:
                    return None
                _, until, channel = self._resting.pop(place)
            if time.monotonic() < until and channel.between_messages and not channel.readable():
                return channel
            channel.close()

    def keep(self, home: str, channel: Channel) -> None:
        """Let a channel rest on which nothing is under way; where enough do, it is closed."""
        most = MOST_NESTED if nested.inside() else MOST
        until = time.monotonic() + REST_SECONDS - MARGIN_SECONDS
        try:
            channel.send({"type": "rest", "seconds": REST_SECONDS})
        except (ChannelClosed, OSError):
            channel.close()
            return
        with self._lock:
            self._resting.insert(0, (home, until, channel))
            surplus = self._resting[most:]
            del self._resting[most:]
        for _, _, old in surplus:
            old.close()

    def close(self) -> None:
        """Close the idle channels."""
        with self._lock:
            resting, self._resting = self._resting, []
        for _, _, channel in resting:
            with contextlib.suppress(OSError):
                channel.close()

    def forget(self) -> None:
        """In a forked child: drop the parent's, which stay the parent's."""
        self._lock = threading.Lock()
        self.close()


_all: weakref.WeakSet[WarmStorage] = weakref.WeakSet()


def _close_all() -> None:
    for warm in list(_all):
        warm.close()


atexit.register(_close_all)
