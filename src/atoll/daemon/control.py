"""What a client may ask of the daemon, and who may ask it.

A connection opens with `hello`, which carries the client's version; another version's client is told so and starts a
daemon of its own. Then the connection does one thing: it holds a lease (`lease`), carries one request (`request`),
or opens a storage peer (`storage`). A connection that comes from inside a sandbox is bound to the sandbox's user,
and may ask for leases and storage only, without naming anything of the host's file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from atoll import __version__, errors
from atoll.daemon import restore
from atoll.engine.call_claims import never_started
from atoll.environments.build import recipes
from atoll.model.specs import LeaseSpec, SandboxKey
from atoll.node.node import policy_of_builds
from atoll.sandbox.network.networks import within
from atoll.storage.protocol.replies import FUNCTION, PROGRAM
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, Message

if TYPE_CHECKING:
    from atoll.daemon.main import Daemon
    from atoll.engine.pool_state import Lease

log = logging.getLogger("atoll.api")

HELLO_SECONDS = 10.0
POSITION_SECONDS = 0.5
LINGER_SECONDS = 1.0
"""How often to look whether a worker that has given a lease up has another one."""
LAST_WORDS_SECONDS = 10.0
"""How long a client may take to read what a worker that has ended had printed, and to close its connection."""
MAX_STORAGE_PEERS = 4
MAX_NESTED_STORAGE_PEERS = 32
"""How many storage peers the code in one worker may have open, and that in all workers together."""
STORAGE_PLACE_SECONDS = 3.0
MAX_LEASE_DESCRIPTORS = 4
"""How many descriptors may wait for the messages that they belong to, of a nested connection that has a lease."""
MAX_CLIENT = 64
"""Characters of what names a client's process."""


class Withdrawn(ChannelClosed):
    """The client does not want what it asked for: its call runs under another lease."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: a user, and the worker whose call it is for a nested connection."""

    user: str
    worker: str | None = None

    @property
    def nested(self) -> bool:
        return self.worker is not None


