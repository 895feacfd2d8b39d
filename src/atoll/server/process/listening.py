"""The running server: its listener, its signals, and the word that it listens."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from atoll import errors
from atoll.server.options import Address
from atoll.server.process import systemd

BACKLOG = 1024


def listen(address: Address) -> socket.socket:
    """Return a listening socket.

    Raises:
        HostUnreachable: the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise errors.HostUnreachable(
            f"cannot listen on `{address}`: {error.strerror or error}", hint="choose another address with `--listen`"
        ) from error


class Server(uvicorn.Server):
    """uvicorn's server, which ends by a signal with the status 0, after everything has been put in order.

    Args:
        on_ready: is told when requests are answered.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()
            systemd.tell("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order."""
        systemd.tell("STOPPING=1")
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT while the context is open; they are not raised again after it."""
        before = {number: signal.signal(number, self._told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number: int, _frame: FrameType | None) -> None:
        """End; a second Ctrl-C waits for nobody."""
        if self.should_exit and number == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
