"""The pools of all revisions of a server.

Theory of operation. Twice a second each pool looks after its runners (`pool`). Each few seconds the nodes are asked which of
them are still there. Where other calls wait for what a runner without requests holds, it ends before its `keep_alive`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from sqlalchemy import select

from atoll import errors
from atoll.detached.ends import failure_of
from atoll.server.database.database import Database
from atoll.server.database.tables import users
from atoll.server.endpoints import bodies, rows
from atoll.server.endpoints.receiving import remove_strays, strays
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.room import Room
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.principal import Principal
from atoll.server.process.background import in_background
from atoll.server.state import ServerState

LOOK_SECONDS = 0.5
TIDY_SECONDS = 3600.0
"""Between two looks for files of revisions that are gone."""
ALIVE_SECONDS = 5.0
"""Between two questions to the nodes whether runners have ended."""
ROOM_SECONDS = 0.5
"""Between two questions to the nodes whether others wait for what idle runners hold."""
log = logging.getLogger("atoll.endpoints")


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
        self._looked = asyncio.Event()  # for runners of revisions that were removed
        self._began = time.time()

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

    def removed(self, revision: str) -> None:
        """Let the runners of a revision end that was removed; until then its file tells the next process whose they are."""
        self.retire(revision)
        pool = self.pools.get(revision)
        if pool is None or pool.is_idle:
            with contextlib.suppress(OSError):  # it is looked for again within the hour
                self.file(revision).unlink(missing_ok=True)

    async def _end_removed(self) -> None:
        """End the runners of revisions that were removed while these ran.

        Raises:
            OSError, StateUnusable: the directory or the database cannot be read.
        """
        names = {file.name for file in await strays(self.directory, self._database)}
        if not names:
            return
        query = select(users.c.id, users.c.name)
        for user, name in await self._database.run(lambda connection: connection.execute(query).all(), writes=False):
            owner = Principal(user, name)
            with contextlib.suppress(errors.AtollError):  # the node is just away, or not ready for this user
                answer = await self._state.asks.ask(owner, "detached.list", {"states": ["waiting", "running"]})
                for row in answer["calls"]:
                    if row.get("batch", "") in names:
                        await self._state.asks.ask(owner, "detached.cancel", {"call": row["call"]})

    async def _adopt(self) -> None:
        """Use the runners of an earlier process on, and keep those that are to be kept; users whose node fails wait alone."""
        with contextlib.suppress(OSError, errors.StateUnusable):
            await self._end_removed()
        self._looked.set()
        found = await self._database.run(rows.everything, writes=False)
        left = {revision.user for revision in found}
        while left:
            for user in tuple(left):
                with contextlib.suppress(errors.AtollError):  # the node is just away, or not ready for this user
                    await self._adopt_of([revision for revision in found if revision.user == user])
                    left.discard(user)
            if left:
                await asyncio.sleep(ALIVE_SECONDS)
                found = await self._database.run(rows.everything, writes=False)
                left &= {revision.user for revision in found}

    async def _adopt_of(self, mine: Sequence[Revision]) -> None:
        """Use the runners of a user on; remove what was served for its own time alone.

        Raises:
            AtollError: the node does not tell.
        """
        known = {one.id: one for one in mine}
        asked = {"states": ["waiting", "running"]}
        answer = await self._state.asks.ask(Principal(mine[0].user, mine[0].owner), "detached.list", asked)
        for row in answer["calls"]:
            its = known.get(row.get("batch", ""))
            if its is not None and self._is_over(its):
                await self._state.asks.ask(Principal(its.user, its.owner), "detached.cancel", {"call": row["call"]})
            elif its is not None:
                self.pool(its).adopt(row["call"])
        if over := [one.id for one in mine if self._is_over(one)]:  # their files go with the strays
            await self._database.run(lambda connection: rows.forget(connection, over))
        for revision in mine:
            if revision.alias and revision.options.min_concurrency and revision.port:
                self.pool(revision)

    def _is_over(self, revision: Revision) -> bool:
        """Return whether a revision was served for a program that listened to an earlier process."""
        return revision.options.ephemeral and not revision.alias and revision.created < self._began

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for pool in tuple(self.pools.values()):
                pool.look(time.monotonic())

    async def _make_room(self) -> None:
        room = Room(self._state)
        while True:
            await asyncio.sleep(ROOM_SECONDS)
            spare = [(pool, one) for pool in self.pools.values() for one in pool.spare()]
            if (found := await room.chosen(spare, time.monotonic())) is not None and not found[1].busy:
                found[0].end(found[1])

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
        await self._looked.wait()
        while True:
            busy = {name for name, pool in self.pools.items() if not pool.is_idle}
            try:
                count = await remove_strays(self.directory, self._database, busy)
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
            async with contextlib.AsyncExitStack() as stack:
                for work in (self._adopt, self._look, self._look_alive, self._make_room, self._tidy):
                    await stack.enter_async_context(in_background(work))
                yield
        finally:
            for pool in self.pools.values():
                pool.leave()
