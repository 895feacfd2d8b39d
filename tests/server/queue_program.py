"""The program `atoll` whose endpoints have no functions: their runners are a server of the test's at `ATOLL_TEST_APP`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.cli.main import main
from atoll.server.endpoints.exchange import Exchange
from atoll.server.endpoints.runners import pool


class FakeRunner:
    """A runner as its pool knows it, without a call."""

    def __init__(self, state: Any, owner: Any, call: str, *_: object) -> None:
        self.state, self.owner, self.call = state, owner, call
        self.busy, self.over, self.worker = 0, False, ""
        self.since = self.born = time.monotonic()
        self._idle: list[Exchange] = []

    async def start(self, _file: Path, _seconds: float) -> None:
        """Start at once."""

    async def adopt(self) -> None:
        """Be none of an earlier process."""
        raise errors.HostUnreachable("nothing to adopt", hint="none")

    async def connection(self) -> Exchange:
        """Return a connection to the test's server."""
        while self._idle:
            if (found := self._idle.pop()).can_ask(time.monotonic()):
                return found
            found.close()
        try:
            _, made = await asyncio.get_running_loop().create_connection(
                Exchange, "127.0.0.1", int(os.environ["ATOLL_TEST_APP"])
            )
        except OSError as error:
            raise errors.PortUnreachable("nothing listens", hint="none") from error
        return made

    async def connect(self, protocol: asyncio.Protocol) -> Any:
        """Return a connection for a protocol that speaks with the test's server by itself."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: protocol, "127.0.0.1", int(os.environ["ATOLL_TEST_APP"])))[0]

    def give_back(self, exchange: Exchange) -> None:
        """Keep a connection."""
        if exchange.reusable and exchange.is_whole and not self.over:
            exchange.rest_since = time.monotonic()
            self._idle.append(exchange)
        else:
            exchange.close()

    def let_go(self) -> None:
        """Close the connections."""
        for one in self._idle:
            one.close()
        self._idle.clear()

    async def stop(self) -> None:
        """End."""
        self.over = True
        self.let_go()


setattr(pool, "Runner", FakeRunner)
main()
