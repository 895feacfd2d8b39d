"""Nodes whose leases are to be asked back: somebody waits there, and who has them would keep them. Pure.

Theory of operation. A lease serves one call of its program after the other, so a busy program would keep its workers for
ever. A machine alone asks for them when others wait (`engine.schedule`); here the others wait at the server. So the nodes
that are held for the first wish of a kind are asked, as soon as that has waited for `CROWDED_SECONDS`: programs that
take turns then have at least that long each. A node that has the wish's own program alone is left as it is: the lease
would go to where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from atoll.server.cluster.placing.kinds import Kind

CROWDED_SECONDS = 0.25


def crowded(kinds: Iterable[Kind], now: float) -> Iterator[str]:
    """Return the names of the nodes, each once.

    Args:
        kinds: of which wishes wait.
    """
    found = set[str]()
    for kind in kinds:
        if not kind.line.users:
            continue
        _, _, waiting = kind.line.first()
        if now - waiting.since < CROWDED_SECONDS:
            continue
        for node in kind.held:
            if node.facts.name not in found and (not node.programs or node.programs.keys() != {waiting.wish.program}):
                found.add(node.facts.name)
                yield node.facts.name
