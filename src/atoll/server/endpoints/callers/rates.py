"""Rates of requests: each key, or address, has a bucket of its own for each endpoint."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from atoll import errors

MOST_BUCKETS = 100_000


class Rates:
    """Buckets of the callers of endpoints."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, endpoint: str, caller: str, per_minute: int) -> None:
        """Take a token of a caller's; a bucket has those of one minute, but for at least one.

        Raises:
            NotAuthorized: there is none, status 429; `retry_after` in the details has seconds.
        """
        now, most = time.monotonic(), float(max(per_minute, 1))
        tokens, at = self._buckets.pop((endpoint, caller), (most, now))
        tokens = min(most, tokens + (now - at) * per_minute / 60)
        if tokens < 1:
            self._buckets[endpoint, caller] = tokens, now
            raise errors.NotAuthorized(
                f"{per_minute} requests a minute are all that one caller of this endpoint has",
                hint="wait before you ask again",
                status=429,
                retry_after=math.ceil((1 - tokens) * 60 / per_minute),
            )
        self._buckets[endpoint, caller] = tokens - 1, now
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
