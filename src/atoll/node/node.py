"""One machine: its environments, volumes, limits and sandboxes, behind what the engine asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from atoll import errors
from atoll.environments.built import locks
from atoll.environments.built.interpreter import Interpreter, probe
from atoll.environments.built.records import Environment
from atoll.environments.store import EnvironmentStore
from atoll.model.mounts import Bind, Identity
from atoll.model.specs import SandboxKey
from atoll.node import juicefs, mounted_files, native_files, volumes
from atoll.node.capacity import Machine
from atoll.process import Completed
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.limits.limits import Limits
from atoll.sandbox.network.networks import Network, Networks
from atoll.sandbox.network.outbound_sandbox import OutboundSandbox
from atoll.sandbox.policy import HOME, Policy, SyntheticFile, confine
from atoll.settings import Settings
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync.cleanup import worth_collecting
from atoll.storage.volume.removal import nearly_full
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import Channel, ChannelClosed, Socket, pair

log = logging.getLogger("atoll.node")

LIBRARY = "/opt/atoll/lib"
NATIVE = "/opt/atoll/native"
ENVIRONMENT = "/opt/atoll/env"
CACHE_VARIABLES = {
    "XDG_CACHE_HOME": "/data/.cache",
    "HF_HOME": "/data/.cache/huggingface",
    "TORCH_HOME": "/data/.cache/torch",
    "KERAS_HOME": "/data/.cache/keras",
    "NLTK_DATA": "/data/.cache/nltk",
    "TFHUB_CACHE_DIR": "/data/.cache/tfhub",
    "SENTENCE_TRANSFORMERS_HOME": "/data/.cache/sentence_transformers",
    "MPLCONFIGDIR": "/data/.cache/matplotlib",
    "PIP_CACHE_DIR": "/data/.cache/pip",
    "UV_CACHE_DIR": "/data/.cache/uv",
}
"""Where libraries keep what they download, so that it is there at the next call."""

_SHELL = """
import fcntl, json, os, sys, termios
if sys.argv[1]:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.environ.update(json.loads(sys.argv[2]))
os.environ.setdefault("TERM", "xterm-256color")
os.environ["PS1"] = r"(atoll) \\w \\$ "
shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
os.execv(shell, [shell, "--norc", "--noprofile"] if shell.endswith("bash") else [shell])
"""
"""Takes the terminal and becomes a shell; run by the environment's own Python."""

policy_of_builds: ContextVar[str] = ContextVar("policy_of_builds", default="host")
"""The network policy of the builds that are started here: the machine's network, which may have an index of its own, or
that of the function which asks. A build runs code of the packages that are asked for."""

MAX_COMPLAINT_BYTES = 64 << 10
"""How much of what a sandbox's own processes say on stderr is kept, for each sandbox."""


class NodeSandbox:
    """A sandbox with its agent, and the channel to it."""

    def __init__(
        self,
        channel: AsyncChannel,
        sandbox: Sandbox | OutboundSandbox | None,
        hold: locks.Lock | None,
        failed: errors.AtollError | None,
    ) -> None:
        self.channel = channel
        self._sandbox = sandbox
        self._hold = hold
        self._failed = failed

    @property
    def pid(self) -> int:
        return self._sandbox.pid if self._sandbox is not None else 0

    async def kill(self) -> None:
        """End every process of the sandbox, and wait until they are gone."""
        self.channel.close()
        if self._sandbox is not None:
            await self._sandbox.kill()

    async def failure(self) -> errors.AtollError | None:
        """Wait for the end; return why the sandbox could not be made, if it could not."""
        if self._sandbox is None:
            return self._failed
        return await self._sandbox.failure()

    def close(self) -> None:
        """Let the environment go; the sandbox has ended."""
        if self._hold is not None:
            self._hold.release()


