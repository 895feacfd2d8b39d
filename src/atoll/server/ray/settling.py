"""Decisions on holders: which to ask Ray for, which to withdraw, which to give back. Pure; the caller supplies the time.

Theory of operation. A wish that finds no room is covered by a holder that is asked for: it waits in Ray's queue like
the actors of other programs, and the autoscaler sees it. `Settling` withdraws holders that nobody waits for any more,
asks for those that are missing, keeps a few free ones ahead on each node (the warm pool), and gives back those that
were free for a while. While other programs wait for resources, free holders go back at once, also those that Atoll's
own queue could use once they are older than a turn: the queue asks Ray again, behind the others.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.server.cluster.contract import Wish
from atoll.server.ray import amounts
from atoll.server.ray.amounts import NOTHING, Amount
from atoll.server.ray.ledger import ASKED, Holder, Ledger

PREFIX = "atoll-holder-"
HUNGRY_SECONDS = 0.5
"""Seconds that an own holder waits at Ray before free ones of other sizes make room for it."""
PINNED_SECONDS = 5.0
"""Seconds for which a warm holder may wait at Ray: on a machine that is full it is demand that nobody can meet."""
UNJOINED_SECONDS = 60.0
LOOKED_AT = 256
"""Waiting wishes that are looked at, the next ones; more than can be asked for at a time."""


@dataclass(frozen=True)
class Rules:
    """How much is held without a call.

    Args:
        warm: free holders ahead on each node, by amount; counted while nobody else waits.
        idle_seconds: holders beyond the warm ones that were free for that long are given back.
        turn_seconds: after which a holder that becomes free is given back while other programs wait.
        asked: holders that wait at Ray at a time; further wishes wait in the server's own queue.
    """

    warm: Mapping[Amount, int] = field(default_factory=lambda: {Amount(1000): 1})
    idle_seconds: float = 10.0
    turn_seconds: float = 10.0
    asked: int = 64


class Settling:
    """Decides on the holders of one ledger; see the module."""

    def __init__(self, ledger: Ledger, rules: Rules) -> None:
        self._ledger = ledger
        self._rules = rules
        self._now = 0.0
        self._pressed = False

    def settle(self, now: float) -> None:
        """Bring the holders up to date: ask, withdraw, and mark those that leave."""
        self._now = now
        self._pressed = self._ledger.others_wait or self._is_hungry()
        spare = {name: one for name, one in self._ledger.holders.items() if one.state == ASKED}
        left = {
            (ray, with_gpus): self._ledger.free(ray, with_gpus=with_gpus)
            for ray in self._ledger.nodes
            for with_gpus in (False, True)
        }
        self._expect_asked(left, spare)
        self._cover_waiting(left, spare)
        self._keep_warm(left, spare)
        for name in spare:
            del self._ledger.holders[name]
        self._give_back(left)

    def _expect_asked(self, left: dict[tuple[str, bool], Amount], spare: dict[str, Holder]) -> None:
        """Pinned holders that were asked for where placements are beyond the share come first."""
        for (ray, with_gpus), free in list(left.items()):
            short = Amount(max(0, -free.millicores), max(0, -free.memory_bytes), max(0, -free.gpus))
            if short == NOTHING or bool(short.gpus) != with_gpus or self._ledger.is_draining(ray):
                continue  # else holders were lost, and their calls go on: ask for the same again
            found = next((one for one in spare.values() if one.pinned == ray and one.amount.covers(short)), None)
            if found is not None:
                del spare[found.name]
            else:
                self._ask(short, pinned=ray)

    def _cover_waiting(self, left: dict[tuple[str, bool], Amount], spare: dict[str, Holder]) -> None:
        asked = sum(one.state == ASKED for one in self._ledger.holders.values()) - len(spare)
        some = [key for key, free in left.items() if max(free.millicores, free.memory_bytes, free.gpus) > 0]
        some = [key for key in some if key not in self._ledger.closed and not self._ledger.is_draining(key[0])]
        unfit: dict[str, frozenset[str]] = {}
        for wish, preferred in self._ledger.waiting[:LOOKED_AT]:
            amount = amounts.of_wish(wish)
            if amount == NOTHING:
                continue
            if wish.volumes not in unfit:
                unfit[wish.volumes] = self._unfit(wish)
            besides = unfit[wish.volumes]
            key = next(
                (
                    key
                    for key in some
                    if key[1] == (amount.gpus > 0)
                    and left[key].covers(amount)
                    and key[0] not in besides
                    and wish.labels.items() <= self._ledger.nodes[key[0]].labels.items()
                ),
                None,
            )
            if key is not None:
                left[key] -= amount
                continue
            if asked >= self._rules.asked:
                continue  # a later wish may fit in what is free
            asked += 1
            found = next((one for one in spare.values() if self._serves(one, amount, wish, besides)), None)
            if found is not None:
                del spare[found.name]
            else:
                self._ask(amount, preferred=preferred, labels=dict(wish.labels), besides=besides)

    def _keep_warm(self, left: dict[tuple[str, bool], Amount], spare: dict[str, Holder]) -> None:
        if self._pressed:
            return
        for ray, node in self._ledger.nodes.items():
            # A machine that holds something is never idle for an autoscaler, so an idle one has no warm holders then.
            if not self._is_open(ray) or (self._ledger.scales and not self._ledger.is_used(ray)):
                continue
            available = node.free
            for amount, count in self._rules.warm.items():
                for _ in range(count):
                    key = ray, amount.gpus > 0
                    if left[key].covers(amount):
                        left[key] -= amount
                        continue
                    found = next((one for one in spare.values() if one.pinned == ray and one.amount == amount), None)
                    fits = available.covers(amount)
                    if found is None and fits:
                        self._ask(amount, pinned=ray)
                    elif found is not None and (fits or self._now - found.since < PINNED_SECONDS):
                        del spare[found.name]
                    if fits:
                        available -= amount

    def _give_back(self, left: dict[tuple[str, bool], Amount]) -> None:
        """Mark free holders that nobody needs; `left` is what neither calls, wishes nor the warm pool need."""
        self._ledger.closed.clear()
        for key, free in left.items():
            ray, with_gpus = key
            counted = sorted(self._ledger.counted(ray, with_gpus=with_gpus), key=lambda one: one.since)
            if counted and ray not in self._ledger.names and self._now - counted[0].since < UNJOINED_SECONDS:
                continue  # its node is about to join, for the first time or again, and tells then what runs there
            now_free = self._ledger.free(ray, with_gpus=with_gpus)
            over = self._now - self._ledger.windows.get(key, self._now) >= self._rules.idle_seconds
            surplus = free if self._pressed else free.least(self._ledger.lowest.get(key, NOTHING))
            if over:
                self._ledger.begin_window(key, self._now)
            for holder in counted:
                turn_over = self._ledger.others_wait and self._now - holder.since >= self._rules.turn_seconds
                unneeded = surplus.covers(holder.amount) and (self._pressed or over)
                if (turn_over and now_free.covers(holder.amount)) or unneeded:
                    self._ledger.leave(holder)
                    surplus -= holder.amount
                    now_free -= holder.amount
                elif turn_over:
                    self._ledger.closed.add(key)  # until it is free: small calls would keep a large holder for ever

    def next_due(self) -> float | None:
        """Return when `settle` has to look again though nothing happened; None when it has not."""
        due = [one.since + HUNGRY_SECONDS for one in self._waiting_at_ray() if one.since + HUNGRY_SECONDS > self._now]
        for key, since in self._ledger.windows.items():
            free = self._ledger.free(key[0], with_gpus=key[1])
            if any(free.covers(one.amount) for one in self._ledger.counted(key[0], with_gpus=key[1])):
                due.append(since + self._rules.idle_seconds)
        return min(due) if due else None

    def _waiting_at_ray(self) -> list[Holder]:
        return [one for one in self._ledger.holders.values() if one.state == ASKED and not one.pinned]

    def _is_hungry(self) -> bool:
        """Return whether an own holder waits at Ray, perhaps for what own free ones have."""
        return any(self._now - one.since >= HUNGRY_SECONDS for one in self._waiting_at_ray())

    def _is_open(self, ray: str) -> bool:
        member = self._ledger.members.get(self._ledger.node_of(ray))
        return member is not None and member.open and not self._ledger.is_draining(ray)

    def _unfit(self, wish: Wish) -> frozenset[str]:
        """Return the Ray nodes whose Atoll node cannot serve a wish, for reasons that Ray does not know."""
        return frozenset(self._ledger.unfit).union(
            member.ray
            for member in self._ledger.members.values()
            if not member.open
            or self._ledger.is_draining(member.ray)
            or (wish.volumes and member.volumes != wish.volumes)
        )

    @staticmethod
    def _serves(holder: Holder, amount: Amount, wish: Wish, besides: frozenset[str]) -> bool:
        return (
            not holder.pinned and holder.amount == amount and holder.labels == wish.labels and holder.besides == besides
        )

    def _ask(
        self,
        amount: Amount,
        *,
        pinned: str = "",
        preferred: str = "",
        labels: Mapping[str, str] | None = None,
        besides: frozenset[str] = frozenset(),
    ) -> None:
        name = PREFIX + uuid.uuid4().hex[:16]
        self._ledger.holders[name] = Holder(
            name, amount, ASKED, pinned, preferred, labels or {}, besides, since=self._now
        )
