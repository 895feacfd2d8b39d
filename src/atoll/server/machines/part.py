"""The part of requests over several machines: `state.asks` answers for all of them from here on."""

from __future__ import annotations

from functools import partial
from typing import Any

from atoll.server.accounts import rows
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL
from atoll.server.cluster.handing import Handing
from atoll.server.machines.copies import FILE, Copies
from atoll.server.machines.holds import Holds
from atoll.server.machines.machines import Machines
from atoll.server.machines.upkeep import Upkeep
from atoll.server.nodes.accounts import Nodes
from atoll.server.state import ServerState


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

    def away(*, unused: bool = True) -> list[str]:
        nodes: Nodes | None = state.parts.get("nodes")
        known = [one for one in nodes.known() if unused or nodes.has_run(one)] if nodes is not None else []
        names = [one.name for one in known if one.state != "removed"]
        return [name for name in names if name != LOCAL and name not in cluster.links]

    copies = Copies(state.node, state.node.options.home / FILE, quotas)
    cluster.away_names, cluster.missing_names = away, partial(away, unused=False)
    state.asks = state.parts["machines"] = machines = Machines(state.node, cluster, copies)
    handing.answer, handing.find = machines.answer, machines.find

    upkeep = Upkeep(cluster, state.node, copies, Holds(machines.nodes, cluster.doubtful_names))
    state.lifespan.append(upkeep.serving)
