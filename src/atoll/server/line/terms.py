"""Bounds and times of sessions, and the WebSocket as a session sees it."""

from __future__ import annotations

from typing import Any, Protocol

from atoll.wire.line import WINDOW

OPENING_SECONDS = 30.0
"""Seconds for a line's opening message to come, and for the next of the bytes beside it."""
LEAST_RATE = 16 << 10
"""Bytes a second beside an opening message, past `OPENING_SECONDS`: a client that sends less is ended."""
LATER_BYTES = 64 << 10
"""The most of a text after the first, which has certificates and requirements."""
MOST_PARTS = 40_000
"""Parts of a JSON text of a client (`wire.bounds.parts_of`): it is read on the loop, where all others wait for it."""
GRACE_SECONDS = 10.0
"""Seconds for a client to come back after a loss of its connection."""
EXPIRED_SECONDS = 3600.0
"""The most that a call may take to end after its client has not come back: its own grace is shorter."""
ADOPTED_SECONDS = 30.0
"""Seconds for a client to come back after a restart of the server."""
OVER_SECONDS = 60.0
"""Seconds for a client to close a line on which nothing more comes."""
LAST_SECONDS = 10.0
"""Seconds for the last bytes of a worker whose lease the node has ended."""
BUSY_BYTES = 1 << 20
"""Bytes that wait for the worker, beyond which nothing is acknowledged."""
UNACKNOWLEDGED_BYTES = WINDOW // 4

KINDS = {"lease": 3, "storage": 1, "dial": 1, "request": 0, "shell": 0, "exec": 0}
"""The opening messages that lines carry, with the number of descriptors that `granted` brings."""
COMMANDS = {"shell", "exec"}
"""Those for which the node gets the descriptors: streams of a command."""
HALVES = {*COMMANDS, "dial"}
"""Those whose client may end its own data, and go on with what comes."""
LATER = {"kill", "cancel", "withdrawn"}
"""Headers of a client after its first, which a lease knows."""


class Wire(Protocol):
    """The WebSocket of the moment."""

    def write(self, pieces: list[Any]) -> None:
        """Send pieces in order."""

    def end(self, code: int) -> None:
        """Say `close` and close the connection."""
