"""Bounds of the daemon's peers: bytes of a message, bytes that wait for a peer, and the pace of its messages.

A JSON text becomes up to 25 times its size in objects while it is read, so headers are bounded to what honest peers
send. A peer that sends faster than its pace is not read for a while: the kernel then holds it up at its own socket.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

TOKEN_BYTES = 4096
"""Bytes that count like one more message."""


def parts_of(text: bytes) -> int:
    """Return the most values that a JSON text may have: the time to read it goes by them, not by its bytes."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def object_of(text: bytes, most_parts: int = 0) -> dict[str, Any]:
    """Return the JSON object of a text.

    Args:
        most_parts: as `parts_of` counts them; 0 for no bound.

    Raises:
        ValueError, RecursionError: it has another value, or more parts.
    """
    if most_parts and parts_of(text) > most_parts:
        raise ValueError(f"it has more than {most_parts} parts")
    value = json.loads(text.decode("utf-8", "surrogatepass"))
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


class Bounds(NamedTuple):
    """Bounds of one kind of peer.

    Args:
        header_bytes: the most of one message.
        queue_bytes: the most that may wait for a peer that does not read.
        rate, burst: see `Pace`; 0 for no pace.
        header_parts: the most parts of one message (`parts_of`); 0 for no bound.
    """

    header_bytes: int
    queue_bytes: int
    rate: float = 0.0
    burst: float = 0.0
    header_parts: int = 0

    def pace(self, above: Pace | None = None) -> Pace:
        """Return a new pace of a peer of this kind."""
        return Pace(self.rate, self.burst, above)


class Pace:
    """A token bucket: a message costs a token, and another one for each `TOKEN_BYTES`.

    Args:
        rate: tokens per second.
        burst: the most tokens that gather.
        above: the pace of the group that the peer belongs to; its tokens are used as well.
    """

    def __init__(
        self, rate: float, burst: float, above: Pace | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._above = above
        self._clock = clock
        self._at = clock()

    def take(self, tokens: float) -> None:
        """Use tokens, also those that are still to come."""
        self._tokens -= tokens
        if self._above is not None:
            self._above.take(tokens)

    def seconds(self) -> float:
        """Return for how long the peer must not be read; 0 while there are tokens."""
        if self._tokens <= 0:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        own = -self._tokens / self._rate if self._tokens < 0 else 0.0
        return own if self._above is None else max(own, self._above.seconds())


CLIENT = Bounds(2 << 20, 16 << 20)
"""Programs of the owner: requirements of 1 MiB and variables of 128 KiB (`model.specs`), as JSON."""

NESTED = Bounds(256 << 10, 64 << 10, rate=2000, burst=4000, header_parts=20_000)
"""Code in a worker; the connections of one worker share one pace."""

AGENT = Bounds(1 << 20, 16 << 20, rate=5000, burst=10_000)
"""Agents: usage of 1,024 workers; the ends of 1,000 workers at once, each with 100 records."""

WORKER = Bounds(512 << 10, 256 << 10, rate=5000, burst=10_000)
"""Workers: 2,000 imported modules; 20,000 records a second are 200 messages of 64 KiB."""

PEER = Bounds(64 << 10, 256 << 10, rate=2000, burst=4000)
"""Storage peers, as the daemon itself uses them."""

USER_RATE, USER_BURST = 30_000.0, 60_000.0
"""The pace of all agents, workers and nested connections of one user together."""
