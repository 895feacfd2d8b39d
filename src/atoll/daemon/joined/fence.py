"""The fence of a node that has joined a server, as the daemon keeps it (`sandbox.fence` has the theory of operation).

The owner's member process names the moment until which calls of the server's users may run, again and again. When it
passes, the daemon ends their leases, requests, storage peers, shells and builds, and kills their sandboxes and the
JuiceFS that it has mounted (`node.shared.client`); the orphan killer, and the mount's keeper, do the last two by themselves. Requests of theirs are refused until another moment is named, and that is answered only
when everything from before is gone. A file tells a daemon that starts later that its machine has joined: it runs nothing
of the server's users, and makes none of their detached calls, before the first moment is named. The file has the latest
moment: a daemon of another version, which drains beside the one that the member knows, reads it there in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.engine.contract import Engine
from atoll.model.mounts import OWNER
from atoll.sandbox import fence
from atoll.sandbox.launch import Launcher

log = logging.getLogger("atoll.fence")

MOST_SECONDS = 3600.0
"""The longest time that a lease may last."""
LOOK_SECONDS = 1.0
"""The longest sleep of the timer, whose clock does not count the time of a suspended machine."""
LEAST_SECONDS = 0.05
NEAR_SECONDS = 5.0
"""Seconds before the fence from which on its file is read: another daemon may have been told a later moment."""


class NodeFence:
    """Ends what runs for a server's users when the node's lease is over; to be used in the event loop's thread.

    Args:
        engine: has their leases.
        launcher: has their sandboxes.
        cut: ends the file system's client that began before a moment (`SharedData.cut`).
        file: is there while the machine belongs to a server.
    """

    def __init__(self, engine: Engine, launcher: Launcher, cut: Callable[[float], Awaitable[None]], file: Path) -> None:
        self._engine = engine
        self._launcher = launcher
        self._cut = cut
        self._file = file
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[int] | None = None
        self._works: set[asyncio.Future[Any]] = set()
        if file.exists():
            now = fence.now()
            launcher.move_fence(min(fence.told(file) or now, now))

    @property
    def joined(self) -> bool:
        """Return whether the machine belongs to a server."""
        return self._launcher.fence.until is not None

    def check(self) -> None:
        """Refuse a user of the server when the fence has passed.

        Raises:
            HostUnreachable: it has.
        """
        if self._launcher.fence.passed:
            raise fence.refusal()

    @contextlib.contextmanager
    def ends(self, work: asyncio.Future[Any]) -> Iterator[None]:
        """Cancel a served user's work when the fence passes while the context is open."""
        self._works.add(work)
        try:
            yield
        finally:
            self._works.discard(work)

    async def move(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer the owner's request `fence`: name another moment, after the end of what an earlier one has ended.

        - `until`: seconds of `CLOCK_BOOTTIME`, the same for all processes of the machine. A member computes it from the
          moment at which it sent the word that the server has acknowledged; so its own delays only shorten it.
        - `seconds`: from now, instead of `until`.
        - both None or absent: the machine has left its server, nothing is fenced any more.

        Gives `until`, and `ended`: how many sandboxes the last fence has killed, 0 for none.

        Raises:
            ValueError: an argument is malformed.
            StateUnusable: the moment cannot be kept.
        """
        until = _until(arguments)
        ended = await self._end() if self._launcher.fence.passed else 0
        if until is None:
            self._file.unlink(missing_ok=True)
        else:
            self._note(until)
        self._launcher.move_fence(until)
        self._watch()
        if self._launcher.fence.passed:
            ended += await self._end()
        return {"until": until, "ended": ended}

    def close(self) -> None:
        """Watch no more: the daemon ends, and with it every sandbox."""
        if self._timer is not None:
            self._timer.cancel()
        if self._ending is not None:
            self._ending.cancel()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = self._remaining_seconds()
        if left is None:
            return
        if left > 0:
            pause = min(left / 2, LOOK_SECONDS) if left > LEAST_SECONDS else left
            self._timer = asyncio.get_running_loop().call_later(pause, self._watch)
        elif self._ending is None:
            self._ending = asyncio.ensure_future(self._end_served())

    def _remaining_seconds(self) -> float | None:
        left = self._launcher.fence.remaining_seconds
        if left is not None and 0 < left < NEAR_SECONDS:
            told = fence.told(self._file)
            if told is not None and fence.now() + left < told <= fence.now() + MOST_SECONDS:
                self._launcher.move_fence(told)
                return self._launcher.fence.remaining_seconds
        return left

    def _note(self, until: float) -> None:
        """Keep the moment in the file; an earlier one there ends other daemons' calls sooner, which is safe.

        Raises:
            StateUnusable: there is none, so that a daemon that starts later would not know of the server.
        """
        try:
            fence.note(self._file, until)
        except OSError as error:
            if not self._file.exists():
                raise errors.StateUnusable(
                    f"cannot write `{self._file}`: {error.strerror}",
                    hint="make room on the disk, or mount it to be written",
                ) from error
            log.warning("fence_not_noted error=%s", error.strerror)

    async def _end(self) -> int:
        """Wait until everything behind the fence is gone; return how many sandboxes there were."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end_served())
        ending = self._ending
        try:
            return await asyncio.shield(ending)
        finally:
            if ending.done() and self._ending is ending:  # one that has failed is tried again by who asks next
                self._ending = None

    async def _end_served(self) -> int:
        log.warning("fence_passed")
        for work in list(self._works):
            work.cancel()
        ended = errors.WorkerDied(
            "the node lost its server, and has ended the call",
            hint="call again: how far it came is not known",
            signal=9,
            fenced=True,
        )
        self._engine.give_up(_is_served, fence.refusal(), ended)
        until = self._launcher.fence.until
        assert until is not None
        _, count = await asyncio.gather(self._cut(until), self._launcher.end_served())
        log.warning("fence_held sandboxes=%s", count)
        return count


def _is_served(user: str) -> bool:
    return user != OWNER


def _until(arguments: dict[str, Any]) -> float | None:
    until, seconds = arguments.get("until"), arguments.get("seconds")
    if until is None and seconds is None:
        return None
    for value in (until, seconds):
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError("`until` and `seconds` are numbers")
    now = fence.now()
    found = float(until) if until is not None else now + float(seconds)  # type: ignore[arg-type]
    if found > now + MOST_SECONDS:
        raise ValueError(f"a lease lasts at most {MOST_SECONDS:g} seconds")
    return max(found, 0.0)
