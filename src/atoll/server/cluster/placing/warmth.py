"""Warmth: where a wish's sandbox and environment are likely to be, of the nodes with room. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.server.cluster.contract import Wish
from atoll.server.cluster.placing.affinity import Affinity
from atoll.server.cluster.placing.kinds import Kind
from atoll.server.cluster.placing.node_room import NodeRoom

MOST_IDLE = 64
"""Idle sandboxes of one digest that are remembered."""
_NEAR_WARM = 4
_NEAR_BUILT = 8
"""Buckets of room below the best: a quarter of it, and a sixteenth."""


class Warmth:
    """The nodes where sandboxes were given back, where they were used last, and where environments were built."""

    def __init__(self) -> None:
        self._idle: Affinity[NodeRoom] = Affinity(each=MOST_IDLE)
        self._recent: Affinity[NodeRoom] = Affinity(each=1)
        self._built: Affinity[NodeRoom] = Affinity()

    def nodes(self, kind: Kind, wish: Wish) -> Iterator[NodeRoom]:
        """Yield nodes with room, the warmest first.

        One with an idle sandbox is better than any other. The rest must have nearly as much room as the best.
        """
        where = kind.where
        if wish.warm:
            for node in reversed(self._idle.nodes(wish.warm)):
                if node in where:
                    yield node
            for node in self._recent.nodes(wish.warm):
                if node in where and kind.near_best(node, _NEAR_WARM):
                    yield node
        if wish.built:
            for node in reversed(self._built.nodes(wish.built)):
                if node in where and kind.near_best(node, _NEAR_BUILT):
                    yield node

    def known(self, wish: Wish) -> Iterator[NodeRoom]:
        """Yield the nodes that are warm for a wish, with or without room, the warmest first."""
        for affinity, digest in ((self._idle, wish.warm), (self._recent, wish.warm), (self._built, wish.built)):
            if digest:
                yield from reversed(affinity.nodes(digest))

    def placed(self, wish: Wish, node: NodeRoom) -> None:
        """A wish has a node: an idle sandbox there is idle no more."""
        if wish.warm:
            self._idle.discard(wish.warm, node)
            self._recent.note(wish.warm, node)
        if wish.built:
            self._built.note(wish.built, node)

    def given_back(self, wish: Wish, node: NodeRoom) -> None:
        """A wish is over: its sandbox is idle."""
        if wish.warm:
            self._idle.add(wish.warm, node)
