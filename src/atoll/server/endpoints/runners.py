"""The runners of each revision: as many as requests need, within its bounds, and requests that wait for one in order.

Theory of operation. A request takes a place at the runner with the fewest; where none has a place it waits, and another
runner starts if the revision may have one more. A place that becomes free goes to the request that has waited longest.
Runners without requests end after `keep_alive`. A revision that no alias points to any more has its runners end when they
are idle: requests that have begun go on. One that an alias points to has as many runners as it is to keep; where these fail,
the next one is started after a rest (`failing`), and by a request at once. Each few seconds the nodes are asked which runners
are still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoll import errors
from atoll.detached.ends import failure_of
from atoll.server.database.database import Database
from atoll.server.endpoints import bodies, rows
from atoll.server.endpoints.failing import STABLE_SECONDS, Failing
from atoll.server.endpoints.figures import Series
from atoll.server.endpoints.receiving import remove_strays
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runner import Runner
from atoll.server.principal import Principal
from atoll.server.process.background import in_background
from atoll.server.state import ServerState

MOST_WAITING = 1000
"""Requests that wait for runners of one revision."""
LOOK_SECONDS = 0.5
TIDY_SECONDS = 3600.0
"""Between two looks for files of revisions that are gone."""
ALIVE_SECONDS = 5.0
"""Between two questions to the nodes whether runners have ended."""
log = logging.getLogger("atoll.endpoints")


class Pool:
    """The runners of one revision.

    Args:
        file: its spool.
    """

    def __init__(self, state: ServerState, revision: Revision, file: Path) -> None:
        self.revision = revision
        self._state, self._file = state, file
        self._owner = Principal(revision.user, revision.owner)
        self.runners: list[Runner] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[Runner]] = deque()
        self.retired = False
        self.failing = Failing()
        self.figures = Series()

    @property
    def waiting(self) -> int:
        """Requests that wait for a runner."""
        return len(self._waiting)

    @property
    def starting(self) -> int:
        """Runners that start."""
        return len(self._starting)

    @property
    def is_idle(self) -> bool:
        """True where there are no runners, and no requests."""
        return not (self.runners or self._starting or self._waiting)

    @property
    def has_place(self) -> bool:
        """True where a request would wait for nobody."""
        most = self.revision.options.max_multiplexing
        return not self._waiting and any(one.busy < most and not one.over for one in self.runners)

    async def take(self) -> Runner:
        """Return a runner with a place for a request, which is taken.

        Raises:
            HostUnreachable: too many wait, or no runner starts.
        """
        if (runner := self._free()) is not None:
            runner.busy += 1
            return runner
        if len(self._waiting) >= MOST_WAITING:
            raise errors.HostUnreachable(
                f"{MOST_WAITING} requests wait for this endpoint", hint="try again in a while", retry_after=5
            )
        future: asyncio.Future[Runner] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.grow()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(future)

    def _free(self) -> Runner | None:
        """Return the runner with the fewest requests that has a place, unless others wait for it."""
        most, found = self.revision.options.max_multiplexing, None
        if not self._waiting:
            for one in self.runners:
                if one.busy < most and not one.over:
                    most, found = one.busy, one
        return found

    def give_back(self, runner: Runner) -> None:
        """Give a place back."""
        runner.busy -= 1
        runner.since = time.monotonic()
        if self._waiting:
            self._serve()

    def lost(self, runner: Runner, reason: str = "the function ended") -> None:
        """Note that a runner is gone, not by our will."""
        now = time.monotonic()
        if runner in self.runners and now - runner.born < STABLE_SECONDS:
            self.failing.failed(f"{reason}, {now - runner.born:.0f} s after its start", now)
        self._end(runner)
        if self._waiting:
            self.grow()

    def _end(self, runner: Runner) -> None:
        runner.over = True
        if runner in self.runners:
            self.runners.remove(runner)
            asyncio.ensure_future(runner.stop())  # noqa: RUF006 - it ends by itself

    def grow(self) -> None:
        """Start runners for those that wait, as many as may be."""
        options = self.revision.options
        coming = len(self._starting) * options.max_multiplexing
        while len(self._waiting) > coming and len(self.runners) + len(self._starting) < options.max_concurrency:
            self._begin(self._start())
            coming += options.max_multiplexing

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _runner(self, call: str) -> Runner:
        mine = self.revision
        return Runner(self._state, self._owner, call, mine.id, mine.port, mine.options.health_path, mine.alias)

    async def _start(self) -> None:
        call = str(uuid4())
        runner = self._runner(call)
        try:
            await runner.start(self._file, self.revision.options.startup_timeout)
        except (errors.AtollError, OSError, ValueError) as error:
            await runner.stop()
            failure = self._failure(error)
            log.warning("runner_failed", extra={"fields": {"revision": self.revision.id, "error": str(failure)[:300]}})
            self.failing.failed(failure.message, time.monotonic())
            if not self.runners:
                self._fail(failure)
            return
        self.failing.started()
        self.runners.append(runner)
        self._serve()

    def _failure(self, error: Exception) -> errors.AtollError:
        """Return the named error of a runner that did not start."""
        name = self.revision.alias or self.revision.id
        if isinstance(error, errors.AtollError):
            return error
        if isinstance(error, TimeoutError):
            hint = f"see its output with `atoll function logs {name}`"
            return errors.HostUnreachable("the function's server did not listen in time", hint=hint, status=504)
        return errors.StateUnusable(f"the function `{name}` cannot be read: {error}", hint="register it again")

    def _fail(self, error: errors.AtollError) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def _serve(self) -> None:
        most = self.revision.options.max_multiplexing
        for runner in sorted(self.runners, key=lambda one: one.busy):
            while self._waiting and runner.busy < most and not runner.over:
                future = self._waiting.popleft()
                if not future.done():
                    runner.busy += 1
                    future.set_result(runner)

    def look(self, now: float) -> None:
        """End runners that are idle for long, start those that are to be kept, and note how many requests wait."""
        if self._waiting:
            self.figures.wait(len(self._waiting), now)
        options = self.revision.options
        least = options.min_concurrency if self.revision.alias and not self.retired else 0
        for runner in tuple(self.runners):
            kept = len(self.runners) <= least
            idle = not runner.busy and now - runner.since >= (0 if self.retired else options.keep_alive)
            if idle and not kept:
                self._end(runner)
        if self.failing.failures and any(now - one.born >= STABLE_SECONDS for one in self.runners):
            self.failing.over()
        missing = least - len(self.runners) - len(self._starting)
        if missing <= 0 or self.failing.rest_seconds(now):
            return
        for _ in range(1 if self.failing.failures else missing):
            self._begin(self._start())

    def state(self, now: float) -> tuple[int, bodies.Failing | None]:
        """Return the number of runners, and the failure where there are none."""
        if self.runners or not self.failing.error:
            return len(self.runners), None
        next_try = 0.0
        if self.revision.options.min_concurrency and self.revision.alias and not self.retired:
            next_try = time.time() + self.failing.rest_seconds(now)
        return 0, bodies.Failing(self.failing.error, self.failing.failures, next_try)

    def adopt(self, call: str) -> None:
        """Use a runner that an earlier process of this server has begun."""
        self._begin(self._adopt(call))

    async def _adopt(self, call: str) -> None:
        runner = self._runner(call)
        try:
            await runner.adopt()
        except (errors.AtollError, TimeoutError):
            await runner.stop()
            return
        self.runners.append(runner)
        self._serve()

    def leave(self) -> None:
        """Let go of the runners, for the next process of this server."""
        for task in tuple(self._starting):
            task.cancel()
        for runner in self.runners:
            runner.let_go()


class Runners:
    """The pools of a server.

    Args:
        directory: has the spools of revisions, by id.
        database: has the revisions.
    """

    def __init__(self, state: ServerState, directory: Path, database: Database) -> None:
        self._state, self._database = state, database
        self.directory = directory
        self.pools: dict[str, Pool] = {}

    def file(self, revision: str) -> Path:
        """Return the path of a revision's spool."""
        return self.directory / revision

    def state(self, revision: str) -> tuple[int, bodies.Failing | None]:
        """Return the number of a revision's runners, and the failure where they do not start."""
        pool = self.pools.get(revision)
        return pool.state(time.monotonic()) if pool is not None else (0, None)

    def pool(self, revision: Revision) -> Pool:
        """Return the pool of a revision."""
        found = self.pools.get(revision.id)
        if found is None:
            found = self.pools[revision.id] = Pool(self._state, revision, self.file(revision.id))
        return found

    def renew(self, revision: Revision) -> None:
        """Serve a revision that an alias points to now, with its present options."""
        if (pool := self.pools.get(revision.id)) is not None:
            pool.revision, pool.retired = revision, False
            pool.failing.over()
        elif revision.options.min_concurrency and revision.port:
            self.pool(revision)

    def retire(self, revision: str) -> None:
        """Let the runners of a revision end that no alias points to any more."""
        if (pool := self.pools.get(revision)) is not None:
            pool.retired = True

    async def _adopt(self) -> None:
        """Use the runners of an earlier process on."""
        found = await self._database.run(rows.everything, writes=False)
        by_user: dict[str, list[Revision]] = {}
        for revision in found:
            by_user.setdefault(revision.user, []).append(revision)
        for user, mine in by_user.items():
            known = {one.id: one for one in mine}
            asked = {"states": ["waiting", "running"]}
            answer = await self._state.asks.ask(Principal(user, mine[0].owner), "detached.list", asked)
            for row in answer["calls"]:
                if (its := known.get(row.get("batch", ""))) is not None:
                    self.pool(its).adopt(row["call"])
        for revision in found:
            if revision.alias and revision.options.min_concurrency and revision.port:
                self.pool(revision)

    async def _look(self) -> None:
        await self._adopt()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for pool in tuple(self.pools.values()):
                pool.look(time.monotonic())

    async def _look_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            by_user: dict[Principal, list[tuple[Pool, Runner]]] = defaultdict(list)
            for pool in self.pools.values():
                by_user[Principal(pool.revision.user, pool.revision.owner)] += [(pool, one) for one in pool.runners]
            for owner, mine in by_user.items():
                if mine:
                    with contextlib.suppress(errors.AtollError):  # the node is just away
                        await self._drop_ended(owner, mine)

    async def _drop_ended(self, owner: Principal, mine: list[tuple[Pool, Runner]]) -> None:
        """Drop runners whose calls have ended."""
        answer = await self._state.asks.ask_counted(owner, "detached.list", {"states": ["waiting", "running"]})
        live = {row["call"] for row in answer["calls"]}
        if answer.get("away"):  # a machine that may have them
            return
        for pool, runner in mine:
            if runner.call not in live and not runner.over:
                asked = {"call": runner.call}
                row = (await self._state.asks.ask_counted(owner, "detached.show", asked))["call"]
                if row["state"] == "finished":
                    pool.lost(runner, failure_of(row) or f"the function ended ({row['outcome']})")

    async def _tidy(self) -> None:
        """Remove files of revisions that are gone, and forget revisions that have no runners and no requests."""
        while True:
            try:
                count = await remove_strays(self.directory, self._database)
            except (OSError, errors.AtollError) as error:
                log.warning("stray_files_stay", extra={"fields": {"error": str(error)[:200]}})
            else:
                if count:
                    log.info("stray_files_removed", extra={"fields": {"files": count}})
            for name, pool in tuple(self.pools.items()):
                if pool.is_idle and pool.retired:
                    del self.pools[name]
            await asyncio.sleep(TIDY_SECONDS)

    # --- ends of users ------------------------------------------------------------------------------------------------

    def held(self) -> set[tuple[str, str]]:
        """Return those for whom functions are served; see `accounts.Holder`."""
        return {(pool.revision.user, "") for pool in self.pools.values()}

    def end_of(self, user: str, key: str) -> None:
        """Serve a user no more who has been removed; the node ends the runners. A key that ends changes nothing."""
        if key:
            return
        for name, pool in tuple(self.pools.items()):
            if pool.revision.user == user:
                pool.leave()
                del self.pools[name]

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Look after the runners while the context is open; they outlive it."""
        try:
            async with in_background(self._look), in_background(self._look_alive), in_background(self._tidy):
                yield
        finally:
            for pool in self.pools.values():
                pool.leave()
