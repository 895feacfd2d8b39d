"""Affinity: the nodes where a digest was used last, bounded in every way. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)

MOST_DIGESTS = 131_072
"""Digests that are remembered; the one not used for longest goes first."""
MOST_NODES = 8
"""Nodes of a digest."""


class Affinity(Generic[N]):
    """Nodes by digest, the latest last.

    Args:
        most: digests.
        each: nodes of one digest.
    """

    def __init__(self, most: int = MOST_DIGESTS, each: int = MOST_NODES) -> None:
        self._most = most
        self._each = each
        self._nodes: OrderedDict[str, list[N]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self, digest: str) -> Sequence[N]:
        """Return the nodes of a digest, the latest last."""
        return self._nodes.get(digest, ())

    def add(self, digest: str, node: N) -> None:
        """Note one more use: a node that is added twice is there twice."""
        known = self._nodes.get(digest)
        if known is None:
            self._nodes[digest] = [node]
            if len(self._nodes) > self._most:
                self._nodes.popitem(last=False)
            return
        self._nodes.move_to_end(digest)
        known.append(node)
        if len(known) > self._each:
            del known[0]

    def note(self, digest: str, node: N) -> None:
        """Make a node the latest of a digest; it is there once."""
        known = self._nodes.get(digest)
        if known is None or known[-1] is not node:
            self.discard(digest, node)
            self.add(digest, node)

    def discard(self, digest: str, node: N) -> None:
        """Take the latest use of a node back, where there is one."""
        known = self._nodes.get(digest)
        if known is None:
            return
        if known[-1] is node:
            known.pop()
        elif node in known:
            known.remove(node)
        if not known:
            del self._nodes[digest]
