"""Patience with a server that may be restarting: attempts to connect, with pauses, for a bounded time."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time

from atoll import settings

VARIABLE = "ATOLL_RETRY_SECONDS"
DEFAULT_SECONDS = 30.0
"""Seconds for a server to come back; `ATOLL_RETRY_SECONDS` has another number."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.05, 2.0
"""Pauses between attempts, each twice the last one."""
QUIET_SECONDS = 1.0
"""Seconds of waiting before the person is told."""
PING_SECONDS = 15.0
"""Seconds of silence after which a connection is kept in use."""
SAME_SECONDS = 5.0
"""Seconds after an outage in which another failure belongs to it: a server that starts on a busy machine may fail again."""
SILENT_SECONDS = 45.0
"""Seconds of silence after which it counts as lost: the server answers pings."""
READING = {
    *("status", "calls.running", "calls.list", "calls.show", "calls.output", "calls.stacks", "calls.usage"),
    *("environments.list", "environments.show", "secrets.list", "volume.quota"),
}
"""Requests that change nothing: they may be made again although the first one may have arrived."""


def seconds() -> float:
    """Return the seconds for which attempts are made; a text that is no number counts as none given."""
    try:
        return max(0.0, min(float(settings.variable(VARIABLE) or DEFAULT_SECONDS), threading.TIMEOUT_MAX))
    except ValueError:
        return DEFAULT_SECONDS


def is_asked_for() -> bool:
    """Return whether the variable is set: then the first contact has patience, too."""
    return bool(settings.variable(VARIABLE))


class Outage:
    """The time in which one server cannot be reached, for all that wait for it: the person is told once.

    Args:
        shown: the address for messages.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._told = False
        self._ended = -math.inf

    def tell(self, why: str, left: float, tried: float) -> None:
        """Tell the person that this program waits.

        Args:
            tried: when the attempt began that has failed: one from before the end of an outage, or from just after that,
                is of the outage that was told of.
        """
        if not self._told and tried > self._ended:
            self._told = True
            _print(f"{self._shown} {why}: trying for up to {left:.0f} s")

    def ends(self) -> None:
        """Note that the server answers."""
        self._ended = time.monotonic() + (SAME_SECONDS if self._told else 0.0)
        self._told = False


_outages: dict[str, Outage] = {}


def outage(shown: str) -> Outage:
    """Return the outage of a server, one for all that this program has to do with it."""
    return _outages.setdefault(shown, Outage(shown))


class Attempts:
    """The attempts of one thread to connect.

    Args:
        outage: of the server.
        most_seconds: for all of them.
        closing: ends them.
    """

    def __init__(self, outage: Outage, most_seconds: float, closing: threading.Event | None = None) -> None:
        self._outage = outage
        self._closing = closing or threading.Event()
        self._began = time.monotonic()
        self._end = self._began + most_seconds
        self._tried = self._began
        self._pause = FIRST_WAIT_SECONDS

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._end - time.monotonic()

    def wait(self, why: str) -> bool:
        """Wait for the next attempt; return False where there is none.

        Args:
            why: the failure of the last one in words, behind the server's address.
        """
        left = self.left
        if left <= 0 or self._closing.is_set():
            return False
        if time.monotonic() - self._began >= QUIET_SECONDS:
            self._outage.tell(why, left, self._tried)
        if self._closing.wait(min(self._pause, left)):
            return False
        self._pause = min(2 * self._pause, MOST_WAIT_SECONDS)
        self._tried = time.monotonic()
        return True


def _print(line: str) -> None:
    """Print a line for the person; the display's line about waiting calls, where there is one, makes room."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"atoll: {line}", file=sys.stderr, flush=True)
