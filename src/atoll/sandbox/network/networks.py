"""Policies of calls' networks, and the outbound networks in use: shared by one user's sandboxes, kept for a while.

Making a network takes about 70 ms (`outbound_network`). So the sandboxes of a group, a user's, share one, and the network is kept
for a minute after the last of them. A sandbox that starts after a change of the machine's own network, as a laptop's,
gets a new one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable

from atoll.errors import AtollError, ResourcesUnavailable
from atoll.model.specs import NETWORKS
from atoll.sandbox import programs
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.limits.user_groups import OWNER
from atoll.sandbox.network.outbound_network import Network, NetworkMaker, read_uplink
from atoll.settings import Settings

log = logging.getLogger("atoll.network")

IDLE_SECONDS = 60.0
"""Seconds for which an unused network is kept."""
FAILED_SECONDS = 30.0
"""Seconds before a network is tried again after a failure."""


def within(asked: str, outer: str, *, inside: bool = True) -> str:
    """Return the policy of a call that is made from inside a sandbox, or on a server: at most as open as its caller's.

    Args:
        asked: the policy that the call names; empty for none: then the sandbox's own, unless that is `host`.
        outer: the sandbox's policy, or the most open one of a server's user.
        inside: whether a function asks; else it is a program of a server's user.

    Raises:
        ResourcesUnavailable: the call names a policy that is more open.
    """
    if not asked:
        return "" if outer == "host" else outer
    if NETWORKS.index(asked) > NETWORKS.index(outer) and not inside:
        raise ResourcesUnavailable(
            f"functions on a server have at most network `{outer}`, not `{asked}`",
            hint=f'leave `network` out, or give `network="{outer}"`',
        )
    if NETWORKS.index(asked) > NETWORKS.index(outer):
        raise ResourcesUnavailable(
            f"a function with network `{outer}` cannot call one with network `{asked}`, which would let it out",
            hint=f'give the inner function `network="{outer}"`, or call it from the program itself',
        )
    return asked


def group_of(user: str, trusted: bool, own: str = "") -> str:
    """Return a name for the sandboxes that share an outbound network, and System V shared memory.

    Trusted functions have one without the others: servers on a loopback device often unpickle what they are sent.

    Args:
        own: see `SandboxKey`: such a sandbox shares with nobody.
    """
    if own:
        return f"{user} {own}"
    return user if trusted else f"{user} data"


def is_closed(group: str) -> bool:
    """Return whether private networks are closed for a group: for users of a server, not for the machine's owner."""
    return group.partition(" ")[0] not in ("", OWNER)


class Networks:
    """Decide on policies and share outbound networks; to be used from the event loop's own thread.

    Args:
        settings: the paths of the programs.
        launcher: starts the carriers.
        identities: give the carriers' uid.
    """

    def __init__(self, settings: Settings, launcher: Launcher, identities: Identities) -> None:
        self._settings = settings
        self._maker = NetworkMaker(settings, launcher, identities)
        self._spare: asyncio.Task[Network] | None = None  # made ahead for the next `take`
        self._spare_closed = False
        self._shared: dict[str, Network] = {}  # by group
        self._making: dict[str, asyncio.Lock] = {}
        self._timers: dict[Network | None, asyncio.TimerHandle] = {}  # None for the spare
        self._failure: tuple[float, AtollError] | None = None
        self._noticed = False
        self._works = False
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def policy(self, asked: str, notice: Callable[[str], None], *, own: bool = False) -> str:
        """Return the policy of a function that asks for this one, or for none (empty).

        Args:
            notice: called once in this object's life, when a function shares the machine's network unasked.
            own: as in `LeaseSpec`: the machine's network is nobody's own, so without another one the function has none,
                and `notice` is called.

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
            if own:
                notice(f"this function has no network: {error.message}; {error.hint}")
                return "none"
            if not self._noticed:
                self._noticed = True
                notice(f"functions share this machine's network: {error.message}; {error.hint}")
            return "host"

    def expect(self, asked: str, group: str) -> None:
        """Begin to make the network of this group's next sandbox, so that the sandbox starts sooner.

        Raises:
            SandboxUnavailable: it asks for `outbound`, and there is no program for it.
        """
        try:
            if asked in ("", "outbound") and group not in self._shared:
                self.prepare(closed=is_closed(group))
        except AtollError:
            if asked:
                raise

    def prepare(self, *, closed: bool = False) -> None:
        """Begin to make a network that the next `take` gets, unless there is one.

        Args:
            closed: as `NetworkMaker.make` has it.

        Raises:
            SandboxUnavailable: there is no program for it, or none could be made a moment ago.
        """
        programs.find_pasta(self._settings.sandbox.pasta)
        if self._failure is not None:
            if time.monotonic() - self._failure[0] < FAILED_SECONDS:
                raise copy.copy(self._failure[1])  # one that is raised keeps the frames of who asked
            self._failure = None
        if self._spare is None and not self._closed:
            self._spare_closed = closed
            self._spare = asyncio.get_running_loop().create_task(self._maker.make(closed=closed))
            self._spare.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[Network]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, AtollError):
            log.warning("network_failed error=%s", str(error))  # a kept record would hold its frames
            self._failure = (time.monotonic(), copy.copy(error))
        self._works = not task.cancelled() and error is None
        if not self._works and self._spare is task:
            self._spare = None
        elif self._spare is task:
            self._after(None, self._drop)

    async def take(self, group: str = "", *, closed: bool = False) -> Network:
        """Return a network for one more sandbox; `give_back` ends its use.

        Args:
            group: names the sandboxes that share it; empty for a network of one sandbox.
            closed: as `NetworkMaker.make` has it; of a group it is known.

        Raises:
            SandboxUnavailable: none can be made; with the fix.
        """
        if not group:
            network = await self._new(closed)
        else:
            async with self._making.setdefault(group, asyncio.Lock()):
                known = self._shared.get(group)
                if known is None or not known.running or known.uplink != read_uplink():
                    self._shared[group] = await self._new(is_closed(group))
                    if known is not None and not known.users:
                        self._end(known)
                network = self._shared[group]
                self._stop_timer(network)
        network.users += 1
        return network

    async def give_back(self, network: Network) -> None:
        """End one use of a network; a shared one is kept for `IDLE_SECONDS`."""
        network.users -= 1
        if network.users:
            return
        if network.running and network in self._shared.values() and not self._closed:
            self._after(network, lambda: self._end(network))
        else:
            await network.close()

    async def _new(self, closed: bool) -> Network:
        spare, self._spare = self._spare, None
        self._stop_timer(None)
        if spare is not None:
            fits = self._spare_closed == closed
            network = await asyncio.shield(spare)
            if fits and network.running and network.uplink == read_uplink():
                return network
            self._end(network)
        return await self._maker.make(closed=closed)

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
        self._shared = {group: one for group, one in self._shared.items() if one is not network}
        task = asyncio.get_running_loop().create_task(network.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all networks that are kept or being made; builds close theirs."""
        self._closed = True
        self._stop_timer(None)
        if self._spare is not None and not self._spare.done():
            self._spare.cancel()
            await asyncio.gather(self._spare, return_exceptions=True)
        self._drop()
        for network in list(self._shared.values()):
            self._end(network)
        await asyncio.gather(*self._ending, return_exceptions=True)
