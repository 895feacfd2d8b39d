"""Lines of functions while they have a request: the part of their runner's output that came meanwhile.

The output of a runner is one stream, so requests that a runner has at the same time see each other's lines. Runners on
other machines are not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from datetime import UTC, datetime

from atoll import errors
from atoll.server.endpoints.runners.runner import Runner
from atoll.wire.channel import ChannelClosed

MOST_BYTES, MOST_LINES = 64 << 10, 500
"""The most that is kept of one request."""
MOST_OPEN = 256
"""Outputs that are open."""
NONE_SECONDS = 2.0
"""Until a runner that had printed nothing is looked at again."""
OPEN_SECONDS = 5.0


class Outputs:
    """The outputs of runners on this machine, open to read."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._none: OrderedDict[str, tuple[float, bool]] = OrderedDict()

    def close(self) -> None:
        """Close all."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    async def size(self, runner: Runner, *, again: bool = False) -> int:
        """Return how much a runner has printed; 0 where that is not known.

        Args:
            again: also where it had printed nothing a moment ago.
        """
        descriptor = self._open.get(runner.call)
        if descriptor is None:
            until, had_again = self._none.get(runner.call, (0.0, False))
            if until > time.monotonic() and (had_again or not again):
                return 0
            with contextlib.suppress(errors.AtollError, ChannelClosed, OSError, TimeoutError, ValueError):
                async with asyncio.timeout(OPEN_SECONDS):
                    descriptor = await _opened(runner)
            if descriptor is None or runner.call in self._open:
                if descriptor is not None:
                    os.close(descriptor)
                self._none[runner.call] = time.monotonic() + NONE_SECONDS, again
                if len(self._none) > MOST_OPEN:
                    self._none.popitem(last=False)
                return 0
            self._open[runner.call] = descriptor
            if len(self._open) > MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(runner.call)
        return os.fstat(descriptor).st_size

    async def since(self, runner: Runner, size: int, moment: float, *, again: bool = False) -> list[dict[str, str]]:
        """Return what a runner has printed beyond a size, as log entries.

        Args:
            moment: of all entries: the output has none. Seconds since the epoch.
            again: as in `size`.
        """
        end = await self.size(runner, again=again)
        descriptor = self._open.get(runner.call)
        if descriptor is None or end <= size:
            return []
        text = os.pread(descriptor, min(end - size, MOST_BYTES), size).decode("utf-8", "replace")
        at = datetime.fromtimestamp(moment, UTC).isoformat()
        return [
            {"message": line, "level": "STDOUT", "source": "USER", "timestamp": at}
            for line in text.splitlines()[:MOST_LINES]
        ]


async def _opened(runner: Runner) -> int | None:
    """Open the output of a runner; None where it has printed nothing."""
    asked = {"type": "request", "name": "detached.output", "arguments": {"call": runner.call}}
    channel = await runner.state.node.connect(runner.owner, asked)
    try:
        while True:
            header = (await channel.receive()).header
            if header.get("type") == "answer":
                break
            if header.get("type") == "failed":
                return None
        found = channel.take_descriptors(1)
        return found[0] if found else None
    finally:
        channel.close()
