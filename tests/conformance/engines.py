"""The engines that `test_engine` runs against; another one adds its context manager to `ENGINES`.

The embedded pool runs on a node without processes: agents and workers are tasks that keep to the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from atoll.engine.accounts import Opener
from atoll.engine.contract import Engine, EngineLease
from atoll.engine.pool import Pool
from atoll.environments.built.interpreter import Interpreter
from atoll.environments.built.records import Environment
from atoll.model.resources import Allotment, Bounds, Capacity, allot
from atoll.model.specs import Numbers, SandboxKey
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed, pair

CAPACITY = Capacity(2000, 8 << 30, 1 << 30, 1000)


@dataclass(frozen=True)
class Bench:
    """An engine under test, with two cores and no GPU.

    Args:
        environment: one that it can run.
        begin_call: begins a call under a granted lease that runs until its worker is killed.
        listen: has something echo on a port inside the lease's sandbox; gives the port.
        leases: asked for in the test, which closes their descriptors.
    """

    engine: Engine
    environment: Environment
    begin_call: Callable[[EngineLease], None]
    listen: Callable[[EngineLease], AbstractAsyncContextManager[int]]
    leases: list[EngineLease] = field(default_factory=list)


@contextlib.asynccontextmanager
async def embedded_pool() -> AsyncIterator[Bench]:
    """The daemon's pool."""

    async def refuse(connection: socket.socket, opener: Opener) -> None:
        connection.close()

    node: Any = FakeNode()
    pool = Pool(node, refuse)
    watch = asyncio.ensure_future(pool.watch())
    interpreter = Interpreter.__new__(Interpreter)
    environment = Environment.__new__(Environment)
    object.__setattr__(environment, "key", "e" * 32)
    object.__setattr__(environment, "interpreter", interpreter)
    object.__setattr__(environment, "directory", Path("/nonexistent"))
    try:
        yield Bench(pool, environment, lambda lease: _write(lease.descriptors[0]), _echo)
    finally:
        await pool.close()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        assert pool.idle or not node.live


ENGINES: dict[str, Callable[[], AbstractAsyncContextManager[Bench]]] = {"pool": embedded_pool}


def _write(descriptor: int) -> None:
    os.write(descriptor, b"call")


@contextlib.asynccontextmanager
async def _echo(_lease: EngineLease) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class FakeNode:
    """A node whose sandboxes are tasks; `live` has those that have not ended."""

    def __init__(self) -> None:
        limit = SimpleNamespace(
            add=lambda pid: None,
            adopt=lambda init, agent: True,
            refused=lambda: False,
            exceeded=lambda: None,
            memory_bytes=lambda: 0,
            close=lambda: None,
        )
        self.limits = SimpleNamespace(
            open=lambda *_, **__: limit,
            poll=lambda: None,
            strays=lambda init, agent: [],
            kind="none",
            unsettled=False,
        )
        self.machine = self
        self.capacity = CAPACITY
        self.gpus = SimpleNamespace(variables=lambda names: {})
        self.live: list[FakeSandbox] = []
        self.pauses = SimpleNamespace(stops=lambda user, pid: False)

    def bounds(self) -> Bounds:
        return Bounds(2, 8, 8, CAPACITY.memory_bytes)

    def allot(self, machine_type: str, numbers: Numbers) -> Allotment:
        return allot(machine_type, CAPACITY, numbers)

    def give_streams(self, user: str, streams: Sequence[int]) -> None:
        """Leave them as they are: nobody else is here."""

    def process_wall(self, allotment: Allotment) -> int:
        return 0

    def start_sandbox(self, key: SandboxKey, environment: Environment) -> FakeSandbox:
        sandbox = FakeSandbox(self.live)
        self.live.append(sandbox)
        return sandbox


