"""The work in the background for a server's machines: bringing those up to date that link, and holds for their syncs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, Protocol

from atoll import errors
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.cluster.links.link import Link
from atoll.server.machines.asks import Asks
from atoll.server.machines.copies import Copies
from atoll.server.machines.holds import Connects, Holds, relay

log = logging.getLogger("atoll.machines")

AGAIN_SECONDS = 5.0
"""Seconds between two attempts to bring a machine up to date; it gets no calls before."""
LOOK_SECONDS = 1.0


class Own(Connects, Asks, Protocol):
    """The server's own node: `server.node.Node`."""


class Upkeep:
    """Does what machines need of the server.

    Args:
        own: the server's own node.
    """

    def __init__(self, cluster: Cluster, own: Own, copies: Copies, holds: Holds) -> None:
        self._cluster, self._own, self._copies, self._holds = cluster, own, copies, holds
        self._tasks: set[asyncio.Task[None]] = set()
        self._making_up: set[str] = set()
        cluster.on_join, cluster.on_need = self._joined, self._needed

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Work while the context is open."""
        self._begin(self._make_up())
        if self._cluster.local:
            self._begin(self._own_holds())
        try:
            yield
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _joined(self, link: Link) -> None:
        self._begin(self._prepare(link))

    async def _prepare(self, link: Link) -> None:
        while not link.over:
            try:
                await self._copies.join(link.name, link)
            except (errors.AtollError, LookupError, TypeError, ValueError) as error:  # or it answers as none does
                self._cluster.behind(link, str(error))
                log.warning("node_not_up_to_date", extra={"fields": {"node": link.name, "error": str(error)[:200]}})
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self._cluster.ready(link)
                return

    async def _make_up(self) -> None:
        """Repeat what machines that are there have not done; one that does not answer holds up no other."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for name in self._copies.missing():
                node: Asks | None = self._own if name == LOCAL else self._cluster.links.get(name)
                if node is not None and name not in {*self._cluster.catching_up, *self._making_up}:
                    self._making_up.add(name)
                    self._begin(self._repeat(name, node))

    async def _repeat(self, name: str, node: Asks) -> None:
        try:
            await self._copies.make_up(name, node)
        except (errors.AtollError, LookupError, TypeError, ValueError) as error:
            log.warning("not_made_up", extra={"fields": {"node": name, "error": str(error)[:200]}})
        finally:
            self._making_up.discard(name)

    def _needed(self, link: Link, message: dict[str, Any]) -> None:
        self._begin(self._meet(link, message))

    async def _meet(self, link: Link, message: dict[str, Any]) -> None:
        try:
            value = await self._holds.need(link.name, str(message["name"]), dict(message["arguments"]))
            link.say({"type": "met", "id": message["id"], "value": value})
        except errors.AtollError as error:
            link.say({"type": "met", "id": message.get("id"), "error": error.to_data()})
        except (LookupError, TypeError, ValueError) as error:
            odd = errors.ProtocolMismatch(f"no such request: {error!r}"[:200], hint="upgrade the older side")
            link.say({"type": "met", "id": message.get("id"), "error": odd.to_data()})

    async def _own_holds(self) -> None:
        """Hear from the own node's daemon what it needs, once there are others: it could not leave by itself before."""
        while self._cluster.alone:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(LOOK_SECONDS)
        await relay(self._own, partial(self._holds.need, LOCAL))
