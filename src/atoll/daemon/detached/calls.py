"""The daemon's part in detached calls: it keeps them, has a keeper make them, and tells clients of their changes.

Theory of operation. The keeper is a child process, started when a call has no outcome, which ends when it is idle. It
is connected by one channel, over which it opens connections to this daemon as any program would. The store on the disk
is what both agree on. A keeper that ends while calls wait is started again, after a pause that grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from atoll import errors, process, settings
from atoll.detached.database import FILE
from atoll.detached.rows import OWNER, Row
from atoll.detached.store import LOST, Store
from atoll.model.records import CallRecord
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError
from atoll.work_threads import WorkThreads

log = logging.getLogger("atoll.detached")

MOST_PAUSE_SECONDS = 60.0
LEAVE_SECONDS = 2.0
"""Seconds that the keeper has to write the last outcomes when the daemon ends."""

THREADS = 4
"""Questions to the store at a time, one of each user."""

T = TypeVar("T")


class Detached:
    """The detached calls of this daemon.

    Args:
        serve: serves a connection that the keeper has opened.
        on_record: takes records of calls that ended without a worker, or with the daemon before.
    """

    def __init__(
        self,
        options: Settings,
        serve: Callable[[socket.socket], object],
        on_record: Callable[[CallRecord], None] = lambda _: None,
    ) -> None:
        self.options = options
        self._serve = serve
        self._on_record = on_record
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._keeper: process.Child | None = None
        self._channel: AsyncChannel | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads = WorkThreads("detached", THREADS)
        self._waiters: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._pause_seconds = 0.0
        self._leaving = False
        self._pending = False
        self._given_up: set[str] = set()
        self._lost: set[str] = set()
        self.blocked = False
        """The keeper waits for the end of an earlier daemon's keeper, whose calls only that one can end."""
        self.full = ""
        """The reason that the keeper takes no further calls now; empty for none."""
        self.waits: dict[str, tuple[str, str]] = {}
        """The state and the line about the wait of calls that the keeper has in its hands."""

    @property
    def leaving(self) -> bool:
        """True when this daemon makes no further calls: another one keeps new ones."""
        return self._leaving

    @property
    def busy(self) -> bool:
        """True while a call has no outcome, or the keeper lives."""
        return not self._leaving and (self._pending or self._keeper is not None)

    def start(self) -> None:
        """Have calls made that an earlier daemon has left."""
        if (self.options.detached_directory / FILE).exists():
            self._spawn(self._look_for_calls())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work to its end, also where the client that has asked for it goes away; return its result."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def ask(self, question: Callable[[Store], T], user: str = OWNER) -> T:
        """Ask the store, in a thread.

        Args:
            user: whose turn it takes.

        Raises:
            AtollError: as the store.
        """
        async with self._opening:
            if self._store is None:
                directory = self.options.detached_directory
                self._store = await asyncio.to_thread(Store, directory, self.options.detached)
        return await self._threads.run(user, partial(question, self._store))

    async def any(self) -> bool:
        """Return whether anybody has made a detached call here."""
        return self._store is not None or await asyncio.to_thread((self.options.detached_directory / FILE).exists)

    async def left(self) -> dict[str, int]:
        """Return how many calls wait and run, for somebody who is about to end this daemon."""
        if not self.busy:
            return {}
        try:
            return await self.ask(Store.left)
        except errors.AtollError:
            return {}

    async def _look_for_calls(self) -> None:
        try:
            self._pending = await self.ask(Store.pending) > 0
        except Exception as error:
            self._pending = False
            log.warning("detached_calls_unreadable error=%s", error)
        if self._pending:
            self.look()

    def look(self) -> None:
        """Have the keeper look for calls; it is started where there is none."""
        self._pending = True
        if self._leaving:
            return
        if self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"type": "look"})
        elif self._keeper is None:
            self._begin_keeper()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Have the keeper end calls that run, unless they are resumed meanwhile and have another revision."""
        if self._channel is not None and rows:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"type": "cancel", "calls": {row.call: row.revision for row in rows}})

    # --- the keeper -------------------------------------------------------------------------------------------------

    def _begin_keeper(self) -> None:
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).parents[3])
        code = f"import sys; sys.path.insert(0, {package!r}); from atoll.keeper.main import main; sys.exit(main())"
        command = [sys.executable, "-P", "-c", code, str(self.options.home), str(theirs.fileno())]
        try:
            self._keeper = process.Child(
                command, env=settings.daemon_environment(), descriptors=[theirs.fileno()], stdout=2, stderr=2
            )
        except OSError as error:
            log.warning("keeper_not_started error=%s", error)
            ours.close()
            self._spawn(self._look_later())
            return
        finally:
            theirs.close()
        self._channel = AsyncChannel(ours)
        with contextlib.suppress(ChannelClosed):  # it has ended already, as `_attend` finds
            self._channel.post({"type": "settings", "groups": settings.to_data(self.options)})
        self._spawn(self._attend(self._keeper, self._channel))

    async def _attend(self, keeper: process.Child, channel: AsyncChannel) -> None:
        """Serve the keeper to its end."""
        began = time.monotonic()
        try:
            while True:
                message = (await channel.receive()).header
                match message.get("type"):
                    case "connect":
                        (descriptor,) = channel.take_descriptors(1)
                        self._serve(socket.socket(fileno=descriptor))
                    case "changed":
                        self._note(message)
                    case "blocked" | "ready" as word:
                        self.blocked = word == "blocked"
                    case "full":
                        self.full = str(message.get("reason", ""))
        except (ChannelClosed, FrameError, ValueError):
            pass
        finally:
            channel.close()
            status = await keeper.kill()
            self._keeper = self._channel = None
            self.blocked = False
            self.waits.clear()
            self.full = ""
        if self._leaving:
            return
        if status:
            log.warning("keeper_ended status=%s", status)
        lived = time.monotonic() - began > MOST_PAUSE_SECONDS or not status
        self._pause_seconds = 0.0 if lived else min(max(2 * self._pause_seconds, 0.1), MOST_PAUSE_SECONDS)
        self.wake_all()
        self._spawn(self._look_later())

    async def _look_later(self) -> None:
        await asyncio.sleep(self._pause_seconds)
        await self._look_for_calls()

    def _note(self, message: dict[str, Any]) -> None:
        call, batch, state = (str(message.get(name, "")) for name in ("call", "batch", "state"))
        if state == "taken":
            self.waits[call] = "waiting", ""
            return
        if state == "finished" or not state:
            self.waits.pop(call, None)
        else:
            self.waits[call] = state, str(message.get("line", ""))
        if message.get("unrecorded"):
            self._spawn(self.record_end(call))
        if state:
            self.wake(call, batch)

    def record(self, row: Row) -> None:
        """Make a record of a finished call that nobody else reports."""
        self._record(row.record())

    def report(self, record: CallRecord) -> None:
        """Take a record from the engine: a call that ends with the daemon is lost, and nobody has cancelled it."""
        if record.outcome != "ok" and record.call in self._given_up:
            record = replace(record, outcome="lost", error=type(LOST).__name__, message=LOST.message)
        self._record(record)

    def _record(self, record: CallRecord) -> None:
        """Keep a record; of a call that is lost with this daemon only the first one."""
        if record.outcome == "lost" and record.call in self._given_up:
            if record.call in self._lost:
                return
            self._lost.add(record.call)
        self._on_record(record)

    async def record_end(self, call: str) -> None:
        """Make a record of a finished call that nobody else reports."""
        with contextlib.suppress(errors.AtollError):
            for row in await self.ask(lambda store: store.rows("WHERE call = ? AND state = 'finished'", (call,))):
                self.record(row)

    # --- clients that wait ------------------------------------------------------------------------------------------

    def wake(self, *names: str) -> None:
        """Wake those who wait for a change of these calls or batches."""
        for name in names:
            for waiter in self._waiters.pop(name, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def wake_all(self) -> None:
        """Wake everybody who waits."""
        self.wake(*list(self._waiters))

    def waiter(self, name: str) -> asyncio.Future[None]:
        """Return a future of the next change of a call or batch; to be cancelled where it is not waited for."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters[name]
        waiters.add(waiter)
        waiter.add_done_callback(partial(self._forget, name))
        return waiter

    def _forget(self, name: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(name)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[name]

    # --- the end ----------------------------------------------------------------------------------------------------

    def leave(self, *, at_once: bool) -> None:
        """Have no further call made by this daemon; with `at_once` the running ones are about to be ended."""
        self._leaving = True
        if at_once:
            self._given_up = {call for call, (state, _) in self.waits.items() if state == "running"}
        if self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"type": "leave", "at_once": at_once})

    async def close(self) -> None:
        """End the keeper, which writes the last outcomes meanwhile."""
        self._leaving = True
        if self._keeper is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._keeper.wait(), LEAVE_SECONDS)
            if self._keeper is not None:
                await self._keeper.kill()
        if self._tasks:  # the last records
            await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS / 2)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.close)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