class Node:
    """The machine that the daemon runs on.

    Args:
        options: where its state is, and its options.

    Raises:
        StateUnusable, DiskFull: the state cannot be prepared.
    """

    def __init__(self, options: Settings) -> None:
        self._settings = options
        self._launcher = Launcher(options)
        self._identities = Identities(options)
        self._networks = Networks(options, self._launcher, self._identities)
        self.limits = Limits(options)
        self.machine = Machine(options.pool, self.limits)
        self._library, self._library_hold = mounted_files.hold(options.agents_directory)
        self._native: tuple[Path, int] | None = None
        self.environments = EnvironmentStore(
            options.environments_directory, self._confine_builder, self._identities.builder()
        )
        self._interpreter: Interpreter | None = None
        self._cloners: set[asyncio.Task[None]] = set()
        self._users = volumes.users(options.volumes_directory)

    def volume(self, user: str) -> tuple[Path, Identity]:
        """Return the directory of a user's volume and its owner; made if it is not there."""
        identity = self._identities.user(user)
        directory = self._settings.volumes_directory / user
        volumes.prepare(directory, identity)
        self._users.add(user)
        return directory, identity

    def users(self) -> list[str]:
        """Return the users who have a volume here."""
        return list(self._users)

    async def settle(self) -> None:
        """Do at leisure what need not be done before the first call."""
        with contextlib.suppress(OSError):
            await mounted_files.compile_rest(self._library)
            await asyncio.to_thread(mounted_files.remove_unused, self._settings.agents_directory)

    async def close(self) -> None:
        """Let go of what the node holds; its sandboxes have ended."""
        await self._networks.close()
        self.limits.close()
        os.close(self._library_hold)
        if self._native is not None:
            os.close(self._native[1])

    def expect_network(self, asked: str, user: str) -> None:
        """See `sandbox.network.Networks.expect`."""
        self._networks.expect(asked, user)

    async def network(self, asked: str, notice: Callable[[str], None]) -> str:
        """Return the network policy that a function gets which asks for this one, or for none.

        Args:
            notice: is told, once in this node's life, that a function which asks for none shares the machine's network.

        Raises:
            SandboxUnavailable: it asks for one that cannot be made here.
        """
        return await self._networks.policy(asked, notice)

    def _policy(
        self,
        command: Sequence[str],
        identity: Identity,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        network: str,
        devices: Sequence[str] = (),
        files: Sequence[SyntheticFile] = (),
    ) -> Policy:
        options = self._settings.sandbox
        return confine(
            command,
            machine=self._launcher.machine,
            identity=identity,
            binds=binds,
            environment=tuple(environment.items()),
            network=network,
            files=files,
            tmp_bytes=options.tmp_bytes,
            shm_bytes=options.shm_bytes,
            devices=devices,
            sysfs=bool(devices),
        )

    # --- sandboxes of functions -------------------------------------------------------------------------------------

    def start_sandbox(self, key: SandboxKey, environment: Environment) -> NodeSandbox:
        """Start a sandbox with an agent; what goes wrong shows as the end of its channel and in `failure`."""
        ours, theirs = pair()
        channel = AsyncChannel(ours)
        channel.bound_descriptors(0)
        hold: locks.Lock | None = None
        failed: errors.AtollError
        command = environment.command(f"{LIBRARY}/_atoll_agent.py", str(theirs.fileno()))

        def launch(network: Network | None) -> Sandbox:
            policy = self._function_policy(key, environment, command, {}, network.files if network else ())
            enter = network.enter if network else ()
            with self._complaints("sandboxes.log") as stderr:
                return self._launcher.launch(policy, enter=enter, descriptors=[theirs.fileno()], stderr=stderr)

        try:
            hold = self.environments.hold(environment)
            return NodeSandbox(channel, self._launch(key, launch, theirs.close), hold, None)
        except errors.AtollError as error:
            failed = error
        except (OSError, ValueError) as error:
            failed = errors.SandboxUnavailable(f"the sandbox cannot be started: {error}", hint="run `atoll doctor`")
        theirs.close()
        return NodeSandbox(channel, None, hold, failed)

    def _launch(
        self, key: SandboxKey, launch: Callable[[Network | None], Sandbox], done: Callable[[], None]
    ) -> Sandbox | OutboundSandbox:
        """Launch a sandbox now, or as soon as it has its network; `done` is called when it is launched, or never is."""
        if key.network == "outbound":
            return OutboundSandbox(self._networks, key.user, launch, done)
        try:
            return launch(None)
        finally:
            done()

    def _function_policy(
        self,
        key: SandboxKey,
        environment: Environment,
        command: Sequence[str],
        variables: Mapping[str, str],
        files: Sequence[SyntheticFile] = (),
    ) -> Policy:
        volume, identity = self.volume(key.user)
        binds = [
            Bind(str(self._library), LIBRARY),
            Bind(str(environment.path), ENVIRONMENT),
            *environment.interpreter.binds,
            *volumes.binds(volume),
        ]
        taken = [HOME, *(bind.target for bind in binds)]
        for target, source in key.mounts:
            if any(path == target or path.startswith(f"{target}/") for path in taken):
                raise errors.ResourcesUnavailable(
                    f"mount `{target}` would hide a part of the sandbox",
                    hint="choose a path of its own, such as `/datasets`",
                )
            binds.append(Bind(source, target))
        binds += self.machine.gpus.libraries(key.gpus)
        devices = self.machine.gpus.devices(key.gpus)
        variables = {**self.function_variables(), **environment.variables, **variables}
        return self._policy(command, identity, binds, variables, key.network, devices, files)

    def start_shell(
        self,
        key: SandboxKey,
        environment: Environment,
        variables: Mapping[str, str],
        descriptors: Sequence[int],
        *,
        terminal: bool,
    ) -> Sandbox | OutboundSandbox:
        """Start an interactive shell in a function's sandbox, on these descriptors for stdin, stdout and stderr.

        The caller closes its own.
        """
        command = environment.command("-c", _SHELL, "terminal" if terminal else "", json.dumps(dict(variables)))
        stdin, stdout, stderr = own = [os.dup(descriptor) for descriptor in descriptors]

        def launch(network: Network | None) -> Sandbox:
            files = network.files if network else ()
            policy = self._function_policy(key, environment, command, {"PYTHONPATH": LIBRARY}, files)
            enter = network.enter if network else ()
            return self._launcher.launch(policy, enter=enter, stdin=stdin, stdout=stdout, stderr=stderr)

        def done() -> None:
            for descriptor in own:
                os.close(descriptor)

        return self._launch(key, launch, done)

    def function_variables(self) -> dict[str, str]:
        """Return the variables that every function finds."""
        return {
            **CACHE_VARIABLES,
            "PATH": f"{ENVIRONMENT}/bin:{self._launcher.machine.search_path}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @contextlib.contextmanager
    def _complaints(self, name: str) -> Iterator[int]:
        """Give a pipe for a sandbox's stderr, whose first part is kept in a log: no file of the host is in there."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        loop = asyncio.get_running_loop()
        left = MAX_COMPLAINT_BYTES

        def drain() -> None:
            nonlocal left
            try:
                data = os.read(read, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                loop.remove_reader(read)
                os.close(read)
            elif left > 0:
                data, left = data[:left], left - len(data)
                with contextlib.suppress(OSError), open(self._settings.logs_directory / name, "ab") as file:
                    file.write(data)

        loop.add_reader(read, drain)
        try:
            yield write
        finally:
            os.close(write)

    # --- builds -----------------------------------------------------------------------------------------------------

    async def _confine_builder(
        self,
        command: Sequence[str],
        *,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        policy = self._policy(command, self._identities.builder(), binds, environment, policy_of_builds.get())
        if policy.network != "outbound":
            return await self._launcher.run(policy, on_line=on_line)
        network = await self._networks.take()
        try:
            policy = replace(policy, files=(*policy.files, *network.files))
            return await self._launcher.run(policy, enter=network.enter, on_line=on_line)
        finally:
            await self._networks.give_back(network)

    # --- storage ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def open_storage(self, user: str, ended: asyncio.Event | None = None, *, client: str) -> AsyncIterator[int]:
        """Run a storage peer for a user's volume; gives the descriptor of the client's end, closed at the end.

        Args:
            client: who gets it: `storage.protocol.replies.DAEMON`, `PROGRAM` or `FUNCTION`.
            ended: is set when the peer has ended by itself.
        """
        ours, theirs = pair()
        try:
            sandbox = await self._start_storage(user, theirs, client)
            watch = asyncio.ensure_future(_tell(sandbox, ended)) if ended is not None else None
            try:
                yield ours.fileno()
            finally:
                if watch is not None:
                    watch.cancel()
                await sandbox.kill()
        finally:
            ours.close()

    async def _start_storage(self, user: str, end: Socket, client: str) -> Sandbox:
        volume, identity = self.volume(user)
        if self._interpreter is None:
            self._interpreter = await probe(getattr(sys, "_base_executable", None) or sys.executable)
        binds = [
            Bind(str(self._library), LIBRARY),
            *self._interpreter.binds,
            Bind(str(volume), "/volume", writable=True),
        ]
        if self._native is None:
            with contextlib.suppress(OSError):
                self._native = await asyncio.to_thread(native_files.hold, self._settings.agents_directory)
        if self._native is not None:
            binds.append(Bind(str(self._native[0]), NATIVE))
        code = f"import sys; sys.path[:0] = [{LIBRARY!r}]; sys.path.append({NATIVE!r}); from atoll.storage.peer.main import main; sys.exit(main())"
        command = [self._interpreter.executable, "-I", "-S", "-c", code, str(end.fileno()), client]
        ends = [end]
        cloner = juicefs.find(volume)
        if cloner is not None:
            ours, theirs = pair()
            ends.append(theirs)
            command += ["/volume", str(theirs.fileno())]
            task = asyncio.get_running_loop().create_task(juicefs.serve(AsyncChannel(ours), volume, cloner))
            self._cloners.add(task)
            task.add_done_callback(self._cloners.discard)
        policy = self._policy(command, identity, binds, {"PYTHONDONTWRITEBYTECODE": "1"}, "none")
        try:
            with self._complaints("storage.log") as stderr:
                return self._launcher.launch(policy, descriptors=[one.fileno() for one in ends], stderr=stderr)
        finally:
            for one in ends:
                one.close()

    def used_by_others(self) -> bool:
        """Whether a daemon of another version runs, whose sandboxes this one does not know; what it has to do ends.

        Raises:
            OSError: the state directory cannot be read.
        """
        return mounted_files.used_by_others(self._library)

    async def collect(self, user: str, before_ns: int) -> int:
        """Remove, slowly, what syncs have replaced before a moment (nanoseconds since the epoch): no sandbox of the
        user that lives has been started earlier. It may be cancelled, and goes on the next time.

        Returns:
            how many replaced trees were removed.
        """
        staging = self._settings.volumes_directory / user / "staging"
        with contextlib.suppress(errors.AtollError, OSError):
            if self.used_by_others() or not worth_collecting(staging, before_ns):
                return 0
            async with self.open_storage(user, client=DAEMON) as descriptor:
                channel = Channel(socket.socket(fileno=os.dup(descriptor)))
                try:
                    return await asyncio.to_thread(_collect, channel, before_ns)
                finally:
                    with contextlib.suppress(OSError):
                        channel.socket.shutdown(socket.SHUT_RDWR)  # the thread, where this was cancelled
                    channel.close()
        return 0

    def is_nearly_full(self) -> bool:
        """Whether the disk of the volumes is so full that room is more important than pace."""
        with contextlib.suppress(OSError):
            return nearly_full(os.statvfs(self._settings.volumes_directory))
        return False


async def _tell(sandbox: Sandbox, ended: asyncio.Event) -> None:
    await sandbox.wait()
    ended.set()


def _collect(channel: Channel, before_ns: int) -> int:
    with contextlib.suppress(ChannelClosed, OSError):
        channel.send({"type": "collect", "before_ns": before_ns, "slowly": True})
        return int(channel.receive().header.get("removed", 0))
    return 0
