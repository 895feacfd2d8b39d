"""The way of the node's records into the sums of the database."""

from __future__ import annotations

from typing import Any, Protocol

from atoll.server.database.database import Database
from atoll.server.usage import sums

BATCH = 5000


class Node(Protocol):
    """Who has records: `server.node.Node`, or a machine behind `machines.blocking.Blocking`."""

    def request(self, principal: None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the server's own."""
        ...


def gather(database: Database, node: Node) -> None:
    """Add all that the node has recorded since the last time; several processes may do so at once.

    Raises:
        AtollError: the node or the database does not answer.
    """
    while _gather_some(database, node) >= BATCH:
        pass


def _gather_some(database: Database, node: Node) -> int:
    """Add the next records, and return how many there were."""
    generation = str(_export(node, "", 0, 0)["generation"])
    with database.reading() as connection:
        after = sums.counted(connection, generation)
    found = _export(node, generation, after, BATCH)
    records = found["records"]
    if found["generation"] != generation or not records:
        return 0
    with database.writing() as connection:
        sums.add(connection, generation, after, records)
    return len(records)


def _export(node: Node, generation: str, after: int, limit: int) -> dict[str, Any]:
    return node.request(None, "calls.export", {"generation": generation, "after": after, "limit": limit})
