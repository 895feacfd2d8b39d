"""Connections to the daemon that code inside workers has opened: accounted for, and ended with their worker.

A function can send both ends of a connection to the daemon, which then would keep it open for ever by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING

from atoll import errors
from atoll.engine.accounts import Account, Opener
from atoll.wire.bounds import NESTED, Pace
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, encode

if TYPE_CHECKING:
    from atoll.engine.contract import Connect
    from atoll.wire.async_channel import AsyncChannel

MAX_NESTED_CONNECTIONS = 160
"""Open connections to the daemon of the code in one worker: more than the SDK has threads."""

MOST_DESCRIPTORS = 1 << 12
"""Descriptors that are counted on at most: each connection costs memory too."""

SEND_BYTES = 64 << 10
"""The kernel's buffer for messages to a nested client: the daemon's memory, as far as the client does not read."""


class NestedConnections:
    """The nested connections of one pool's workers.

    Args:
        on_connect: serves one to its end.
    """

    def __init__(self, on_connect: Connect) -> None:
        total = _max_connections()
        self._on_connect = on_connect
        self._account = Account(MAX_NESTED_CONNECTIONS, total // 2, total * 3 // 4, total)
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._paces: dict[str, Pace] = {}

    def open(self, connection: socket.socket, user: str, sandbox: str, worker: str, pace: Pace) -> None:
        """Serve a connection as a task, or refuse it by name.

        Args:
            pace: of everything that comes from this user's sandboxes.
        """
        opener = Opener(user, sandbox, worker, self._paces.setdefault(worker, NESTED.pace(pace)))
        full = self._account.full(opener)
        if full:
            _refuse(connection, full, self._account.most[full])
            return
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self._account.take(opener)
        tasks = self._tasks.setdefault(worker, set())

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._account.take(opener, -1)
            connection.close()  # a task that is cancelled before its first step has not

        task = asyncio.get_running_loop().create_task(self._serve(connection, opener))
        tasks.add(task)
        task.add_done_callback(ended)

    async def _serve(self, connection: socket.socket, opener: Opener) -> None:
        await self._on_connect(connection, opener)

    def ended(self, worker: str) -> None:
        """End the connections of a worker that has ended."""
        self._paces.pop(worker, None)
        for task in self._tasks.pop(worker, ()):
            task.cancel()

    async def close(self) -> None:
        """End all connections."""
        tasks = [task for tasks in self._tasks.values() for task in tasks]
        for worker in list(self._tasks):
            self.ended(worker)
        await asyncio.gather(*tasks, return_exceptions=True)


def _refuse(connection: socket.socket, full: str, most: int) -> None:
    """Tell the client why, as far as the connection takes it at once, and close."""
    holder = {"total": "all functions together", "user": "all functions of a user"}.get(full, f"the code in one {full}")
    error = errors.ResourcesUnavailable(
        f"{holder} may have {most} connections to the daemon, and has them", hint="make fewer calls at a time"
    )
    with connection, contextlib.suppress(OSError):
        data = b"".join(encode({"type": "failed", "error": error.to_data()}))
        connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def received(control: AsyncChannel, kind: str, family: socket.AddressFamily) -> socket.socket:
    """Take the stream socket that a sandbox has sent with a message.

    Raises:
        FrameError: another thing came, or nothing: closing a socket of another family could wait for its peer.
    """
    try:
        (descriptor,) = control.take_descriptors(1)
    except ChannelClosed as error:
        raise FrameError(f"`{kind}` came without a connection") from error
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise FrameError(f"`{kind}` came with something else than a connection") from error
    if connection.family != family or connection.type != socket.SOCK_STREAM:
        connection.close()
        raise FrameError(f"`{kind}` came with a socket of another kind")
    return connection


def _max_connections() -> int:
    """Return how many connections the code in all workers may have open: half of the descriptors that there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(soft, MOST_DESCRIPTORS) // 2 if soft != resource.RLIM_INFINITY else MOST_DESCRIPTORS // 2
