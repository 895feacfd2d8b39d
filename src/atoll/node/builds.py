"""Commands of environments' builds: each confined, in a network, and within limits of memory, processes, time and disk.

A build runs code of the packages that are asked for. All its processes are in one limited group, or under a watchdog,
and end with the command. A build that meets a limit is ended and its error names the limit and the setting.

Code of packages runs in an outbound network, where one can be made: it reaches nothing of this machine. The exception
is an index or a proxy on the machine itself, or at a link-local address, which the same command must reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from atoll.environments.build.workshop import Confinement
from atoll.errors import AtollError, EnvironmentBuildError
from atoll.model.mounts import Bind, Identity
from atoll.model.options.environments import EnvironmentsSettings
from atoll.node.build_disk import BuildDisk
from atoll.process import Completed, Group
from atoll.sandbox.launch import Launcher
from atoll.sandbox.limits.limits import Limits
from atoll.sandbox.limits.sandbox_limit import SandboxLimit
from atoll.sandbox.network import firewall
from atoll.sandbox.network.networks import Networks
from atoll.sandbox.network.outbound_network import read_uplink
from atoll.sandbox.policy import Policy
from atoll.work_threads import WorkThreads

LOOK_SECONDS = 0.1
THREADS = 8
"""Looks at disks and names of hosts at a time, one of each user: packages decide how long they take."""
GONE_LOOKS, GONE_POLL_SECONDS = 1000, 0.01
"""Looks for the processes of an ended build, which may be in the middle of a write, and seconds between two of them."""

_HOST = re.compile(r"://(?:[^/@\s\"']*@)?(\[[0-9A-Fa-f:.]+\]|[^/:@\s\"'?#\]]+)")

policy_of_builds: ContextVar[str] = ContextVar("policy_of_builds", default="host")
"""The most open network of the builds that are started here: that of the function which asks, if one does."""


user_of_builds: ContextVar[str] = ContextVar("user_of_builds", default="")
"""The user of a server for whom builds are started here: private networks are closed, and the user's limits hold."""