class Connection:
    """Serves one client connection to its end."""

    def __init__(self, daemon: Daemon, channel: AsyncChannel, peer: Peer) -> None:
        self._daemon = daemon
        self._channel = channel
        self._peer = peer

    async def serve(self) -> None:
        try:
            hello = await asyncio.wait_for(self._channel.receive(), HELLO_SECONDS)
            version = hello.header.get("version")
            if hello.type != "hello" or not isinstance(version, str):
                raise errors.ProtocolMismatch("the first message is not a greeting", hint="use the atoll package")
            if version != __version__ and hello.header.get("purpose") != "control":
                await self._channel.send({"type": "mismatch", "version": __version__, "pid": os.getpid()})
                return
            await self._channel.send({"type": "welcome", "version": __version__, "pid": os.getpid()})
            message = (await asyncio.wait_for(self._channel.receive(), HELLO_SECONDS)).header
            match message.get("type"):
                case "lease":
                    await self._lease(message)
                case "storage":
                    await self._storage()
                case "shell":
                    await self._shell(message)
                case "request":
                    await self._request(message)
                case kind:
                    raise errors.ProtocolMismatch(f"unknown message `{kind}`", hint="upgrade the older side")
        except (TimeoutError, ChannelClosed):
            pass
        except FrameError as error:
            self._complain(error)
        except errors.AtollError as error:
            await self._fail(error)
        except ValueError as error:
            await self._fail(errors.ProtocolMismatch(f"malformed message: {error}", hint="upgrade the older side"))
        except Exception as error:
            log.exception("connection_failed")
            await self._fail(
                errors.InternalError(f"the daemon failed: {error!r}", hint="please report it with `atoll logs`")
            )
        finally:
            self._channel.close()

    def _complain(self, error: FrameError) -> None:
        """Say in the log what came; once for each worker, whose code could fill the disk with it."""
        worker = self._peer.worker
        if worker is None:
            log.warning("client_sent_no_frames error=%s", error)
        elif worker not in self._daemon.senders_of_junk:
            self._daemon.senders_of_junk.append(worker)
            log.warning("worker_sent_no_frames id=%s error=%s", worker, error)

    async def _fail(self, error: errors.AtollError) -> None:
        with contextlib.suppress(ChannelClosed):
            await self._channel.send({"type": "failed", "error": error.to_data()})

    def _progress(self) -> Callable[[str], None]:
        """Return a function that tells the client a line; lines that the client does not take are dropped."""

        def tell(line: str) -> None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"type": "progress", "line": line[:4000]})

        return tell

    async def _until_gone(self, work: Any) -> Any:
        """Run `work` to its end, or cancel it when the client closes the connection."""
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        gone: asyncio.Future[Any] = asyncio.ensure_future(self._channel.receive())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            _refuse_withdrawn(gone.result())
            raise errors.ProtocolMismatch("the client spoke out of turn", hint="upgrade the older side")
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _lease(self, message: dict[str, Any]) -> None:
        spec = _read_spec(message.get("spec"))
        lease: Lease | None = None
        try:
            lease = await self._ask(spec, message.get("client", ""))
            await self._serve_lease(lease)
        except Withdrawn:
            raise
        except BaseException as error:
            if lease is None or not lease.worker:
                record = never_started(message.get("for"), spec.function, self._peer.user, self._peer.nested, error)
                if record is not None:
                    self._daemon.recorder.add(record)
            raise

    async def _ask(self, spec: LeaseSpec, client: object) -> Lease:
        if not isinstance(client, str) or len(client) > MAX_CLIENT:
            raise ValueError("`client` must be a short text")
        spec = self._checked(spec)
        self._daemon.node.expect_network(spec.network, self._peer.user)
        self._daemon.node.machine.allot(spec.machine_type, self._notice)
        store = self._daemon.node.environments
        environment = await self._until_gone(store.ensure(spec.environment, self._progress(), nested=self._peer.nested))
        spec = replace(spec, network=await self._network(spec))
        return self._daemon.pool.ask(self._peer.user, spec, environment, self._peer.worker, client)

    async def _serve_lease(self, lease: Lease) -> None:
        try:
            await self._wait_granted(lease)
            if self._peer.nested:
                self._channel.bound_descriptors(MAX_LEASE_DESCRIPTORS)
            header = {"type": "granted", "epoch": lease.epoch, "fresh": lease.fresh, "worker": lease.worker}
            await self._channel.send(header, lease.descriptors)
            self._daemon.pool.close_descriptors(lease)
            await self._hold(lease)
        finally:
            self._daemon.pool.release(lease)
            self._daemon.outputs.close(lease)

    async def _wait_granted(self, lease: Lease) -> None:
        if lease.granted.done():
            lease.granted.result()
            return
        gone: asyncio.Future[Any] = asyncio.ensure_future(self._channel.receive())
        told = None
        try:
            while not lease.granted.done():
                await asyncio.wait({lease.granted, gone}, timeout=POSITION_SECONDS, return_when="FIRST_COMPLETED")
                if gone.done():
                    _refuse_withdrawn(gone.result())
                position = self._daemon.pool.position(lease)
                if position >= 0 and position != told and not lease.granted.done():
                    told = position
                    self._channel.post({"type": "waiting", "position": position})
            lease.granted.result()
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _hold(self, lease: Lease) -> None:
        """Keep the lease until the client leaves, kills the call, or the worker is gone."""
        message: asyncio.Future[Any] = asyncio.ensure_future(self._channel.receive())

        async def heed(seconds: float | None, *others: asyncio.Future[Any]) -> None:
            """Do what the client says next, if it says it in time."""
            nonlocal message
            await asyncio.wait({message, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                kind = message.result().type
                if kind == "kill":
                    self._daemon.pool.kill(lease)
                elif kind == "tape":
                    self._daemon.outputs.open(lease, self._peer.user, *self._channel.take_descriptors(1))
                self._channel.drop_descriptors()
                message = asyncio.ensure_future(self._channel.receive())

        try:
            while not lease.ended.done():
                await heed(None, lease.ended)
            await self._channel.send({"type": "ended", "error": lease.ended.result()})
            while self._daemon.pool.may_run(lease):  # the call has not ended because its worker says so
                await heed(LINGER_SECONDS)
            self._daemon.pool.release(lease)
            deadline = time.monotonic() + LAST_WORDS_SECONDS
            while time.monotonic() < deadline:  # what was printed last is in the pipes, which the client reads
                await heed(deadline - time.monotonic())
        finally:
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)

    def _checked(self, spec: LeaseSpec) -> LeaseSpec:
        """Refuse what this peer may not ask for."""
        if not self._peer.nested:
            for target, source in spec.mounts:
                _check_mount(target, source)
            return spec
        if spec.mounts:
            raise errors.ResourcesUnavailable(
                "a function called from inside a sandbox cannot have `mounts`",
                hint="call it from the program itself, or put the data below `/data`",
            )
        recipes.refuse_host_paths(spec.environment)
        caller = self._daemon.pool.environment_of(self._peer.worker or "")
        # a function's own Python is the one that its callers had asked for
        version = spec.environment.python_version or caller.python_version
        terms = replace(spec.environment, interpreter=caller.interpreter, index=caller.index, python_version=version)
        outer = self._daemon.pool.network_of(self._peer.worker or "")
        network = within(spec.network, outer)
        policy_of_builds.set(outer)  # for this connection's task, and what it starts
        return replace(spec, environment=terms, network=network)

    async def _network(self, spec: LeaseSpec) -> str:
        """Return the network policy that a lease gets; what it means is said once, to the first who asks for none."""
        return await self._daemon.node.network(spec.network, self._notice)

    def _notice(self, line: str) -> None:
        with contextlib.suppress(ChannelClosed):
            self._channel.post({"type": "notice", "line": line})

    # --- everything else --------------------------------------------------------------------------------------------

    async def _storage(self) -> None:
        async with self._place_for_storage():
            await self._serve_storage()

    @contextlib.asynccontextmanager
    async def _place_for_storage(self) -> AsyncIterator[None]:
        """Count a storage peer of a worker's; each is a process outside the worker's limits.

        Waits a little for a place: a client that opens one after the other does not see how the last one ends.
        """
        worker, places = self._peer.worker, self._daemon.storage_peers
        if worker is None:
            yield
            return
        deadline = time.monotonic() + STORAGE_PLACE_SECONDS
        while places[worker] >= MAX_STORAGE_PEERS or places.total() >= MAX_NESTED_STORAGE_PEERS:
            if time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                continue
            raise errors.ResourcesUnavailable(
                f"functions may work on `/data` through {MAX_STORAGE_PEERS} clients each at a time, and all functions "
                f"together through {MAX_NESTED_STORAGE_PEERS}",
                hint="sync fewer directories at a time, or read and write `/data` directly",
            )
        places[worker] += 1
        try:
            yield
        finally:
            places[worker] -= 1
            if not places[worker]:
                del places[worker]

    async def _serve_storage(self) -> None:
        ended = asyncio.Event()
        client = FUNCTION if self._peer.nested else PROGRAM
        async with self._daemon.node.open_storage(self._peer.user, ended, client=client) as descriptor:
            await self._channel.send({"type": "granted"}, [descriptor])
            with contextlib.suppress(ChannelClosed):  # whoever goes first: the client, or a peer that rests no longer
                await self._until_gone(ended.wait())

    async def _shell(self, message: dict[str, Any]) -> None:
        """Run a shell in a sandbox of its own, on the client's descriptors for stdin, stdout and stderr."""
        if self._peer.nested:
            raise errors.ResourcesUnavailable("a function cannot open a shell", hint="run it from the command line")
        with self._daemon.shell():
            descriptors = self._channel.take_descriptors(3)
            try:
                spec = self._checked(_read_spec(message.get("spec")))
                environment = await self._until_gone(
                    self._daemon.node.environments.ensure(spec.environment, self._progress())
                )
                key = SandboxKey(self._peer.user, environment.key, await self._network(spec), spec.mounts)
                if self._daemon.pool.is_quiet(self._peer.user):
                    raise errors.VolumeBusy("the volume is just being restored", hint="try again in a moment")
                shell = self._daemon.node.start_shell(
                    key, environment, dict(spec.env), descriptors, terminal=message.get("terminal") is True
                )
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            try:
                await self._channel.send({"type": "granted"})
                status = await self._until_gone(shell.wait())
            finally:
                await shell.kill()
        failure = await shell.failure()
        if failure is not None:
            raise failure
        await self._channel.send({"type": "answer", "value": {"status": status}})

    async def _request(self, message: dict[str, Any]) -> None:
        name, arguments = message.get("name"), message.get("arguments")
        if self._peer.nested and name == "volume.restore":
            raise restore.refused_inside()
        if self._peer.nested:
            raise errors.ResourcesUnavailable("a function cannot control the daemon", hint="use the command line")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("a request has a `name` and `arguments`")
        answer = await self._until_gone(self._daemon.answer(name, arguments, self._progress()))
        await self._channel.send({"type": "answer", "value": answer})
        if name in ("stop", "drain"):
            self._daemon.leave(at_once=name == "stop")


def _refuse_withdrawn(message: Message) -> None:
    if message.type == "withdrawn":
        raise Withdrawn("the client has got another lease meanwhile")


def _read_spec(data: Any) -> LeaseSpec:
    try:
        return LeaseSpec.from_data(data)
    except ValueError as error:
        raise errors.ResourcesUnavailable(
            f"the daemon does not take this call: {error}", hint="mend the option; large values belong in `/data`"
        ) from error


RESERVED_TARGETS = ("/opt/atoll", "/data", "/proc", "/dev", "/sys", "/etc", "/usr", "/bin", "/lib", "/lib64", "/sbin")


def _check_mount(target: str, source: str) -> None:
    path = os.path.normpath(target)
    if not target.startswith("/") or path == "/" or ".." in target.split("/"):
        raise errors.ResourcesUnavailable(
            f"mount `{target}` must be an absolute path below `/`", hint="for example `/datasets`"
        )
    if any(path == taken or path.startswith(taken + "/") for taken in (*RESERVED_TARGETS, "/tmp", "/run")):
        raise errors.ResourcesUnavailable(
            f"mount `{target}` would hide a part of the sandbox", hint="choose a path of its own, such as `/datasets`"
        )
    if not os.path.isabs(source) or not os.path.isdir(source):
        raise errors.ResourcesUnavailable(
            f"mount `{target}`: `{source}` is not a directory of this machine", hint="give an existing directory"
        )
