"""Kinds of wishes, each with the nodes that have room for it, sorted by how much. Pure.

Theory of operation. Wishes of one size and with the same demands are of one kind. Where there are many sizes, similar ones share a kind,
rounded up. For each kind, a
node is in the bucket of how many of it fit there (exact for few, in half doublings for more), and an integer has a bit
for each bucket that is not empty: the fullest and the emptiest are its lowest and its highest bit. Buckets are rings: a
node that is chosen goes to the end. So a decision costs the same with any number of nodes. A node that has changed is
looked at by a kind when that is used next.

Bits of nodes with GPUs are below those of nodes without, so that wishes without GPUs come last to them. Wishes with GPUs
take the node where the fewest fit. Lowest are nodes that another kind's first wish waits for (*held*).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from atoll.server.cluster.contract import NodeFacts, Wish
from atoll.server.cluster.placing.node_room import NodeRoom
from atoll.server.cluster.placing.queue import NO_TURN, Line, Turn
from atoll.server.cluster.placing.sizes import TYPES, Size, rounded

_TIER = 21
_HELD = (1 << _TIER) - 1
_MANY = 1 << 20
_MOST_STALE = 16
_BUCKETS = [
    count if count < 8 else 2 * count.bit_length() + (count >> count.bit_length() - 2 & 1) for count in range(512)
]

NUMBERS = "-"
"""Instead of a type: the function has numbers of its own; they are rounded up."""
EXACT = "="
"""The same, not rounded."""

KindKey = tuple[str, int, int, int, str, tuple[tuple[str, str], ...], tuple[str, ...]]

MOST_EXACT = 24
"""Kinds above which further functions with numbers of their own share kinds, by sizes that are rounded up."""
MOST_KINDS = 32
"""Kinds that are kept although nothing of them waits."""


class Kind:
    """One kind of wish.

    Args:
        capable: nodes that are accepting and hold it when they are empty, in the order in which they joined.
        held: nodes that its first wish waits for.
        used: when, as a count of uses of kinds.
        shut: nodes whose share holds no more of it, until shares change.
        turn: of its first wish, when that was looked at last.
        stuck: nodes have room, but all keep it for others; until some room changes.
        where: nodes with room, and their buckets.
    """

    def __init__(self, key: KindKey) -> None:
        self.type, *size, self.volumes, self.labels, self.nodes = key
        self.size = Size(*size)
        self.used = 0
        self.stuck = False
        self.turn: Turn = NO_TURN
        self.line = Line()
        self.capable: list[NodeRoom] = []
        self.held: list[NodeRoom] = []
        self.shut: dict[NodeRoom, None] = {}
        self.where: dict[NodeRoom, int] = {}
        self._whole = 0
        self._cut = self._is_cut
        self._nodes: dict[NodeRoom, None] = {}  # those with the volumes and labels that it demands
        self._needs: dict[NodeRoom, Size] = {}  # what it takes there, of those that are capable
        self._stale: dict[NodeRoom, None] = {}  # no set: its order would be another one each time
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
        else:
            self._take_in(node)

    def leave(self, node: NodeRoom) -> None:
        """A node is gone, or accepts no more."""
        if node not in self._nodes:
            return
        del self._nodes[node]
        self._whole -= self.fits_whole(node.total)
        self.shut.pop(node, None)
        self._stale.pop(node, None)
        if node in self.held:
            self.held.remove(node)
            node.holders -= 1
        self._move(node, 0)
        if self._needs.pop(node, None) is not None:
            self.capable.remove(node)
        if self._cut != self._is_cut:
            self._sort_out()

    @property
    def is_rounded(self) -> bool:
        """The size may be larger than that of its wishes."""
        return self.type == NUMBERS

    @property
    def _is_cut(self) -> bool:
        """A type is cut down to machines only where no machine has it whole; numbers never are."""
        return not self._whole and self.type not in (NUMBERS, EXACT)

    def _sort_out(self) -> None:
        self._cut = self._is_cut
        for node in self.capable:
            self._move(node, 0)
        self.capable.clear()
        self._needs.clear()
        for node in self._nodes:
            self._take_in(node)

    def _take_in(self, node: NodeRoom) -> None:
        """Note what one of this kind takes of a node, if the node can hold it at all."""
        size, total = self.size, node.total
        if self._cut:
            size = Size(min(size[0], total[0]), min(size[1], total[1]), size[2])
        if all(mine <= has for mine, has in zip(size, total, strict=True)):
            self._needs[node] = size
            self.capable.append(node)
            self.refresh(node)

    def is_capable(self, node: NodeRoom) -> bool:
        """Return whether a node accepts and holds one when it is empty."""
        return node in self._needs

    def allows(self, facts: NodeFacts) -> bool:
        """Return whether a node has the volumes and the labels that the kind demands, and is one of its nodes."""
        if (self.volumes and facts.volumes != self.volumes) or (self.nodes and facts.name not in self.nodes):
            return False
        return all(facts.labels.get(name) == value for name, value in self.labels)

    def fits_whole(self, total: Size) -> bool:
        """Return whether an empty node of that size holds one."""
        return all(mine <= has for mine, has in zip(self.size, total, strict=True))

    def touch(self, node: NodeRoom) -> None:
        """Note that a node's room has changed: it is looked at when the kind is used, or when many have changed."""
        needs = self._needs.get(node)
        if needs is None or (node.millicores < needs[0] and node not in self.where):
            return  # as on most changes of a node that is full: there is no room, and there was none
        stale = self._stale
        stale[node] = None
        if len(stale) > _MOST_STALE:
            self.refresh(stale.popitem()[0])

    @property
    def has_room(self) -> bool:
        """Some node has room; looks at those that have changed, so it comes before any choice."""
        while self._stale:
            self.refresh(self._stale.popitem()[0])
        return self._bits > 0

    def refresh(self, node: NodeRoom) -> None:
        """Put a node into the bucket of its present room."""
        needs = self._needs.get(node)
        if needs is None or node.load is None:
            return
        millicores, memory, gpus = needs
        count = node.fits.get(self.type, _MANY)
        if count != _MANY:
            count -= node.unseen_types.get(self.type, 0)
        # Plain comparisons: this is done for each kind, for each change of a node.
        if millicores and (fit := node.millicores // millicores) < count:
            count = fit
        if memory and (fit := node.memory_bytes // memory) < count:
            count = fit
        if gpus and (fit := node.gpus // gpus) < count:
            count = fit
        bucket = 0
        if count > 0 and not (self.shut and node in self.shut):
            bucket = _BUCKETS[count] if count < len(_BUCKETS) else _TIER - 1
            if not (node.holders and node.holders > (node in self.held)):
                bucket += _TIER if gpus or node.total[2] else 2 * _TIER
        if self.where.get(node, 0) != bucket:
            self._move(node, bucket)

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
            self.stuck = False
            self._buckets[bucket][node] = None
            self._bits |= 1 << bucket
            self.where[node] = bucket
        else:
            del self.where[node]

    # --- choice ---------------------------------------------------------------------------------------------------

    @property
    def has_own_room(self) -> bool:
        """Some node has room that is kept for no other kind."""
        return self._bits > _HELD

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
        self.shut[node] = None
        self._move(node, 0)

    def open_up(self, node: NodeRoom | None = None) -> None:
        """Look at shares again, of one node or of all."""
        opened = [one for one in self.shut if node is None or one is node]
        for one in opened:
            del self.shut[one]
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
        needs = self._needs.get(node, self.size)
        mine = other.size
        lacks = False
        if node.millicores < needs[0]:
            if mine[0]:
                return True
            lacks = True
        if node.memory_bytes < needs[1]:
            if mine[1]:
                return True
            lacks = True
        if node.gpus < needs[2]:
            if mine[2]:
                return True
            lacks = True
        # Else it lacks a worker of its type, or is next: then it waits for anything.
        return not lacks and any(mine)


SAMPLE = 8
"""Nodes of which the best is held."""


class Kinds:
    """All kinds, of which those that were not used for longest go when there are many.

    Args:
        nodes: those that have joined; looked at, never changed.
    """

    def __init__(self, nodes: Mapping[str, NodeRoom]) -> None:
        self._nodes = nodes
        self._kinds: dict[KindKey, Kind] = {}
        self._uses = 0

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def of(self, wish: Wish) -> Kind:
        """Return the kind of a wish."""
        labels = tuple(sorted(wish.labels.items())) if wish.labels else ()
        size = wish.millicores, wish.memory_bytes, wish.gpus
        name = wish.machine_type if TYPES.get(wish.machine_type) == size else EXACT
        key: KindKey = (name, *size, wish.volumes, labels, wish.nodes)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._new(key)
        self._uses += 1
        kind.used = self._uses
        return kind

    def exact(self, wish: Wish) -> Kind:
        """Return the kind of a wish that is too large for every node only because it was rounded up."""
        labels = tuple(sorted(wish.labels.items()))
        return self._find((EXACT, wish.millicores, wish.memory_bytes, wish.gpus, wish.volumes, labels, wish.nodes))

    def touch(self, node: NodeRoom) -> None:
        """Note that a node's room has changed."""
        for kind in self._kinds.values():
            kind.touch(node)

    def _new(self, key: KindKey) -> Kind:
        name, *size, volumes, labels, nodes = key
        if name != EXACT or len(self._kinds) < MOST_EXACT:
            return self._find(key)
        kind = self._find((NUMBERS, *rounded(Size(*size)), volumes, labels, nodes))
        return kind if kind.capable else self._find(key)

    def _find(self, key: KindKey) -> Kind:
        kind = self._kinds.get(key)
        if kind is None:
            kind = Kind(key)
            for node in self._nodes.values():
                if node.accepting:
                    kind.join(node)
            idle = [(one.used, name) for name, one in self._kinds.items() if not (one.line.users or one.held)]
            if len(idle) >= MOST_KINDS:
                del self._kinds[min(idle)[1]]
            self._kinds[key] = kind
        return kind
