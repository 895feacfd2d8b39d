"""The bodies and answers of the routes about nodes, as types that the API's description is made from."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from atoll import __version__
from atoll.server.nodes.rows import NodeAccount

Labels = Annotated[dict[str, str], msgspec.Meta(max_length=64)]


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make: for so many machines, for so long; its labels count before those that a machine gives."""

    uses: int = 1
    seconds: float = 3600.0
    labels: Labels = {}


class MadeToken(msgspec.Struct, frozen=True):
    """A token to join, which is shown this once; `expires` in seconds since the epoch."""

    token: str
    expires: float
    uses: int


class RevokedTokens(msgspec.Struct, frozen=True):
    """The number of tokens that could have been used until now."""

    revoked: int


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine that joins.

    Args:
        token: of `POST /v1/nodes/tokens`.
        name: to be known by.
        facts: what it says about itself.
        labels: for placement.
        replace: it takes the place of a node of this name.
    """

    token: Annotated[str, msgspec.Meta(max_length=400)]
    name: Annotated[str, msgspec.Meta(max_length=200)]
    facts: dict[str, Any] = {}
    labels: Labels = {}
    replace: bool = False


class Joined(msgspec.Struct, frozen=True):
    """Credentials of a node that has joined, `Authorization: Node ID:SECRET`; shown this once.

    Args:
        node: the first half.
        secret: the second half.
        name, labels: as the server knows it.
        version: of the server.
    """

    node: str
    secret: str
    name: str
    labels: dict[str, str]
    version: str = __version__


class Free(msgspec.Struct, frozen=True):
    """A share of a machine."""

    millicores: int = 0
    memory_bytes: int = 0
    gpus: int = 0


class NodeRow(msgspec.Struct, frozen=True):
    """A node; moments are seconds since the epoch.

    Args:
        id: opaque.
        name: `local` is the server's own machine.
        state: `active`, `cordoned` or `draining`.
        linked: it is connected now.
        version: of its package; empty if it has said none.
        labels: for placement.
        created, joined, seen: of its name, of its credentials, of its last word; `seen` is null before the first one.
        has, free: the machine, and what of it is free; null while nothing is known.
        gpus: names of its devices.
        volumes: identity of the file system of `/data`; begins with `own:` for its own disk, empty while it is not known.
        apart: no calls are placed there, since it does not share `/data` with the others.
        catching_up: the reason for which no calls are placed there yet: it has not taken secrets, quotas or removals.
        running, waiting: calls that run there, and that wait there; null while nothing is known.
        lines: clients' lines that go there.
        detached: detached calls that are left there, of a node that takes no new calls; null while nothing is known.
    """

    id: str
    name: str
    state: str
    linked: bool
    version: str
    labels: dict[str, str]
    created: float
    joined: float
    seen: float | None
    has: Free | None = None
    free: Free | None = None
    gpus: list[str] = []
    volumes: str = ""
    apart: bool = False
    catching_up: str = ""
    running: int | None = None
    waiting: int | None = None
    lines: int | None = None
    detached: int | None = None


class NodeRows(msgspec.Struct, frozen=True):
    """All nodes: the server's own first, then by name."""

    nodes: list[NodeRow]
    version: str = __version__


class Machine(msgspec.Struct, frozen=True):
    """A machine as every user may see it; see `NodeRow`. `catching_up` tells no reason."""

    name: str
    state: str
    linked: bool
    has: Free | None
    free: Free | None
    gpus: list[str]
    apart: bool
    catching_up: bool
    running: int | None
    waiting: int | None


class Machines(msgspec.Struct, frozen=True):
    """The machines that run functions: the server's own first, then by name."""

    machines: list[Machine]


def machine(row: NodeRow) -> Machine:
    """Return those parts of a node's row that every user may see."""
    seen = {name: getattr(row, name) for name in Machine.__struct_fields__}
    return Machine(**{**seen, "catching_up": bool(row.catching_up)})


def plain_row(node: NodeAccount) -> NodeRow:
    """Return a node's row by its account alone: nothing is known of it now."""
    return NodeRow(
        node.id,
        node.name,
        node.state,
        False,
        str(node.facts.get("version", ""))[:64],
        dict(node.labels),
        node.created,
        node.joined,
        node.seen,
    )
