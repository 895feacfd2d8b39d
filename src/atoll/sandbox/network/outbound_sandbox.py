"""A sandbox with an outbound network, as one value: it starts in the network and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from atoll.errors import AtollError, SandboxUnavailable
from atoll.sandbox.launch import Sandbox
from atoll.sandbox.network.networks import Networks
from atoll.sandbox.network.outbound_network import Network

log = logging.getLogger("atoll.network")


class OutboundSandbox:
    """A sandbox that is started as soon as it has a network, and ends with it; used as `launch.Sandbox` is.

    Args:
        networks: give its network.
        group: names the sandboxes that share it.
        launch: starts it in a network, called at most once.
        done: is called once, when it has been started or cannot be.
    """

    def __init__(
        self, networks: Networks, group: str, launch: Callable[[Network], Sandbox], done: Callable[[], None]
    ) -> None:
        self._networks = networks
        self._group = group
        self._launch = launch
        self._done = done
        self._network: Network | None = None
        self._sandbox: Sandbox | None = None
        self._failed: AtollError | None = None
        self._task = asyncio.get_running_loop().create_task(self._live())

    @property
    def pid(self) -> int:
        """The host's number of the outer process; 0 while there is none."""
        return self._sandbox.pid if self._sandbox is not None else 0

    async def _live(self) -> int:
        """Start the sandbox; end it when its network ends."""
        try:
            try:
                self._network = await self._networks.take(self._group)
                self._sandbox = self._launch(self._network)
            except AtollError as error:
                self._failed = error
                return -1
            except (OSError, ValueError) as error:
                self._failed = SandboxUnavailable(f"the sandbox cannot be started: {error}", hint="run `atoll doctor`")
                return -1
            finally:
                self._done()
            ended = asyncio.ensure_future(self._sandbox.wait())
            cut = asyncio.ensure_future(self._network.wait())
            try:
                await asyncio.wait({ended, cut}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                cut.cancel()  # the network outlives this sandbox
            if not ended.done():
                log.warning("network_lost sandbox=%s", self._sandbox.pid)
                self._failed = SandboxUnavailable(
                    "the program that carries the packets of the sandbox has ended, and the sandbox with it",
                    hint="call again: a new network is made",
                )
                await self._sandbox.kill()
            return await ended
        finally:
            if self._network is not None:
                await self._networks.give_back(self._network)

    async def wait(self) -> int:
        """Wait until every process of the sandbox has ended; return the command's exit status."""
        if not self._task.done():  # an ended one returns without a turn of the loop, as a plain sandbox does
            await asyncio.wait({self._task})
        return -1 if self._task.cancelled() else self._task.result()

    async def kill(self) -> int:
        """End the sandbox and its network, and wait until they are gone."""
        if self._sandbox is None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})
        else:
            await self._sandbox.kill()
        return await self.wait()

    async def failure(self) -> AtollError | None:
        """Wait for the end; return why the sandbox could not be made, or was lost."""
        await self.wait()
        if self._failed is not None or self._sandbox is None:
            return self._failed
        return await self._sandbox.failure()
