"""Holds of a user's sandboxes on all machines that share the volume, for the switch of a sync; and room for a restore.

Theory of operation. A switch pauses the user's sandboxes here (`node.freezing`). Where another machine has some, it must
pause them as well, or their late writes to the old tree could be lost. The machines know nothing of each other: their
server asks the others. So the member, or the server for its own node, keeps a stream open (`watch_holds`):

    daemon: hold(id, user)      answer: held(id, whole)   when all other machines have paused; `whole` false if one has not
    daemon: release(id)
    daemon: clear(id, user)     answer: held(id, whole)   when idle sandboxes of the user have ended on the others

and asks the other daemons by the owner's requests `hold` (`id`, `user`, `seconds`), `release` (`id`) and `clear` (`user`).
A hold ends by itself after its seconds, which are more than a switch takes with the wait for the answer. Without an
answer in time the switch goes on and its client is told that functions were not held, as where a process cannot be paused.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from atoll import errors
from atoll.engine.contract import Engine
from atoll.node.freezing import Pauses
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed

log = logging.getLogger("atoll.holds")

ANSWER_SECONDS = 1.0
"""Seconds that a switch waits for the other machines."""
CLEAR_SECONDS = 10.0
"""Seconds that a restore waits for the ends of idle sandboxes on them."""
MOST_SECONDS = 5.0
"""The longest hold for another machine."""

Elsewhere = Callable[[str], AbstractAsyncContextManager[bool]]


class Holds:
    """The holds of one daemon, for others and by others."""

    def __init__(self, engine: Engine, pauses: Pauses) -> None:
        self._engine = engine
        self._pauses = pauses
        self._alone: Elsewhere = pauses.elsewhere
        self._channel: AsyncChannel | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        pauses.elsewhere = self.elsewhere

    # --- for this machine --------------------------------------------------------------------------------------------

    async def watch(self, channel: AsyncChannel) -> None:
        """Ask a client for holds elsewhere until it leaves; the latest client is the one that is asked."""
        self._channel = channel
        try:
            while True:
                message = (await channel.receive()).header
                future = self._asked.get(message["id"]) if message.get("type") == "held" else None
                if future is not None and not future.done():
                    future.set_result(message.get("whole") is True)
        except KeyError as error:
            raise ValueError("`held` names a hold") from error
        finally:
            if self._channel is channel:
                self._channel = None
                for future in self._asked.values():
                    if not future.done():
                        future.set_result(False)

    @contextlib.asynccontextmanager
    async def elsewhere(self, user: str) -> AsyncIterator[bool]:
        """Hold a user's sandboxes on other machines while the context is open; gives whether nothing runs there."""
        async with self._alone(user) as alone:
            if alone:
                yield True
                return
            number = next(self._numbers)
            try:
                yield await self._ask(number, "hold", user, ANSWER_SECONDS)
            finally:
                self._post({"type": "release", "id": number})

    async def clear_elsewhere(self, user: str) -> None:
        """End a user's idle sandboxes on other machines, as far as they answer."""
        async with self._alone(user) as alone:
            if not alone:
                await self._ask(next(self._numbers), "clear", user, CLEAR_SECONDS)

    async def _ask(self, number: int, kind: str, user: str, seconds: float) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._post({"type": kind, "id": number, "user": user})
            if self._channel is None:
                return False
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            log.warning("not_held_elsewhere user=%s kind=%s", user, kind)
            return False
        finally:
            del self._asked[number]

    def _post(self, message: dict[str, Any]) -> None:
        if self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post(message)

    # --- for other machines ------------------------------------------------------------------------------------------

    async def answer(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer `hold`, `release` or `clear`; the first and the last give `whole`.

        Raises:
            ValueError: an argument is malformed.
        """
        key, user, seconds = arguments.get("id"), arguments.get("user"), arguments.get("seconds", 0.0)
        if name == "release":
            if (event := self._held.get(str(key))) is not None:
                event.set()
            return {}
        if not isinstance(user, str) or not user or type(seconds) not in (int, float):
            raise ValueError("`user` is an id, and `seconds` a number")
        if name == "clear":
            return {"whole": await self._clear(user)}
        if not isinstance(key, str) or not key or not 0 < seconds <= MOST_SECONDS or key in self._held:
            raise ValueError(f"a hold has an `id` of its own, and at most {MOST_SECONDS:g} `seconds`")
        paused: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(self._hold(key, user, float(seconds), paused))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"whole": await paused}

    async def _hold(self, key: str, user: str, seconds: float, paused: asyncio.Future[bool]) -> None:
        event = self._held[key] = asyncio.Event()
        began = time.monotonic()
        try:
            async with self._pauses.paused(user) as whole:
                if not paused.done():
                    paused.set_result(whole)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await event.wait()
        finally:
            del self._held[key]
            self._pauses.charge(user, time.monotonic() - began)
            if not paused.done():
                paused.set_result(False)

    async def _clear(self, user: str) -> bool:
        """End a user's idle sandboxes; return whether none is left."""

        async def busy() -> None:
            raise errors.VolumeBusy("calls run", hint="wait for them")

        with contextlib.suppress(errors.VolumeBusy):
            async with asyncio.timeout(CLEAR_SECONDS), self._engine.quiet(user, busy):
                return True
        return False

    def close(self) -> None:
        """End all holds for others."""
        for task in self._tasks:
            task.cancel()
