"""A machine that has joined: it links to its server again and again, and serves the lines that it is given.

The right to run calls is a lease: it lasts `LEASE_SECONDS` from the last word that the server has acknowledged. The
daemon keeps it (`fence`), so it ends also where this process cannot: then every sandbox of the server's users is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll import __version__, errors
from atoll.server.cluster import own_node
from atoll.server.cluster.contract import BEAT_SECONDS, LEASE_SECONDS, NodeFacts, NodeLoad
from atoll.server.cluster.links.messages import LINE_PATH, LINK_PATH
from atoll.server.line.connection import Connection
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.machines.holds import relay
from atoll.server.member.dialling import Address, dial
from atoll.server.member.node_link import NodeLink, clock
from atoll.server.member.spare_line import SpareLine
from atoll.server.node import Node
from atoll.terminal_text import printable
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.member")

SPARES = 4
"""Connections that wait for lines."""
MOST_DIALLING, MOST_TO_DIAL = 64, 65536
"""Connections that are dialled at a time, and those that may wait for that."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.1, 3.0
"""Pauses between attempts to link."""
MOUNT_SECONDS = 60.0
"""Seconds in which the disk of `/data` comes back after its client was killed."""
PAUSE_SECONDS = 0.02
"""Seconds between two words, at least."""


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
        self._to_dial = 0
        """Connections that the server wants, and that wait for others to be dialled."""
        self._load: NodeLoad | None = None
        self._facts: NodeFacts | None = None
        self._until = self._kept_until = clock()
        self._changed = asyncio.Event()
        self._fences = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until told to stop."""
        async with self.sessions.serving():
            if not self.sessions.adopted:  # whatever runs here is of a process that was killed
                await self._end_earlier()
            works = (self._stay_linked, self._watch_load, self._say_load, self._keep_lease, self._relay_holds)
            tasks = [asyncio.create_task(work()) for work in works]
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
                for spare in tuple(self._spares):  # by one of them a client could come back to this process
                    spare.transport.abort()
                for connection in tuple(self._connections):  # clients come back, and the next process has their lines
                    connection.shutdown()

    async def _end_earlier(self) -> None:
        """Have the daemon end what a process before this one has left; it may have to wait for the disk of `/data`.

        Raises:
            AtollError: there is no daemon, for another reason or for too long.
        """
        until = clock() + MOUNT_SECONDS
        while True:
            try:
                await self._node.ask(None, "fence", {"until": clock()})
            except errors.AtollError as error:
                if clock() > until or not await asyncio.to_thread(_is_dead, self._node.options.volumes_directory):
                    raise
                log.warning("mount_is_dead", extra={"fields": {"error": error.message[:200]}})
                await asyncio.sleep(BEAT_SECONDS)
            else:
                return

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
        self._facts = facts = await self._ask_facts()
        _, made = await dial(
            self._address,
            LINK_PATH,
            lambda transport: NodeLink(transport, self._node, self.sessions, facts, self),
        )
        assert isinstance(made, NodeLink)
        return made

    async def _ask_facts(self) -> NodeFacts:
        answer = await self._node.ask(None, "facts", {})
        return own_node.facts(answer, __version__, self._name, self._labels)

    def welcomed(self, link: NodeLink, notice: str) -> None:
        """See `node_link.Owner.welcomed`."""
        self._link = link
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
            self._to_dial = 0
        for spare in tuple(self._spares):
            spare.transport.abort()

    def wanted(self, count: int) -> None:
        """See `node_link.Owner.wanted`."""
        self._to_dial = min(self._to_dial + count, MOST_TO_DIAL)
        self._dial_more()

    def _dial_more(self) -> None:
        while self._to_dial and len(self._dialling) < MOST_DIALLING:
            self._to_dial -= 1
            task = asyncio.get_running_loop().create_task(self._dial_line())
            self._dialling.add(task)
            task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dialling.discard(task)
        if not task.cancelled():
            self._dial_more()

    async def _dial_line(self) -> None:
        try:
            _, made = await dial(
                self._address,
                LINE_PATH,
                lambda transport: SpareLine(
                    transport, self.sessions, self._connections, self._opened, self._spare_over
                ),
            )
        except (errors.AtollError, OSError, TimeoutError) as error:
            log.info("line_not_dialled", extra={"fields": {"error": str(error)[:200]}})
            return
        assert isinstance(made, SpareLine)
        if not made.used:
            self._spares.add(made)

    def _spare_over(self, spare: SpareLine) -> None:
        """Dial another connection for one that has waited for too long; the server asks for those that it uses."""
        self._spares.discard(spare)
        if not spare.taken and self._link is not None and len(self._spares) < SPARES:
            self.wanted(1)

    # --- load --------------------------------------------------------------------------------------------------------

    def _opened(self, _session: Session, kind: str) -> None:
        if kind in {"lease", "shell"} and self._link is not None:
            self._link.taken += 1
        self._changed.set()

    def _session_over(self, session: Session) -> None:
        if self._link is not None:
            self._link.say({"type": "over", "session": session.id})
        self._changed.set()

    async def _say_load(self) -> None:
        """Give the server a word each `BEAT_SECONDS`, and after each change; none while the daemon does not answer."""
        known: NodeLink | None = None
        taken = 0  # before the last pause: what came since may not be in the figures
        while True:
            link, load = self._link, self._load
            if link is not None and not link.over and load is not None and self._daemon_keeps_lease():
                link.tell_load(replace(load, taken=taken if link is known else 0))
            known, taken = link, 0 if link is None else link.taken
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch_load(self) -> None:
        """Hear from the daemon how the machine fares."""
        while True:
            try:
                channel = await self._node.connect(None, {"type": "watch_load"})
                try:
                    if self._link is not None and await self._ask_facts() != self._facts:
                        self._link.close()  # a daemon with other settings: the server hears of them with the next link
                    while True:
                        self._load = NodeLoad(**(await channel.receive()).header["load"])
                        self._changed.set()
                finally:
                    channel.close()
            except (errors.AtollError, ChannelClosed, FrameError, OSError) as error:
                log.warning("no_load", extra={"fields": {"error": str(error)[:200]}})
            self._load = None
            await asyncio.sleep(BEAT_SECONDS)

    async def _relay_holds(self) -> None:
        """Pass on what the daemon needs of other machines for the switch of a sync."""
        await relay(self._node, self._need)

    async def _need(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._link is None:
            raise errors.HostUnreachable("the server does not answer", hint="try again in a while")
        return await self._link.need(name, arguments)

    # --- the lease ---------------------------------------------------------------------------------------------------

    def leased(self, until: float) -> None:
        """See `node_link.Owner.leased`."""
        if until > self._until:
            self._until = until
            self._fences.set()

    def _daemon_keeps_lease(self) -> bool:
        """Return whether the daemon has been told of the lease lately: one that hangs is to be given up by the server."""
        return self._until - self._kept_until < LEASE_SECONDS

    async def _keep_lease(self) -> None:
        """Tell the daemon of each renewal."""
        while True:
            await self._fences.wait()
            self._fences.clear()
            until = self._until
            try:
                await self._node.ask(None, "fence", {"until": until})
                self._kept_until = until
            except errors.AtollError as error:
                log.warning("lease_not_told", extra={"fields": {"error": error.message[:200]}})


def _is_dead(place: Path) -> bool:
    """Return whether the mount below a directory has lost its client, which a fence has killed: another one comes."""
    try:
        os.stat(place)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False
