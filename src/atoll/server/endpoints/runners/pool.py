"""The runners of one revision: as many as requests need, within its bounds, and requests that wait for one in order.

Theory of operation. A request takes a place at the runner with the fewest; where none has a place it waits, and another
runner starts if the revision may have one more. A place that becomes free goes to the request that has waited longest.
Runners without requests end after `keep_alive`. A revision that no alias points to any more has its runners end when they
are idle: requests that have begun go on. One that an alias points to has as many runners as it is to keep; where these fail,
the next one is started after a rest (`failing`), and by a request at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

from atoll import errors
from atoll.server.endpoints import bodies
from atoll.server.endpoints.figures import Series
from atoll.server.endpoints.rows import Revision
from atoll.server.endpoints.runners.failing import STABLE_SECONDS, Failing
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.principal import Principal
from atoll.server.state import ServerState

MOST_WAITING = 1000
"""Requests that wait for runners of one revision."""
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
        self._calls: set[str] = set()  # of runners that start or serve
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

    @property
    def _least(self) -> int:
        """Runners that are kept although nobody asks."""
        return self.revision.options.min_concurrency if self.revision.alias and not self.retired else 0

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
        self.end(runner)
        if self._waiting:
            self.grow()

    def spare(self) -> list[Runner]:
        """Return the runners without requests that may end now."""
        idle = [one for one in self.runners if not one.busy]
        return idle[: max(len(self.runners) - self._least, 0)]

    def end(self, runner: Runner) -> None:
        """End a runner."""
        runner.over = True
        self._calls.discard(runner.call)
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
        self._calls.add(call)
        runner = self._runner(call)
        try:
            await runner.start(self._file, self.revision.options.startup_timeout)
        except (errors.AtollError, OSError, ValueError) as error:
            self._calls.discard(call)
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
        least = self._least
        for runner in tuple(self.runners):
            kept = len(self.runners) <= least
            idle = not runner.busy and now - runner.since >= (0 if self.retired else options.keep_alive)
            if idle and not kept:
                self.end(runner)
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
        """Use a runner that an earlier process of this server has begun, once."""
        if call not in self._calls:
            self._calls.add(call)
            self._begin(self._adopt(call))

    async def _adopt(self, call: str) -> None:
        runner = self._runner(call)
        try:
            await runner.adopt()
        except (errors.AtollError, TimeoutError):
            self._calls.discard(call)
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
