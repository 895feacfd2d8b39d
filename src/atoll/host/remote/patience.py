"""Patience with a server that does not answer: attempts to connect, with pauses, for a bounded time."""

from __future__ import annotations

import threading
import time

from atoll import settings

VARIABLE = "ATOLL_RETRY_SECONDS"
DEFAULT_SECONDS = 30.0
"""Seconds for a server to come back, as after a restart or an upgrade; `ATOLL_RETRY_SECONDS` has another number."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.05, 2.0
"""Pauses between attempts, each twice the last one."""
PING_SECONDS = 15.0
"""Seconds of silence after which a connection is kept in use."""
SILENT_SECONDS = 45.0
"""Seconds of silence after which it counts as lost: the server answers pings."""


def seconds() -> float:
    """Return the seconds for which attempts are made; a text that is no number counts as none given."""
    try:
        return max(0.0, min(float(settings.variable(VARIABLE) or DEFAULT_SECONDS), threading.TIMEOUT_MAX))
    except ValueError:
        return DEFAULT_SECONDS


class Attempts:
    """The attempts of one thread to connect.

    Args:
        closing: ends them.
        most_seconds: for all of them.
    """

    def __init__(self, closing: threading.Event, most_seconds: float) -> None:
        self._closing = closing
        self._end = time.monotonic() + most_seconds
        self._pause = FIRST_WAIT_SECONDS

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._end - time.monotonic()

    def wait(self) -> bool:
        """Wait for the next attempt; return False where there is none."""
        if self.left < self._pause or self._closing.wait(self._pause):
            return False
        self._pause = min(2 * self._pause, MOST_WAIT_SECONDS)
        return True
