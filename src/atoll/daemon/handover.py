"""Lines of a server that restarts: the node keeps their descriptors until the next server process takes them.

The node understands none of it. A server that ends hands over, for each of its lines, a sealed file with the line's state
and its ends of the node's own sockets and pipes; so leases and calls go on. Entries that nobody takes are closed after
`KEEP_SECONDS`, which ends their leases as the loss of a client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque

from atoll.wire.async_channel import AsyncChannel

log = logging.getLogger("atoll.handover")

KEEP_SECONDS = 60.0
MOST_LINES = 4096
MOST_DESCRIPTORS = 8
"""Of one line: its state, the control socket, the worker's socket and pipes, and the tape."""
WORD_SECONDS = 10.0


class Handover:
    """The lines that wait for their next server; for the node's owner alone."""

    def __init__(self) -> None:
        self._kept: deque[list[int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """The lines that wait."""
        return len(self._kept)

    async def take(self, channel: AsyncChannel) -> None:
        """Keep the lines that a server sends until it says `done`.

        Raises:
            ValueError: it sends something else, or too many.
            TimeoutError: it sends nothing for a while.
        """
        count = 0
        while True:
            message = await asyncio.wait_for(channel.receive(), WORD_SECONDS)
            if message.type == "done":
                break
            number = message.header.get("descriptors")
            if message.type != "line" or type(number) is not int or not 0 < number <= MOST_DESCRIPTORS:
                raise ValueError("a handover has lines with their descriptors")
            descriptors = channel.take_descriptors(number)
            if len(self._kept) >= MOST_LINES:
                _close(descriptors)
                continue
            self._kept.append(descriptors)
            count += 1
            self._restart()
        log.info("lines_kept count=%s", count)
        await channel.send({"type": "answer", "value": {"kept": count}})

    async def give(self, channel: AsyncChannel) -> None:
        """Send all lines to the server that asks, and keep none."""
        count = 0
        while self._kept:
            descriptors = self._kept.popleft()
            try:
                await channel.send({"type": "line", "descriptors": len(descriptors)}, descriptors)
            finally:
                _close(descriptors)
            count += 1
        self._stop()
        if count:
            log.info("lines_given count=%s", count)
        await channel.send({"type": "answer", "value": {"given": count}})

    def _restart(self) -> None:
        self._stop()
        self._timer = asyncio.get_running_loop().call_later(KEEP_SECONDS, self.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Close what nobody has taken: its leases end."""
        self._stop()
        if self._kept:
            log.warning("lines_dropped count=%s", len(self._kept))
        while self._kept:
            _close(self._kept.popleft())


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
