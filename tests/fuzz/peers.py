"""Messages that code in a sandbox can send, run through the handlers of the daemon and of the client.

A target takes JSON messages with `SPLIT` between them, and returns everything that came of them. `$worker` and `$epoch`
stand for the worker that sends. A handler may end its own sandbox, worker, connection or call with the errors that its
loop knows. Anything else that gets out is a finding, and so is a change of another user's lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

from atoll import __version__, errors
from atoll.agent import usage
from atoll.daemon import restore
from atoll.daemon.control import Connection
from atoll.daemon.leasing import Caller
from atoll.daemon.running_calls import RunningCalls
from atoll.engine.accounts import Account
from atoll.engine.actions import WHOLE
from atoll.engine.call_claims import Claimed
from atoll.engine.contract import EngineLease
from atoll.host.lease import WorkerLease
from atoll.host.local_link import LocalLink
from atoll.model.records import CallRecord
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.sdk.call import value_of
from atoll.storage.protocol.connection import Connection as StorageConnection
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import NESTED, PEER
from atoll.wire.call_protocol import Revoked
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Decoder, FrameError, Message, encode
from atoll.wire.output_tape import TapeReader
from tests.conformance.engines import Bench, embedded_pool

SPLIT = b"\xf5\xf6"
SECONDS = 60.0
REFUSALS = (FrameError, ValueError, TypeError, KeyError, ChannelClosed)
"""The errors of a message that is none of the protocol's; whoever sends one is ended."""


