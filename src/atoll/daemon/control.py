"""One client connection to the daemon: messages on its control socket, or on a connection out of a sandbox.

A connection opens with `hello`, which carries the client's version; a client of another version is told so and starts a
daemon of its own. Then the connection does one thing: it holds a lease (`lease`), carries one request (`request`), or
opens a storage peer (`storage`), a shell (`shell`) or a stream to a port inside a sandbox (`dial`). The caller's rights
are checked by `leasing` and `requests`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from atoll import __version__, errors
from atoll.daemon import call_requests, claims, leasing, places, request_arguments, requests
from atoll.daemon.detached import requests as detached_requests
from atoll.daemon.leasing import Caller
from atoll.daemon.services import Services
from atoll.engine.contract import EngineLease
from atoll.environments.asked.certificates import MAX_BYTES
from atoll.model.build_progress import BuildLine, BuildProgress
from atoll.model.specs import LeaseSpec, SandboxKey
from atoll.wire import sealed_file
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError, HeaderTooLarge, Message

log = logging.getLogger("atoll.api")

HELLO_SECONDS = 10.0
POSITION_SECONDS = 0.5
LINGER_SECONDS = 1.0
"""Seconds between looks at a worker that has given a lease up, until it has another one."""

LAST_OUTPUT_SECONDS = 10.0
"""Seconds for a client to read the last output of an ended worker, and to close its connection."""

FAIL_SECONDS = 10.0
"""Seconds for a client to read why it was refused."""

MAX_LEASE_DESCRIPTORS = 4
"""Descriptors that may wait for their messages, on a nested connection with a lease."""

_senders_of_junk: deque[str] = deque(maxlen=1000)
"""Workers whose code has sent no frames: the log names each once, since their code could fill the disk."""

T = TypeVar("T")


class Withdrawn(ChannelClosed):
    """The client does not want the lease that it asked for: its call runs under another one."""


class Connection:
    """Serves one client connection to its end.

    Args:
        leave: ends the daemon, at once or with its last client.
    """

    def __init__(
        self, services: Services, channel: AsyncChannel, caller: Caller, leave: Callable[[bool], None]
    ) -> None:
        self._services = services
        self._channel = channel
        self._caller = caller
        self._leave = leave
        self._held = contextlib.ExitStack()  # what is counted for the connection's user

    async def serve(self) -> None:
        failure: dict[str, Any] | None = None
        try:
            if await self._greet():
                await (await self._asked())
        except (TimeoutError, ChannelClosed):
            pass
        except FrameError as error:
            self._log_junk(error)
            failure = _too_large(error) if isinstance(error, HeaderTooLarge) else None
        except errors.AtollError as error:
            failure = error.to_data()
        except ValueError as error:
            failure = errors.ProtocolMismatch(f"malformed message: {error}", hint="upgrade the older side").to_data()
        except Exception as error:
            log.exception("connection_failed")
            failure = errors.InternalError(
                f"the daemon failed: {error!r}", hint="please report it with `atoll logs`"
            ).to_data()
        try:  # past the handlers, whose errors hold the frames and so the message
            if failure is not None:
                await asyncio.wait_for(self._fail(failure), FAIL_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._held.close()
            self._channel.close()

    async def _greet(self) -> bool:
        """Exchange versions; return whether they are the same, or need not be."""
        hello = (await asyncio.wait_for(self._channel.receive(), HELLO_SECONDS)).header
        version = hello.get("version")
        if hello.get("type") != "hello" or not isinstance(version, str):
            raise errors.ProtocolMismatch("the first message is not a greeting", hint="use the atoll package")
        welcome = version == __version__ or hello.get("purpose") == "control"
        kind = "welcome" if welcome else "mismatch"
        await self._channel.send({"type": kind, "version": __version__, "pid": os.getpid()})
        return welcome

    async def _asked(self) -> Coroutine[Any, Any, None]:
        """Return the work that the client's message asks for; of the message itself nothing is kept."""
        message = (await asyncio.wait_for(self._channel.receive(), HELLO_SECONDS)).header
        if "as" in message:
            self._admit(leasing.on_behalf(self._caller, message["as"]), self._caller.user)
        if "certificates" in message and not self._caller.nested:
            self._learn_certificates(message["certificates"])
        match message.get("type"):
            case "lease":
                spec = claims.read_spec(message.get("spec"))
                claim = claims.read_claim(message.get("for"))
                call = claim[0] if claim is not None else claims.read_call(message.get("after"))
                maker = self._services.claimed.maker(call, self._caller.user, self._caller.parent)
                if maker == "":
                    claim = None
                if self._caller.keeps:  # its leases serve calls of many programs
                    maker = None
                return self._lease(spec, claims.read_client(message.get("client", "")), claim, maker)
            case "storage":
                return self._storage()
            case "shell":
                return self._shell(claims.read_spec(message.get("spec")), terminal=message.get("terminal") is True)
            case "exec":
                return self._exec(message)
            case "handover" | "adopt" | "watch_load" | "watch_holds" as kind:
                leasing.check_owner(self._caller, "serve others here")
                return self._services.stream(kind, self._channel)
            case "dial":
                return self._dial(message.get("worker"), message.get("port"))
            case "request":
                return self._request(message)
            case kind:
                raise errors.ProtocolMismatch(f"unknown message `{str(kind)[:40]}`", hint="upgrade the older side")

    def _admit(self, caller: Caller, owner: str) -> None:
        """Serve the caller in whose name the owner, or the keeper, asks."""
        self._caller, users = caller, self._services.users
        if caller.remote:
            self._services.joined.fence.check()
            users.admit(caller.user, caller.limits, owner)
            self._caller = replace(caller, network=users.network())
            self._held.enter_context(users.connection(caller.user))

    def _learn_certificates(self, digest: object) -> None:
        """Take the certificates that came beside a message, if a build could need them and they are not here yet."""
        (descriptor,) = self._channel.take_descriptors(1)
        try:
            known = self._services.node.environments.certificates
            if digest not in known:
                known.learn(sealed_file.read(descriptor, MAX_BYTES).decode())
        finally:
            os.close(descriptor)

    def _log_junk(self, error: FrameError) -> None:
        worker = self._caller.parent
        if worker is None:
            log.warning("client_sent_no_frames error=%s", error)
        elif worker not in _senders_of_junk:
            _senders_of_junk.append(worker)
            log.warning("worker_sent_no_frames id=%s error=%s", worker, error)

    async def _fail(self, error: dict[str, Any]) -> None:
        error = requests.shown_failure(self._services, self._caller, error)
        with contextlib.suppress(ChannelClosed):
            try:
                await self._channel.send({"type": "failed", "error": error})
            except FrameError:  # an error with too many details
                await self._channel.send({"type": "failed", "error": {**error, "details": {}}})

    def _progress(self, line: str) -> None:
        self._post_line("progress", line[:4000], line.progress if isinstance(line, BuildLine) else None)

    def _notice(self, line: str) -> None:
        self._post_line("notice", line)

    def _post_line(self, kind: str, line: str, build: BuildProgress | None = None) -> None:
        if self._caller.nested and self._channel.queued_bytes:
            return  # a client that does not read loses lines
        with contextlib.suppress(ChannelClosed):
            beside = {} if build is None else {"build": build.to_data()}
            self._channel.post({"type": kind, "line": requests.shown(self._services, self._caller, line), **beside})

    async def _until_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, or cancel it when the client closes the connection."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._channel.receive())
        fence = self._services.joined.fence
        try:
            with fence.ends(task) if self._caller.remote else contextlib.nullcontext():
                await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.cancelled():
                fence.check()
            if task.done():
                return task.result()
            raise _out_of_turn(gone.result())
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _lease(self, spec: LeaseSpec, client: str, claim: claims.Claim | None, maker: str | None) -> None:
        calls = self._services.running_calls
        lease: EngineLease | None = None
        try:
            with (
                places.request_bytes(self._services, self._caller, spec),
                calls.waits(self._caller.user, spec, claim) as waiting,
            ):
                listener = leasing.Listener(waiting.telling(self._progress), self._notice)
                lease = await self._until_gone(self._ask(spec, client, listener))
                lease.first_call, lease.maker = claim[0] if claim is not None else "", maker
                waiting.built(lease)
                await self._serve_lease(lease, lambda: calls.started(waiting))
        except Withdrawn:
            raise
        except BaseException as error:
            if lease is None or not lease.worker or lease.never_began:
                claims.record_refusal(
                    self._services.recorder, self._caller.user, spec.function, claim, error, nested=self._caller.nested
                )
            raise

    async def _ask(self, spec: LeaseSpec, client: str, listener: leasing.Listener) -> EngineLease:
        if self._caller.nested:
            await self._channel.afford(leasing.reading_tokens(spec.environment))
        return await leasing.ask(self._services, self._caller, spec, client, listener)

    async def _serve_lease(self, lease: EngineLease, started: Callable[[], None]) -> None:
        try:
            await self._wait_granted(lease)
            started()
            if self._caller.nested:
                self._channel.bound_descriptors(MAX_LEASE_DESCRIPTORS)
            header = {"type": "granted", "epoch": lease.epoch, "fresh": lease.fresh, "worker": lease.worker}
            await self._channel.send(header, lease.descriptors)
            lease.close_descriptors()
            await self._hold(lease)
        finally:
            lease.release()
            self._services.outputs.close(lease)

    async def _wait_granted(self, lease: EngineLease) -> None:
        if lease.granted.done():
            lease.granted.result()
            return
        gone: asyncio.Future[Any] = asyncio.ensure_future(self._channel.receive())
        told = None
        try:
            while not lease.granted.done():
                await asyncio.wait({lease.granted, gone}, timeout=POSITION_SECONDS, return_when="FIRST_COMPLETED")
                if gone.done():
                    raise _out_of_turn(gone.result())
                said = max(lease.position(), 0), lease.reason()
                unread = self._caller.nested and self._channel.queued_bytes  # as for other lines
                if said[1] and said != told and not lease.granted.done() and not unread:
                    told = said
                    self._channel.post({"type": "waiting", "position": said[0], "reason": said[1]})
            lease.granted.result()
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _hold(self, lease: EngineLease) -> None:
        """Keep the lease until the client leaves, kills the call, or the worker is gone."""
        message = asyncio.ensure_future(self._channel.receive())

        async def handle_next(seconds: float | None, *others: asyncio.Future[Any]) -> None:
            """Handle the client's next message, if one comes in time and before `others`."""
            nonlocal message
            await asyncio.wait({message, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if message.done():
                kind = message.result().type
                if kind == "kill":
                    lease.kill()
                elif kind == "cancel":
                    lease.cancel()
                elif kind == "tape":
                    self._services.outputs.open(lease, self._caller.user, *self._channel.take_descriptors(1))
                self._channel.drop_descriptors()
                message = asyncio.ensure_future(self._channel.receive())

        try:
            while not lease.ended.done():
                await handle_next(None, lease.ended)
            await self._channel.send({"type": "ended", "error": lease.ended.result()})
            while lease.may_run():  # a worker that claims to be idle may run its call still
                await handle_next(LINGER_SECONDS)
            lease.release()
            deadline = time.monotonic() + LAST_OUTPUT_SECONDS
            while time.monotonic() < deadline:  # the last output is in the pipes, which the client still reads
                await handle_next(deadline - time.monotonic())
        finally:
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)

    # --- everything else --------------------------------------------------------------------------------------------

    async def _storage(self) -> None:
        peers, caller, ended = self._services.node.storage_peers, self._caller, asyncio.Event()
        async with (
            places.storage_place(self._services, caller),
            peers.open(caller.user, ended, client=caller.storage_client) as descriptor,
        ):
            await self._channel.send({"type": "granted"}, [descriptor])
            with contextlib.suppress(ChannelClosed):  # the client leaves, or the peer has idled for long enough
                await self._until_gone(ended.wait())

    async def _dial(self, worker: object, port: object) -> None:
        """Send the client a socket that is connected to a port inside a sandbox."""
        asked = leasing.dial(self._services, self._caller, worker, port)
        with await self._until_gone(asked) as dialled:
            await self._channel.send({"type": "granted"}, [dialled.fileno()])

    async def _shell(self, asked: LeaseSpec, *, terminal: bool) -> None:
        """Run a shell in a sandbox of its own, on the client's descriptors for stdin, stdout and stderr."""
        services, caller = self._services, self._caller
        leasing.check_outside(caller, "open a shell")
        with services.housekeeping.shell(caller.user), places.shell(services, caller):
            descriptors = self._channel.take_descriptors(3)
            try:
                spec, environment = await self._until_gone(leasing.prepared(services, caller, asked, self._progress))
                network = await services.node.network(spec.network, self._notice)
                key = SandboxKey(caller.user, environment.key, network, spec.mounts, trusted=spec.trusted)
                if services.engine.is_quiet(caller.user):
                    raise errors.VolumeBusy("the volume is just being restored", hint="try again in a moment")
                shell = services.node.start_shell(key, environment, dict(spec.env), descriptors, terminal=terminal)
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

    async def _exec(self, message: dict[str, Any]) -> None:
        """Run a command in the sandbox of a running call, on the client's descriptors."""
        leasing.check_outside(self._caller, "open a shell")
        descriptors = self._channel.take_descriptors(3)

        def tell() -> None:
            with contextlib.suppress(ChannelClosed):
                self._channel.post({"type": "granted"})

        try:
            run = call_requests.execute(self._services, self._caller, message, descriptors, tell)
            status = await self._until_gone(run)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        await self._channel.send({"type": "answer", "value": {"status": status}})

    async def _request(self, message: dict[str, Any]) -> None:
        name, arguments = request_arguments.read(message, relayed=self._caller.relayed)
        if name.startswith("detached."):
            leasing.check_outside(self._caller, "keep detached calls")
            services, user = self._services, self._caller.user
            about = detached_requests.handle(services.detached, user, name, arguments, self._channel)
            await detached_requests.send(self._channel, await self._until_gone(about))
            return
        asked = requests.answer(self._services, self._caller, name, arguments, self._progress)
        await self._channel.send({"type": "answer", "value": await self._until_gone(asked)})
        if name in requests.ENDINGS:
            self._leave(name == "stop")


def _out_of_turn(message: Message) -> Exception:
    if message.type == "withdrawn":
        return Withdrawn("the client has got another lease meanwhile")
    return errors.ProtocolMismatch("the client spoke out of turn", hint="upgrade the older side")


def _too_large(error: HeaderTooLarge) -> dict[str, Any]:
    return errors.ResourcesUnavailable(
        f"the request has {error.size_bytes} bytes, and the daemon takes {error.most_bytes}",
        hint="name fewer requirements, and put large values into a file below `/data`",
    ).to_data()
