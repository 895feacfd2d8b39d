"""The engine `ray` of a server: shares and fleet of one Ray cluster, behind a driver in a child process.

    async with open_engine(options, invite=..., log=home / "logs" / "ray-driver.log") as (shares, fleet):
        placement = Placement(shares)

`shares` is a `contract.Shares` with these besides, for who owns the nodes:

- `shares.joined(facts)`, `shares.left(name)`: a node came or went, the server's own (`LOCAL`) too; its label `ray`, which
  the fleet gives it, names its Ray node
- `shares.open(name, takes_new=False)`: it is drained or cordoned
- `shares.share(name)`, `shares.gpus(name)`: what Atoll may use of it now
- `shares.keep_to = async (name, share) -> bool`: tells a node each new share; True once it keeps to that. Without a word
  of the node's, a smaller share is not given back to Ray
- `shares.preferred = (wish) -> name`: the node that is warm for a waiting wish
- `shares.on_change = () -> None`, of the contract: waiting wishes are looked at again

`fleet` is a `contract.Fleet` that keeps a member process on every machine by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from atoll import errors
from atoll.server.process.background import in_background
from atoll.server.ray.fleet import Invitation, RayFleet
from atoll.server.ray.options import RayOptions
from atoll.server.ray.shares import RayShares
from atoll.server.ray.supervise import Supervisor

READY_SECONDS = 20.0


@contextlib.asynccontextmanager
async def open_engine(
    options: RayOptions, *, invite: Callable[[], Awaitable[Invitation]], log: Path, local: bool = True
) -> AsyncIterator[tuple[RayShares, RayFleet]]:
    """Connect to the cluster, and keep a process on each of its machines while the context is open.

    Holders and processes stay when it ends: the next server takes them over. Without one they end by themselves after
    `orphan_seconds`. A cluster that does not answer now is tried again in the background.

    Args:
        invite: makes an invitation for one machine.
        log: file that takes what the driver prints.
        local: the server's own machine is a node without a process of the fleet's.

    Raises:
        StateUnusable: Ray is not installed here.
        StateUntrusted: anyone who reaches the cluster may command it.
    """
    if importlib.util.find_spec("ray") is None:
        raise errors.StateUnusable("the engine `ray` needs Ray", hint="install it: `pip install 'atoll[ray,server]'`")
    ready = asyncio.Event()

    def send(**message: object) -> None:
        supervisor.send(**message)

    shares = RayShares(options.rules, send, options.types, local=local)
    fleet = RayFleet(
        shares, send, invite, program=options.program, home=options.home, rest_seconds=options.rest_seconds, local=local
    )

    def hear(message: dict[str, object]) -> None:
        fleet.hear(message)
        shares.hear(message)
        if message["event"] in ("ready", "gone"):
            ready.set()

    driver_options = {
        name: getattr(options, name) for name in ("address", "node_address", "namespace", "open", "orphan_seconds")
    }
    supervisor = Supervisor(driver_options, log, hear)
    try:
        async with in_background(supervisor.run), in_background(fleet.run):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ready.wait(), READY_SECONDS)
            if isinstance(supervisor.failure, errors.StateUntrusted):
                raise supervisor.failure
            yield shares, fleet
    finally:
        await shares.close()
