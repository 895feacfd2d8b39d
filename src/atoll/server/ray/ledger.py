"""The ledger of what Ray has lent: holders, and the placements within them. Pure; the caller supplies the time.

Theory of operation. A *holder* is an actor that does nothing but take resources of one Ray node, so that Ray's own
accounts are right. The holders on a node are its *share*; calls are placed within their sum, GPU workers within the
holders with GPUs and others within those without. `settling` decides on holders.

A holder leaves in two steps: first its resources no longer count (`LEAVING`), then, once the node has agreed to keep to
the smaller share, it is dropped (`drop`); or it stays (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from atoll.server.cluster.contract import Place, Wish
from atoll.server.ray import amounts
from atoll.server.ray.amounts import NOTHING, Amount

ASKED, HELD, LEAVING = "asked", "held", "leaving"


@dataclass(frozen=True)
class RayNode:
    """A machine as Ray knows it.

    Args:
        id: Ray's own, new with each start of its raylet.
        host: name of the machine.
        total: resources.
        free: of those at the last look, after all programs.
        labels: Ray's.
        address: of the machine in the cluster.
        draining: Ray ends it, and puts nothing more there.
    """

    id: str
    host: str = ""
    total: Amount = NOTHING
    free: Amount = NOTHING
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    draining: bool = False


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that an autoscaler can add."""

    total: Amount
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Holder:
    """An actor that holds an amount; see the module."""

    name: str
    amount: Amount
    state: str = ASKED
    pinned: str = ""
    """Ray node that alone will do."""
    preferred: str = ""
    """Ray node that is tried first."""
    labels: Mapping[str, str] = field(default_factory=dict)
    besides: frozenset[str] = frozenset()
    """Ray nodes that will not do."""
    node: str = ""
    gpus: tuple[str, ...] = ()
    since: float = 0.0
    """When it was asked for; once it is held, when that began."""


@dataclass
class Member:
    """An Atoll node on a Ray node."""

    ray: str
    volumes: str = ""
    open: bool = True


