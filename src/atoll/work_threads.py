"""Threads of one kind of blocking work, in which users take turns: slow work of one user or kind holds up no other.

An event loop's own pool of threads has a few for everything. Work there must be short, whatever a user does.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class WorkThreads:
    """Threads of one event loop; they are started when there is work for them.

    Work that nobody waits for any more keeps its thread and its user's turn to its end.

    Args:
        name: of the threads.
        most: threads at a time.
        of_user: threads at a time of one user.
    """

    def __init__(self, name: str, most: int, of_user: int = 1) -> None:
        self._name, self._most, self._of_user = name, most, of_user
        self._free = asyncio.Semaphore(most)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, user: str, work: Callable[[], T]) -> T:
        """Do work in a thread, in its user's turn; return its result.

        Args:
            user: whose work it is; empty for nobody's, which has the same turns.
        """
        turn = self._turns.setdefault(user, asyncio.Semaphore(self._of_user))
        await turn.acquire()
        try:
            await self._free.acquire()
        except BaseException:
            turn.release()
            raise
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._most, self._name)
        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(self._executor, partial(context.run, work))
        running.add_done_callback(partial(self._over, turn))
        return await asyncio.shield(running)

    def _over(self, turn: asyncio.Semaphore, running: asyncio.Future[T]) -> None:
        self._free.release()
        turn.release()
        if not running.cancelled():
            running.exception()  # nobody may wait for it any more

    def close(self) -> None:
        """Take no further work, and wait for what runs."""
        if self._executor is not None:
            self._executor.shutdown()
