"""The requests of one endpoint that wait, and those who serve them.

Theory of operation. As many servers as the endpoint has places take a place at a runner first, and then the request that is
the first at that moment: so priority counts until the last instant, and a request never waits behind the end of a place.
A runner that does not start is one attempt of all that wait, after which the line rests for a while.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from atoll import errors
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.queue.attempt import Attempted
from atoll.server.queue.order import Entry, Order

LEAST_REST, MOST_REST = 0.5, 60.0
"""Seconds before the next attempt: after the first, and at most."""


class Servant(Protocol):
    """What a line needs of the queue."""

    async def place(self, owner: str, alias: str) -> tuple[Revision, Pool]:
        """Return the revision of an endpoint now, and its runners; raises `CallerError` where there is none."""
        ...

    async def attempt(self, entry: Entry, pool: Pool, runner: Runner) -> Attempted | None:
        """Make an attempt for a request; None for one that may not be made."""
        ...

    async def settle(self, entry: Entry, made: Attempted) -> None:
        """Keep the answer of a request, or let it wait for another attempt."""
        ...

    async def refuse(self, entry: Entry, error: errors.AtollError) -> None:
        """End a request without an attempt, or note one that has failed."""
        ...


def rest_seconds(attempts: int) -> float:
    """Return how long to wait after so many attempts that have failed."""
    return float(min(LEAST_REST * 2 ** max(attempts - 1, 0), MOST_REST) * random.uniform(0.8, 1.2))  # noqa: S311 - no secret


class Line:
    """The line of one endpoint.

    Args:
        owner: the owner's id.
        idle: is told when nothing waits and nobody serves.
    """

    def __init__(self, owner: str, alias: str, servant: Servant, idle: Callable[[Line], None]) -> None:
        self.owner, self.alias = owner, alias
        self.order = Order()
        self.expected = 0
        """Requests that are on their way to the disk."""
        self._servant, self._idle = servant, idle
        self._places = 1
        self._failures = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._rest: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, entry: Entry) -> None:
        """Let a request wait."""
        self.order.add(entry)
        self._wake()

    def _wake(self) -> None:
        if self._closed or self._rest is not None:
            return
        free = len(self._serving) - self._busy
        while free < len(self.order) and len(self._serving) < self._places:
            task = asyncio.ensure_future(self._serve())
            self._serving.add(task)
            task.add_done_callback(self._over)
            free += 1

    def _over(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "queue", "exception": error})
            self._pause(LEAST_REST)
        if len(self.order):
            self._wake()
        elif not self._serving and self._rest is None:
            self._idle(self)

    def _pause(self, seconds: float) -> None:
        if self._closed or self._rest is not None:
            return

        def go_on() -> None:
            self._rest = None
            self._wake()
            if not self._serving and not len(self.order):
                self._idle(self)

        self._rest = asyncio.get_running_loop().call_later(seconds, go_on)

    async def _serve(self) -> None:
        while len(self.order) and not self._closed and self._rest is None:
            try:
                revision, pool = await self._servant.place(self.owner, self.alias)
                options = revision.options
                # twice the places: while one brings an answer to the disk, another uses the runner
                self._places = 2 * max(options.max_concurrency * options.max_multiplexing, 1)
                if len(self._serving) > self._places:
                    return
                self._wake()
                runner = await pool.take()
            except errors.AtollError as error:
                await self._failed(error)
                return
            self._failures = 0
            entry = self.order.take()
            if entry is None:
                pool.give_back(runner)
                return
            self._busy += 1
            try:
                try:
                    made = await self._servant.attempt(entry, pool, runner)
                finally:
                    pool.give_back(runner)
                if made is not None:
                    await self._servant.settle(entry, made)
            finally:
                self._busy -= 1

    async def _failed(self, error: errors.AtollError) -> None:
        """Note that no runner can be had; those that fail at the same time count once.

        That too many direct requests wait for one is no failure of the endpoint's, and counts for nobody.
        """
        if self._rest is not None:
            return
        if "retry_after" in error.details:
            self._pause(rest_seconds(2))
            return
        self._failures += 1
        self._pause(rest_seconds(self._failures))
        await asyncio.gather(*(self._servant.refuse(entry, error) for entry in self.order.all()))

    async def close(self) -> None:
        """End those who serve; what they have not finished waits for the next server."""
        self._closed = True
        if self._rest is not None:
            self._rest.cancel()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
