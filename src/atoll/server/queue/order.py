"""The order of requests that wait for one endpoint: by priority, and then as they came."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field

from atoll.server.endpoints.runners.pool import Pool
from atoll.server.endpoints.runners.runner import Runner
from atoll.server.queue.attempt import Attempted
from atoll.server.queue.heads import Head

NORMAL, LOW = 0, 1
"""Priorities: those of the second run when none of the first waits."""
WAITING, RUNNING, OVER = "waiting", "running", "over"


@dataclass(eq=False, slots=True)
class Entry:
    """A request that is not over, as this process knows it.

    Args:
        id: of the request.
        owner, alias: its endpoint; the owner's id.
        caller: the id of the user who asked; empty for anybody.
        deadline: it must have started by then, in seconds since the epoch; 0 for none.
        order: its place; less is sooner.
        attempts: that have failed.
        attempt: the id of the last one.
        head, body: kept where there is room; else None.
        body_bytes: the size of the body.
        began, moment: when it began to run, by the monotonic clock and since the epoch.
        printed_before: bytes of its runner's output from before.
        job: makes the attempt while it runs; at `place`.
        timer: for its deadline, or its next attempt.
        watchers: are told of changes.
        has_url: somebody may have to be told of its answer.
    """

    id: str
    owner: str
    owner_name: str
    alias: str
    caller: str
    priority: int = NORMAL
    submitted: float = 0.0
    deadline: float = 0.0
    no_retry: bool = False
    order: int = 0
    state: str = WAITING
    attempts: int = 0
    attempt: str = ""
    cancelled: bool = False
    head: Head | None = None
    body: bytes | None = None
    body_bytes: int = 0
    began: float = 0.0
    moment: float = 0.0
    printed_before: int = 0
    job: asyncio.Task[Attempted] | None = None
    timer: asyncio.TimerHandle | None = None
    watchers: set[asyncio.Event] = field(default_factory=set)
    place: tuple[Pool, Runner] | None = None
    has_url: bool = True

    def tell(self) -> None:
        """Wake those who watch it."""
        for one in self.watchers:
            one.set()

    def stop_timer(self) -> None:
        """Forget what was to happen at a time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Entries(dict[str, Entry]):
    """Entries by their ids.

    Attributes:
        of: how many there are of each owner, and of each owner, alias and caller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[tuple[str, ...]] = Counter()

    def __setitem__(self, name: str, entry: Entry) -> None:
        if name not in self:
            self._count(entry, 1)
        super().__setitem__(name, entry)

    def end(self, name: str) -> None:
        """Forget an entry, where there is one."""
        if (entry := self.pop(name, None)) is not None:
            self._count(entry, -1)

    def _count(self, entry: Entry, step: int) -> None:
        for key in ((entry.owner,), (entry.owner, entry.alias, entry.caller)):
            self.of[key] += step
            if not self.of[key]:
                del self.of[key]


class Order:
    """Entries in their order."""

    def __init__(self) -> None:
        self._orders: tuple[list[int], list[int]] = ([], [])
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Add an entry at its place."""
        lane = self._orders[entry.priority]
        if not lane or lane[-1] < entry.order:
            lane.append(entry.order)
        else:
            insort(lane, entry.order)
        self._entries[entry.order] = entry

    def take(self) -> Entry | None:
        """Remove the first entry, and return it; None for none."""
        for lane in self._orders:
            if lane:
                return self._entries.pop(lane.pop(0))
        return None

    def remove(self, entry: Entry) -> bool:
        """Remove an entry; return whether it was there."""
        if self._entries.pop(entry.order, None) is None:
            return False
        lane = self._orders[entry.priority]
        del lane[bisect_left(lane, entry.order)]
        return True

    def position(self, entry: Entry) -> int:
        """Return how many are before an entry, which need not be here."""
        before = len(self._orders[NORMAL]) if entry.priority else 0
        return before + bisect_left(self._orders[entry.priority], entry.order)

    def all(self) -> list[Entry]:
        """Return the entries, the first one first."""
        return [self._entries[order] for lane in self._orders for order in lane]
