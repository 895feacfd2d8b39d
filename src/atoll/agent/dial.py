"""Connections to TCP ports of the sandbox, made by the agent for the daemon, which cannot reach the sandbox's network.

The agent is single-threaded, so a connection is made without waiting: one that is not there at once joins the agent's
poll. The connected socket travels to the daemon as a descriptor beside `dialled`.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs the start of a sandbox 3 ms
import errno
import os
import select
from collections.abc import Callable
from typing import Protocol

from atoll.wire.channel import Channel, Socket

SYN_RETRIES = 2
"""Retries of a connection to a port whose queue is full; the kernel gives up after 7 seconds."""

MAX_PORT = 65535


class Watcher(Protocol):
    """The agent, as it calls back for descriptors."""

    def watch(self, descriptor: int, on_ready: Callable[[], None], events: int) -> None: ...

    def unwatch(self, descriptor: int) -> None: ...


class Dials:
    """Connections that are being made.

    Args:
        channel: to the daemon.
        watcher: the agent.
    """

    def __init__(self, channel: Channel, watcher: Watcher) -> None:
        self._channel = channel
        self._watcher = watcher
        self._open: dict[int, tuple[int, int, Socket]] = {}

    def start(self, message: dict[str, object]) -> None:
        """Connect to `port` of 127.0.0.1; answer with `dialled` and the request's `number`, now or later."""
        number, port = int(str(message["number"])), int(str(message["port"]))
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        try:
            if not 0 < port <= MAX_PORT:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            connection = Socket(_socket.AF_INET, kind)
        except OSError as error:  # no descriptor is left, for example
            self._refuse(number, port, error.errno or 0)
            return
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_SYNCNT, SYN_RETRIES)
        status = connection.connect_ex(("127.0.0.1", port))
        if status == errno.EINPROGRESS:
            descriptor = connection.fileno()
            self._open[descriptor] = number, port, connection
            self._watcher.watch(descriptor, lambda: self._finish(descriptor), select.POLLOUT)
        else:
            self._answer(number, port, connection, status)

    def _finish(self, descriptor: int) -> None:
        number, port, connection = self._open.pop(descriptor)
        self._watcher.unwatch(descriptor)
        self._answer(number, port, connection, connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR))

    def _answer(self, number: int, port: int, connection: Socket, status: int) -> None:
        try:
            if status:
                self._refuse(number, port, status)
            else:
                self._channel.send({"type": "dialled", "number": number}, descriptors=[connection.fileno()])
        finally:
            connection.close()

    def _refuse(self, number: int, port: int, status: int) -> None:
        self._channel.send({"type": "dialled", "number": number, "error": f"port {port}: {os.strerror(status)}"})

    def close(self) -> None:
        """Close the connections that are being made: in a worker, which was forked meanwhile."""
        for _, _, connection in self._open.values():
            connection.close()