def headers(data: bytes, words: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages in these bytes, as a peer's decoder reads them."""
    found = []
    for text in data.split(SPLIT):
        for word, value in words.items():
            text = text.replace(f'"${word}"'.encode(), json.dumps(value).encode())
        frame = b"".join(encode(text[:60_000]))
        decoder = Decoder(0, scratch_bytes=len(frame))
        decoder.space()[: len(frame)] = frame
        with contextlib.suppress(FrameError):
            decoder.wrote(len(frame))
        found += [message.header for message in decoder.messages]
    return found


# --- to the daemon ----------------------------------------------------------------------------------------------------


class World:
    """A pool with the worker of a hostile user and that of another one."""

    def __init__(self, bench: Bench, hostile: EngineLease, other: EngineLease) -> None:
        self.bench, self.hostile, self.other = bench, hostile, other
        engine: Any = bench.engine
        self.engine = engine
        self.records: list[CallRecord] = []
        engine._messages._on_record = self.records.append
        self.worker = engine._state.workers[hostile.worker]
        self.words = {"worker": hostile.worker, "epoch": hostile.epoch}

    def check(self) -> None:
        """Check that nothing has changed for the other user, and that everything known can be shown."""
        assert not self.other.ended.done()
        assert self.engine._state.workers[self.other.worker].lease is self.other
        usage_rows = self.engine._state.sandboxes[self.worker.sandbox].usage if self._lives else None
        used = usage_rows.result() if usage_rows is not None and usage_rows.done() else {}
        state = self.engine._state
        json.dumps([state.sandbox_rows(None), state.worker_rows(None, used, self.engine._state_of)], allow_nan=False)
        for record in self.records:
            assert record.user == "ann"
            json.dumps(vars(record), allow_nan=False).encode()

    @property
    def _lives(self) -> bool:
        return self.worker.sandbox in self.engine._state.sandboxes


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    """A world whose workers have said hello; ends without a task that failed."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with embedded_pool() as bench:
        leases = []
        for user in ("ann", "bob"):
            lease = bench.engine.ask(user, LeaseSpec(EnvironmentSpec(), "f", network="none"), bench.environment, None)
            lease.maker = None  # any: hostile records go all the way
            await lease.granted
            leases.append(lease)
        state: Any = bench.engine._state  # type: ignore[attr-defined]
        while not all(worker.process for worker in state.workers.values()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        try:
            yield World(bench, *leases)
        finally:
            for lease in (*leases, *bench.leases):
                lease.close_descriptors()
    assert not failures, failures


def agent(data: bytes) -> list[CallRecord]:
    """Handle the messages as those of an agent."""

    async def handle() -> list[CallRecord]:
        async with world() as one:
            messages, sandbox = one.engine._messages, one.worker.sandbox
            channel = one.engine._state.sandboxes[sandbox].node.channel
            for header in headers(data, one.words):
                one.engine._state.sandboxes[sandbox].usage = asyncio.get_running_loop().create_future()
                with contextlib.suppress(*REFUSALS):
                    messages._from_agent(sandbox, header, channel)
                one.check()
            return one.records

    return asyncio.run(asyncio.wait_for(handle(), SECONDS))


def worker(data: bytes) -> list[CallRecord]:
    """Handle the messages as those of a worker."""

    async def handle() -> list[CallRecord]:
        async with world() as one:
            for header in headers(data, one.words):
                with contextlib.suppress(*REFUSALS):
                    one.engine._messages._from_worker(one.worker, header, one.worker.control)
                one.check()
            return one.records

    return asyncio.run(asyncio.wait_for(handle(), SECONDS))


def nested(data: bytes) -> list[dict[str, Any]]:
    """Serve the messages as a nested connection, behind a greeting; return the daemon's answers."""

    async def handle() -> list[dict[str, Any]]:
        async with world() as one:
            services = _services(one)
            ours, theirs = socket.socketpair()
            caller = Caller("ann", one.worker.id, sandbox=one.worker.sandbox)
            connection = Connection(services, AsyncChannel(theirs, NESTED), caller, lambda _: None)
            serving = asyncio.ensure_future(connection.serve())
            client = AsyncChannel(ours)
            with contextlib.suppress(ChannelClosed):
                client.post({"type": "hello", "version": __version__})
                for header in headers(data, one.words):
                    client.post(header)
            ours.shutdown(socket.SHUT_WR)
            answers = []
            with contextlib.suppress(ChannelClosed):
                while True:
                    answers.append((await client.receive()).header)
            await serving
            client.close()
            codes = {answer["error"]["code"] for answer in answers if answer["type"] == "failed"}
            assert "internal" not in codes, answers
            assert set(one.engine._state.leases) <= {one.hostile.id, one.other.id}
            for account in (services.request_bytes, services.storage_places):
                assert not account.held(caller.opener)
            one.check()
            return answers

    return asyncio.run(asyncio.wait_for(handle(), SECONDS))


def _services(one: World) -> Any:
    async def ensure(*_: Any, **__: Any) -> Any:
        return one.bench.environment

    async def network(asked: str, *_: Any, **__: Any) -> str:
        return asked or "none"

    @contextlib.asynccontextmanager
    async def peer(*_: Any, **__: Any) -> AsyncIterator[int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours.fileno()

    def nothing(*_: Any, **__: Any) -> None: ...

    async def check(*_: Any) -> None: ...

    async def before_call(*_: Any) -> None:
        pass

    node = SimpleNamespace(
        expect_network=nothing,
        machine=SimpleNamespace(allot=nothing),
        environments=SimpleNamespace(ensure=ensure),
        network=network,
        storage_peers=SimpleNamespace(open=peer),
        tmp_disks=SimpleNamespace(check=check),
        quotas=SimpleNamespace(before_call=before_call),
    )
    return SimpleNamespace(
        engine=one.engine,
        settings=SimpleNamespace(environments=SimpleNamespace(functions_use_credentials=False)),
        node=node,
        recorder=SimpleNamespace(add=one.records.append),
        outputs=SimpleNamespace(close=nothing, open=nothing),
        request_bytes=Account(4 << 20, 8 << 20, 16 << 20, 32 << 20),
        claimed=Claimed(),
        storage_places=Account(4, 8, 16, 32),
        running_calls=RunningCalls(one.engine),
        secrets=SimpleNamespace(exist=lambda _: False),
        users=SimpleNamespace(share=lambda _: WHOLE, serves=lambda _: False),
        joined=SimpleNamespace(fence=SimpleNamespace(check=nothing)),
    )


def peer(data: bytes) -> list[Any]:
    """Read the messages as the answers of a storage peer, as the daemon does for a restore and as the client does."""

    async def restored(header: dict[str, Any]) -> Any:
        ours, theirs = socket.socketpair()
        channel, sender = AsyncChannel(theirs, PEER), Channel(ours)
        sender.send(header)
        ours.shutdown(socket.SHUT_WR)
        try:
            return await restore._exchange(channel, "name", lambda _: None)
        except errors.AtollError as error:
            return error
        finally:
            channel.close()
            sender.close()

    found: list[Any] = []
    for header in headers(data, {}):
        found.append(asyncio.run(asyncio.wait_for(restored(header), SECONDS)))
        ours, theirs = socket.socketpair()
        connection = StorageConnection(Channel(theirs))
        with contextlib.closing(Channel(ours)) as sender:
            sender.send(header)
        try:
            found.append(connection.answer("a/b"))
        except (errors.AtollError, OSError) as error:
            found.append(error)
        finally:
            connection.close()
    return found


# --- to the client ----------------------------------------------------------------------------------------------------


class _Output:
    """A caller that takes everything."""

    def stdout(self, data: bytes) -> None: ...
    def stderr(self, data: bytes) -> None: ...
    def notice(self, line: str) -> None: ...
    def progress(self, line: str) -> None: ...
    def waits(self, kind: str, detail: str) -> int | None: ...
    def proceeds(self) -> None: ...
    def tail(self) -> str:
        return ""


def answer(data: bytes) -> list[Any]:
    """Read the messages as a worker's answers to a call with `results="data"`; return values and errors."""
    found: list[Any] = []
    with _lease() as (lease, worker_end):
        lease.start(Call("c1", b"function", b"arguments", name="f", results="data"), 1.0, None)
        with contextlib.suppress(ChannelClosed, BlockingIOError):
            for header in headers(data, {"epoch": 1}):
                count = header.pop("buffers", 0)
                buffers = [b"\x00" * 9] * count if isinstance(count, int) and 0 <= count < 10 else []
                worker_end.send(header, buffers)
        worker_end.close()
        for _ in range(100):
            try:
                message: Message = lease.next(_Output())
            except (errors.AtollError, Revoked) as error:
                found.append(error)
                break
            try:
                found.append(value_of(message, "data", "c1"))
            except Exception as error:  # the exception that the answer describes
                found.append(error)
    return found


@contextlib.contextmanager
def _lease() -> Iterator[tuple[WorkerLease, Channel]]:
    control, daemon = socket.socketpair()
    ours, theirs = socket.socketpair()
    daemon.close()
    pipes = [os.pipe() for _ in range(2)]
    link = LocalLink(Channel(control), [ours.detach(), *(read for read, _ in pipes)])
    lease = WorkerLease(link, 1, True)
    for _, write in pipes:
        os.close(write)
    theirs.setblocking(False)
    worker_end = Channel(theirs)
    try:
        yield lease, worker_end
    finally:
        lease.close()
        worker_end.close()


def tape(data: bytes) -> list[Any]:
    """Read the bytes as a client's tape, twice."""
    descriptor = os.memfd_create("tape", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    reader = TapeReader(descriptor)
    try:
        found = [*reader.read(), *reader.read()]
    finally:
        reader.close()
    assert all(0 <= one.printed_bytes < 1 << 63 for one in found)
    return found


# --- honest messages --------------------------------------------------------------------------------------------------

_SLOT = usage._BEGIN.pack(1.7e9, 1.7e9, 0.5, 10, b"c1", b"f", b"") + usage._END.pack(0.1, 0.1, 1 << 20, 5)
_RECORD = ["c1", "f", "", 1.7e9, 1.7e9, 0.1, 0.1, 1 << 20, 10, 5, "ok", "", ""]
_LEASE = LeaseSpec(EnvironmentSpec(requirements=("numpy",)), "f", (("A", "b"),), network="none")
_ERROR = errors.DiskFull("no space", hint="free some").to_data()
HONEST: dict[str, list[list[dict[str, Any]]]] = {
    "agent": [
        [{"type": "usage", "workers": {"$worker": {"busy": 1, "calls": 2, "call": "c1", "function": "f"}}}],
        [
            {
                "type": "exited",
                "worker": "$worker",
                "status": -9,
                "reason": "timeout",
                "records": [_RECORD],
                "call": None,
            }
        ],
        [{"type": "exited", "worker": "$worker", "status": 0, "records": [], "call": _RECORD}],
        [{"type": "preloaded", "modules": ["numpy"], "refused": {"torch": "starts threads"}}],
        [{"type": "refused", "module": "torch", "reason": "starts threads"}, {"type": "dialled", "number": 1}],
    ],
    "worker": [
        [{"type": "hello"}, {"type": "records", "slots": (_SLOT * 2).hex(), "last": ["error", "ValueError", "x"]}],
        [{"type": "imported", "modules": ["numpy", "numpy.linalg"], "variables_changed": False}],
        [{"type": "imported", "modules": ["a"], "variables_changed": True}, {"type": "expired", "epoch": "$epoch"}],
        [{"type": "paused", "epoch": "$epoch"}, {"type": "resumed", "epoch": "$epoch"}],
        [{"type": "idle", "epoch": "$epoch"}, {"type": "connect"}],
    ],
    "nested": [
        [
            {"type": "lease", "spec": _LEASE.to_data(), "client": "x", "for": {"call": "c", "at": 1.5, "parent": "p"}},
            {"type": "kill"},
            {"type": "withdrawn"},
        ],
        [{"type": "storage"}],
        [{"type": "request", "name": "status", "arguments": {}}],
        [{"type": "dial", "worker": "$worker", "port": 80}],
        [{"type": "shell", "spec": _LEASE.to_data(), "terminal": True}],
    ],
    "peer": [
        [{"type": "restored", "kept": "before"}, {"type": "busy"}, {"type": "waiting"}, {"type": "done"}],
        [{"type": "error", "error": _ERROR, "below": "c"}, {"type": "error", "errno": 2, "text": "gone"}],
    ],
    "answer": [
        [{"type": "need", "function": "d"}, {"type": "need", "sources": "d"}, {"type": "need", "setup": "d"}],
        [{"type": "yield", "call": "c1", "buffers": 1}, {"type": "result", "call": "c1", "buffers": 1}],
        [{"type": "error", "call": "c1", "error": {"exceptions": [{"type": "ValueError", "frames": []}]}}],
        [{"type": "exiting", "call": "c1", "status": 3}],
        [{"type": "revoked", "epoch": 1}],
        [{"type": "name", "call": "c1", "number": 1, "module": "__main__", "name": "x"}],
        [{"type": "name", "call": "c1", "number": 2, "module": "__main__", "snapshot": True, "known": ["x"]}],
    ],
}


def seeds(name: str) -> list[bytes]:
    """Return inputs that fuzzing starts from."""
    if name == "tape":
        from atoll.wire import output_tape

        entry = output_tape._ENTRY.pack(1, 5, 1, b"c1") + b"hello"
        return [output_tape._PLACE.pack(1, output_tape._PLACE.size) + entry]
    return [SPLIT.join(json.dumps(message).encode() for message in messages) for messages in HONEST[name]]


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "agent": agent,
    "worker": worker,
    "nested": nested,
    "peer": peer,
    "answer": answer,
    "tape": tape,
}
