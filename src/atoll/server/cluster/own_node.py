"""Facts of this machine's node, from the answers of its daemon; for the server's own node and for members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.server.cluster.contract import LOCAL, NodeFacts
from atoll.settings import Settings

UNKNOWN = "unknown"
"""Stands for the identity of a file system that cannot be read yet."""
OWN = "own:"
"""The beginning of the identity of a machine's own disk, which no other machine has."""


def facts(
    answer: Mapping[str, Any], version: str, name: str = LOCAL, labels: Mapping[str, str] | None = None
) -> NodeFacts:
    """Return the facts of a node, from its daemon's answer to `facts`: also what it uses, whatever the settings say."""
    machine = answer["machine"]
    return NodeFacts(
        name,
        version,
        int(machine["cpus"] * 1000),
        machine["memory_bytes"],
        tuple(gpu["name"] for gpu in machine["gpus"]),
        dict(labels or {}),
        answer["volumes"] or f"{OWN}{name}",
    )


def expected_volumes(options: Settings) -> str:
    """Return the identity that this machine's volumes will have; one that no machine has while it cannot be read yet."""
    return f"{OWN}{LOCAL}" if not options.storage.is_shared else UNKNOWN
