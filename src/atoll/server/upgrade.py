"""The upgrade of a connection to a line: authentication, then a new session or one that is resumed.

uvicorn gives the request's head to this protocol, and makes it the transport's right after. A line's own protocol takes
its place when the user is known and `101` has been sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState as Connections

from atoll import errors
from atoll.server import versions
from atoll.server.addresses import client_address
from atoll.server.app import status_of
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.handing import Handing
from atoll.server.cluster.links.arrival import Arrival, ArrivalConnection
from atoll.server.cluster.links.link import Link, Spare
from atoll.server.cluster.links.messages import LINE_PATH, LINK_PATH
from atoll.server.endpoints import websockets
from atoll.server.line.connection import Connection
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions
from atoll.server.principal import Principal
from atoll.server.state import ServerState
from atoll.wire import line, websocket
from atoll.wire.websocket import LineError

log = logging.getLogger("atoll.server")

PATH = "/v1/line"
AUTHENTICATION_SECONDS = 30.0


class Upgrade(asyncio.Protocol):
    """The protocol of a connection that asks for a WebSocket; `bound` makes the class for a server."""

    state: ServerState
    sessions: Sessions
    cluster: Cluster
    handing: Handing

    def __init__(  # the arguments that uvicorn gives
        self,
        config: uvicorn.Config,  # noqa: ARG002
        server_state: Connections,
        app_state: dict[str, Any],  # noqa: ARG002
    ) -> None:
        self._connections: set[Any] = server_state.connections
        self.handing.connections = self._connections
        self._transport: asyncio.Transport
        self._task: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of another type
        self._connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection."""
        self._connections.discard(self)
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def shutdown(self) -> None:
        """End with the server."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take the head; a client that sends on before `101` is cut off."""
        if self._task is not None:
            self._transport.abort()
            return
        self._task = asyncio.get_running_loop().create_task(self._answer(data))

    async def _answer(self, head: bytes) -> None:
        try:
            async with asyncio.timeout(AUTHENTICATION_SECONDS) as limit:
                await self._upgrade(*_parse(head), head, limit)
        except errors.AtollError as error:
            self._refuse(status_of(error), error.to_data())
        except LineError as error:
            self._refuse(400, errors.ProtocolMismatch(str(error), hint="upgrade the older side").to_data())
        except TimeoutError:
            self._refuse(503, errors.HostUnreachable("the server is busy", hint="try again in a while").to_data())
        except Exception:
            log.exception("upgrade_failed")
            self._refuse(500, errors.InternalError("the server failed", hint="see the server's log").to_data())

    async def _upgrade(self, target: str, headers: dict[str, str], head: bytes, limit: asyncio.Timeout) -> None:
        if (path := target.partition("?")[0]) in (LINK_PATH, LINE_PATH):
            await self._link(path, headers)
            return
        if not path.endswith(PATH) and (gateway := self.state.parts.get("gateway")) is not None:
            limit.reschedule(None)  # a runner may have to start, which has bounds of its own
            peer = self._transport.get_extra_info("peername")
            entered = self.state.parts["connections"].enter(str(peer[0]) if isinstance(peer, tuple) and peer else "")
            if entered is None:
                raise errors.HostUnreachable("too many connections", hint="close some of them")
            self._leave = entered
            await websockets.pass_on(
                gateway, self.state, head, self._transport, self._connections, self._peer(headers), entered
            )
            self._connections.discard(self)
            return
        if path != PATH:
            self._refuse(404, errors.ProtocolMismatch("no line is served here", hint=f"use `{PATH}`").to_data())
            return
        version = versions.agreed(headers.get(versions.HEADER, ""))
        if "origin" in headers:  # a page of another site would ask with the user's cookies
            raise errors.NotAuthorized("lines are for programs, not for pages", hint="use the page's own", status=403)
        key = headers.get("sec-websocket-key", "")
        if headers.get("sec-websocket-version") != "13" or not 16 <= len(key) <= 64:
            raise LineError("the request is no WebSocket of version 13")
        offered = [name.strip() for name in headers.get("sec-websocket-protocol", line.PROTOCOL).split(",")]
        if line.PROTOCOL not in offered:
            raise errors.ProtocolMismatch(
                f"the client speaks {', '.join(offered)[:100]}, and the server {line.PROTOCOL}",
                hint="upgrade the older side",
            )
        peer = self._transport.get_extra_info("peername")
        address = client_address(peer, headers.get("x-forwarded-for", ""), self.state.options.trusted_proxies)
        headers.pop("cookie", None)
        principal = await self.state.authenticate(headers, address)
        resumed = headers.get("atoll-resume", "")
        reply = _Reply(key, version, offers="sec-websocket-protocol" in headers)
        if resumed:
            await self._resume(principal, reply, *line.read_resume(resumed))
        elif self.cluster.alone:
            self._attach(self.sessions.open(principal), reply, 0, new=True)
        else:
            self._arrive(self.handing.arrive(principal), reply, 0, new=True)

    def _peer(self, headers: dict[str, str]) -> tuple[str, int]:
        """Return the client's address, behind proxies that are trusted."""
        peer = self._transport.get_extra_info("peername")
        trusted = self.state.options.trusted_proxies
        return client_address(peer, headers.get("x-forwarded-for", ""), trusted), 0

    async def _resume(self, principal: Principal, reply: _Reply, name: str, count: int) -> None:
        if (session := self.sessions.find(name, principal)) is not None:
            self._attach(session, reply, count)
        elif (arrival := self.cluster.find_arrival(name, principal)) is not None:
            self._arrive(arrival, reply, count)
        elif (held := self.cluster.find(name, principal)) is not None:
            link = self.cluster.links.get(held.node)
            if link is None:
                raise errors.HostUnreachable(
                    f"the machine `{held.node}` does not answer", hint="try again: it may come back with this call"
                )
            found = await self.handing.resume(link, name, count)
            if found is None:
                self._refuse_unknown(name)
                return
            node, taken, early = found
            if self._transport.is_closing():
                node.abort()
                return
            self._transport.write(reply.head(name, taken))
            if early:
                self._transport.write(early)
            self._connections.discard(self)
            self.handing.join(name, self._transport, node, link)
        elif self.cluster.may_come_back():
            raise errors.HostUnreachable(
                "the server has just begun, and waits for its machines", hint="try again in a while"
            )
        else:
            self._refuse_unknown(name)

    def _refuse_unknown(self, session: str) -> None:
        machine = self.cluster.lost_with.get(session)
        why = f"the machine `{machine}` was lost" if machine else "the server has no such line any more"
        gone = errors.HostUnreachable(why, hint="call again")
        self._refuse(410, gone.to_data())

    def _attach(self, session: Session, reply: _Reply, count: int, *, new: bool = False) -> None:
        """Have a session of this process use the connection."""
        if self._transport.is_closing():
            if new:
                session.end()
            return
        self._transport.write(reply.head(session.id, session.line.received))
        connection = Connection(session, self.sessions, self._transport, self._connections)
        self._connections.discard(self)
        self._transport.set_protocol(connection)
        try:
            session.attach(connection, count)
        except LineError:
            connection.end(1002)
            session.end()

    def _arrive(self, arrival: Arrival, reply: _Reply, count: int, *, new: bool = False) -> None:
        """Have a line without a node use the connection."""
        if self._transport.is_closing():
            if new:
                arrival.end()
            return
        self._transport.write(reply.head(arrival.id, arrival.line.received))
        connection = ArrivalConnection(arrival, self._transport, self._connections, self.sessions.paces)
        self._connections.discard(self)
        self._transport.set_protocol(connection)
        try:
            arrival.attach(connection, count)
        except LineError:
            arrival.end(1002)

    async def _link(self, path: str, headers: dict[str, str]) -> None:
        """Take a connection of a node."""
        key = headers.get("sec-websocket-key", "")
        peer = self._transport.get_extra_info("peername")
        address = client_address(peer, headers.get("x-forwarded-for", ""), self.state.options.trusted_proxies)
        nodes = self.state.parts.get("nodes")
        if nodes is None or not 16 <= len(key) <= 64:
            raise errors.NotAuthorized("this server takes no machines", hint="upgrade the server")
        versions.node_agreed(headers.get(versions.NODE_HEADER, ""))
        account = await nodes.authenticate(headers, address)
        link = self.cluster.links.get(account.name)
        if path == LINE_PATH and (link is None or link.account != account.id):
            raise errors.HostUnreachable("this machine has no link", hint="the link comes before its lines")
        if self._transport.is_closing():
            return
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            + f"sec-websocket-accept: {websocket.accepted(key)}\r\n\r\n".encode()
        )
        self._connections.discard(self)
        if path == LINK_PATH:
            self._transport.set_protocol(
                Link(account.id, account.name, self.cluster, self._transport, self._connections)
            )
        else:
            assert link is not None
            spare = Spare(link, self._transport, self._connections)
            self._transport.set_protocol(spare)
            link.add(spare)

    def _refuse(self, status: int, error: dict[str, Any]) -> None:
        if self._transport.is_closing():
            return
        body = json.dumps({"error": error}).encode()
        more = "upgrade: atoll/1\r\n" if status == 426 else ""
        self._transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n{more}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        self._transport.close()
        asyncio.get_running_loop().call_later(1.0, self._transport.abort)  # see `Connection.end`


