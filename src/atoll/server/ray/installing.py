"""The part of the engine `ray`: its shares and fleet in the cluster of a running server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.options import RAY
from atoll.server.ray.fleet import Invitation
from atoll.server.ray.options import read
from atoll.server.ray.part import open_engine
from atoll.server.ray.shares import Share
from atoll.server.state import ServerState


class Asked(Protocol):
    """A machine that takes requests of the server's own."""

    async def ask(self, principal: None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request."""
        ...


Invite = Callable[[], Awaitable[tuple[str, str, str]]]
"""Makes an address of the server, a token for one machine, and the certificates that it trusts; empty for its own."""


def install(state: ServerState, invite: Invite) -> None:
    """Add the part, behind that of the cluster, where the server has this engine."""
    if state.options.engine != RAY:
        return
    cluster: Cluster = state.parts["cluster"]

    async def invitation() -> Invitation:
        return Invitation(*await invite())

    async def keep_to(node: str, share: Share) -> bool:
        """Have a node keep to its share of the machine; return whether it does so already."""
        asked: Asked | None = state.node if node == LOCAL else cluster.links.get(node)
        if asked is None:
            return False
        answer = await asked.ask(None, "allowance", {**asdict(share), "gpus": list(share.gpus)})
        return bool(answer.get("within"))

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        options = read(state.node.options.ray, state.options.ray_address or "auto")
        log = state.node.options.logs_directory / "ray-driver.log"
        async with open_engine(options, invite=invitation, log=log, local=cluster.local) as (shares, fleet):
            shares.keep_to = keep_to
            cluster.places.use(shares)
            shares.preferred = cluster.places.placement.preferred
            state.parts["fleet"] = fleet
            yield

    state.lifespan.append(serving)
