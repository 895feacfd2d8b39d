"""Limits of failed attempts, by the address that they come from and by the key that they are for.

Theory of operation. A failure takes one token from two buckets: the address's (the network's, of IPv6) and the key's.
Buckets fill by one token in `REFILL_SECONDS`. Who fails on an empty bucket hears 429 and when to come back. The right
secret is asked for first and always counts: an attacker who uses up the attempts of a user's key, or of an address that
many share, keeps nobody out, and cannot guess 256 random bits. Memory is bounded: the buckets longest unused go first,
which the full ones are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from atoll import errors

ATTEMPTS = 60
REFILL_SECONDS = 2.0
MOST_BUCKETS = 20_000


class Limiter:
    """Counts failed attempts; for one thread.

    Args:
        attempts: failures at once that are answered as such.
        refill_seconds: until one more is.
        most: buckets to remember.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        attempts: int = ATTEMPTS,
        refill_seconds: float = REFILL_SECONDS,
        most: int = MOST_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts = attempts
        self._refill = refill_seconds
        self._most = most
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def failed(self, *names: str) -> None:
        """Count a failure for each name, such as `source(address)`.

        Raises:
            NotAuthorized: status 429, with `retry_after` in its details: one has had too many.
        """
        wait = max((self._take(name) for name in names if name), default=0.0)
        if wait > 0:
            seconds = int(wait) + 1
            raise errors.NotAuthorized(
                "too many attempts have failed",
                hint=f"try again in {seconds} s; a valid key is accepted at any time",
                status=429,
                retry_after=seconds,
            )

    def _take(self, name: str) -> float:
        """Take a token; return the seconds until there is one, 0 where there was."""
        now = self._clock()
        tokens, seen = self._buckets.pop(name, (float(self._attempts), now))
        tokens = min(float(self._attempts), tokens + (now - seen) / self._refill)
        wait = 0.0 if tokens >= 1 else (1 - tokens) * self._refill
        self._buckets[name] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return wait
