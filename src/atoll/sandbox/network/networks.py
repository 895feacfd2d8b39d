"""The networks of sandboxes: which policy a call gets, and the networks of `outbound`.

Theory of operation. An outbound network is a network namespace with a device that *pasta* serves: a
plain program that opens ordinary sockets outside for what arrives at the device. It runs in a sandbox of its own, the
*carrier*, so that it ends as sandboxes do, with its owner, and sees nothing that it does not need. The namespace
belongs to a user namespace which the carrier has made. As root, the carrier has a uid that no function has: the kernel
gives the owner of a user namespace all capabilities over it, and a function could open its network up.

Inside, `holder` has what must not be reached refused (see `netfilter`) and only then gives the namespaces away. A
sandbox is started in them (`Network.enter`), so that none ever runs a command in a network that is not finished, and
one whose carrier has ended is cut off, never back on the machine's own network.

Making a network takes about 70 ms. So all sandboxes of a user share one, and it is kept for a minute after the last
of them. A sandbox that starts when the machine's own network has changed, as a laptop's does, gets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from atoll.errors import AtollError, ResourcesUnavailable, SandboxUnavailable
from atoll.model.mounts import Bind
from atoll.model.specs import NETWORKS
from atoll.sandbox import programs
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.network import firewall, namespace_keeper, uplink
from atoll.sandbox.policy import Policy, SyntheticFile, confine
from atoll.settings import Settings

log = logging.getLogger("atoll.network")

MAKE_SECONDS = 20.0
IDLE_SECONDS = 60.0
"""How long a network is kept that no sandbox uses."""
FAILED_SECONDS = 30.0
"""How long it is remembered that no network could be made."""

_HOLDER = "/opt/atoll/holder.py"
_TUN = "/dev/net/tun"
# Nothing is forwarded into the network or to the machine's loopback, and its gateway is not another name of the machine.
_PASTA = (
    *("--foreground", "--config-net", "--ns-ifname", "tap0", "--no-map-gw", "--dns-forward", uplink.RESOLVER),
    *("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"),
)
_UNROUTED = (
    *("--ipv4-only", "--interface", "lo", "--mac-addr", "02:00:00:00:00:01"),
    *("--address", "10.0.2.100", "--netmask", "24", "--gateway", "10.0.2.2"),
)
"""Without a default route there is nothing that pasta could copy the addresses from."""


def within(asked: str, outer: str) -> str:
    """Return the policy of a call that is made from inside a sandbox: at most as open as the sandbox's own.

    Args:
        asked: what the call names; empty for nothing, which gives the sandbox's own where that is not the machine's.
        outer: the policy of the sandbox.

    Raises:
        ResourcesUnavailable: the call names a policy that is more open.
    """
    if not asked:
        return "" if outer == "host" else outer
    if NETWORKS.index(asked) > NETWORKS.index(outer):
        raise ResourcesUnavailable(
            f"a function with network `{outer}` cannot call one with network `{asked}`, which would let it out",
            hint=f'give the inner function `network="{outer}"`, or call it from the program itself',
        )
    return asked


class Network:
    """A running outbound network, for the sandboxes of one user or for one build.

    Args:
        carrier: the sandbox of the program that serves it.
        owner: the other end of the holder's socket; owned from now on.
        namespaces: descriptors of the user and the network namespace; owned from now on.
        uplink_then: the machine's network when it was made.
        files: what the sandbox sees instead of the machine's.
    """

    def __init__(
        self,
        carrier: Sandbox,
        owner: socket.socket,
        namespaces: tuple[int, int],
        uplink_then: uplink.Uplink,
        files: tuple[SyntheticFile, ...],
    ) -> None:
        self._carrier = carrier
        self._owner = owner
        self._namespaces = namespaces
        self._open = True
        self.uplink = uplink_then
        self.files = files
        self.users = 0
        """How many sandboxes use it."""

    @property
    def running(self) -> bool:
        """Whether packets are carried, as far as is known."""
        return self._open and self._carrier.running

    @property
    def enter(self) -> list[str]:
        """The program and arguments that start another one in this network.

        The namespaces are named through this process: descriptors that are handed over would reach the command.
        """
        user, net = (f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in self._namespaces)
        line = [programs.find_nsenter(), f"--net={net}"]
        if os.geteuid() != 0:
            line += [f"--user={user}", "--preserve-credentials"]
        return [*line, "--"]

    async def wait(self) -> None:
        """Wait until packets are no longer carried."""
        await self._carrier.wait()

    async def close(self) -> None:
        """End the network, and wait until nothing of it is left; who is still in it is cut off."""
        if self._open:
            self._open = False
            self._owner.close()
            for descriptor in self._namespaces:
                os.close(descriptor)
        await self._carrier.kill()


class Networks:
    """Decide on policies and make outbound networks; to be used from the event loop's own thread.

    Args:
        settings: where the programs are.
        launcher: starts the carriers.
        identities: who they run as.
    """

    def __init__(self, settings: Settings, launcher: Launcher, identities: Identities) -> None:
        self._settings = settings
        self._launcher = launcher
        self._identities = identities
        self._spare: asyncio.Task[Network] | None = None  # made, and not taken yet
        self._shared: dict[str, Network] = {}  # by user
        self._making: dict[str, asyncio.Lock] = {}
        self._timers: dict[Network | None, asyncio.TimerHandle] = {}  # None for the spare
        self._failure: tuple[float, AtollError] | None = None
        self._told = False
        self._works = False
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def policy(self, asked: str, notice: Callable[[str], None]) -> str:
        """Return the policy that a function gets which asks for this one, or for none (empty).

        Args:
            notice: is told, once in this object's life, that a function shares the machine's network unasked.

        Raises:
            SandboxUnavailable: it asks for `outbound`, which cannot be made here; with the fix.
        """
        if asked in ("none", "host"):
            return asked
        try:
            if not self._works:
                self.prepare()
                if self._spare is not None:
                    await asyncio.shield(self._spare)
            return "outbound"
        except AtollError as error:
            if asked:
                raise
            if not self._told:
                self._told = True
                notice(f"functions share this machine's network: {error.message}; {error.hint}")
            return "host"

    def expect(self, asked: str, user: str) -> None:
        """Begin what a sandbox of this user will need, so that it is ready sooner.

        Raises:
            SandboxUnavailable: it asks for `outbound`, and there is no program for it.
        """
        try:
            if asked in ("", "outbound") and user not in self._shared:
                self.prepare()
        except AtollError:
            if asked:
                raise

    def prepare(self) -> None:
        """Begin to make a network that the next `take` gets, unless there is one.

        Raises:
            SandboxUnavailable: there is no program for it, or none could be made a moment ago.
        """
        programs.find_pasta(self._settings.sandbox.pasta)
        if self._failure is not None:
            if time.monotonic() - self._failure[0] < FAILED_SECONDS:
                raise self._failure[1]
            self._failure = None
        if self._spare is None and not self._closed:
            self._spare = asyncio.get_running_loop().create_task(self._make())
            self._spare.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[Network]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AtollError):
            log.warning("network_failed error=%s", error)
            self._failure = (time.monotonic(), error)
        self._works = not task.cancelled() and error is None
        if not self._works and self._spare is task:
            self._spare = None
        elif self._spare is task:
            self._after(None, self._drop)

    async def take(self, user: str = "") -> Network:
        """Return a network for one sandbox more; `give_back` ends its use.

        Args:
            user: whose sandboxes share it; empty for a network that nobody shares.

        Raises:
            SandboxUnavailable: none can be made; with the fix.
        """
        if not user:
            network = await self._new()
        else:
            async with self._making.setdefault(user, asyncio.Lock()):
                known = self._shared.get(user)
                if known is None or not known.running or known.uplink != uplink.read():
                    self._shared[user] = await self._new()
                    if known is not None and not known.users:
                        self._end(known)
                network = self._shared[user]
                self._stop_timer(network)
        network.users += 1
        return network

    async def give_back(self, network: Network) -> None:
        """End one use of a network; one that is shared stays for a while."""
        network.users -= 1
        if network.users:
            return
        if network.running and network in self._shared.values() and not self._closed:
            self._after(network, lambda: self._end(network))
        else:
            await network.close()

    async def _new(self) -> Network:
        spare, self._spare = self._spare, None
        self._stop_timer(None)
        if spare is not None:
            network = await asyncio.shield(spare)
            if network.running and network.uplink == uplink.read():
                return network
            self._end(network)
        return await self._make()

    def _drop(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.done() and not spare.cancelled() and spare.exception() is None:
            self._end(spare.result())

    def _after(self, network: Network | None, end: Callable[[], None]) -> None:
        self._stop_timer(network)
        self._timers[network] = asyncio.get_running_loop().call_later(IDLE_SECONDS, end)

    def _stop_timer(self, network: Network | None) -> None:
        if timer := self._timers.pop(network, None):
            timer.cancel()

    def _end(self, network: Network) -> None:
        self._stop_timer(network)
        self._shared = {user: one for user, one in self._shared.items() if one is not network}
        task = asyncio.get_running_loop().create_task(network.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all networks that are kept or being made; those of builds are their owners'."""
        self._closed = True
        self._stop_timer(None)
        if self._spare is not None and not self._spare.done():
            self._spare.cancel()
            await asyncio.gather(self._spare, return_exceptions=True)
        self._drop()
        for network in list(self._shared.values()):
            self._end(network)
        await asyncio.gather(*self._ending, return_exceptions=True)

    # --- making one -------------------------------------------------------------------------------------------------

    async def _make(self) -> Network:
        path = programs.find_pasta(self._settings.sandbox.pasta)
        now = uplink.read()
        more = () if now.ipv6 else ("--ipv4-only",)
        try:
            return await self._start(now, path, (path, *_PASTA, *more))
        except SandboxUnavailable:
            if now.routed:
                raise
            return await self._start(now, path, (path, *_PASTA, *_UNROUTED))

    async def _start(self, now: uplink.Uplink, path: str, command: tuple[str, ...]) -> Network:
        """Start a carrier and wait until its network is ready."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe2(os.O_CLOEXEC)
        ours.setblocking(False)
        carrier: Sandbox | None = None
        try:
            policy = self._carrier_policy(path, command)
            carrier = self._launcher.launch(policy, stdin=theirs.fileno(), stdout=write, stderr=write)
            theirs.close()
            os.close(write)
            write = -1
            filters = firewall.messages(firewall.refused(now.own), uplink.RESOLVER, ipv6=now.ipv6)
            with contextlib.suppress(OSError):  # the holder has ended: what was said tells why
                await asyncio.get_running_loop().sock_sendall(ours, filters)
            said, descriptors = await asyncio.wait_for(_receive(ours), MAKE_SECONDS)
            if len(descriptors) != 2:
                raise await self._failed(carrier, said.decode("utf-8", "replace"), read)
            content = uplink.resolver_file(now.resolv, uplink.RESOLVER).encode()
            files = (SyntheticFile("/etc/resolv.conf", content),)
            network = Network(carrier, ours, (descriptors[0], descriptors[1]), now, files)
            carrier = None
            return network
        except TimeoutError:
            raise SandboxUnavailable(
                f"`{path}` made no network within {MAKE_SECONDS:.0f} seconds", hint="run `atoll doctor`"
            ) from None
        finally:
            theirs.close()
            if write >= 0:
                os.close(write)
            if carrier is not None:
                ours.close()
                await carrier.kill()
            os.close(read)

    def _carrier_policy(self, path: str, command: tuple[str, ...]) -> Policy:
        interpreter = os.path.realpath(sys.executable)
        hold = (interpreter, "-I", "-S", _HOLDER)
        identity = self._identities.carrier()
        directory = os.path.realpath(os.path.dirname(path))
        directories = {directory, os.path.dirname(os.path.realpath(path)), os.path.realpath(sys.base_prefix)}
        # Not the program's own real path: that may be named `passt`, and it goes by the name by which it is called.
        command = (f"{directory}/{os.path.basename(path)}", *command[1:])
        policy = confine(
            (*command, "--", *hold),
            machine=self._launcher.machine,
            identity=identity,
            binds=[Bind(namespace_keeper.__file__, _HOLDER), *(Bind(each, each) for each in sorted(directories))],
            tmp_bytes=1 << 20,
            shm_bytes=1 << 20,
            workdir="/",
            hostname="network",
        )
        return replace(policy, tun=self._tun(), nests=True)

    def _tun(self) -> str:
        """Return the path of a device that the carrier may open.

        Raises:
            SandboxUnavailable: there is none.
        """
        try:
            found = os.stat(_TUN)
        except OSError:
            raise SandboxUnavailable(
                f"there is no `{_TUN}`, which network `outbound` needs",
                hint="run `sudo modprobe tun`; for a container, add `--device /dev/net/tun`",
            ) from None
        if os.geteuid() != 0:
            if not os.access(_TUN, os.R_OK | os.W_OK):
                raise SandboxUnavailable(
                    f"`{_TUN}`, which network `outbound` needs, is closed to plain users",
                    hint=f"run `sudo chmod 666 {_TUN}`, as most distributions have it",
                )
            return _TUN
        if found.st_mode & 0o006 == 0o006:
            return _TUN
        own = self._settings.run_directory / "tun"
        with contextlib.suppress(FileExistsError, OSError):
            own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mknod(own, stat.S_IFCHR | 0o600, found.st_rdev)
            os.chmod(own, 0o666)  # noqa: S103  # as `/dev/net/tun` is elsewhere, in a directory that is root's alone
        return str(own) if _is_device(own) else _TUN

    async def _failed(self, carrier: Sandbox, said: str, output: int) -> AtollError:
        """Return why a carrier has made no network; it has ended, or is about to."""
        if "nf_tables" in said or "rotocol not supported" in said:
            await carrier.kill()
            return SandboxUnavailable(
                f"this kernel cannot filter an outbound network: {said}", hint="run `sudo modprobe nf_tables`"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(carrier.wait(), 1.0)
        await carrier.kill()
        failure = await carrier.failure()
        if failure is not None:
            return failure
        os.set_blocking(output, False)
        text = said
        with contextlib.suppress(OSError):
            text += os.read(output, 1 << 16).decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and "to syslog" not in line]
        return SandboxUnavailable(
            f"no outbound network can be made here: {'; '.join(lines[-3:])[:500] or 'its program says nothing'}",
            hint="run `atoll doctor`, and see that `passt` is up to date",
        )


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


async def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Wait for one message with up to two descriptors; nothing when the other end has closed."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(channel, tell)
    try:
        await ready
    finally:
        loop.remove_reader(channel)
    try:
        said, descriptors, _, _ = socket.recv_fds(channel, 4096, 2)
    except OSError:
        return b"", []
    if len(descriptors) != 2:
        for descriptor in descriptors:
            os.close(descriptor)
        return said, []
    return said, descriptors
