"""Facts and load of this machine's node, from the answers of its daemon; for the server's own node and for members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.server.cluster.contract import LOCAL, NodeFacts, NodeLoad
from atoll.settings import Settings


def facts(
    answer: Mapping[str, Any],
    options: Settings,  # noqa: ARG001
    version: str,
    name: str = LOCAL,
    labels: Mapping[str, str] | None = None,
) -> NodeFacts:
    """Return the facts of a node, from its daemon's answer to `capacity`."""
    machine = answer["machine"]
    return NodeFacts(
        name,
        version,
        int(machine["cpus"] * 1000),
        machine["memory_bytes"],
        tuple(gpu["name"] for gpu in machine["gpus"]),
        dict(labels or {}),
        "",
    )


def load(answer: Mapping[str, Any], taken: int) -> NodeLoad:
    """Return the load of a node, from its daemon's answer to `capacity`.

    Args:
        taken: leases that it was given before it answered.
    """
    free = answer["free"]
    fits = {row["name"]: row["fits_now"] for row in answer["types"]}
    return NodeLoad(taken, fits, int(free["cpus"] * 1000), free["memory_bytes"], free["gpus"])
