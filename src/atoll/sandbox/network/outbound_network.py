"""A running outbound network: the sandbox of the program that serves it, and the namespaces that others enter.

Theory of operation. An outbound network is a network namespace with a device that *pasta* serves: a plain program that
opens ordinary sockets outside for the packets that arrive at the device. Pasta runs in a sandbox of its own, the
*carrier*: it ends with its owner, as sandboxes do, and sees nothing unneeded. The namespace belongs to a user namespace
made by the carrier. As root, the carrier has a uid that no function has: the kernel gives the owner of a user namespace
all capabilities over it, so a function with that uid could open its network up.

Inside, `namespace_keeper` installs the filter (see `firewall`) and only then hands out the namespaces. A sandbox is
started in them (`Network.enter`). So no command ever runs in an unfinished network, and a sandbox whose carrier has
ended is cut off, never back on the machine's own network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from atoll.errors import AtollError, SandboxUnavailable
from atoll.model.mounts import Bind
from atoll.sandbox import programs
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.machine import SyntheticFile
from atoll.sandbox.network import firewall, namespace_keeper, prerequisites
from atoll.sandbox.policy import PRIVATE, VAR, Policy, beneath, confine
from atoll.settings import Settings

MAKE_SECONDS = 20.0
RESOLVER = "169.254.53.53"
"""The address at which pasta answers for the machine's resolver. It is link-local, and so can be no other machine's
that a function may reach; the machine's own resolver may listen on its loopback address."""

_KEEPER = "/opt/atoll/namespace_keeper.py"
_PROGRAM = "/opt/atoll/pasta"
_TUN = prerequisites.DEVICE
# Nothing is forwarded into the network or to the machine's loopback, and its gateway is not another name of the machine.
_PASTA = (
    *("--foreground", "--config-net", "--ns-ifname", "tap0", "--no-map-gw", "--dns-forward", RESOLVER),
    *("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"),
)
_UNROUTED = (
    *("--ipv4-only", "--interface", "lo", "--mac-addr", "02:00:00:00:00:01"),
    *("--address", "10.0.2.100", "--netmask", "24", "--gateway", "10.0.2.2"),
)
"""Without a default route there is nothing that pasta could copy the addresses from."""


@dataclass(frozen=True)
class Uplink:
    """The machine's own network at one moment, compared to see a change.

    Args:
        own: the machine's addresses, but for loopback.
        routed: whether a default route leads out, by IPv4 or IPv6.
        ipv6: whether the machine has IPv6 at all.
        resolv: the text of `/etc/resolv.conf`.
    """

    own: tuple[str, ...] = ()
    routed: bool = True
    ipv6: bool = True
    resolv: str = ""


def read_uplink() -> Uplink:
    """Look at this machine; costs four small files."""
    inet6 = _text("/proc/self/net/if_inet6")
    routes4 = [line.split() for line in _text("/proc/self/net/route").splitlines()[1:]]
    routes6 = [line.split() for line in _text("/proc/self/net/ipv6_route").splitlines()]
    routed4 = any(row[1] == "00000000" and row[7] == "00000000" for row in routes4 if len(row) > 7)
    routed6 = any(row[0] == "0" * 32 and row[1] == "00" and row[-1] != "lo" for row in routes6 if len(row) > 9)
    return Uplink(
        own=(*addresses4(_text("/proc/self/net/fib_trie")), *addresses6(inet6)),
        routed=routed4 or routed6,
        ipv6=bool(inet6),
        resolv=_text("/etc/resolv.conf"),
    )


def addresses4(trie: str) -> tuple[str, ...]:
    """Return the IPv4 addresses of a machine, but for loopback, from its `fib_trie`."""
    found = []
    leaf = ""
    for line in trie.splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            leaf = words[1]
        elif words[-3:] == ["/32", "host", "LOCAL"] and not leaf.startswith("127."):
            found.append(leaf)
    return tuple(sorted(set(found)))


def addresses6(table: str) -> tuple[str, ...]:
    """Return the IPv6 addresses of a machine, but for loopback, from its `if_inet6`."""
    rows = [line.split() for line in table.splitlines()]
    found = {ipaddress.IPv6Address(int(row[0], 16)) for row in rows if len(row) >= 6}
    return tuple(sorted(str(address) for address in found if not address.is_loopback))


