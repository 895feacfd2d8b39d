"""The shares of users in the server's memory and lines: whoever has much leaves room for those who have little."""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from atoll.server.line.kept import Kept
from atoll.server.paces import Paces

PART = 8
"""The part of the machine's memory that sessions may hold."""
LEAST_BYTES = 512 << 20
USER_PART = 4
"""The part of it that one user may hold."""
FREE_TIMES = 3
"""A user may have so many times the lines that are free: one alone three quarters of all."""


class Bytes:
    """Bytes that sessions hold for clients until the node or a worker takes them.

    Args:
        most: of all users together; by default a part of the machine's memory.
    """

    def __init__(self, most: int = 0) -> None:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.most = most or max(machine // PART, LEAST_BYTES)
        self.most_of_user = self.most // USER_PART if most else max(self.most // USER_PART, LEAST_BYTES // 2)
        self._of_user: Counter[str] = Counter()
        self.held = 0

    def take(self, user: str, count: int) -> bool:
        """Count more bytes; return whether there is room for them, else they are not counted."""
        if self.held + count > self.most or self._of_user[user] + count > self.most_of_user:
            return False
        self._of_user[user] += count
        self.held += count
        return True

    def give(self, user: str, count: int) -> None:
        """Count bytes no longer."""
        self.held -= count
        self._of_user[user] -= count
        if self._of_user[user] <= 0:
            del self._of_user[user]


class Bounds(NamedTuple):
    """The bounds of users over all sessions of one process.

    Args:
        suffix: for names of workers, so that a later line about one finds its machine.
    """

    shares: Bytes
    paces: Paces
    kept: Kept
    suffix: str = ""


def may_open(own: int, all_lines: int, most: int) -> bool:
    """Return whether a user with `own` lines may open another, where all together have so many of `most`."""
    return own < FREE_TIMES * (most - all_lines)
