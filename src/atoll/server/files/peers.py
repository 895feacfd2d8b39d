"""Storage peers of the users who ask for files: bounded for each user, and kept for a while for the next request.

A request lends a peer and has it alone. Its calls block in a thread while the peer works; a request that is cancelled
shuts the peer's socket down, which ends both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from atoll import errors
from atoll.host.storage_channels import StorageChannel
from atoll.server.node import Node
from atoll.server.principal import Principal
from atoll.storage.client.volume import VolumeClient
from atoll.storage.protocol.connection import Connection
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError

MOST_OF_USER = 6
"""Peers of one user at a time; each is a process."""
MOST_KEPT = 2
"""Idle peers of one user."""
MOST = 64
"""Peers of all users that are in use."""
MOST_KEPT_OF_ALL = 32
"""Idle peers of all users."""
KEPT_SECONDS = 30.0
"""Seconds that an idle peer waits for the next request of its user."""
MARGIN_SECONDS = 3.0
"""Seconds before a peer's end in which it is not used again."""
WAIT_SECONDS = 20.0
"""Seconds that a request waits for a peer while all are in use."""

P = ParamSpec("P")
T = TypeVar("T")


class Lent:
    """A storage peer that one request has.

    Args:
        channel: to the peer.
        executor: runs the calls that block.
    """

    def __init__(self, channel: Channel, executor: ThreadPoolExecutor) -> None:
        self.volume = VolumeClient(channel)
        self._executor = executor

    @property
    def connection(self) -> Connection:
        """The peer's channel, for longer exchanges."""
        return self.volume.connection

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call in a thread; one that is cancelled ends the peer, and with it the call."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, functools.partial(work, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.abandon()
            with contextlib.suppress(Exception):
                await running
            raise

    def abandon(self) -> None:
        """Cut the peer off, also while a thread waits for it."""
        with contextlib.suppress(OSError):
            self.connection.channel.socket.shutdown(socket.SHUT_RDWR)
        self.connection.idle = False


class _User:
    """The peers of one user."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(MOST_OF_USER)
        self.holders = 0
        self.idle: list[tuple[float, Channel]] = []


class Peers:
    """Lend storage peers to requests.

    Args:
        node: starts them.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._users: dict[str, _User] = {}
        self._places = asyncio.Semaphore(MOST)
        self._executor = ThreadPoolExecutor(MOST, thread_name_prefix="files")
        self._sweep: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """End the idle peers; no request has one."""
        if self._sweep is not None:
            self._sweep.cancel()
        for user in self._users.values():
            for _, channel in user.idle:
                channel.close()
        self._users.clear()
        await asyncio.to_thread(self._executor.shutdown)

    @contextlib.asynccontextmanager
    async def lent(self, principal: Principal) -> AsyncIterator[Lent]:
        """Lend a peer of the user's volume while the context is open.

        Raises:
            ResourcesUnavailable: the user has as many requests under way as may be.
            HostUnreachable, StateUnusable, DiskFull: there is no peer to be had.
        """
        user = self._users.setdefault(principal.user, _User())
        user.holders += 1
        try:
            async with _place(user.places, "of this user"), _place(self._places, "of all users"):
                lent = Lent(await self._take(user, principal), self._executor)
                try:
                    yield lent
                finally:
                    self._give_back(user, lent)
        finally:
            user.holders -= 1
            self._forget(principal.user, user)

    async def _take(self, user: _User, principal: Principal) -> Channel:
        while user.idle:
            until, channel = user.idle.pop()
            if time.monotonic() < until and channel.between_messages and not channel.readable():
                return channel
            channel.close()
        return await self._open(principal)

    async def _open(self, principal: Principal) -> Channel:
        control = await self._node.connect(principal, {"type": "storage"})
        try:
            header = (await control.receive()).header
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            (descriptor,) = control.take_descriptors(1)
            lease = socket.socket(fileno=os.dup(control.fileno()))  # the loop's end is closed here
        except (ChannelClosed, FrameError) as error:
            raise errors.HostUnreachable("the node ended before it answered", hint="try again") from error
        finally:
            control.close()
        peer = socket.socket(fileno=descriptor)
        peer.setblocking(True)
        return StorageChannel(peer, Channel(lease))

    def _give_back(self, user: _User, lent: Lent) -> None:
        connection = lent.connection
        if not connection.usable or connection.handles or len(user.idle) >= MOST_KEPT:
            connection.abandon()
            return
        try:
            connection.channel.send({"type": "rest", "seconds": KEPT_SECONDS})
        except (ChannelClosed, OSError):
            connection.abandon()
            return
        if sum(len(one.idle) for one in self._users.values()) >= MOST_KEPT_OF_ALL:
            self._end_oldest()
        user.idle.append((time.monotonic() + KEPT_SECONDS - MARGIN_SECONDS, connection.channel))
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        """Close the idle peers whose time is over."""
        self._sweep, now = None, time.monotonic()
        for name, user in list(self._users.items()):
            over = [channel for until, channel in user.idle if until <= now]
            user.idle = [(until, channel) for until, channel in user.idle if until > now]
            for channel in over:
                channel.close()
            self._forget(name, user)
        if any(user.idle for user in self._users.values()):
            self._sweep = asyncio.get_running_loop().call_later(KEPT_SECONDS / 2, self._end_idle)

    def _end_oldest(self) -> None:
        """Close the peer that has been idle for longest."""
        oldest = min((user for user in self._users.values() if user.idle), key=lambda user: user.idle[0][0])
        oldest.idle.pop(0)[1].close()

    def _forget(self, name: str, user: _User) -> None:
        if not user.holders and not user.idle:
            self._users.pop(name, None)


@contextlib.asynccontextmanager
async def _place(places: asyncio.Semaphore, whose: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await places.acquire()
    except TimeoutError:
        raise errors.ResourcesUnavailable(
            f"as many requests {whose} for files are under way as may be", hint="try again when one has ended"
        ) from None
    try:
        yield
    finally:
        places.release()
