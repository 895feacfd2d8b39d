"""A node as placement sees it: its figures, less the placements that are not in them yet. Pure.

Theory of operation. A node says how many sessions it had been given when it counted its room (`taken`). The server counts
its placements too. Those beyond `taken` are *unseen*, and are subtracted. The two counts differ by an offset: that of
the first figures, since the node's process may be older than this link. A placement that never reached the node (its
client had gone) would be unseen for ever, so one that is older than `SETTLED_SECONDS` counts as seen, and mends the offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.server.cluster.contract import NodeFacts, NodeLoad, Wish
from atoll.server.cluster.placing.sizes import TYPES, Size

SETTLED_SECONDS = 5.0
"""Seconds after a placement from which a node's figures hold it, whatever the counts say."""


class NodeRoom:
    """The room of one node; an object of its own for each time that it joins.

    Args:
        millicores, memory_bytes, gpus: left.
        fits: workers of each type that fit, before the unseen ones are subtracted; empty until its first figures.
        unseen_types: unseen placements of each type.
        holders: kinds whose first wish waits for this node.
        placed: wishes that it has.
        programs: those of the placed wishes, each with their number.
        heard: when it said its figures.
    """

    __slots__ = (
        "_given",
        "_offset",
        "_unseen",
        "accepting",
        "facts",
        "fits",
        "gpus",
        "heard",
        "holders",
        "load",
        "memory_bytes",
        "millicores",
        "placed",
        "programs",
        "total",
        "unseen_types",
    )

    def __init__(self, facts: NodeFacts, now: float) -> None:
        self.facts = facts
        self.total = Size(facts.millicores, facts.memory_bytes, len(facts.gpus))
        self.accepting = True
        self.load: NodeLoad | None = None
        self.heard = now
        self.placed = 0
        self.programs: dict[str, int] = {}
        self.millicores = self.memory_bytes = self.gpus = 0
        self.fits: dict[str, int] = {}
        self.unseen_types: dict[str, int] = {}
        self.holders = 0
        self._given = 0
        self._offset = 0
        self._unseen: dict[int, tuple[Wish, float]] = {}

    def place(self, wish: Wish, now: float) -> int:
        """Subtract a placement; return its number, for `take_back`."""
        self._given += 1
        self.placed += 1
        self.programs[wish.program] = self.programs.get(wish.program, 0) + 1
        self._unseen[self._given] = wish, now
        self._subtract(wish)
        return self._given

    def take_back(self, number: int, wish: Wish) -> bool:
        """Note that a placement is over; return whether that gives room before the node's next figures."""
        self.placed -= 1
        self.programs[wish.program] -= 1
        if not self.programs[wish.program]:
            del self.programs[wish.program]
        found = self._unseen.pop(number, None)
        if found is None:
            return False
        self._subtract(found[0], -1)
        return True

    def hear(self, load: NodeLoad, now: float) -> bool:
        """Take new figures; return whether the room differs."""
        self._see(load.taken, now)
        if load == self.load and not self._unseen and not self.unseen_types:
            self.heard = now
            return False
        self.load, self.heard = load, now
        self.fits = dict(load.fits)
        millicores, memory, gpus = load.millicores, load.memory_bytes, load.gpus
        total = self.total
        for name, count in load.fits.items():
            # Room that idle workers hold is not in the plain figures, and others may have it.
            size = TYPES.get(name)
            if size is not None and count > 0:
                millicores = max(millicores, count * min(size.millicores, total.millicores))
                memory = max(memory, count * min(size.memory_bytes, total.memory_bytes))
                gpus = max(gpus, count * size.gpus)
        self.millicores, self.memory_bytes, self.gpus = millicores, memory, gpus
        self.unseen_types.clear()
        for wish, _ in self._unseen.values():
            self._subtract(wish)
        return True

    def row(self) -> Mapping[str, Any]:
        """Return the node for people: `placed` counts wishes, the other figures are its own."""
        facts, load = self.facts, self.load or NodeLoad()
        return {
            "node": facts.name,
            "version": facts.version,
            "accepting": self.accepting,
            "heard": self.heard,
            "placed": self.placed,
            "unseen": len(self._unseen),
            "running": load.running,
            "waiting": load.waiting,
            "millicores": facts.millicores,
            "free_millicores": max(self.millicores, 0),
            "memory_bytes": facts.memory_bytes,
            "free_memory_bytes": max(self.memory_bytes, 0),
            "gpus": len(facts.gpus),
            "free_gpus": max(self.gpus, 0),
            "labels": dict(facts.labels),
            "volumes": facts.volumes,
            "held": self.holders > 0,
        }

    def _subtract(self, wish: Wish, times: int = 1) -> None:
        """Take a wish off the room; a node cuts a type that is larger down to what it has."""
        self.millicores -= times * min(wish.millicores, self.total.millicores)
        self.memory_bytes -= times * min(wish.memory_bytes, self.total.memory_bytes)
        self.gpus -= times * wish.gpus
        self.unseen_types[wish.machine_type] = self.unseen_types.get(wish.machine_type, 0) + times

    def _see(self, taken: int, now: float) -> None:
        """Forget the placements that these figures hold."""
        if self.load is None:
            self._offset = self._given - taken
        elif taken < self.load.taken:  # the node's process is new
            self._offset = next(iter(self._unseen), self._given + 1) - 1 - taken
        self._offset = min(self._offset, self._given - taken)
        seen = taken + self._offset
        for number, (_, since) in list(self._unseen.items()):
            if number > seen:
                if now - since < SETTLED_SECONDS:
                    break
                self._offset = number - taken
            del self._unseen[number]
