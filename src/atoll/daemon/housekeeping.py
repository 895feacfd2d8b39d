"""Housekeeping of volumes: removes trees that syncs have replaced, as soon as nothing can have them open.

A sandbox or a shell may work in a directory after a sync has replaced it. So a replaced tree is removed only when every
sandbox and shell of its user, on every machine that shares the volume, was started later.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll import errors
from atoll.engine.contract import Engine
from atoll.node.node import Node

COLLECT_SECONDS = 30.0
"""Seconds between looks for replaced trees while the user has sandboxes, or clients without any."""

COLLECT_FULL_SECONDS = 2.0
"""The same while the volumes' disk is nearly full."""

MAKE_ROOM_SECONDS = 60.0
"""Seconds that a client with a full disk waits for a removal, and for which the removal then counts."""

CLOCK_SECONDS = 60.0
"""Seconds by which a replaced tree must be older than the oldest sandbox: clocks are set back, too."""


@dataclass
class _Volume:
    """The housekeeping of one user's volume.

    Args:
        shells: when each open shell was started.
        was_used: a sandbox or shell has lived since the last collection.
    """

    shells: list[float] = field(default_factory=list)
    was_used: bool = True
    collect_at: float = 0.0
    made_room_at: float = -math.inf
    collecting: asyncio.Task[None] | None = None


class Housekeeping:
    """Collects replaced trees of every user with a volume on the node, and knows the open shells."""

    def __init__(self, node: Node, engine: Engine) -> None:
        self._node = node
        self._engine = engine
        self._volumes: dict[str, _Volume] = {}

    def _volume(self, user: str) -> _Volume:
        return self._volumes.setdefault(user, _Volume())

    def open_shells(self, user: str) -> int:
        """Return how many interactive shells of a user live."""
        return len(self._volume(user).shells)

    @contextlib.contextmanager
    def shell(self, user: str) -> Iterator[None]:
        """Count an interactive shell while the context is open."""
        started, shells = time.time(), self._volume(user).shells
        shells.append(started)
        try:
            yield
        finally:
            shells.remove(started)

    async def watch(self, look_seconds: float) -> None:
        """Collect in the background when it is due; runs until cancelled."""
        try:
            while True:
                await asyncio.sleep(look_seconds)
                for user in self._node.users():
                    self._collect_if_due(user, time.monotonic())
        finally:
            tasks = [one.collecting for one in self._volumes.values() if one.collecting is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def make_room(self, user: str) -> bool:
        """Collect now; return whether anything was removed, now or less than `MAKE_ROOM_SECONDS` ago."""
        volume = self._volume(user)
        await asyncio.wait([self._collect(user)], timeout=MAKE_ROOM_SECONDS)
        return time.monotonic() - volume.made_room_at < MAKE_ROOM_SECONDS

    def _collect_if_due(self, user: str, now: float) -> None:
        """Collect when the user's last sandbox has ended, and from time to time."""
        volume, idle = self._volume(user), self._is_idle(user)
        if not idle:
            volume.was_used = True
        due = now >= volume.collect_at or (idle and volume.was_used)
        if not due and now >= volume.collect_at - COLLECT_SECONDS + COLLECT_FULL_SECONDS:
            data = self._node.data
            due = data.nearly_full if data.is_shared else self._node.storage_peers.is_disk_nearly_full()
        if not due or (volume.collecting is not None and not volume.collecting.done()):
            return
        if idle:
            volume.was_used = False
        volume.collect_at = now + COLLECT_SECONDS
        self._collect(user)

    def _is_idle(self, user: str) -> bool:
        return self._engine.oldest_sandbox(user) is None and not self._volume(user).shells

    def _collect(self, user: str) -> asyncio.Task[None]:
        volume = self._volume(user)
        if volume.collecting is None or volume.collecting.done():
            volume.collecting = asyncio.get_running_loop().create_task(self._remove_replaced(user))
        return volume.collecting

    async def _remove_replaced(self, user: str) -> None:
        volume = self._volume(user)
        alive = [*volume.shells, self._engine.oldest_sandbox(user) or time.time()]
        data = self._node.data
        with contextlib.suppress(errors.VolumesUnavailable):
            elsewhere = await data.presence.since(user, min(alive))
            before = min(*alive, elsewhere or math.inf)
            before -= 0.0 if self._is_idle(user) and not data.is_shared else CLOCK_SECONDS
            await self._collect_before(user, before)

    async def _collect_before(self, user: str, before: float) -> None:
        if await self._node.storage_peers.collect(user, int(before * 1e9)):
            self._volume(user).made_room_at = time.monotonic()
