"""Changes of the queue's rows: many share one transaction, and none is made by a server that another has followed.

Theory of operation. What is asked while a transaction is on its way to the disk goes into the next one, so that a thousand
submits cost few waits for the disk. Each transaction first compares the fence: a number in the database that a server raises
when it starts. A server that was thought dead finds another number, and changes nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from atoll import errors
from atoll.server.database.database import Database
from atoll.server.database.tables import marks

T = TypeVar("T")
Act = Callable[[Connection], Any]

FENCE = "queue"
"""The mark that a server raises when it starts."""
MOST_TOGETHER = 256
"""Changes of one transaction."""

_FENCE = select(marks.c.value).where(marks.c.name == FENCE).with_for_update(read=True)  # a raise waits, or is seen


class Fenced(errors.OperatorError):
    """Another server uses the database since this one has started."""


def raise_fence(connection: Connection) -> int:
    """Raise the fence, and return it: servers before this one change nothing from here on."""
    Database.raise_mark(connection, FENCE)
    return int(connection.execute(select(marks.c.value).where(marks.c.name == FENCE)).scalar() or 0)


class Writer:
    """Makes changes, many in a transaction.

    Args:
        fence: as `raise_fence` has returned it.
    """

    def __init__(self, database: Database, fence: int) -> None:
        self._database, self._fence = database, fence
        self._waiting: list[tuple[Act, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def do(self, act: Callable[[Connection], T]) -> T:
        """Make a change, and return its result once it is on the disk. A caller that is cancelled does not stop it.

        Raises:
            Fenced: another server has taken over.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((act, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._work())
        return await future

    async def close(self) -> None:
        """Wait for the changes that have been asked."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
            try:
                results = await self._database.run(partial(self._make, [act for act, _ in together]))
            except Exception as error:
                if len(together) > 1 and not isinstance(error, Fenced):
                    await self._one_by_one(together)
                else:
                    _settle(together, [error] * len(together))
            else:
                _settle(together, results)

    async def _one_by_one(self, together: list[tuple[Act, asyncio.Future[Any]]]) -> None:
        """Make changes each for itself, since one of them failed."""
        for one in together:
            try:
                results = await self._database.run(partial(self._make, [one[0]]))
            except Exception as error:
                results = [error]
            _settle([one], results)

    def _make(self, acts: list[Act], connection: Connection) -> list[Any]:
        if connection.execute(_FENCE).scalar() != self._fence:
            raise Fenced("another server uses this database", hint="end one of the two")
        return [act(connection) for act in acts]


def _settle(together: list[tuple[Act, asyncio.Future[Any]]], results: list[Any]) -> None:
    for (_, future), result in zip(together, results, strict=True):
        if future.done():  # its caller was cancelled
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
