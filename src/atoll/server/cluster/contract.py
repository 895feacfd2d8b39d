"""The contract between the server's parts and the machines behind it: facts of nodes, wishes, fleets and shares.

A node is a machine with a daemon. The server's own one is `LOCAL`; others have joined, and are reached over links that
they dial (`links`). `placement` decides by these values alone. A fleet starts the processes of machines. Shares say how
much of a machine Atoll may use, where another scheduler owns it: a static fleet has the whole of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LOCAL = "local"
"""The name of the server's own node."""

LEASE_SECONDS = 10.0
"""Seconds after its last acknowledged word for which a node may run calls of its server's users; then it ends them."""
LOST_SECONDS = 15.0
"""Seconds after a node's last word before the server gives its calls up: only then may one begin elsewhere."""
BEAT_SECONDS = 1.0
"""Seconds between words of a node."""


@dataclass(frozen=True)
class NodeFacts:
    """What a machine is, as it says when it joins.

    Args:
        name: unique at the server, `[a-z0-9-]`, at most 63 characters.
        version: of its package.
        millicores, memory_bytes: of all its functions together.
        gpus: names of its devices, in order.
        labels: for placement, such as `zone`; values that a person gave, or Ray.
        volumes: identity of the file system that carries `/data`: nodes with the same one share it. Empty: its own disk.
    """

    name: str
    version: str = ""
    millicores: int = 0
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: str = ""


@dataclass(frozen=True)
class NodeLoad:
    """What a node says about itself from time to time.

    Args:
        taken: sessions that the node had been given when it said so: later placements are not in the figures yet.
        fits: how many workers of each machine type fit now, idle ones counted as free.
        millicores, memory_bytes, gpus: free now.
        running, waiting: leases that its workers serve, and those that wait there.
    """

    taken: int = 0
    fits: Mapping[str, int] = field(default_factory=dict)
    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class LiveNode:
    """A node with a link.

    Args:
        name: of the node.
        facts: as it said when it linked.
        load: its last word about itself; None before the first.
        silent_seconds: since its last word.
        lines: clients' lines that go there.
        linked: its link is open; False while only its lease runs on.
    """

    name: str
    facts: NodeFacts
    load: NodeLoad | None = None
    silent_seconds: float = 0.0
    lines: int = 0
    linked: bool = True


@dataclass(frozen=True)
class Wish:
    """A line that needs a place.

    Args:
        id: unique in this process.
        user: opaque id.
        machine_type: a name of `model.machine_types`, or empty.
        millicores, memory_bytes, gpus: what a worker of it takes.
        warm: digest of all that decides which sandbox serves it (user, environment, type): soft affinity.
        built: digest of the environment alone: a node that has built it is better than one that has not.
        volumes: nodes must share this file system; empty for any.
        labels: that the node must have.
        weight: share of the user beside others.
        nodes: those of which one must serve it, in order of their names; empty for any.
        program: digest of who asks and for what: leases of one program are used for its next calls of the kind.
    """

    id: str
    user: str
    machine_type: str = ""
    millicores: int = 1000
    memory_bytes: int = 0
    gpus: int = 0
    warm: str = ""
    built: str = ""
    volumes: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    nodes: tuple[str, ...] = ()
    program: str = ""


@dataclass(frozen=True)
class Place:
    """A decision: a wish has a node."""

    wish: Wish
    node: str


class Fleet(Protocol):
    """Starts and ends the processes of machines; `server/fleets` and `server/ray` implement it."""

    async def start(self, machine: str) -> None:
        """Start a machine's node process.

        Raises:
            HostUnreachable: it cannot be reached, with the next step.
        """

    async def machines(self) -> Sequence[Mapping[str, Any]]:
        """Return rows of the machines: `machine`, `state` (`alive`, `dead`, `unknown`), `node` (empty: has not joined)."""

    async def stop(self, machine: str) -> None:
        """End a machine's node process in order."""


class Shares(Protocol):
    """How much of each node Atoll may use at present, where another scheduler owns the machines (Ray)."""

    def room(self, node: str, wish: Wish) -> bool:
        """Return whether a node's share holds one more such wish."""

    def taken(self, place: Place) -> None:
        """Note that a wish was placed within the share."""

    def given_back(self, place: Place) -> None:
        """Note that a placed wish is over."""

    def wanted(self, wishes: Sequence[Wish]) -> None:
        """Note which wishes wait for more: asked of the scheduler, so that its autoscaler sees them."""

    def refusal(self, wish: Wish) -> str:
        """Return why no machine can ever hold a wish, in one line; empty where one can."""

    on_change: Callable[[], None]
    """Is called when a share has changed: waiting wishes are looked at again."""


class SharesOfNodes(Shares, Protocol):
    """Shares that are told of nodes."""

    def joined(self, facts: NodeFacts) -> None:
        """Note that a node has joined."""

    def left(self, node: str) -> None:
        """Note that a node is gone."""

    def open(self, node: str, *, takes_new: bool) -> None:
        """Note whether a node takes new calls: one that is drained or cordoned does not."""
