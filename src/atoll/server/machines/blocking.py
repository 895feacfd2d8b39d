"""Requests to machines from threads, for work that waits for both database and machine."""

from __future__ import annotations

import asyncio
from typing import Any

from atoll.server.machines.asks import Asks
from atoll.server.principal import Principal


class Blocking:
    """The blocking form of `Asks`; made in the event loop, used in other threads.

    Args:
        node: answers in this loop.
    """

    def __init__(self, node: Asks) -> None:
        self._node, self._loop = node, asyncio.get_running_loop()

    def request(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """As `Asks.ask`."""
        return asyncio.run_coroutine_threadsafe(self._node.ask(principal, name, arguments), self._loop).result()
