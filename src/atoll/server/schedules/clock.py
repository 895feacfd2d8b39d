"""The clock of a server's schedules: it fires those that are due, and follows their activations.

Theory of operation. A heap in memory has the next run of each active schedule. When the first is due, one transaction
makes the activations of all that are due and sets their next runs; after it each activation is sent. A server that is
killed before the transaction finds the schedule due when it starts again; one that is killed after it finds the
activation, and sends it. A second loop writes outcomes, as many as have come together.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.process.background import in_background
from atoll.server.schedules import rows
from atoll.server.schedules.rows import Ended, Sent
from atoll.server.schedules.sending import outcome_of, send
from atoll.server.state import ServerState

LOOK_SECONDS = 1.0
"""Between two looks at the clock of the wall, which may be set while the server sleeps."""
EXPIRE_SECONDS = 3600.0
MOST_SENDING, MOST_FOLLOWED = 16, 200
"""Activations that are sent at a time, and that are waited for; with more of them each has its turn."""
TRY_SECONDS = 86400.0
"""Seconds for which an activation that nobody could take is tried again."""
PAUSE_SECONDS = 1.0

log = logging.getLogger("atoll.schedules")


class Clock:
    """The clock of one server.

    Args:
        database: has the schedules.
        file: returns the path of a revision's spool.
        now: returns the seconds since the epoch.
    """

    def __init__(
        self, state: ServerState, database: Database, file: Callable[[str], Path], now: Callable[[], float] = time.time
    ) -> None:
        self._state, self._database, self._file, self._now = state, database, file, now
        self._heap: list[tuple[float, str]] = []
        self._next: dict[str, float] = {}
        self._woken = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sending = asyncio.Semaphore(MOST_SENDING)
        self._following = asyncio.Semaphore(MOST_FOLLOWED)
        self._begun: list[str] = []
        self._ended: list[Ended] = []
        self._written = asyncio.Event()

    # --- next runs ----------------------------------------------------------------------------------------------------

    def put(self, schedule: str, next_run: float) -> None:
        """Have a schedule fired at this moment; 0 for never."""
        if not next_run:
            self._next.pop(schedule, None)
            return
        self._next[schedule] = next_run
        heapq.heappush(self._heap, (next_run, schedule))
        self._woken.set()

    def _first(self) -> float:
        """Return the first moment; 0 for none."""
        while self._heap:
            at, name = self._heap[0]
            if self._next.get(name) == at:
                return at
            heapq.heappop(self._heap)
        return 0.0

    def take_due(self, now: float) -> list[str]:
        """Return the schedules that are due, and forget them until they are put again."""
        found = []
        while (first := self._first()) and first <= now:
            _, name = heapq.heappop(self._heap)
            del self._next[name]
            found.append(name)
        return found

    async def fire(self) -> None:
        """Fire all that are due."""
        now = self._now()
        if not (names := self.take_due(now)):
            return
        try:
            sent, following = await self._database.run(lambda connection: rows.fire(connection, names, now))
        except BaseException:
            for name in names:
                self.put(name, now + PAUSE_SECONDS)
            raise
        for at, name in following:
            if name not in self._next:  # else it was changed meanwhile
                self.put(name, at)
        for one in sent:
            self.begin(one)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            first = self._first()
            seconds = min(max(first - self._now(), 0.0), LOOK_SECONDS) if first else None
            if seconds != 0.0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), seconds)
            await self.fire()

    # --- activations --------------------------------------------------------------------------------------------------

    def begin(self, one: Sent, *, again: bool = False) -> None:
        """Send an activation, unless it was sent, and follow it.

        Args:
            again: an earlier server may have sent it.
        """
        if one.id in self._tasks:
            return
        task = self._tasks[one.id] = asyncio.get_running_loop().create_task(self._follow(one, again))
        task.add_done_callback(lambda _: self._tasks.pop(one.id, None))

    async def _follow(self, one: Sent, again: bool) -> None:
        if one.state == "due" and not await self._send(one, again):
            return
        revision, ended = -1, None
        while ended is None:
            async with self._following:
                try:
                    revision, ended = await outcome_of(self._state, one, revision)
                except errors.AtollError:
                    await asyncio.sleep(PAUSE_SECONDS)
        self._end(ended)

    async def _send(self, one: Sent, again: bool) -> bool:
        """Send an activation; return whether it is under way."""
        while True:
            if self._now() - one.made > TRY_SECONDS:  # the node may have had it, and forgotten it since
                return self._fail(one, "nobody could take it for a day")
            try:
                async with self._sending:
                    await send(self._state, one, self._file(one.revision), again=again)
            except errors.HostUnreachable:
                again = True
                await asyncio.sleep(PAUSE_SECONDS)
            except (errors.DiskFull, errors.StateUnusable, errors.DetachedFull):  # it is kept here until there is room
                await asyncio.sleep(PAUSE_SECONDS)
            except errors.AtollError as error:
                return self._fail(one, error.message)
            except FileNotFoundError:
                return self._fail(one, "its function was removed")
            except (OSError, ValueError) as error:
                log.warning("activation_unreadable", extra={"fields": {"activation": one.id, "error": str(error)}})
                return self._fail(one, f"its function cannot be read: {error}")
            else:
                self._begun.append(one.id)
                self._written.set()
                return True

    def _fail(self, one: Sent, reason: str) -> bool:
        self._end(Ended(one.id, 0.0, self._now(), "refused", reason[:400]))
        return False

    def _end(self, ended: Ended) -> None:
        self._ended.append(ended)
        self._written.set()

    async def _write(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            begun, ended = self._begun, self._ended
            self._begun, self._ended = [], []
            try:
                released = await self._database.run(lambda connection, b=begun, e=ended: rows.note(connection, b, e))  # type: ignore[misc]
            except BaseException:
                self._begun, self._ended = [*begun, *self._begun], [*ended, *self._ended]
                self._written.set()
                raise
            for one in released:
                self.begin(one)

    async def _expire(self) -> None:
        while True:
            await self._database.run(lambda connection: rows.expire(connection, self._now()))
            await asyncio.sleep(EXPIRE_SECONDS)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Fire schedules while the context is open; calls that run go on after it."""
        for at, name in await self._database.run(rows.next_runs, writes=False):
            self.put(name, at)
        for one in await self._database.run(rows.under_way, writes=False):
            self.begin(one, again=True)
        try:
            async with in_background(self._run), in_background(self._write), in_background(self._expire):
                yield
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