class FakeSandbox:
    """A sandbox's agent and workers, as tasks of the test's loop."""

    pid = 1
    limit = SimpleNamespace(admit=lambda *_: None, dismiss=lambda _: None, exceeded=lambda: None, worn=lambda _: False)

    def __init__(self, live: list[FakeSandbox]) -> None:
        ours, theirs = pair()
        self.channel = AsyncChannel(ours)
        self.channel.bound_descriptors(0)
        self._live = live
        self._agent = AsyncChannel(theirs)
        self._workers: dict[str, FakeWorker] = {}
        self._task = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                await self._handle((await self._agent.receive()).header)

    async def _handle(self, message: dict[str, Any]) -> None:
        worker = self._workers.get(str(message.get("worker")))
        match message["type"]:
            case "fork":
                name, ends = message["worker"], self._agent.take_descriptors(4)
                self._workers[name] = FakeWorker(message["epoch"], ends, lambda: self._end(name))
            case "kill" | "cancel" if worker is not None:
                await self._end(message["worker"])
            case "release" if worker is not None and worker.busy == message["epoch"]:
                await self._end(message["worker"])
            case "usage":
                workers = {name: {"busy": one.busy, "calls": 0} for name, one in self._workers.items()}
                await self._agent.send({"type": "usage", "workers": workers})
            case "dial":
                await self._dial(message["number"], message["port"])

    async def _end(self, name: str) -> None:
        self._workers.pop(name).close()
        await self._agent.send({"type": "exited", "worker": name, "status": -9, "records": [], "call": None})

    async def _dial(self, number: int, port: int) -> None:
        answer: dict[str, Any] = {"type": "dialled", "number": number}
        with socket.socket() as connection:
            status = connection.connect_ex(("127.0.0.1", port))
            descriptors = [] if status else [connection.fileno()]
            await self._agent.send({**answer, "error": os.strerror(status)} if status else answer, descriptors)

    def identify(self, pid: int, pidfd: int) -> Any:
        if pidfd >= 0:
            os.close(pidfd)
        return FakeMember(pid)

    async def kill(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._task.cancel()
        self._agent.close()
        self.channel.close()
        if self in self._live:
            self._live.remove(self)

    async def failure(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class FakeMember:
    """A process that has ended whenever somebody looks; the tests' own, so that nobody may kill it."""

    pid: int
    init: int = 0
    agent: int = 0

    def lives(self) -> bool:
        return False

    def copy(self) -> FakeMember:
        return self

    def kill(self) -> None: ...

    def close(self) -> None: ...


class FakeWorker:
    """A worker whose call begins with any byte on its data socket and never ends; `end` is its own end."""

    def __init__(self, epoch: int, descriptors: list[int], end: Callable[[], Awaitable[None]]) -> None:
        control, *ends = descriptors
        self._end = end
        self.busy = 0
        self._control = AsyncChannel(socket.socket(fileno=control))
        with contextlib.suppress(ChannelClosed):
            self._control.post({"type": "hello"})
        self._take(epoch, ends)
        self._task = asyncio.ensure_future(self._serve())

    def _take(self, epoch: int, ends: list[int]) -> None:
        data, *pipes = ends
        for pipe in pipes:
            os.close(pipe)
        self._epoch = epoch
        self._data = socket.socket(fileno=data)
        self._data.setblocking(False)
        asyncio.get_running_loop().add_reader(self._data, self._read)

    def _read(self) -> None:
        if self._data.recv(100):
            self.busy = self._epoch
        elif not self.busy:  # the client has left
            self._leave()
        else:  # its call goes on until it is killed
            asyncio.get_running_loop().remove_reader(self._data)

    def _leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._data)
        self._data.close()
        with contextlib.suppress(ChannelClosed):
            self._control.post({"type": "idle", "epoch": self._epoch})

    async def _serve(self) -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                message = (await self._control.receive()).header
                if message["type"] == "lease":
                    self._take(message["epoch"], self._control.take_descriptors(3))
                elif message["type"] == "reclaim" and not self.busy and self._data.fileno() >= 0:
                    self._leave()
                elif message["type"] == "end" and not self.busy:
                    await asyncio.shield(self._end())

    def close(self) -> None:
        if self._data.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._data)
            self._data.close()
        self._task.cancel()
        self._control.close()
