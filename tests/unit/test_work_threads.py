"""Threads of one kind of work: slow work of one user or kind leaves others their threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.server.accounts.bodies import UserFacts
from atoll.server.admin.part import AtNode
from atoll.server.usage.part import Usage
from atoll.work_threads import WorkThreads

SECONDS = 30.0
MANY = 100
"""More than an event loop's own pool has threads."""


class Slow:
    """Work that lasts until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.began.release()
        assert self.go.wait(SECONDS)
        return {"kept": "", "generation": ""}

    async def begun(self) -> None:
        """Wait until it has begun once, in a thread of no pool."""
        loop, found = asyncio.get_running_loop(), asyncio.Event()

        def wait() -> None:
            if self.began.acquire(timeout=SECONDS):
                loop.call_soon_threadsafe(found.set)

        threading.Thread(target=wait, daemon=True).start()
        await found.wait()


def run(work: Callable[[Slow], Awaitable[None]]) -> None:
    async def main() -> None:
        slow = Slow()
        try:
            async with asyncio.timeout(SECONDS):
                await work(slow)
        finally:
            slow.go.set()

    asyncio.run(main())


def test_a_user_with_slow_work_holds_up_no_other() -> None:
    """Work of one user waits for the user's own, also where nobody waits for it any more; that of others goes on."""

    async def work(slow: Slow) -> None:
        threads = WorkThreads("test", 2)
        tasks = [asyncio.ensure_future(threads.run("u-ann", slow)) for _ in range(20)]
        await slow.begun()
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert await threads.run("u-bob", lambda: "quick") == "quick"
        assert not slow.began.acquire(blocking=False)
        slow.go.set()
        assert len(await asyncio.gather(*tasks[1:])) == 19
        threads.close()

    run(work)


@pytest.mark.parametrize("act", ["removed", "limited", "gather"])
def test_slow_acts_at_the_node_leave_the_loops_threads_free(act: str) -> None:
    """However many volumes are removed, quotas set or figures asked for, the server's other blocking work goes on."""

    async def work(slow: Slow) -> None:
        own = ThreadPoolExecutor(2)

        async def ask(*_: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(own, slow)

        node = cast("Any", SimpleNamespace(ask=ask))
        at_node = AtNode(cast("Any", SimpleNamespace(asks=node)))
        usage = Usage(cast("Any", None), lambda: {"local": node})
        users = [UserFacts(f"u-{number}", "", False, 0.0, 0, 0, 0) for number in range(MANY)]
        acts: dict[str, Callable[[UserFacts], Awaitable[object]]] = {
            "removed": lambda user: at_node.removed(user, keep=True),
            "limited": at_node.limited,
            "gather": lambda _: usage.gather(),
        }
        tasks = [asyncio.ensure_future(acts[act](user)) for user in users]
        await slow.begun()
        assert await asyncio.to_thread(lambda: "quick") == "quick"
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        slow.go.set()
        await asyncio.to_thread(own.shutdown)

    run(work)