class Ledger:
    """Holders and placements of one server; see the module."""

    def __init__(self) -> None:
        self.nodes: dict[str, RayNode] = {}
        self.types: tuple[NodeType, ...] = ()
        self.scales = False
        """Whether an autoscaler adds and removes machines."""
        self.others_wait = False
        self.holders: dict[str, Holder] = {}
        self.members: dict[str, Member] = {}
        self.names: dict[str, str] = {}
        """Atoll nodes by their Ray nodes."""
        self._places: dict[str, tuple[str, Amount]] = {}
        self._placed: dict[tuple[str, bool], Amount] = {}
        self._on: dict[str, dict[str, Holder]] = {}
        """Holders whose resources count, by Ray node."""
        self._sums: dict[tuple[str, bool], Amount] = {}
        self.closed: set[tuple[str, bool]] = set()
        """Where nothing more is placed, since other programs wait and Atoll's turn is over; see `settling`."""
        self.unfit: set[str] = set()
        """Ray nodes where no Atoll node starts."""
        self.waiting: tuple[tuple[Wish, str], ...] = ()
        """Wishes without room, the next ones first, each with the Ray node that is best for it."""
        self.windows: dict[tuple[str, bool], float] = {}
        """Since when the least of what is free on a Ray node is counted, with GPUs or without."""
        self.lowest: dict[tuple[str, bool], Amount] = {}
        """The least that was free since then."""

    # --- facts ------------------------------------------------------------------------------------------------------

    def see(self, nodes: Iterable[RayNode]) -> list[str]:
        """Take the living Ray nodes; return the names of holders that ended with theirs."""
        self.nodes = {node.id: node for node in nodes}
        self.unfit &= self.nodes.keys()
        lost = [one.name for one in self.holders.values() if one.node and one.node not in self.nodes]
        for name in lost:
            self.drop(name)
        return lost

    def joined(self, node: str, ray: str, volumes: str = "") -> None:
        """Note that an Atoll node runs on a Ray node."""
        self.left(node)
        self.members[node] = Member(ray, volumes)
        self.names[ray] = node

    def left(self, node: str) -> None:
        """Note that an Atoll node is gone; its placements stay until they are given back."""
        member = self.members.pop(node, None)
        if member is not None and self.names.get(member.ray) == node:
            del self.names[member.ray]

    def open(self, node: str, *, takes_new: bool) -> None:
        """Note whether an Atoll node takes new calls: nothing is asked for on one that does not."""
        if node in self.members:
            self.members[node].open = takes_new

    def ray_of(self, node: str) -> str:
        """Return the Ray node of an Atoll node; empty for one that Ray does not know."""
        member = self.members.get(node)
        return member.ray if member is not None else ""

    def node_of(self, ray: str) -> str:
        """Return the Atoll node on a Ray node; empty for none."""
        return self.names.get(ray, "")

    def held(self, name: str, amount: Amount, node: str, gpus: Sequence[str], now: float) -> None:
        """Note that Ray has lent a holder; one that is not known, an earlier server's, is taken over."""
        holder = self.holders.setdefault(name, Holder(name, amount, since=now))
        if holder.state == ASKED:
            holder.node, holder.gpus, holder.since = node, tuple(gpus), now
            self._count(holder, now)

    def drop(self, name: str) -> Holder | None:
        """Forget a holder that is over; return it."""
        holder = self.holders.pop(name, None)
        if holder is not None and holder.state == HELD:
            self._discount(holder, ASKED)
        return holder

    def keep(self, name: str, now: float) -> None:
        """Hold on to a holder that was to leave, since its node still uses it."""
        holder = self.holders.get(name)
        if holder is not None and holder.state == LEAVING:
            self._count(holder, now)

    # --- placements -------------------------------------------------------------------------------------------------

    def share(self, node: str) -> Amount:
        """Return all that is held on an Atoll node."""
        ray = self.ray_of(node)
        return self._sums.get((ray, False), NOTHING) + self._sums.get((ray, True), NOTHING) if ray else NOTHING

    def gpus(self, node: str) -> tuple[str, ...]:
        """Return the ids of the GPUs that are held on an Atoll node, in Ray's words."""
        ray = self.ray_of(node)
        return tuple(sorted(gpu for one in self._on.get(ray, {}).values() for gpu in one.gpus)) if ray else ()

    def room(self, node: str, wish: Wish) -> bool:
        """Return whether the share of a node holds one more such wish."""
        amount = amounts.of_wish(wish)
        if amount == NOTHING:
            return True
        ray = self.ray_of(node)
        key = ray, amount.gpus > 0
        if not ray or key in self.closed or self.is_draining(ray):
            return False
        return self.free(ray, with_gpus=key[1]).covers(amount)

    def take(self, place: Place) -> None:
        """Note a placement, once for each wish."""
        self.give(place)
        amount, ray = amounts.of_wish(place.wish), self.ray_of(place.node)
        key = ray, amount.gpus > 0
        self._places[place.wish.id] = ray, amount
        self._placed[key] = self._placed.get(key, NOTHING) + amount
        self._note_lowest(key)

    def give(self, place: Place) -> None:
        """Note that a placement is over; one that is not known is left alone."""
        found = self._places.pop(place.wish.id, None)
        if found is not None:
            ray, amount = found
            self._placed[ray, amount.gpus > 0] -= amount

    def free(self, ray: str, *, with_gpus: bool) -> Amount:
        """Return what is held on a Ray node, in holders with GPUs or in the others, and not placed."""
        key = ray, with_gpus
        return self._sums.get(key, NOTHING) - self._placed.get(key, NOTHING)

    def is_draining(self, ray: str) -> bool:
        """Return whether Ray ends a node of its own."""
        return ray in self.nodes and self.nodes[ray].draining

    def is_used(self, ray: str) -> bool:
        """Return whether anything is placed on a Ray node."""
        return any(self._placed.get((ray, with_gpus), NOTHING) != NOTHING for with_gpus in (False, True))

    def is_empty(self, ray: str) -> bool:
        """Return whether a Ray node has neither holders nor placements."""
        return not self.is_used(ray) and not any(one.node == ray for one in self.holders.values())

    def await_room(self, wishes: Sequence[Wish], preferred: Mapping[str, str]) -> None:
        """Take the wishes that found no room, the next ones first.

        Args:
            preferred: the Atoll node that is best for a wish, by the wish's id.
        """
        self.waiting = tuple((wish, self.ray_of(preferred.get(wish.id, ""))) for wish in wishes)

    def refusal(self, wish: Wish) -> str:
        """Return why no machine can ever hold a wish; empty where one can, or nobody knows yet."""
        amount = amounts.of_wish(wish)
        known = [(node.total, node.labels) for node in self.nodes.values()]
        known += [(kind.total, kind.labels) for kind in self.types]
        if not known or (self.scales and not self.types) or amount == NOTHING:
            return ""
        labelled = [total for total, labels in known if wish.labels.items() <= labels.items()]
        if not labelled:
            asked = ", ".join(f"`{name}={value}`" for name, value in sorted(wish.labels.items()))
            return f"no machine of the Ray cluster has the labels {asked}"
        if any(total.covers(amount) for total in labelled):
            return ""
        largest = max(labelled, key=lambda one: (one.gpus >= amount.gpus, one.millicores, one.memory_bytes))
        return f"it needs {amount}, and the largest machine of the Ray cluster has {largest}"

    # --- sums -------------------------------------------------------------------------------------------------------

    def counted(self, ray: str, *, with_gpus: bool) -> list[Holder]:
        """Return the holders of a Ray node whose resources count, those with GPUs or the others."""
        return [one for one in self._on.get(ray, {}).values() if bool(one.amount.gpus) == with_gpus]

    def leave(self, holder: Holder) -> None:
        """Let a holder's resources no longer count."""
        self._discount(holder, LEAVING)

    def _count(self, holder: Holder, now: float) -> None:
        holder.state = HELD
        key = holder.node, holder.amount.gpus > 0
        self._on.setdefault(holder.node, {})[holder.name] = holder
        self._sums[key] = self._sums.get(key, NOTHING) + holder.amount
        if key not in self.windows:
            self.begin_window(key, now)

    def _discount(self, holder: Holder, state: str) -> None:
        holder.state = state
        self._on[holder.node].pop(holder.name, None)
        key = holder.node, holder.amount.gpus > 0
        self._sums[key] -= holder.amount
        self._note_lowest(key)

    def begin_window(self, key: tuple[str, bool], now: float) -> None:
        """Count the least of what is free on a Ray node from now on."""
        self.windows[key] = now
        self.lowest[key] = self.free(key[0], with_gpus=key[1])

    def _note_lowest(self, key: tuple[str, bool]) -> None:
        self.lowest[key] = self.lowest.get(key, NOTHING).least(self.free(key[0], with_gpus=key[1]))
