"""Pauses of a user's sandboxes, for the instant in which a storage peer switches a tree (`storage.sync.pause`).

The daemon alone pauses, since it has the groups. A pause ends when the peer says so, when the peer ends, and at the
latest after `MOST_SECONDS`; one user has one at a time. It covers the sandboxes of functions and shells, also those that
start meanwhile, and never a peer. The code that drives a peer may be hostile: a user's pauses together take at most
`SHARE` of the time, and more of them wait. A daemon that dies takes its sandboxes with it, paused or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from atoll.sandbox.limits.freezing import Freezer
from atoll.sandbox.limits.sandbox_limit import SandboxLimit
from atoll.storage.sync.pause import MOST_SECONDS
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import Pace
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.freezing")

SHARE = 0.2
"""The share of time that a user's sandboxes may be paused."""
FREEZING_SECONDS = 0.2
"""How long the kernel may take to pause them: a process that waits for a network disk cannot be."""
_LEAST_SECONDS = 0.05
"""The same after pauses that failed: half as long after each, until one succeeds again."""
_LOOK_SECONDS = 0.001
_LONG_SECONDS = 0.1


@contextlib.asynccontextmanager
async def _nowhere_else(_: str) -> AsyncIterator[bool]:
    yield True


class Pauses:
    """The pauses of all users; to be used from the event loop's own thread.

    Args:
        elsewhere: holds a user's sandboxes on other machines that share the volume while its context is open; gives
            whether nothing of theirs runs there.
        on_last: is told when a user's last sandbox has ended.

    Attributes:
        elsewhere: see above.
    """

    def __init__(
        self,
        elsewhere: Callable[[str], AbstractAsyncContextManager[bool]] = _nowhere_else,
        on_last: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.elsewhere = elsewhere
        self._on_last = on_last
        self._limits: dict[str, set[SandboxLimit]] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._paces: dict[str, Pace] = {}
        self._held: dict[str, list[Freezer]] = {}
        self._patience: dict[str, float] = {}
        self._holders: Counter[str] = Counter()

    def add(self, user: str, limit: SandboxLimit) -> None:
        """Add a sandbox that has just been started; it joins a pause of its user."""
        self._limits.setdefault(user, set()).add(limit)
        if user in self._held:
            freezer = limit.freezer()
            self._held[user].append(freezer)
            freezer.freeze()

    def remove(self, user: str, limit: SandboxLimit) -> None:
        """Remove a sandbox that has ended; it may have been removed before."""
        limits = self._limits.get(user, set())
        limits.discard(limit)
        if not limits:
            self._limits.pop(user, None)
            self._on_last(user)

    def stops(self, user: str, pid: int) -> bool:
        """Return whether a process is stopped by a pause, and not by itself."""
        return any(freezer.stops(pid) for freezer in self._held.get(user, ()))

    def charge(self, user: str, seconds: float) -> None:
        """Count a pause that another machine has asked for: later ones of this machine wait for it."""
        self._paces.setdefault(user, Pace(SHARE, MOST_SECONDS)).take(seconds)

    async def serve(self, user: str, channel: AsyncChannel) -> None:
        """Make the pauses that a peer asks for, until it closes the channel."""
        try:
            while True:
                await _expect(channel, "freeze")
                async with self._turn(user), self.elsewhere(user) as alone, self.paused(user) as whole:
                    await channel.send({"type": "frozen", "whole": whole and alone})
                    thawed = False
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(MOST_SECONDS):
                            await _expect(channel, "thaw")
                            thawed = True
                if not thawed:
                    log.warning("pause_ended_late user=%s", user)
                    await _expect(channel, "thaw")
        except (ChannelClosed, FrameError, ValueError, OSError) as error:
            if not isinstance(error, ChannelClosed):
                log.warning("pauses_ended user=%s error=%s", user, error)
        finally:
            channel.close()

    @contextlib.asynccontextmanager
    async def _turn(self, user: str) -> AsyncIterator[None]:
        """Wait until this user may have another pause, and charge its time."""
        lock = self._turns.setdefault(user, asyncio.Lock())
        pace = self._paces.setdefault(user, Pace(SHARE, MOST_SECONDS))
        async with lock:
            await asyncio.sleep(pace.seconds())
            began = time.monotonic()
            try:
                yield
            finally:
                pace.take(time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def paused(self, user: str) -> AsyncIterator[bool]:
        """Pause the user's sandboxes; gives whether none of their processes runs. Several such contexts may be open."""
        patience, whole = self._patience.pop(user, FREEZING_SECONDS), True
        began = time.monotonic()
        self._holders[user] += 1
        if user not in self._held:
            self._held[user] = [limit.freezer() for limit in self._limits.get(user, ())]
            for freezer in self._held[user]:
                freezer.freeze()
        held = self._held[user]
        try:
            while not all(freezer.is_frozen() for freezer in held):
                passed = time.monotonic() - began
                if passed > patience:
                    log.warning("not_paused user=%s sandboxes=%s seconds=%.3f", user, len(held), passed)
                    self._patience[user] = max(patience / 2, _LEAST_SECONDS)
                    whole = False
                    break
                await asyncio.sleep(_LOOK_SECONDS if passed > _LOOK_SECONDS else 0)
            yield whole
        finally:
            self._holders[user] -= 1
            if not self._holders[user]:
                del self._held[user], self._holders[user]
                for freezer in held:
                    freezer.thaw()
            if (passed := time.monotonic() - began) > _LONG_SECONDS:
                log.info("long_pause user=%s seconds=%.3f", user, passed)


async def _expect(channel: AsyncChannel, kind: str) -> None:
    message = await channel.receive()
    if message.type != kind:
        raise ValueError(f"a storage peer sent `{message.type}` instead of `{kind}`")
