"""The running server: its listener, its signals, and the word that it listens."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

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
        inner: a Unix socket for this user's processes, and the class of its connections; None for none.
    """

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], inner: tuple[Path, Callable[..., Any]] | None = None
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._inner = inner

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        if self.started:
            if self._inner is not None:
                await self._listen_inside(*self._inner)
            self._on_ready()
            systemd.tell("READY=1")

    async def _listen_inside(self, path: Path, protocol: Callable[..., Any]) -> None:
        path.unlink(missing_ok=True)
        make = partial(protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self.servers.append(await asyncio.get_running_loop().create_unix_server(make, str(path), backlog=BACKLOG))

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
