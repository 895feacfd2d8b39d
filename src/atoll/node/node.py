"""One machine: its environments, volumes, limits and sandboxes, as the engine uses them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

from atoll import errors
from atoll.environments.built import locks
from atoll.environments.built.records import Environment
from atoll.environments.stores import Stores
from atoll.model.mounts import Bind, Identity
from atoll.model.specs import SandboxKey
from atoll.node import mounted_files, volumes
from atoll.node.builds import Builds
from atoll.node.capacity import Machine
from atoll.node.freezing import Pauses
from atoll.node.function_variables import CACHE_VARIABLES
from atoll.node.mounted_files import LIBRARY
from atoll.node.quotas.quotas import Quotas
from atoll.node.shared.data import SharedData
from atoll.node.shell_program import SHELL
from atoll.node.start_files import start_files
from atoll.node.stderr_log import logged_stderr
from atoll.node.storage_peers import StoragePeers
from atoll.node.tmp_disks import TmpDisk, TmpDisks
from atoll.sandbox.held_process import Member, prove
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.limits.limits import Limits
from atoll.sandbox.limits.sandbox_limit import SandboxLimit
from atoll.sandbox.machine import SyntheticFile, new_hostname
from atoll.sandbox.network.networks import Networks, group_of
from atoll.sandbox.network.outbound_network import Network
from atoll.sandbox.network.outbound_sandbox import OutboundSandbox
from atoll.sandbox.policy import HOME, Policy, confine
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import AGENT
from atoll.wire.channel import pair

log = logging.getLogger("atoll.node")

ENVIRONMENT = "/opt/atoll/env"


class NodeSandbox:
    """A sandbox with its agent, the channel to it, and the limit of all its processes."""

    def __init__(
        self,
        channel: AsyncChannel,
        sandbox: Sandbox | OutboundSandbox | None,
        hold: locks.Lock | None,
        failed: errors.AtollError | None,
        limit: SandboxLimit,
        closed: Callable[[], None],
        disk: TmpDisk | None = None,
    ) -> None:
        self.limit = limit
        self._disk = disk
        self._closed = closed
        self.channel = channel
        self._sandbox = sandbox
        self._hold = hold
        self._failed = failed
        self._lost: errors.AtollError | None = None

    @property
    def pid(self) -> int:
        return self._sandbox.pid if self._sandbox is not None else 0

    def identify(self, pid: int, pidfd: int) -> Member | None:
        """Return a process of this sandbox that the kernel names as a sender; see `held_process.prove`."""
        return prove(pid, pidfd, self.pid)

    async def kill(self) -> None:
        """End every process of the sandbox, and wait until they are gone."""
        self.channel.close()
        if self._sandbox is not None:
            await self._sandbox.kill()

    async def lose(self, error: errors.AtollError) -> None:
        """End every process of the sandbox, for a reason that its calls end with."""
        self._lost = self._lost or error
        await self.kill()

    async def failure(self) -> errors.AtollError | None:
        """Wait for the end; return why the sandbox could not be made or was lost, if so."""
        if self._sandbox is None or self._lost is not None:
            return self._lost or self._failed
        failed = await self._sandbox.failure()
        return self._disk.failure if self._disk is not None and self._disk.failure is not None else failed

    def close(self) -> None:
        """Let the environment and the limit go; the sandbox has ended."""
        self._closed()
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
        self.data = SharedData(options)
        self.launcher = Launcher(options)
        self._identities = Identities(options)
        self._networks = Networks(options, self.launcher, self._identities)
        self.limits = Limits(options)
        self.machine = Machine(options.pool, self.limits)
        self._library, self._library_hold = mounted_files.hold(options.agents_directory)
        self._builds = Builds(options.environments, self.launcher, self._networks, self.limits, self._policy_of_build)
        confinement, pins = self._builds.confinement, self.data.root / "pins" if self.data.is_shared else None
        self.stores = Stores(options.environments_directory, confinement, self._identities.builder, pins)
        self.apply(options)
        self.environments = self.stores.owner
        presence = self.data.presence
        self.pauses = Pauses(presence.held_elsewhere, presence.leave)
        self.quotas = Quotas(options.home, options.volumes_directory, self.volume, options.storage)
        sheet, library = self.quotas.sheet, self._library
        group = self.limits.peers
        self.storage_peers = StoragePeers(options, self.launcher, self.volume, library, self.pauses, sheet, group)
        self._users = volumes.users(options.volumes_directory)
        self._closing: set[asyncio.Task[None]] = set()
        self._live: WeakSet[NodeSandbox] = WeakSet()
        self.tmp_disks = TmpDisks(options)

    def apply(self, options: Settings) -> None:
        """Build by other rules from now on."""
        self._builds.options = options.environments
        self.stores.apply(options.environments)

    def volume(self, user: str) -> tuple[Path, Identity]:
        """Return the directory of a user's volume and its owner; made if it is not there."""
        self.data.check()
        identity = self._identities.user(user)
        directory = self._settings.volumes_directory / user
        volumes.prepare(directory, identity)
        self._users.add(user)
        return directory, identity

    def give_streams(self, user: str, streams: Sequence[int]) -> None:
        """Let a user's functions open these pipes again, by `/dev/stdout` and `/dev/stderr`."""
        if os.geteuid() == 0:
            identity = self._identities.user(user)
            for descriptor in streams:
                os.fchown(descriptor, identity.uid, identity.gid)

    def users(self) -> list[str]:
        """Return the users with a volume here; nobody while a shared file system does not answer."""
        if self.data.is_shared:  # its directories are not looked at each second
            return [] if self.data.problem is not None else sorted(self._users)
        return [user for user in self._users if (self._settings.volumes_directory / user).is_dir()]

    async def lose_volumes(self, error: errors.AtollError) -> None:
        """End all sandboxes and storage peers, whose `/data` is gone for good; their calls end with the error."""
        await asyncio.gather(*(one.lose(error) for one in list(self._live)), self.storage_peers.end_all())

    async def settle(self) -> None:
        """Compile and remove mounted files; the first call need not wait for either."""
        with contextlib.suppress(OSError):
            await mounted_files.compile_rest(self._library)
            await asyncio.to_thread(mounted_files.remove_unused, self._settings.agents_directory)
            await asyncio.to_thread(self.tmp_disks.sweep)

    async def close(self) -> None:
        """Release networks, limits and mounted files; all sandboxes have ended."""
        await self._networks.close()
        await self.quotas.close()
        await self.tmp_disks.close()
        self.limits.close()
        os.close(self._library_hold)
        self.storage_peers.close()
        await self.data.presence.close()
        self.data.close()

    def expect_network(self, asked: str, user: str, *, trusted: bool) -> None:
        """See `sandbox.network.Networks.expect`."""
        self._networks.expect(asked, group_of(user, trusted))

    async def network(self, asked: str, notice: Callable[[str], None], *, own: bool = False) -> str:
        """Return the network policy that a function gets which asks for this one, or for none.

        Args:
            notice: is told, once in this node's life, that a function which asks for none shares the machine's network.
            own: as in `LeaseSpec`; such a function never shares that unasked.

        Raises:
            SandboxUnavailable: it asks for one that cannot be made here.
        """
        return await self._networks.policy(asked, notice, own=own)

    def _policy(
        self,
        command: Sequence[str],
        identity: Identity,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        network: str,
        devices: Sequence[str] = (),
        files: Sequence[SyntheticFile] = (),
        *,
        shares: str = "",
        disk: TmpDisk | None = None,
    ) -> Policy:
        options = self._settings.sandbox
        policy = confine(
            command,
            machine=self.launcher.machine,
            identity=identity,
            binds=binds,
            environment=tuple(environment.items()),
            network=network,
            files=files,
            tmp_bytes=options.tmp_bytes,
            tmp="" if disk is None else str(disk.source),
            shm_bytes=options.shm_bytes,
            devices=devices,
            sysfs=bool(devices),
            hostname=new_hostname(),
            own_pids=bool(shares),
            ipc_group=shares,
        )
        return policy if disk is None else replace(policy, prepare=disk.prepare)

    def _policy_of_build(
        self,
        command: Sequence[str],
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        network: str,
        identity: Identity,
    ) -> Policy:
        return self._policy(command, identity, binds, environment, network)

    # --- sandboxes of functions -------------------------------------------------------------------------------------

    def start_sandbox(self, key: SandboxKey, environment: Environment) -> NodeSandbox:
        """Start a sandbox with an agent; a failure shows as the end of its channel and in `failure`."""
        ours, theirs = pair()
        channel = AsyncChannel(ours, AGENT)
        channel.bound_descriptors(0)
        hold: locks.Lock | None = None
        failed: errors.AtollError
        starter, more = start_files(key.start)
        command = environment.command(f"{LIBRARY}/_atoll_agent.py", str(theirs.fileno()), starter=starter)
        limit = self.limits.sandbox(user=key.user)
        disk: TmpDisk | None = None

        def launch(network: Network | None) -> Sandbox:
            files = (*more, *(network.files if network else ()))
            policy = self._function_policy(key, environment, command, {}, files, disk)
            enter = network.enter if network else ()
            with logged_stderr(self._settings.logs_directory / "sandboxes.log") as stderr:
                started = self.launcher.launch(
                    policy, enter=enter, descriptors=[theirs.fileno()], stderr=stderr, group=limit
                )
            self.pauses.add(key.user, limit)
            return started

        def closed() -> None:
            self.pauses.remove(key.user, limit)
            self.limits.close_sandbox(limit)
            if disk is not None:
                disk.close()

        try:
            hold = self.stores.hold(environment)
            disk = self.tmp_disks.make(key.disk_bytes, self._identities.user(key.user))
            made = NodeSandbox(channel, self._launch(key, launch, theirs.close), hold, None, limit, closed, disk)
            self.tmp_disks.watch(disk, lambda: made.pid, made.kill)
            self._live.add(made)
            return made
        except errors.AtollError as error:
            failed = error
        except (OSError, ValueError) as error:
            failed = errors.SandboxUnavailable(f"the sandbox cannot be started: {error}", hint="run `atoll doctor`")
        theirs.close()
        return NodeSandbox(channel, None, hold, failed, limit, closed)

    def _launch(
        self, key: SandboxKey, launch: Callable[[Network | None], Sandbox], done: Callable[[], None]
    ) -> Sandbox | OutboundSandbox:
        """Launch a sandbox now, or as soon as it has its network; `done` is called when it is launched, or never is."""
        if key.network == "outbound":
            return OutboundSandbox(self._networks, group_of(key.user, key.trusted, key.own), launch, done)
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
        disk: TmpDisk | None = None,
    ) -> Policy:
        volume, identity = self.volume(key.user)
        self.data.presence.enter(key.user)
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
        shares = group_of(key.user, key.trusted, key.own)
        own = {"XDG_RUNTIME_DIR": f"/run/user/{identity.uid}"}
        variables = {**self.function_variables(), **own, **environment.variables, **variables}
        return self._policy(command, identity, binds, variables, key.network, devices, files, shares=shares, disk=disk)

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
        command = environment.command("-c", SHELL, "terminal" if terminal else "", json.dumps(dict(variables)))
        stdin, stdout, stderr = own = [os.dup(descriptor) for descriptor in descriptors]
        limit = self.limits.sandbox(user=key.user)
        terms = self.machine.allot("")
        limit.admit("shell", terms.memory_bytes, terms.processes)

        def launch(network: Network | None) -> Sandbox:
            files = network.files if network else ()
            policy = self._function_policy(key, environment, command, {"PYTHONPATH": LIBRARY}, files)
            enter = network.enter if network else ()
            started = self.launcher.launch(policy, enter=enter, stdin=stdin, stdout=stdout, stderr=stderr, group=limit)
            self.pauses.add(key.user, limit)
            return started

        def done() -> None:
            for descriptor in own:
                os.close(descriptor)

        try:
            shell = self._launch(key, launch, done)
        except BaseException:
            self.limits.close_sandbox(limit)
            raise
        closing = asyncio.get_running_loop().create_task(self._close_after(shell, key.user, limit))
        self._closing.add(closing)  # the loop itself holds tasks weakly
        closing.add_done_callback(self._closing.discard)
        return shell

    async def _close_after(self, sandbox: Sandbox | OutboundSandbox, user: str, limit: SandboxLimit) -> None:
        """Give a limit up when its sandbox has ended."""
        try:
            await sandbox.wait()
        finally:
            self.pauses.remove(user, limit)
            self.limits.close_sandbox(limit)

    def function_variables(self) -> dict[str, str]:
        """Return the variables that every function finds."""
        return {
            **CACHE_VARIABLES,
            "PATH": f"{ENVIRONMENT}/bin:{self.launcher.machine.search_path}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
