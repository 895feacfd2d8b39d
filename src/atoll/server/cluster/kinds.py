"""Kinds of wishes, each with the nodes that have room for it, sorted by how much. Pure.

Theory of operation. Wishes of one size and with the same demands are of one kind. Where there are many sizes, similar ones share a kind,
rounded up. For each kind, a
node is in the bucket of how many of it fit there (exact for few, in half doublings for more), and an integer has a bit
for each bucket that is not empty: the fullest and the emptiest are its lowest and its highest bit. Buckets are rings: a
node that is chosen goes to the end. So a decision costs the same with any number of nodes, and a change of a node
costs one look for each kind.

Bits of nodes with GPUs are below those of nodes without, so that wishes without GPUs come last to them. Wishes with GPUs
take the node where the fewest fit. Lowest are nodes that another kind's first wish waits for (*held*).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from atoll.server.cluster.contract import NodeFacts, Wish
from atoll.server.cluster.node_room import NodeRoom
from atoll.server.cluster.placement_queue import Line
from atoll.server.cluster.sizes import TYPES, Size, rounded

_TIER = 21
_HELD = (1 << _TIER) - 1
_MANY = 1 << 20

NUMBERS = "-"
"""Instead of a type: the function has numbers of its own; they are rounded up."""
EXACT = "="
"""The same, not rounded."""

KindKey = tuple[str, Size, str, tuple[tuple[str, str], ...]]


def key_of(wish: Wish, *, exact: bool = False) -> KindKey:
    """Return which kind a wish is of: its type, or its size, rounded up unless it is to be exact."""
    size = Size(wish.millicores, wish.memory_bytes, wish.gpus)
    labels = tuple(sorted(wish.labels.items())) if wish.labels else ()
    if TYPES.get(wish.machine_type) == size:
        return wish.machine_type, size, wish.volumes, labels
    return (EXACT, size, wish.volumes, labels) if exact else (NUMBERS, rounded(size), wish.volumes, labels)


class Kind:
    """One kind of wish.

    Args:
        capable: nodes that are accepting and hold it when they are empty, in the order in which they joined.
        held: nodes that its first wish waits for.
        shut: nodes whose share holds no more of it, until shares change.
        where: nodes with room, and their buckets.
    """

    def __init__(self, key: KindKey) -> None:
        self.type, self.size, self.volumes, self.labels = key
        self.key = key
        self.line = Line()
        self.capable: list[NodeRoom] = []
        self.held: list[NodeRoom] = []
        self.shut: set[NodeRoom] = set()
        self.where: dict[NodeRoom, int] = {}
        self._whole = 0
        self._cut = self._is_cut
        self._nodes: dict[NodeRoom, None] = {}
        self._bits = 0
        self._buckets: list[OrderedDict[NodeRoom, None]] = [OrderedDict() for _ in range(3 * _TIER)]
        self._turn = 0

    # --- nodes ----------------------------------------------------------------------------------------------------

    def join(self, node: NodeRoom) -> None:
        """A node is there, or accepts again."""
        if not self.allows(node.facts):
            return
        self._nodes[node] = None
        self._whole += self.fits_whole(node.total)
        if self._cut != self._is_cut:
            self._sort_out()
            return
        if self.fits_ever(node.total):
            self.capable.append(node)
        self.refresh(node)

    def leave(self, node: NodeRoom) -> None:
        """A node is gone, or accepts no more."""
        if node not in self._nodes:
            return
        del self._nodes[node]
        self._whole -= self.fits_whole(node.total)
        self.shut.discard(node)
        if node in self.held:
            self.held.remove(node)
            node.holders -= 1
        self._move(node, 0)
        if self._cut != self._is_cut:
            self._sort_out()
        elif node in self.capable:
            self.capable.remove(node)

    @property
    def _is_cut(self) -> bool:
        """A type is cut down to machines only where no machine has it whole; numbers never are."""
        return not self._whole and self.type not in (NUMBERS, EXACT)

    @property
    def is_rounded(self) -> bool:
        """The size may be larger than that of its wishes."""
        return self.type == NUMBERS

    def _sort_out(self) -> None:
        self._cut = self._is_cut
        self.capable = [one for one in self._nodes if self.fits_ever(one.total)]
        for node in self._nodes:
            self.refresh(node)

    def allows(self, facts: NodeFacts) -> bool:
        """Return whether a node has the volumes and the labels that the kind demands."""
        if self.volumes and facts.volumes != self.volumes:
            return False
        return all(facts.labels.get(name) == value for name, value in self.labels)

    def fits_whole(self, total: Size) -> bool:
        """Return whether an empty node of that size holds one."""
        mine = self.size
        return mine[0] <= total[0] and mine[1] <= total[1] and mine[2] <= total[2]

    def fits_ever(self, total: Size) -> bool:
        """Return whether an empty node of that size holds one, perhaps cut down to it."""
        return self.size.gpus <= total.gpus if self._cut else self.fits_whole(total)

    def refresh(self, node: NodeRoom) -> None:
        """Put a node into the bucket of its present room."""
        if node not in self._nodes:
            return
        count = 0 if node in self.shut else self.count(node)
        if count <= 0:
            self._move(node, 0)
            return
        if count < 8:
            step = count
        else:
            bits = count.bit_length()
            step = min(2 * bits + (count >> bits - 2 & 1), _TIER - 1)
        if node.holders > (node in self.held):
            self._move(node, step)
        else:
            self._move(node, step + (_TIER if self.size.gpus or node.total.gpus else 2 * _TIER))

    def count(self, node: NodeRoom) -> int:
        """Return how many of this kind a node has room for now."""
        millicores, memory, gpus = self.size
        if self._cut:
            millicores, memory = min(millicores, node.total.millicores), min(memory, node.total.memory_bytes)
        elif not self.fits_whole(node.total):
            return 0
        if node.load is None:
            return 0
        count = node.fits.get(self.type, _MANY)
        if count is not _MANY:
            count -= node.unseen_types[self.type]
        if millicores:
            count = min(count, node.millicores // millicores)
        if memory:
            count = min(count, node.memory_bytes // memory)
        return min(count, node.gpus // gpus) if gpus else count

    def _move(self, node: NodeRoom, bucket: int) -> None:
        old = self.where.get(node, 0)
        if old == bucket:
            return
        if old:
            nodes = self._buckets[old]
            del nodes[node]
            if not nodes:
                self._bits &= ~(1 << old)
        if bucket:
            self._buckets[bucket][node] = None
            self._bits |= 1 << bucket
            self.where[node] = bucket
        else:
            del self.where[node]

    # --- choice ---------------------------------------------------------------------------------------------------

    @property
    def best(self) -> NodeRoom | None:
        """The first of `in_order`."""
        return next(iter(self._buckets[self._first(self._bits)])) if self._bits else None

    def _first(self, bits: int) -> int:
        if not self.size.gpus:
            return bits.bit_length() - 1
        bits = bits & ~_HELD or bits
        return (bits & -bits).bit_length() - 1

    def in_order(self) -> Iterator[NodeRoom]:
        """Yield the nodes with room, the best first; the caller may shut those that it has seen."""
        bits = self._bits
        while bits:
            at = self._first(bits)
            bits &= ~(1 << at)
            yield from list(self._buckets[at])

    def near_best(self, node: NodeRoom, steps: int) -> bool:
        """Return whether a node with room is in a bucket at most so many below the best."""
        return self.size.gpus > 0 or self._bits.bit_length() - 1 - self.where[node] <= steps

    def chosen(self, node: NodeRoom) -> None:
        """Put a node behind the others of its bucket."""
        bucket = self.where.get(node)
        if bucket:
            self._buckets[bucket].move_to_end(node)

    def shut_out(self, node: NodeRoom) -> None:
        """Note that a node's share holds no more of this kind."""
        self.shut.add(node)
        self._move(node, 0)

    def open_up(self, node: NodeRoom | None = None) -> None:
        """Look at shares again, of one node or of all."""
        opened = [one for one in self.shut if node is None or one is node]
        self.shut.difference_update(opened)
        for one in opened:
            self.refresh(one)

    # --- waiting for a node ---------------------------------------------------------------------------------------

    def hold_more(self, most: int) -> NodeRoom | None:
        """Wait for one more node, of a few the one that lacks least; None when there are as many as may be."""
        if len(self.held) >= min(most, len(self.capable)):
            return None
        start = self._turn
        count = len(self.capable)
        self._turn = (start + SAMPLE) % count
        few = [self.capable[(start + step) % count] for step in range(min(SAMPLE, count))]
        free = [one for one in few if one not in self.held] or [one for one in self.capable if one not in self.held]
        node = min(free, key=lambda one: (one.holders, self._lack(one)))
        self.held.append(node)
        node.holders += 1
        return node

    def hold_none(self) -> list[NodeRoom]:
        """Wait for no node any more; return those that it has waited for."""
        held, self.held = self.held, []
        for node in held:
            node.holders -= 1
        return held

    def _lack(self, node: NodeRoom) -> float:
        left = (node.millicores, node.memory_bytes, node.gpus)
        return max((mine - max(has, 0)) / mine if mine else 0.0 for mine, has in zip(self.size, left, strict=True))

    def waits_for(self, node: NodeRoom, other: Kind) -> bool:
        """Return whether this kind, for which a node is held, waits for something there that the other would take."""
        if node in self.shut:
            return False
        millicores, memory, gpus = self.size
        if self._cut:
            millicores, memory = min(millicores, node.total.millicores), min(memory, node.total.memory_bytes)
        lacks = (node.millicores < millicores, node.memory_bytes < memory, node.gpus < gpus)
        if not any(lacks):  # it lacks a worker of its type, or is next
            return any(other.size)
        return any(lack and takes for lack, takes in zip(lacks, other.size, strict=True))


SAMPLE = 8
"""Nodes of which the best is held."""
