"""Leases on machines that are to take no new calls: clients give them up between two calls, and get others elsewhere.

A client with a warm worker calls it again and again without a question to the server. So a machine that is cordoned or
drains is asked, again while it is so, to end idle workers and to take leases back after the calls that run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from atoll import errors
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.nodes.rows import NodeAccount
from atoll.server.process.background import in_background
from atoll.server.state import ServerState

AGAIN_SECONDS = 1.0
ASK_SECONDS = 5.0
VACATED = "vacated"
"""The part with numbers of detached calls that are left on machines that take no new calls, by their names."""
_log = logging.getLogger("atoll.server")


@contextlib.asynccontextmanager
async def vacating(state: ServerState) -> AsyncIterator[None]:
    """Have machines that take no new calls give up their leases while the context is open."""
    changed = asyncio.Event()

    def note(_node: NodeAccount) -> None:
        changed.set()

    async def look() -> None:
        while True:
            closed = [node.name for node in state.parts["nodes"].known() if not node.takes_calls]
            found = await asyncio.gather(*(_vacate(state, name) for name in closed))
            state.parts[VACATED] = dict(zip(closed, found, strict=True))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS if closed else None):
                    await changed.wait()
            changed.clear()

    state.parts["nodes"].on_change.append(note)
    async with in_background(look):
        yield


async def _vacate(state: ServerState, name: str) -> int | None:
    """Have a machine give up its leases; return how many detached calls are left there, None where nobody can tell."""
    cluster: Cluster = state.parts["cluster"]
    if name == LOCAL and cluster.alone:  # it serves all lines then, whatever its state is
        return None
    link = cluster.links.get(name)
    if name != LOCAL and link is None:
        return None
    try:
        async with asyncio.timeout(ASK_SECONDS):
            asked = state.node if link is None else link
            found = (await asked.ask(None, "vacate", {})).get("detached")
        return found if isinstance(found, int) else None
    except (errors.AtollError, TimeoutError) as error:
        _log.info("node_not_vacated", extra={"fields": {"node": name, "error": str(error)[:200]}})
        return None
