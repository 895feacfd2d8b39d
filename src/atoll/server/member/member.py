"""A machine that has joined: it links to its server again and again, and serves the lines that it is given.

The right to run calls is a lease: it lasts `LEASE_SECONDS` from the last word that the server has acknowledged. The
daemon keeps it (`fence`), so it ends also where this process cannot: then every sandbox of the server's users is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from atoll import __version__, errors
from atoll.server.cluster import own_node
from atoll.server.cluster.contract import BEAT_SECONDS
from atoll.server.cluster.messages import LINE_PATH, LINK_PATH
from atoll.server.line.connection import Connection
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.member.dialling import Address, dial
from atoll.server.member.node_link import NodeLink, clock
from atoll.server.member.spare_line import SpareLine
from atoll.server.node import Node
from atoll.terminal_text import printable

log = logging.getLogger("atoll.member")

SPARES = 4
"""Connections that wait for lines."""
MOST_DIALLING = 64
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.1, 3.0
"""Pauses between attempts to link."""
STOP_SECONDS = 5.0


class Member:
    """The node's process.

    Args:
        name, labels: as it has joined.
        tell: takes lines for who started it.
    """

    def __init__(
        self, node: Node, address: Address, name: str, labels: Mapping[str, str], most: int, tell: Callable[[str], None]
    ) -> None:
        self._node, self._address, self._name, self._labels, self._tell = node, address, name, labels, tell
        self.sessions = Sessions(node, most, f"@{name}")
        self.sessions.on_end.append(self._session_over)
        self._link: NodeLink | None = None
        self._connections: set[Connection] = set()
        self._spares: set[SpareLine] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._leases: set[str] = set()
        self._until = 0.0
        self._changed = asyncio.Event()
        self._fences = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop."""
        async with self.sessions.serving():
            if not self.sessions.adopted:  # whatever runs here is of a process that was killed
                await self._fence(0.0)
            tasks = [asyncio.create_task(work()) for work in (self._stay_linked, self._say_load, self._keep_lease)]
            waits = asyncio.create_task(stop.wait())
            try:
                done, _ = await asyncio.wait({*tasks, waits}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (*tasks, waits):
                    task.cancel()
                await asyncio.gather(*tasks, waits, return_exceptions=True)
                for task in tuple(self._dialling):
                    task.cancel()
                if self._link is not None:
                    self._link.close()
                for connection in tuple(self._connections):  # clients come back, and the next process has their lines
                    connection.shutdown()

    # --- the link ----------------------------------------------------------------------------------------------------

    async def _stay_linked(self) -> None:
        pause, told = FIRST_WAIT_SECONDS, ""
        while True:
            try:
                made = await self._dial_link()
                pause, told = FIRST_WAIT_SECONDS, ""
                await made.lost
                why = "the server has ended the link"
            except errors.NotAuthorized:
                raise
            except (errors.AtollError, OSError, TimeoutError) as error:
                why = error.message if isinstance(error, errors.AtollError) else str(error) or "no answer in time"
            if why != told:
                told = why
                log.warning("link_lost", extra={"fields": {"server": self._address.url, "why": why[:200]}})
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - many nodes come back at once
            pause = min(2 * pause, MOST_WAIT_SECONDS)

    async def _dial_link(self) -> NodeLink:
        answer = await self._node.ask(None, "capacity", {})
        volumes = await asyncio.to_thread(own_node.volumes_of, self._node.options, self._name)
        facts = own_node.facts(answer, volumes, __version__, self._name, self._labels)
        _, made = await dial(
            self._address,
            LINK_PATH,
            lambda transport: NodeLink(transport, self._node, self.sessions, facts, self),
        )
        assert isinstance(made, NodeLink)
        return made

    def welcomed(self, link: NodeLink, notice: str) -> None:
        """See `node_link.Owner.welcomed`."""
        self._link = link
        self._leases.clear()
        self._changed.set()
        self.wanted(SPARES)
        self._tell(f"linked to {self._address.url} as `{self._name}`")
        if notice:
            self._tell(f"warning: {printable(notice)}")
        log.info("linked", extra={"fields": {"server": self._address.url, "name": self._name}})

    def lost(self, link: NodeLink) -> None:
        """See `node_link.Owner.lost`: lines that stand by have no use any more."""
        if self._link is link:
            self._link = None
        for spare in tuple(self._spares):
            spare.transport.abort()

    def wanted(self, count: int) -> None:
        """See `node_link.Owner.wanted`."""
        for _ in range(min(count, MOST_DIALLING - len(self._dialling))):
            task = asyncio.get_running_loop().create_task(self._dial_line())
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)

    async def _dial_line(self) -> None:
        try:
            _, made = await dial(
                self._address,
                LINE_PATH,
                lambda transport: SpareLine(
                    transport, self.sessions, self._connections, self._opened, self._spares.discard
                ),
            )
        except (errors.AtollError, OSError, TimeoutError) as error:
            log.info("line_not_dialled", extra={"fields": {"error": str(error)[:200]}})
            return
        assert isinstance(made, SpareLine)
        if not made.used:
            self._spares.add(made)

    # --- load --------------------------------------------------------------------------------------------------------

    def _opened(self, session: Session, kind: str) -> None:
        if kind in {"lease", "shell"}:
            self._leases.add(session.id)
            if self._link is not None:
                self._link.taken += 1
        self._changed.set()

    def _session_over(self, session: Session) -> None:
        self._leases.discard(session.id)
        if self._link is not None:
            self._link.say({"type": "over", "session": session.id})
        self._changed.set()

    async def _say_load(self) -> None:
        while True:
            link = self._link
            if link is not None and not link.over:
                taken = link.taken
                try:
                    answer = await self._node.ask(None, "capacity", {})
                    link.tell_load(own_node.load(answer, taken))
                except errors.AtollError as error:  # no word is a word: this node cannot serve
                    log.warning("no_load", extra={"fields": {"error": error.message[:200]}})
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            await asyncio.sleep(0.05)

    # --- the lease ---------------------------------------------------------------------------------------------------

    def leased(self, until: float) -> None:
        """See `node_link.Owner.leased`."""
        if until > self._until:
            self._until = until
            self._fences.set()

    async def _keep_lease(self) -> None:
        """Tell the daemon of each renewal."""
        while True:
            await self._fences.wait()
            self._fences.clear()
            await self._fence(max(self._until - clock(), 0.0))

    async def _fence(self, seconds: float) -> None:
        arguments: dict[str, Any] = {"seconds": seconds}
        try:
            await self._node.ask(None, "fence", arguments)
        except errors.ProtocolMismatch:
            log.warning("no_fence")
        except errors.AtollError as error:
            log.warning("lease_not_told", extra={"fields": {"error": error.message[:200]}})
