"""The part of several machines: `state.parts["cluster"]` and `["handing"]`, and the server's own node as one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from atoll import __version__, errors
from atoll.server.cluster import own_node
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL, NodeLoad
from atoll.server.cluster.handing import Handing
from atoll.server.cluster.placing.crowded import CROWDED_SECONDS
from atoll.server.process.background import in_background
from atoll.server.state import ServerState
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.cluster")

LOOK_SECONDS = 1.0


def install(state: ServerState) -> None:
    """Add the cluster, which the upgrade of connections and the routes of nodes use."""
    cluster = Cluster(state, local=state.options.local_node)
    state.parts["cluster"] = cluster
    state.parts["handing"] = handing = Handing(cluster, state.parts["sessions"])
    state.lifespan.append(cluster.serving)
    if (nodes := state.parts.get("nodes")) is not None:
        nodes.on_change.append(cluster.account_changed)

    @contextlib.asynccontextmanager
    async def asking_back() -> AsyncIterator[None]:
        async with in_background(lambda: _ask_back(state, cluster)):
            yield

    state.lifespan.append(asking_back)

    @contextlib.asynccontextmanager
    async def watching() -> AsyncIterator[None]:
        async with in_background(lambda: _watch(state, cluster, handing)):
            yield

    if cluster.local:
        state.lifespan.append(watching)


async def _ask_back(state: ServerState, cluster: Cluster) -> None:
    """Have nodes ask their leases back while others wait for them."""
    asked: dict[str, asyncio.Task[None]] = {}

    async def tell(name: str) -> None:
        node = state.node if name == LOCAL else cluster.links.get(name)
        if node is not None:
            with contextlib.suppress(errors.AtollError, ChannelClosed, FrameError, OSError):  # it is told again
                await node.ask(None, "others_wait", {})

    while True:
        await asyncio.sleep(CROWDED_SECONDS)
        asked = {name: task for name, task in asked.items() if not task.done()}
        for name in cluster.places.crowded():
            if name not in asked:
                asked[name] = asyncio.ensure_future(tell(name))


async def _watch(state: ServerState, cluster: Cluster, handing: Handing) -> None:
    """Keep the placement's figures of the own node right, while there are others."""
    while True:
        if cluster.alone:
            cluster.others.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(cluster.others.wait(), LOOK_SECONDS)
            continue
        try:
            if LOCAL not in cluster.facts:
                answer: dict[str, Any] = await state.node.ask(None, "facts", {})
                handing.given = 0
                cluster.join_local(own_node.facts(answer, __version__))
            await _hear(state, cluster, handing)
        except (errors.AtollError, ChannelClosed, FrameError, OSError) as error:
            log.warning("own_node_not_asked", extra={"fields": {"error": str(error)[:200]}})
        await asyncio.sleep(LOOK_SECONDS)


async def _hear(state: ServerState, cluster: Cluster, handing: Handing) -> None:
    """Pass the own node's load on, until its daemon ends.

    A daemon tells its load when that changes. The count of lines given to it is from before that word, so the word may hold
    more of them; after a quiet moment it holds all that were given before. So it is passed on again then.
    """
    channel = await state.node.connect(None, {"type": "watch_load"})
    receiving = asyncio.ensure_future(channel.receive())
    load: dict[str, Any] = {}
    try:
        while True:
            given = handing.given
            await asyncio.wait({receiving}, timeout=LOOK_SECONDS)
            if receiving.done():
                load = receiving.result().header["load"]
                receiving = asyncio.ensure_future(channel.receive())
            if load:
                cluster.hear_local(NodeLoad(**{**load, "taken": given}))
    finally:
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError, ChannelClosed, FrameError, OSError):
            await receiving
        channel.close()
