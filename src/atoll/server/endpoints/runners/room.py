"""Room for calls that wait: runners without requests that hold what these lack end before their `keep_alive`.

Theory of operation. A node knows which leases others wait for; the lease of a runner lasts as long as its function serves.
So the nodes are asked while there are idle runners, and the one that has been idle for longest ends. The next one ends only
when its place is free and somebody waits still.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll import errors
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.state import ServerState

IDLE_SECONDS = 1.0
"""Seconds without requests, at least: two endpoints that are both asked again and again do not end each other at once."""
LEAVING_SECONDS = 10.0
"""Seconds in which the place of a runner that was ended becomes free; then another one ends."""


class Room:
    """Chooses runners that are to end for others."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._leaving: dict[str, float] = {}

    async def chosen(self, spare: Sequence[tuple[Pool, Runner]], now: float) -> tuple[Pool, Runner] | None:
        """Return the runner that is to end now; None for none.

        Args:
            spare: runners without requests that may end.
            now: by the clock of `Runner.since`.
        """
        idle = [one for one in spare if now - one[1].since >= IDLE_SECONDS and one[1].worker]
        if not idle:
            return None
        try:
            wanted = set((await self._state.asks.ask(None, "wanted", {}))["workers"])
        except errors.AtollError:  # a node that is just away, or of an earlier version
            return None
        self._leaving = {
            name: at for name, at in self._leaving.items() if name in wanted and now - at < LEAVING_SECONDS
        }
        found = min((one for one in idle if one[1].worker in wanted), key=lambda one: one[1].since, default=None)
        if found is None or self._leaving:
            return None
        self._leaving[found[1].worker] = now
        return found
