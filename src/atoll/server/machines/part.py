"""The part of requests over several machines: `state.asks` answers for all of them from here on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from atoll import errors
from atoll.server.accounts import rows
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.cluster.handing import Handing
from atoll.server.cluster.links.link import Link
from atoll.server.machines.copies import FILE, Copies
from atoll.server.machines.machines import Machines
from atoll.server.state import ServerState

log = logging.getLogger("atoll.machines")

AGAIN_SECONDS = 5.0
"""Seconds between two attempts to bring a machine up to date; it gets no calls before."""


def install(state: ServerState) -> None:
    """Add `state.parts["machines"]`, and put it in the place of the one node."""
    cluster: Cluster = state.parts["cluster"]
    handing: Handing = state.parts["handing"]

    async def quotas() -> list[dict[str, Any]]:
        database = state.parts["accounts"].database
        users = await database.run(rows.all_users, writes=False)
        return [
            {"user": user.id, "bytes": user.volume_bytes, "files": user.volume_files}
            for user in users
            if user.volume_bytes or user.volume_files
        ]

    def away() -> list[str]:
        known = state.parts["nodes"].known() if "nodes" in state.parts else ()
        names = [one.name for one in known if one.state != "removed"]
        return [name for name in names if name != LOCAL and name not in cluster.links]

    copies = Copies(state.node, state.node.options.home / FILE, quotas)
    cluster.away_names = away
    state.asks = state.parts["machines"] = machines = Machines(state.node, cluster, copies)
    handing.answer, handing.find = machines.answer, machines.find

    preparing: set[asyncio.Task[None]] = set()

    async def prepare(link: Link) -> None:
        while not link.over:
            try:
                await copies.join(link.name, link)
            except errors.AtollError as error:
                log.warning("node_not_up_to_date", extra={"fields": {"node": link.name, "error": error.message[:200]}})
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                cluster.ready(link)
                return

    def joined(link: Link) -> None:
        task = asyncio.get_running_loop().create_task(prepare(link))
        preparing.add(task)
        task.add_done_callback(preparing.discard)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        try:
            yield
        finally:
            for task in tuple(preparing):
                task.cancel()
            await asyncio.gather(*preparing, return_exceptions=True)

    cluster.on_join = joined
    state.lifespan.append(serving)