def resolver_file(text: str, resolver: str) -> str:
    """Return the `resolv.conf` of an outbound network: the machine's, with the carrier's address for a resolver."""
    kept = [line for line in text.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "\n".join([f"nameserver {resolver}", *kept]) + "\n"


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


class Network:
    """A running outbound network, for the sandboxes of one user or for one build.

    Args:
        carrier: the sandbox of the program that serves it.
        owner: the other end of the namespace keeper's socket; owned from now on.
        namespaces: descriptors of the user and the network namespace; owned from now on.
        uplink_then: the machine's network when it was made.
        files: replace the machine's files in a sandbox.
    """

    def __init__(
        self,
        carrier: Sandbox,
        owner: socket.socket,
        namespaces: tuple[int, int],
        uplink_then: Uplink,
        files: tuple[SyntheticFile, ...],
    ) -> None:
        self._carrier = carrier
        self._owner = owner
        self._namespaces = namespaces
        self._open = True
        self.uplink = uplink_then
        self.files = files
        self.users = 0
        """The number of sandboxes that use it."""

    @property
    def running(self) -> bool:
        """Return whether the carrier runs, as far as is known."""
        return self._open and self._carrier.running

    @property
    def enter(self) -> list[str]:
        """Return the program and arguments that start another program in this network.

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
        """End the network, and wait until nothing of it is left; sandboxes still in it are cut off."""
        if self._open:
            self._open = False
            self._owner.close()
            for descriptor in self._namespaces:
                os.close(descriptor)
        await self._carrier.kill()


class NetworkMaker:
    """Makes outbound networks; to be used from the event loop's own thread.

    Args:
        settings: the path of pasta, and the directory of a device node.
        launcher: starts the carriers.
        identities: give the carriers' uid.
    """

    def __init__(self, settings: Settings, launcher: Launcher, identities: Identities) -> None:
        self._settings = settings
        self._launcher = launcher
        self._identities = identities

    async def make(self, *, closed: bool = False) -> Network:
        """Make a network; takes about 70 ms.

        Args:
            closed: private networks are not reached from it, but for `users.reachable`.

        Raises:
            SandboxUnavailable: none can be made; with the fix.
        """
        path = programs.find_pasta(self._settings.sandbox.pasta)
        now = read_uplink()
        more = () if now.ipv6 else ("--ipv4-only",)
        try:
            return await self._start(now, path, (path, *_PASTA, *more), closed)
        except SandboxUnavailable:
            if now.routed:
                raise
            return await self._start(now, path, (path, *_PASTA, *_UNROUTED), closed)

    async def _start(self, now: Uplink, path: str, command: tuple[str, ...], closed: bool) -> Network:
        """Start a carrier and wait until its network is ready."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe2(os.O_CLOEXEC)
        ours.setblocking(False)
        carrier: Sandbox | None = None
        network: Network | None = None
        try:
            policy = self._carrier_policy(path, command)
            carrier = self._launcher.launch(policy, stdin=theirs.fileno(), stdout=write, stderr=write)
            theirs.close()
            os.close(write)
            write = -1
            private = firewall.private_but(self._settings.users.reachable) if closed else []
            filters = firewall.messages([*firewall.refused(now.own, private)], RESOLVER, ipv6=now.ipv6)
            with contextlib.suppress(OSError):  # the namespace keeper has ended: its answer has the reason
                await asyncio.get_running_loop().sock_sendall(ours, filters)
            answer, descriptors = await asyncio.wait_for(_receive(ours), MAKE_SECONDS)
            if len(descriptors) != 2:
                raise await self._failed(carrier, answer.decode("utf-8", "replace"), read)
            content = resolver_file(now.resolv, RESOLVER).encode()
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
            if network is None:
                ours.close()
            if carrier is not None:
                await carrier.kill()
            os.close(read)

    def _carrier_policy(self, path: str, command: tuple[str, ...]) -> Policy:
        interpreter = os.path.realpath(sys.executable)
        keeper = (interpreter, "-I", "-S", _KEEPER)
        identity = self._identities.carrier()
        directory = os.path.realpath(os.path.dirname(path))
        directories = {directory, os.path.dirname(os.path.realpath(path)), os.path.realpath(sys.base_prefix)}
        shown = {each: self._shown(each) for each in directories}
        # Not the program's own real path: that may be named `passt`, and it goes by the name by which it is called.
        command = (f"{shown[directory]}/{os.path.basename(path)}", *command[1:])
        policy = confine(
            (*command, "--", *keeper),
            machine=self._launcher.machine,
            identity=identity,
            binds=[
                Bind(namespace_keeper.__file__, _KEEPER),
                *(Bind(each, shown[each]) for each in sorted(directories)),
            ],
            tmp_bytes=1 << 20,
            shm_bytes=1 << 20,
            workdir="/",
            hostname="network",
        )
        return replace(policy, tun=self._tun(), nests=True)

    def _shown(self, directory: str) -> str:
        """Return the carrier's path of a directory: another one where the machine's is the sandbox's own, as `/var/tmp`."""
        own = (*PRIVATE, *(link.path for link in (*self._launcher.machine.links, *VAR)))
        return _PROGRAM if any(beneath(directory, path) for path in own) else directory

    def _tun(self) -> str:
        """Return the path of a device that the carrier may open.

        Raises:
            SandboxUnavailable: there is none.
        """
        found = prerequisites.check_device()
        if os.geteuid() != 0:
            return _TUN
        if found.st_mode & 0o006 == 0o006:
            return _TUN
        own = self._settings.run_directory / "tun"
        with contextlib.suppress(FileExistsError, OSError):
            own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mknod(own, stat.S_IFCHR | 0o600, found.st_rdev)
            os.chmod(own, 0o666)  # noqa: S103  # as `/dev/net/tun` is elsewhere, in a directory that is root's alone
        return str(own) if _is_device(own) else _TUN

    async def _failed(self, carrier: Sandbox, answer: str, output: int) -> AtollError:
        """Return why a carrier has made no network; it has ended, or is about to."""
        if "nf_tables" in answer or "rotocol not supported" in answer:
            await carrier.kill()
            return SandboxUnavailable(
                f"this kernel cannot filter an outbound network: {answer}", hint="run `sudo modprobe nf_tables`"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(carrier.wait(), 1.0)
        await carrier.kill()
        failure = await carrier.failure()
        if failure is not None:
            return failure
        os.set_blocking(output, False)
        text = answer
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

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(channel, wake)
    try:
        await ready
    finally:
        loop.remove_reader(channel)
    try:
        answer, descriptors, _, _ = socket.recv_fds(channel, 4096, 2)
    except OSError:
        return b"", []
    if len(descriptors) != 2:
        for descriptor in descriptors:
            os.close(descriptor)
        return answer, []
    return answer, descriptors
