"""One runner: a detached call of a served function, and connections to its port.

Theory of operation. A runner is a detached call in its owner's name, so it outlives this server: the next one finds it by
its batch and uses it on. Its output is the endpoint's log. Its end by the server is the cancellation of that call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.detached.ends import failure_of
from atoll.server.cluster.links.own_line import open_line
from atoll.server.endpoints.exchange import Exchange, RunnerGone
from atoll.server.endpoints.spools import keep, link_to, sealed
from atoll.server.principal import Principal
from atoll.server.state import ServerState
from atoll.wire.channel import ChannelClosed
from atoll.work_threads import WorkThreads

POLL_SECONDS = 0.02
"""Between two attempts to reach the port of a runner that starts."""
ADOPT_SECONDS = 600.0
"""For a runner that was just starting when the server ended."""
MOST_IDLE = 256
"""Idle connections to one runner."""

_threads = WorkThreads("endpoints", 2)


@dataclass
class Runner:
    """A runner.

    Args:
        call: the id of its detached call.
        health_path: see `bodies.Options`.
        name: the alias, or the revision, by which its owner knows it.
        worker: that serves it; empty while it starts.
        port: that its function listens on.
        busy: requests that it has.
        since: when it became idle.
        born: when it was made; as all moments of a monotonic clock.
    """

    state: ServerState
    owner: Principal
    call: str
    revision: str
    port: int
    health_path: str = ""
    name: str = ""
    worker: str = ""
    busy: int = 0
    since: float = field(default_factory=time.monotonic)
    born: float = field(default_factory=time.monotonic)
    over: bool = False
    _idle: list[Exchange] = field(default_factory=list)
    _begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, file: Path, seconds: float) -> None:
        """Begin the call, and wait until its port answers.

        Raises:
            AtollError: it does not.
        """
        descriptor = await _threads.run(self.owner.user, partial(sealed, file, self.call, self.revision))
        try:
            await keep(self.state, self.owner, self.call, descriptor)
        finally:
            os.close(descriptor)
        async with asyncio.timeout(seconds):
            await self._reach()

    async def adopt(self) -> None:
        """Use a runner that an earlier process has begun.

        Raises:
            AtollError: it has ended, or its port does not answer.
        """
        async with asyncio.timeout(ADOPT_SECONDS):
            await self._reach()

    async def _reach(self) -> None:
        """Wait for the worker, and for its port; the end of the call is seen at once, whatever its worker does then."""
        tasks = [asyncio.ensure_future(work) for work in (self._try_port(), self._wait_end())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _wait_end(self) -> None:
        """Wait for the end of the call.

        Raises:
            HostUnreachable: it has come.
        """
        revision = -1
        while True:
            asked = {"call": self.call, "revision": revision, "seconds": 30.0}
            row = (await self.state.asks.ask(self.owner, "detached.wait", asked))["call"]
            revision = row["revision"]
            self._check(row)
            if row["state"] == "running":
                self._begun.set()

    async def _try_port(self) -> None:
        """Try the port until it answers."""
        await self._begun.wait()
        while True:
            if not self.worker:
                self.worker = await self._worker()
            if self.worker:
                try:
                    exchange = await self._dial()
                    if await self._is_healthy(exchange):
                        self.give_back(exchange)
                        return
                    exchange.close()
                except errors.PortUnreachable:
                    pass
                except errors.WorkerDied:
                    self.worker = ""
            await asyncio.sleep(POLL_SECONDS)

    async def _is_healthy(self, exchange: Exchange) -> bool:
        """Return whether the function's server says that it is ready."""
        if not self.health_path:
            return True
        head = f"GET {self.health_path} HTTP/1.1\r\nhost: endpoint\r\n\r\n".encode("latin-1")
        with contextlib.suppress(RunnerGone):
            status, _ = await exchange.ask(head, None)
            async for _ in exchange.pieces():
                pass
            return 200 <= status < 300
        return False

    def _check(self, row: dict[str, Any]) -> None:
        """Check that the function has not ended, by the row of its call.

        Raises:
            HostUnreachable: it has.
        """
        if row["state"] == "finished":
            self.over = True
            raise errors.HostUnreachable(
                f"the function ended before its server listened: {failure_of(row) or row['outcome']}",
                hint=f"see its output with `atoll function logs {self.name or self.revision}`",
            )

    async def _worker(self) -> str:
        rows = (await self.state.asks.ask(self.owner, "calls.running", {})).get("calls", [])
        return next((str(row["worker"]) for row in rows if row["call"] == self.call and row["worker"]), "")

    async def _dial(self) -> Exchange:
        """Return a new connection to the port.

        Raises:
            PortUnreachable, WorkerDied: nothing listens there, or nobody is there.
        """
        exchange = Exchange()
        await self.connect(exchange)
        return exchange

    async def connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Return a new connection to the port, for a protocol that speaks with it by itself.

        Raises:
            PortUnreachable, WorkerDied: as `_dial`.
        """
        worker, _, node = self.worker.rpartition("@") if "@" in self.worker else (self.worker, "", "")
        if (link := link_to(self.state, node)) is not None:
            line = await open_line(link, self.owner, {"type": "dial", "worker": worker, "port": self.port})
            try:
                await line.answer()
            except BaseException:
                line.close()
                raise
            line.carry(protocol)
            return line
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: protocol, sock=await self._socket(worker)))[0]

    async def _socket(self, worker: str) -> socket.socket:
        message = {"type": "dial", "worker": worker, "port": self.port}
        channel = await self.state.node.connect(self.owner, message)
        try:
            header = (await channel.receive()).header
            if header.get("type") == "failed":
                raise errors.from_data(header.get("error") or {})
            (descriptor,) = channel.take_descriptors(1)
        except ChannelClosed as error:
            raise errors.HostUnreachable("the node ended", hint="try again") from error
        finally:
            channel.close()
        connected = socket.socket(fileno=descriptor)
        connected.setblocking(False)
        return connected

    async def connection(self) -> Exchange:
        """Return a connection on which nothing has come; a used one if its server has not closed that.

        Raises:
            PortUnreachable, WorkerDied: as `_dial`.
        """
        while self._idle:
            found = self._idle.pop()
            if found.can_ask(time.monotonic()):
                return found
            found.close()
        return await self._dial()

    def give_back(self, exchange: Exchange) -> None:
        """Take back a connection after its answer."""
        if exchange.reusable and exchange.is_whole and not self.over and len(self._idle) < MOST_IDLE:
            exchange.rest_since = time.monotonic()
            self._idle.append(exchange)
        else:
            exchange.close()

    def let_go(self) -> None:
        """Close the connections; the call goes on."""
        self.over = True
        for exchange in self._idle:
            exchange.close()
        self._idle.clear()

    async def stop(self) -> None:
        """End the call."""
        self.let_go()
        with contextlib.suppress(errors.AtollError):
            await self.state.asks.ask(self.owner, "detached.cancel", {"call": self.call})
