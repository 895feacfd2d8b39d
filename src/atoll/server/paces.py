"""The pace of a user's messages over all lines, and of requests: one who floods the server with them waits alone."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

PIECES_A_SECOND = 40_000
"""At 4 µs a piece, a user takes a sixth of the event loop's time."""
BURST_PIECES = 20_000
MOST_REMEMBERED = 10_000
"""Users whose buckets are kept; those longest unused, which are full by then, go first."""


class Paces:
    """A bucket of tokens for each user; for one thread.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def debt(self, user: str) -> float:
        """Return the seconds to wait before any message of a user is read."""
        return self.pay(user, 0) if user in self._buckets else 0.0

    def pay(self, user: str, price: int) -> float:
        """Take tokens for messages that have come; return the seconds to wait before the next are read."""
        now = self._clock()
        tokens, seen = self._buckets.pop(user, (float(BURST_PIECES), now))
        tokens = min(float(BURST_PIECES), tokens + (now - seen) * PIECES_A_SECOND) - price
        self._buckets[user] = tokens, now
        if len(self._buckets) > MOST_REMEMBERED:
            self._buckets.popitem(last=False)
        return max(0.0, -tokens / PIECES_A_SECOND)

    async def afford(self, user: str, price: int) -> None:
        """Wait until a user is in no debt, then take tokens; of a user's requests that wait, one at a time goes on."""
        while seconds := self.debt(user):  # noqa: ASYNC110 - tokens come with time alone
            await asyncio.sleep(seconds)
        self.pay(user, price)
