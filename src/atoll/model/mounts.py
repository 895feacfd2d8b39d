"""Parts of the host that a confined process sees, as values that all layers share."""

from __future__ import annotations

from dataclasses import dataclass, field

OWNER = "local"
"""The user who owns the machine's daemon; all others are users of a server."""


@dataclass(frozen=True)
class Bind:
    """A host path that is shown inside a sandbox.

    Args:
        source: absolute path on the host; a symlink is followed once, when the sandbox is made.
        target: absolute path inside.
        writable: read-only unless True.
    """

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Identity:
    """User and group of a confined process: the same ids inside and on the host.

    Args:
        uid, gid: never 0.
        name: the login name that the sandbox's `passwd` gives.
        served: it works for a user of a server, and ends with the node's lease (`sandbox.fence`).
    """

    uid: int
    gid: int
    name: str = "user"
    served: bool = field(default=False, compare=False)
