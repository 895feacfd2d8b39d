"""Accounts of everything that the code of workers holds in the daemon: connections, bytes, storage peers.

Each account is bounded for a worker, a sandbox and a user, and in all, so that a hostile function leaves room for the
other functions of its user, and a hostile user for other users.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from atoll.wire.bounds import NESTED, Pace


class Opener(NamedTuple):
    """The code that has opened a nested connection.

    Args:
        pace: of all nested connections of the worker together.
    """

    user: str
    sandbox: str
    worker: str
    pace: Pace = NESTED.pace()


class Account:
    """Amounts held at a time.

    Args:
        worker, sandbox, user, total: the most for each of them.
    """

    def __init__(self, worker: int, sandbox: int, user: int, total: int) -> None:
        self.most = {"worker": worker, "sandbox": sandbox, "user": user, "total": total}
        self._held: Counter[tuple[str, str]] = Counter()

    def full(self, opener: Opener, amount: int = 1) -> str:
        """Return what has no room for an amount: `worker`, `sandbox`, `user` or `total`; empty where there is room."""
        for owner in _owners(opener):
            if self._held[owner] + amount > self.most[owner[0]]:
                return owner[0]
        return ""

    def take(self, opener: Opener, amount: int = 1) -> bool:
        """Take an amount, or give one back that is negative; return whether there is room."""
        if amount > 0 and self.full(opener, amount):
            return False
        for owner in _owners(opener):
            self._held[owner] += amount
            if not self._held[owner]:
                del self._held[owner]
        return True

    def held(self, opener: Opener) -> int:
        """Return the amount of the worker."""
        return self._held["worker", opener.worker]


def _owners(opener: Opener) -> tuple[tuple[str, str], ...]:
    return ("worker", opener.worker), ("sandbox", opener.sandbox), ("user", opener.user), ("total", "")
