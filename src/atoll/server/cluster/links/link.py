"""The server's end of one node's link, and the node's connections that wait for lines.

A node dials both. Its link says what it is and how it fares, and takes requests; each further connection stands ready
for one client's line, so that a line waits for no handshake. The word of a node is acknowledged at once (`beat`): its
lease of the right to run calls counts from when it spoke (`contract.LEASE_SECONDS`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Protocol

from atoll import errors
from atoll.server.cluster.contract import NodeFacts, NodeLoad
from atoll.server.cluster.links.messages import (
    MessageError,
    Messages,
    principal_data,
    read_facts,
    read_load,
    write,
)
from atoll.server.principal import Principal

log = logging.getLogger("atoll.cluster")

HELLO_SECONDS = 10.0
DIAL_SECONDS = 10.0
"""Seconds for a node to dial a connection that is wanted."""
WRITE_BYTES = 8 << 20
MOST_NAME = 256
MOST_SPARES = 1024
"""Connections of one node that wait for lines."""
MOST_ASKED = 4096
"""Requests to one node that wait for their answers."""


class Owner(Protocol):
    """The machines of a server, as a link calls back."""

    server: str

    def joined(self, link: Link, sessions: list[dict[str, Any]]) -> str:
        """Take a node that has said what it is; return a line for its operator, or nothing."""

    def heard(self, link: Link) -> None:
        """Take a node's word about its load."""

    def session_over(self, link: Link, session: str) -> None:
        """Forget a session that has ended at its node."""

    def needed(self, link: Link, message: dict[str, Any]) -> None:
        """Answer a request of the node's."""

    def away(self, link: Link) -> None:
        """Note that a link has ended."""


class Spare(asyncio.Protocol):
    """A node's connection that waits for a line."""

    def __init__(self, link: Link, transport: asyncio.Transport, connections: set[Any]) -> None:
        self._link = link
        self.transport = transport
        self._connections = connections
        self._reply: asyncio.Future[dict[str, Any]] | None = None
        self._early = b""
        connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take the node's answer to `resume`; before it a node has nothing to say."""
        if self._reply is None or self._reply.done():
            self.transport.abort()
            return
        line, found, self._early = (self._early + data).partition(b"\n")
        if not found:
            self._early = line
            return
        try:
            (message,) = Messages().feed(line + b"\n")
        except (MessageError, ValueError):
            self.transport.abort()
            return
        self.transport.pause_reading()
        self._reply.set_result(message)

    def connection_lost(self, _error: Exception | None) -> None:
        """Wait no longer."""
        self._connections.discard(self)
        self._link.spare_lost(self)
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError())

    def shutdown(self) -> None:
        """End with the server."""
        self.transport.abort()

    async def resume(self, session: str, count: int) -> dict[str, Any]:
        """Have the node go on with a session here; return its answer, with `early` bytes that came behind it.

        Raises:
            ConnectionError, TimeoutError: it does not answer.
        """
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(write({"type": "resume", "session": session, "count": count}))
        async with asyncio.timeout(DIAL_SECONDS):
            message = await self._reply
        return {**message, "early": self._early}

    def taken(self) -> asyncio.Transport:
        """Return the transport: another protocol takes it."""
        self._connections.discard(self)
        return self.transport


