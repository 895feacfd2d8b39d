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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll import errors
from atoll.server.process.background import in_background
from atoll.server.ray.fleet import Invitation, RayFleet
from atoll.server.ray.ledger import NodeType
from atoll.server.ray.settling import Rules
from atoll.server.ray.shares import RayShares
from atoll.server.ray.supervise import Supervisor

READY_SECONDS = 20.0


@dataclass(frozen=True)
class RayOptions:
    """How a server uses a Ray cluster.

    Args:
        address: of the cluster's head, `HOST:PORT`; `auto` for the one that this machine's Ray node belongs to.
        node_address: this machine's address in the cluster, where it has several.
        namespace: of the actors; two servers in one cluster have different ones.
        open: the consent to a cluster that takes commands without a token.
        program: `atoll` on the machines; that word stands for the installation that Ray's workers there have.
        home: state directory of the nodes; `{name}` in it stands for a node's name.
        orphan_seconds: after which actors that no server asks for end by themselves, with all that runs there.
        rest_seconds: after which an empty machine's process ends, where an autoscaler removes idle machines.
        types: machines that the autoscaler can add, so that wishes larger than all of them are refused.
        rules: how much is held without a call.
    """

    address: str = "auto"
    node_address: str = ""
    namespace: str = "atoll"
    open: bool = False
    program: Sequence[str] = ("atoll",)
    home: str = "/var/lib/atoll-node"
    orphan_seconds: float = 600.0
    rest_seconds: float = 60.0
    types: Sequence[NodeType] = ()
    rules: Rules = field(default_factory=Rules)


@contextlib.asynccontextmanager
async def open_engine(
    options: RayOptions, *, invite: Callable[[], Awaitable[Invitation]], log: Path
) -> AsyncIterator[tuple[RayShares, RayFleet]]:
    """Connect to the cluster, and keep a process on each of its machines while the context is open.

    Holders and processes stay when it ends: the next server takes them over. Without one they end by themselves after
    `orphan_seconds`. A cluster that does not answer now is tried again in the background.

    Args:
        invite: makes an invitation for one machine.
        log: file that takes what the driver prints.

    Raises:
        StateUnusable: Ray is not installed here.
        StateUntrusted: anyone who reaches the cluster may command it.
    """
    if importlib.util.find_spec("ray") is None:
        raise errors.StateUnusable("the engine `ray` needs Ray", hint="install it: `pip install 'atoll[ray,server]'`")
    ready = asyncio.Event()

    def send(**message: object) -> None:
        supervisor.send(**message)

    shares = RayShares(options.rules, send, options.types)
    fleet = RayFleet(
        shares, send, invite, program=options.program, home=options.home, rest_seconds=options.rest_seconds
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