class Builds:
    """Runs the commands of builds; its `confinement` is the environments' `Confinement`.

    Args:
        policy: returns the policy of a command with these binds, variables, network and identity.
    """

    def __init__(
        self,
        options: EnvironmentsSettings,
        launcher: Launcher,
        networks: Networks,
        limits: Limits,
        policy: Callable[[Sequence[str], Sequence[Bind], Mapping[str, str], str, Identity], Policy],
    ) -> None:
        self.options = options
        self._launcher = launcher
        self._networks = networks
        self._limits = limits
        self._policy = policy
        self._threads = WorkThreads("builds", THREADS)

    def confinement(self, identity: Identity) -> Confinement:
        """Return the confinement of commands of this builder."""
        return partial(self.confine, identity=identity)

    async def confine(
        self,
        command: Sequence[str],
        *,
        identity: Identity,
        binds: Sequence[Bind],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        reaches: Iterable[str] | None = None,
    ) -> Completed:
        """Run a command to its end.

        Args:
            identity: the builder's.
            reaches: texts with the addresses that the command needs besides those in its environment, if code of
                packages runs in it; None if none runs.

        Raises:
            EnvironmentBuildError: it met a limit; it has been ended.
        """
        network = policy_of_builds.get()
        if network == "host" and reaches is not None:
            network = await self._network([*environment.values(), *reaches], environment)
        policy = self._policy(command, binds, environment, network, identity)
        options = self.options
        limit = self._limits.sandbox(
            options.build_memory_bytes or self._limits.most_bytes // 4 * 3,
            options.build_processes,
            user_of_builds.get(),
        )
        try:
            running = asyncio.ensure_future(self._run(policy, on_line, limit))
            try:
                return await self._watch(running, limit, [bind.source for bind in binds if bind.writable])
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        finally:
            await _gone(limit)  # killed processes may still write to the directory that is removed next
            self._limits.close_sandbox(limit)

    async def _run(self, policy: Policy, on_line: Callable[[str], None] | None, group: Group) -> Completed:
        if policy.network != "outbound":
            return await self._launcher.run(policy, on_line=on_line, group=group)
        network = await self._networks.take(closed=bool(user_of_builds.get()))
        try:
            policy = replace(policy, files=(*policy.files, *network.files))
            return await self._launcher.run(policy, enter=network.enter, on_line=on_line, group=group)
        finally:
            await self._networks.give_back(network)

    # --- limits -----------------------------------------------------------------------------------------------------

    async def _watch(
        self, running: asyncio.Future[Completed], limit: SandboxLimit, directories: Sequence[str]
    ) -> Completed:
        disk = BuildDisk(directories, self.options.build_disk_bytes) if directories else None
        try:
            return await self._watch_all(running, limit, disk)
        finally:
            if disk is not None:
                disk.stop()

    async def _watch_all(
        self, running: asyncio.Future[Completed], limit: SandboxLimit, disk: BuildDisk | None
    ) -> Completed:
        deadline = time.monotonic() + (self.options.build_seconds or float("inf"))
        counting: asyncio.Future[int] | None = None  # a build with very many files does not stop the other looks
        while True:
            waited: list[asyncio.Future[Any]] = [
                one for one in (running, counting) if one is not None and not one.done()
            ]
            await asyncio.wait(waited, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finished = running.done()
            limit.poll()
            if exceeded := limit.exceeded():
                raise _over("memory", "build_memory_bytes", *(f"{size >> 20} MiB" for size in exceeded))
            if limit.refused():
                raise _over("processes", "build_processes", str(self.options.build_processes))
            if disk is not None and counting is not None and counting.done():
                used, counting = counting.result(), None
                if used > disk.limit_bytes:
                    raise _over("disk", "build_disk_bytes", f"{disk.limit_bytes >> 20} MiB", f"{used >> 20} MiB")
            elif disk is not None and counting is None and disk.is_due():
                counting = asyncio.ensure_future(
                    self._threads.run(user_of_builds.get(), partial(disk.used_bytes, limit.pids()))
                )
            if finished and counting is None:
                return running.result()
            if time.monotonic() > deadline:
                raise _over("time", "build_seconds", f"{self.options.build_seconds:g} s")

    # --- networks ---------------------------------------------------------------------------------------------------

    async def _network(self, texts: Iterable[str], environment: Mapping[str, str]) -> str:
        """Return the network of a command in which code of packages runs."""
        proxies = [f"://{value}" for name, value in environment.items() if name.lower().endswith("_proxy")]
        hosts = {match for text in (*texts, *proxies) for match in _HOST.findall(text)}
        if await self._threads.run(user_of_builds.get(), partial(_are_near, hosts)):
            return "host"
        with contextlib.suppress(AtollError):  # none can be made here
            return await self._networks.policy("outbound", lambda _: None)
        return "host"


async def _gone(limit: SandboxLimit) -> None:
    """Wait until every process of a build has ended."""
    for _ in range(GONE_LOOKS):
        if limit.remove():
            break
        await asyncio.sleep(GONE_POLL_SECONDS)


def _over(kind: str, setting: str, limit: str, used: str = "") -> EnvironmentBuildError:
    return EnvironmentBuildError(
        f"the build used more {kind} than it may: limit {limit}{f', used {used}' if used else ''}",
        hint=f"raise `environments.{setting}` in `settings.toml`, or ask for packages that have wheels",
    )


def _are_near(hosts: Iterable[str]) -> bool:
    """Return whether a host is this machine, or at an address that an outbound network refuses."""
    import ipaddress  # with the first build that compiles something

    refused = firewall.refused(read_uplink().own)
    for host in hosts:
        with contextlib.suppress(OSError, UnicodeError):
            for found in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
                address = ipaddress.ip_address(str(found[4][0]).partition("%")[0])
                if any(address in network for network in refused if network.version == address.version):
                    return True
    return False
