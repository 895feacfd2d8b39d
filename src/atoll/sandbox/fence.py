"""The fence: until when the sandboxes of a server's users may run on a node that has joined the server.

Theory of operation. A node may run calls of its server's users while it has a lease from the server. The lease is a
moment of the clock that counts a suspended machine's time as well. When it passes, every sandbox whose identity is
`served` is killed: those of functions and shells, storage peers and builds. Two processes keep it, each by itself: the
daemon, and the orphan killer (`orphans`), which knows all sandboxes by pidfds. So it holds when either is stopped,
hangs or is killed. No sandbox starts after it: a gate (`report`) is opened only before the moment, and after the orphan
killer knows pid 1 behind it.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from atoll import errors

FILE = "joined"
"""In `run`: the latest moment of a machine that has joined a server."""
_WIDTH = 24


def now() -> float:
    """Return the fence's clock, in seconds; it goes on while the machine is suspended, and all processes share it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def told(file: Path) -> float | None:
    """Return the latest moment that a machine's daemons were told; None for a machine that has joined no server.

    A file that is just being written has none either: who needs it looks again.
    """
    try:
        found = float(file.read_text())
    except (OSError, ValueError):
        return None
    return found if math.isfinite(found) else None


def note(file: Path, until: float) -> None:
    """Keep a moment for other processes, in place: a disk that has become full does not end the lease.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, f"{until:.6f}".rjust(_WIDTH).encode(), 0)
    finally:
        os.close(descriptor)


def refusal() -> errors.HostUnreachable:
    """Return why nothing of a server's users runs here."""
    return errors.HostUnreachable(
        "the node lost its server, and has ended the calls of its users",
        hint="call again: another node takes the call, or this one when it has its server again",
        fenced=True,
    )


class Fence:
    """The moment of one daemon.

    Args:
        until: seconds of `now`; None for a machine that has joined no server.
    """

    def __init__(self, until: float | None = None) -> None:
        self.until = until

    @property
    def passed(self) -> bool:
        """Return whether served sandboxes may no longer run."""
        return self.until is not None and now() >= self.until

    @property
    def remaining_seconds(self) -> float | None:
        """Return how long they may run still; None for no bound."""
        return None if self.until is None else max(0.0, self.until - now())
