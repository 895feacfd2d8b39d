"""The users whose wishes wait, and the order of their turns. Pure.

Theory of operation. The next to be served is the first wish of the user who has the fewest placed cores for their
weight; of users with as many, of the one who has waited longest since the last turn. A user's wishes of one kind keep
their order. Each kind (`kinds`) has a heap of its users; a user whose turn has come nearer gets a new
entry there before the next one is served; one whose turn is later is seen when the entry comes up.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import NamedTuple

from atoll.server.cluster.contract import Wish

_BLOCK = 1024
_PRECISION = 5
"""Digits of a binary number: a user's share within a sixteenth, so that it seldom changes."""
_MOST_STALE = 512
_LEAST_MILLICORES = 1
"""Placed cores of a wish that takes none, so that no user goes first for ever."""


class Waiting(NamedTuple):
    """A wish that waits.

    Args:
        number: in the order in which wishes came.
        place: in the order of its user's.
    """

    wish: Wish
    number: int
    place: int
    since: float


Rank = tuple[int, int, int]
"""A user's placed cores for their weight, since which turn the user waits, and the number of the wish."""


Turn = tuple[bool, float, float, int]
"""Whether patience has not ended, and then a rank; or since when the wish waits."""
NO_TURN: Turn = (True, float("inf"), 0.0, 0)

_Entry = tuple[int, int, int, int, "User"]
"""A rank, the user's version, and the user."""


class User:
    """One user: placed cores, and what waits.

    Args:
        lines: what waits, by kind.
        share: placed thousandths of cores for the weight, to five digits of a binary number.
        turn: since which the user waits.
    """

    __slots__ = ("_before", "_count", "lines", "placed", "share", "turn", "version", "waiting", "weight")

    def __init__(self) -> None:
        self.lines: dict[Line, OrderedDict[str, Waiting]] = {}
        self.placed = 0
        self.share = 0
        self.turn = 0
        self.version = 0
        self.waiting = 0
        self.weight = 1.0
        self._count = 0
        self._before: dict[int, int] = {}  # block of places -> bits of those that wait

    @property
    def idle(self) -> bool:
        """Nothing is placed and nothing waits: the user can be forgotten."""
        return not (self.placed or self.waiting)

    def add(self, line: Line, wish: Wish, number: int, now: float) -> None:
        """Put a wish at the end of the user's line."""
        waiting = Waiting(wish, number, self._count, now)
        block, bit = divmod(self._count, _BLOCK)
        self._before[block] = self._before.get(block, 0) | 1 << bit
        self._count += 1
        self.waiting += 1
        self.lines.setdefault(line, OrderedDict())[wish.id] = waiting

    def remove(self, line: Line, wish_id: str) -> Waiting:
        """Take a wish out."""
        own = self.lines[line]
        found = own.pop(wish_id)
        if not own:
            del self.lines[line]
        block, bit = divmod(found.place, _BLOCK)
        self._before[block] &= ~(1 << bit)
        if not self._before[block]:
            del self._before[block]
        self.waiting -= 1
        return found

    def position(self, line: Line, wish_id: str) -> int:
        """Return how many of the user's wishes wait before one."""
        block, bit = divmod(self.lines[line][wish_id].place, _BLOCK)
        before = sum(bits.bit_count() for number, bits in self._before.items() if number < block)
        return before + (self._before[block] & (1 << bit) - 1).bit_count()

    def rank(self, number: int) -> Rank:
        """Return the turn of a wish of this user with that number."""
        return self.share, self.turn, number

    def count(self, wish: Wish) -> None:
        """Count a wish as placed: the user comes later in turn, which lines see when it would be served."""
        self.placed += wish.millicores or _LEAST_MILLICORES
        self._weigh()

    def uncount(self, wish: Wish) -> None:
        """No longer count a wish as placed: the user comes earlier in turn."""
        self.placed -= wish.millicores or _LEAST_MILLICORES
        if self._weigh():
            for line in self.lines:
                line.touch(self)

    def _weigh(self) -> bool:
        """Find the share anew; return whether it differs."""
        share = int(self.placed / self.weight)
        spare = share.bit_length() - _PRECISION
        if spare > 0:
            share = share >> spare << spare
        if share == self.share:
            return False
        self.share = share
        self.version += 1
        return True


class Line:
    """The wishes of one kind that wait, by turns of their users."""

    def __init__(self) -> None:
        self.users: dict[User, _Entry] = {}  # the one entry of each that counts
        self._heap: list[_Entry] = []
        self._stale: dict[User, None] = {}

    def touch(self, user: User) -> None:
        """Note that a user's turn has changed: it is entered when somebody is to be served, or when many have changed."""
        stale = self._stale
        stale[user] = None
        if len(stale) > _MOST_STALE:
            self.enter(user)

    def enter(self, user: User) -> None:
        """Note a user's turn, or that there is none."""
        self._stale.pop(user, None)
        own = user.lines.get(self)
        if own is None:
            self.users.pop(user, None)
            if not self.users:
                self._heap.clear()
            return
        number = next(iter(own.values())).number
        old = self.users.get(user)
        if old is not None and old[2] == number and old[3] == user.version:
            return
        entry = (user.share, user.turn, number, user.version, user)
        self.users[user] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self.users) + 64:
            self._heap = list(self.users.values())
            heapq.heapify(self._heap)

    def first(self) -> tuple[Rank, User, Waiting]:
        """Return the wish that is next, its user and its turn; some wish must wait."""
        while self._stale:
            self.enter(self._stale.popitem()[0])
        heap = self._heap
        while True:
            entry = heap[0]
            user = entry[4]
            if self.users.get(user) is not entry:
                heapq.heappop(heap)
            elif entry[3] != user.version:
                self.enter(user)
            else:
                return entry[:3], user, next(iter(user.lines[self].values()))
