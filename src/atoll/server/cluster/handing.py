"""The way of a line to its node: the node that its first header asks for, and the hand-over of line and connection."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from atoll import errors
from atoll.server.cluster import wishes
from atoll.server.cluster.bounds import bound_of
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.cluster.links.arrival import Arrival
from atoll.server.cluster.links.link import Link
from atoll.server.cluster.links.preamble import Opening, write_opening
from atoll.server.cluster.links.splice import splice
from atoll.server.line.beginning import begin
from atoll.server.line.connection import PROTOCOL_ERROR, Connection
from atoll.server.line.early import Early
from atoll.server.line.session import Session
from atoll.server.line.sessions import Sessions, ending
from atoll.server.line.shares import Bounds
from atoll.server.principal import Principal
from atoll.wire.websocket import LineError

ATTEMPTS = 3
"""Nodes that are tried for one line: each of the others went away when it was given the line."""

PASSED_ON = 6
"""So many lines that are passed on take as many descriptors as one that this process serves."""

Finder = Callable[[Principal, dict[str, Any]], Awaitable[str]]
"""Finds the node for a header of a kind other than `lease`."""
Answerer = Callable[[Principal, dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""Answers a request that concerns several nodes; None for one that a single node answers."""


class Handing:
    """Places lines, and hands them over."""

    def __init__(self, cluster: Cluster, sessions: Sessions) -> None:
        self._cluster, self._sessions = cluster, sessions
        self.connections: set[Any] = set()
        """uvicorn's, which it tells to shut down; known with the first one."""
        self.given = 0
        """Placed lines that sessions of this process have."""
        self._wishes: dict[str, str] = {}
        """Placed wishes of sessions of this process."""
        sessions.on_end.append(self._session_over)
        self.answer: Answerer | None = None
        self.find: Finder | None = None

    def arrive(self, principal: Principal) -> Arrival:
        """Return a new line.

        Raises:
            NotAuthorized: the user has as many as may be, status 429.
            HostUnreachable: all users together have.
        """
        cluster = self._cluster
        passed_on = (len(cluster.arrivals) + len(cluster.sessions)) // PASSED_ON
        self._sessions.check_room(principal, cluster.lines_of(principal.user), passed_on)
        bounds: Bounds = self._sessions.bounds
        early = Early(bounds.shares, principal.user)
        arrival = Arrival(secrets.token_urlsafe(24), principal, early, self._place, self._cluster.forget)
        self._cluster.add(arrival)
        return arrival

    async def _place(self, arrival: Arrival) -> None:
        header, cluster = arrival.header, self._cluster
        assert header is not None
        if header["type"] in {"lease", "shell"}:
            spec: Any = header.get("spec")
            user = arrival.principal.user
            bound = bound_of(user, spec)
            for attempt in range(ATTEMPTS):
                name = f"{arrival.id[:12]}-{attempt}"
                wish = wishes.wish_of(name, user, spec, cluster.volumes_for(spec), header.get("client"))
                if bound is None:
                    node = await cluster.places.place(wish, arrival)
                else:
                    able = partial(cluster.able, wish)
                    node, share = await cluster.places.place_bounded(wish, arrival, bound, able)
                    header["spec"] = {**spec, "max_concurrency": share}  # the part of the bound that the node keeps
                try:
                    if await self._hand(arrival, node, name):
                        return
                except BaseException:
                    cluster.places.over(name)
                    raise
                cluster.places.over(name)
            raise self._no_node()
        if header["type"] == "request" and self.answer is not None and not header.get("bytes"):
            value = await self.answer(arrival.principal, header)
            if value is not None:
                arrival.finish({"type": "answer", "value": value})
                return
        if not await self._hand(arrival, await self._node_for(arrival.principal, header), ""):
            raise self._no_node()

    async def _node_for(self, principal: Principal, header: dict[str, Any]) -> str:
        """Return the node of a line that is no lease."""
        if header["type"] == "dial":
            worker, _, node = str(header.get("worker")).rpartition("@")
            if worker:
                header["worker"] = worker
                return node
            if not self._cluster.local:  # each worker of another node has its name
                raise errors.WorkerDied(f"the worker `{node[:100]}` has ended", hint="call the function again")
            return LOCAL
        if self.find is not None:
            return await self.find(principal, header)
        return self._cluster.node_of_data(principal.user)

    @staticmethod
    def _no_node() -> errors.HostUnreachable:
        return errors.HostUnreachable("no machine can take this now", hint="try again, or see `atoll nodes list`")

    # --- hand-over ---------------------------------------------------------------------------------------------------

    async def _hand(self, arrival: Arrival, node: str, wish: str) -> bool:
        """Give a line to a node; return whether it has it."""
        if node == LOCAL:
            if not self._cluster.local:
                raise self._no_node()
            await arrival.boundary()  # where the connection stalls, the client comes back
            self._hand_to_session(arrival, wish)
            return True
        link = self._cluster.links.get(node)
        if link is None:
            return False
        try:
            spare = await link.connection()
        except errors.HostUnreachable:
            return False
        try:
            attached = await arrival.boundary()
            if spare.transport.is_closing() or link.over:
                spare.transport.abort()
                return False
            counts, kept = arrival.line.state()
            assert arrival.header is not None
            header = {**arrival.header, **({"input_over": True} if arrival.closed else {})}
            opening = Opening(arrival.id, arrival.principal, counts, kept, header, list(arrival.early.pieces), attached)
            written = write_opening(opening)
        except BaseException:
            spare.transport.abort()  # the node dials another one
            raise
        spare.transport.writelines(written)
        self._cluster.hold(arrival, node, wish)
        client = arrival.moved()
        self._cluster.forget(arrival)
        if client is None:
            spare.taken().close()
        else:
            self.join(arrival.id, client, spare.taken(), link)
        return True

    def join(self, session: str, client: asyncio.Transport, node: asyncio.Transport, link: Link) -> None:
        """Splice a client's connection with a node's."""
        cluster = self._cluster
        made = splice(client, node, self.connections, cluster.carried[link.account])
        if session in cluster.sessions:
            cluster.spliced[session] = made
        else:  # it has just ended
            made.end_soon()

    def _hand_to_session(self, arrival: Arrival, wish: str) -> None:
        header, pieces, closed = arrival.header, arrival.early.release(), arrival.closed
        assert header is not None
        session = self._sessions.take(arrival.id, arrival.principal)
        session.line = arrival.line
        if wish:
            self._wishes[session.id] = wish
            self.given += 1
        client = arrival.moved()
        self._cluster.forget(arrival)
        if client is None:
            session.go_on()
        else:
            connection = Connection(session, self._sessions, client, self.connections)
            client.set_protocol(connection)
            session.attach(connection, None)
        try:
            begin(session, header, pieces, closed=closed)
        except LineError:  # found here since only a session knows all of the protocol
            session.end(PROTOCOL_ERROR)

    def _session_over(self, session: Session) -> None:
        if wish := self._wishes.pop(session.id, ""):
            self._cluster.places.over(wish)

    async def resume(self, link: Link, session: str, count: int) -> tuple[asyncio.Transport, int, bytes] | None:
        """Return a node's connection that goes on with a session, the node's count, and its first bytes; None if gone.

        Raises:
            HostUnreachable: the node does not answer, or the call is just being ended.
        """
        spare = await link.connection()
        try:
            message = await spare.resume(session, count)
        except (ConnectionError, TimeoutError):
            spare.transport.abort()
            raise link.unreachable() from None
        except BaseException:  # the client has gone
            spare.transport.abort()
            raise
        if link.over:
            spare.transport.abort()
            raise link.unreachable()
        if message["type"] != "taken":
            spare.transport.abort()
            if message["type"] == "ending":
                raise ending()
            self._cluster.session_over(link, session)
            return None
        return spare.taken(), int(message["count"]), message["early"]