class Link(asyncio.Protocol):
    """The server's end of a node's link.

    Args:
        account: the node's id.
        name: the node's name, which its account says.
    """

    def __init__(
        self, account: str, name: str, owner: Owner, transport: asyncio.Transport, connections: set[Any]
    ) -> None:
        self.account, self.name = account, name
        self._owner = owner
        self._transport = transport
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._messages = Messages()
        self._spares: deque[Spare] = deque()
        self._wanted: deque[asyncio.Future[Spare]] = deque()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self.facts: NodeFacts | None = None
        self.machine = ""
        """Of its process, as it names itself: another one may have the same credentials."""
        self.load = NodeLoad()
        self.told = False
        self.given = 0
        """Lines that the node was given over this link."""
        self.heard_at = time.monotonic()  # the loop's time is that of its last turn: a lease could outlast it
        self.over = False
        self._congested = False
        self._timer = self._loop.call_later(HELLO_SECONDS, self._check_hello)
        connections.add(self)
        transport.set_write_buffer_limits(high=WRITE_BYTES)

    # --- the connection ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take messages; a node that sends something else is cut off."""
        try:
            for message in self._messages.feed(data):
                self._take(message)
        except (MessageError, KeyError, TypeError, ValueError) as error:
            log.warning("link_refused", extra={"fields": {"node": self.name, "error": str(error)[:200]}})
            self._transport.abort()
        except Exception:
            log.exception("link_failed")
            self._transport.abort()

    def eof_received(self) -> bool:
        """Have the transport closed."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Fail what waits; sessions go on at the node, and come back with its next link."""
        self.over = True
        self._timer.cancel()
        self._connections.discard(self)
        for future in self._asked.values():
            if not future.done():
                future.set_exception(self.unreachable())
        self._asked.clear()
        while self._wanted:
            future_spare = self._wanted.popleft()
            if not future_spare.done():
                future_spare.set_exception(self.unreachable())
        for spare in tuple(self._spares):
            spare.transport.abort()
        self._owner.away(self)

    def pause_writing(self) -> None:
        """Hear no more of a node that takes no words: it counts as silent in a while."""
        self._congested = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Hear on."""
        self._congested = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def shutdown(self) -> None:
        """End with the server: the node dials again."""
        self._transport.abort()

    def close(self) -> None:
        """End the link: nothing is given to its node from here on."""
        self.over = True
        self._transport.abort()

    def _check_hello(self) -> None:
        if self.facts is None:
            self._transport.abort()

    def unreachable(self) -> errors.HostUnreachable:
        """Return the error of what this link cannot do any more."""
        return errors.HostUnreachable(
            f"the machine `{self.name}` does not answer", hint="try again in a while, or see `atoll nodes list`"
        )

    # --- messages ----------------------------------------------------------------------------------------------------

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if self.facts is None:
            if kind != "hello":
                raise MessageError("a link begins with `hello`")
            self.machine = str(message.get("machine", ""))[:MOST_NAME]
            self.facts = read_facts({**message["facts"], "name": self.name})
            self._timer.cancel()
            notice = self._owner.joined(self, message["sessions"])
            self.say({"type": "welcome", "server": self._owner.server, "name": self.name, "notice": notice})
            return
        self.heard_at = time.monotonic()
        if kind == "load":
            self.load, self.told = read_load(message["load"]), True
            self.say({"type": "beat", "number": message["number"]})
            self._owner.heard(self)
        elif kind == "answer":
            future = self._asked.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_result(message)
        elif kind == "over":
            self._owner.session_over(self, message["session"])
        elif kind == "need":
            self._owner.needed(self, message)
        else:
            raise MessageError(f"no message `{kind[:40]}` is known")

    def say(self, message: dict[str, Any]) -> None:
        """Send a message; a link that is over sends none."""
        if not self._transport.is_closing():
            self._transport.write(write(message))

    async def ask(self, principal: Principal | None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have the node answer a request; see `server.node.Node.ask`.

        Raises:
            HostUnreachable: it has no link any more, or too much waits for it.
            AtollError: as the node answers.
        """
        if self.over or self._congested or len(self._asked) >= MOST_ASKED:
            raise self.unreachable()
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._asked[number] = future
        asked = None if principal is None else principal_data(principal)
        self.say({"type": "ask", "id": number, "principal": asked, "name": name, "arguments": arguments})
        try:
            message = await future
        finally:
            if self._asked.pop(number, None) is not None:
                self.say({"type": "unask", "id": number})
        if "error" in message:
            raise errors.from_data(message["error"])
        value = message.get("value")
        return value if isinstance(value, dict) else {}

    # --- connections for lines ---------------------------------------------------------------------------------------

    def add(self, spare: Spare) -> None:
        """Take a connection that the node has dialled."""
        while self._wanted:
            future = self._wanted.popleft()
            if not future.done():
                future.set_result(spare)
                return
        if len(self._spares) >= MOST_SPARES:
            spare.transport.abort()
            return
        self._spares.append(spare)

    def spare_lost(self, spare: Spare) -> None:
        """Forget a connection."""
        with contextlib.suppress(ValueError):
            self._spares.remove(spare)

    async def connection(self) -> Spare:
        """Return a connection for a line.

        Raises:
            HostUnreachable: the node gives none in time.
        """
        while self._spares:
            spare = self._spares.popleft()
            if not spare.transport.is_closing():
                self.say({"type": "dial", "count": 1})
                return spare
        if self.over:
            raise self.unreachable()
        future: asyncio.Future[Spare] = self._loop.create_future()
        self._wanted.append(future)
        self.say({"type": "dial", "count": 1})
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                return await future
        except TimeoutError:
            raise self.unreachable() from None
        finally:
            with contextlib.suppress(ValueError):
                self._wanted.remove(future)