class _Reply:
    """The head of the answer to a line's upgrade.

    Args:
        key: the client's, of the handshake.
        version: of the protocol that both sides speak.
        offers: the client has offered subprotocols.
    """

    def __init__(self, key: str, version: int, *, offers: bool) -> None:
        self._key, self._version, self._offers = key, version, offers

    def head(self, session: str, taken: int) -> bytes:
        """Return the answer for a session, of which so many bytes of the client are here."""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            + f"sec-websocket-accept: {websocket.accepted(self._key)}\r\n".encode()
            + (f"sec-websocket-protocol: {line.PROTOCOL}\r\n".encode() if self._offers else b"")
            + f"atoll-protocol: {self._version}\r\natoll-session: {session}\r\n".encode()
            + f"atoll-taken: {taken}\r\n\r\n".encode()
        )


def bound(state: ServerState, sessions: Sessions) -> type[Upgrade]:
    """Return the protocol's class for one server."""
    cluster, handing = state.parts["cluster"], state.parts["handing"]
    return type(
        "BoundUpgrade", (Upgrade,), {"state": state, "sessions": sessions, "cluster": cluster, "handing": handing}
    )


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    """Return target and headers, of which uvicorn has checked the form."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for text in lines:
        name, found, value = text.partition(": ")
        if found:
            headers[name] = value if name not in headers else f"{headers[name]}, {value}"
    return first.split(" ")[1], headers
