"""Waits of requests: the resources that each one keeps from others, and its own wait in words. Pure.

A request waits for its own `max_concurrency`, else for its turn, else for a resource: only the first in turn is held up
by resources themselves, and those behind it wait for it.

A request that lacks a resource keeps it from those behind it, or it would starve. That is fair only as long as it waits
for calls of others. One that does not fit beside calls of its own side waits for these anyhow, and others lose nothing
by running meanwhile. There are three sides: the calls of one root call (its family), of one program, and of one user.
So neither a function nor a program can stop others by two calls that do not fit beside one another.

A call of another side may run for hours, too. Nobody knows for how long, so a request that waits holds up other sides
by turns: for some seconds, and then not for as long (`fairness.turns`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.engine.actions import Request
from atoll.engine.fairness.turns import BothTurns, turn_of
from atoll.engine.ledger import Lack, Ledger, Worker
from atoll.model.specs import WorkerKey
from atoll.terminal_text import printable

_ORDER = (Lack.GPUS, Lack.MEMORY, Lack.CPU, Lack.WORKERS, Lack.SANDBOXES)
"""The lacking resource that is named, where there are several: the one that is given back last comes first."""

MAX_NAME = 40
SHORT_ID = 8
"""Characters of a function's name, and of a call's id, in a reason."""


class Wait(NamedTuple):
    """The wait of one request.

    Args:
        user: the request's.
        lack: the resource that it waits for; None while others are before it.
        holders: workers with a share of that resource, and their shares: millicores, bytes, or a count.
        before: how many of the user's requests are before it.
    """

    user: str
    lack: Lack | None
    holders: tuple[tuple[str, int], ...] = ()
    before: int = 0


@dataclass(frozen=True)
class Holder:
    """A call that holds a resource, as its user knows it.

    Args:
        user: whose it is.
        function: its name, as a client or a worker claims.
        call: its id; empty where it is not known.
        seconds: for how long the call's lease has been held.
    """

    user: str
    function: str
    call: str = ""
    seconds: float = 0.0


@dataclass
class Kept:
    """What earlier requests keep from a later one.

    Args:
        lacks: the resources that they wait for.
        gpus: names of the GPUs that they wait for.
    """

    lacks: set[Lack] = field(default_factory=set)
    gpus: set[str] = field(default_factory=set)

    @property
    def from_all(self) -> bool:
        """A resource is kept that every request needs."""
        return not self.lacks.isdisjoint(_NEEDED_BY_ALL)


_NEEDED_BY_ALL = frozenset({Lack.CPU, Lack.WORKERS, Lack.SANDBOXES})

_Side = tuple[str, str]
_EVERYBODY: _Side = ("everybody", "")


class Queue:
    """The requests that wait, seen once from the first to the last, and what each keeps from those behind it.

    A queue without anything kept costs later requests nothing: their sides are looked for when first needed.
    """

    def __init__(self, ledger: Ledger, now: float, turns: BothTurns) -> None:
        self._ledger = ledger
        self._now = now
        self._turns = turns
        self._wishes: dict[bool, float] = {}
        self._wanted: dict[_Side, Kept] = {}
        self._kept: dict[_Side, Kept] = {}
        self._members: defaultdict[_Side, list[str]] = defaultdict(list)
        self._fits: dict[tuple[_Side, str | None, WorkerKey, str], bool] = {}
        self._bound: set[str] = set()
        self._capped: set[str] = set()
        self._closed: set[tuple[str, str]] = set()
        self._roots: dict[str, Request] = {}

    def wait(self, request: Request, lacks: Collection[Lack], since: float) -> None:
        """Note that a request waits, and for what; one that waits for its own bound keeps nothing from others."""
        if Lack.SHARE in lacks:
            self._capped.add(request.key.sandbox.user)
            self._closed.add((request.key.sandbox.user, ""))
            return
        if Lack.CONCURRENCY in lacks:
            self._bound.add(request.identity)
            return
        if not lacks:  # it was served, perhaps
            self._members.clear()
            self._fits.clear()
            return
        side, own = self._side_that_waits(request), self._sides(request)[1 if request.parent is None else 2]
        gpus = self._ledger.gpus_for(request) if Lack.GPUS in lacks else ()
        if side != own and side[0] != "family":
            nested = request.parent is not None
            self._wishes[nested] = max(self._wishes.get(nested, 0.0), turn_of(request, self._now - since))
        for kept, waits in (
            (self._wanted, side),
            (self._kept, own if self._turns.of(request).open and side[0] != "family" else side),
        ):
            found = kept.setdefault(waits, Kept())
            found.lacks.update(lacks)
            found.gpus.update(gpus)
        if self._kept[waits].from_all and waits[0] in ("user", "program"):
            user = request.key.sandbox.user
            self._closed.add((user, "") if waits[0] == "user" else (user, f" {self._root(request).client}"))

    def close(self) -> None:
        """Tell the turns how long the requests that were seen want to hold up others."""
        self._turns.ask(self._now, self._wishes)

    @property
    def full(self) -> bool:
        """Nobody can be served any more."""
        return _EVERYBODY in self._kept and self._kept[_EVERYBODY].from_all

    def _from(self, request: Request, all_kept: dict[_Side, Kept]) -> Kept:
        """Return what earlier requests keep from this one."""
        found = Kept()
        for side in (_EVERYBODY, *self._sides(request)) if all_kept else ():
            if (kept := all_kept.get(side)) is not None:
                found.lacks |= kept.lacks
                found.gpus |= kept.gpus
        return found

    def is_closed(self, request: Request) -> bool:
        """Return whether a program's request is known to be shut out, or bound; as fast as can be, where many wait."""
        user = request.key.sandbox.user
        return bool(self._closed) and (
            (user, "") in self._closed or (request.parent is None and (user, f" {request.client}") in self._closed)
        )

    def is_shut_out(self, request: Request) -> bool:
        """Return whether earlier requests keep from this one what every request needs."""
        return any(side in self._kept and self._kept[side].from_all for side in self._sides(request))

    def comes_later(self, request: Request) -> bool:
        """Return whether the request has to let earlier ones go first, for the resources that it needs."""
        kept = self._from(request, self._kept)
        return (Lack.MEMORY in kept.lacks and request.needs.memory_bytes > 0) or not kept.gpus.isdisjoint(
            self._ledger.gpus_for(request)
        )

    def is_bound(self, request: Request) -> bool:
        """Return whether an earlier request of the same function, or of the same user, waits for its bound."""
        if self._capped and request.key.sandbox.user in self._capped:
            return True
        return bool(request.max_concurrency) and request.identity in self._bound

    def wants(self, worker: Worker) -> bool:
        """Return whether the worker holds a resource that a request of its side, or of no side, waits for."""
        if worker.request is None:
            return False
        kept = self._from(worker.request, self._wanted)
        return bool(
            kept.from_all
            or (Lack.MEMORY in kept.lacks and worker.needs.memory_bytes)
            or not kept.gpus.isdisjoint(worker.gpus)
            or (worker.request.identity and worker.request.identity in self._bound)
            or worker.key.sandbox.user in self._capped
        )

    def _side_that_waits(self, request: Request) -> _Side:
        """Return the largest side whose members alone, of all others, wait for the request."""
        found = _EVERYBODY
        for side in self._sides(request):
            if not self._lacks_beside(request, side):
                break
            found = side
        return found

    def _lacks_beside(self, request: Request, side: _Side) -> bool:
        """Return whether the request does not fit beside the calls of a side alone."""
        if not self._members:
            for worker in self._ledger.workers.values():
                for one in self._sides(worker.request) if worker.request is not None else ():
                    self._members[one].append(worker.id)
        if not (members := self._members.get(side)):
            return False
        use = (side, request.parent, request.key, request.identity)
        if use not in self._fits:
            self._fits[use] = self._ledger.lacks_beside(request, frozenset(members)) is None
        return not self._fits[use]

    def _sides(self, request: Request) -> tuple[_Side, ...]:
        """Return the sides that a request is on, the largest first."""
        root = self._root(request)
        user = request.key.sandbox.user
        return ("user", user), ("program", f"{user} {root.client}"), ("family", root.id)

    def _root(self, request: Request) -> Request:
        """Return the root call's request."""
        if request.parent is None:
            return request
        if request.id not in self._roots:
            found = request
            while (caller := self._ledger.workers.get(found.parent or "")) is not None and caller.request is not None:
                found = caller.request
            self._roots[request.id] = found
        return self._roots[request.id]


def first_in_turn(waiting: Iterable[Request], ledger: Ledger) -> str:
    """Return the first of one user's requests, in turn, that is not held up by its own bound; empty when there is none."""
    return next((one.id for one in waiting if not ledger.is_bound(one)), "")


def explain(request: Request, before: int, first: str, ledger: Ledger) -> Wait:
    """Return the wait of a request.

    Args:
        before: how many of its user's requests are before it.
        first: as `first_in_turn` returns it.
    """
    user = request.key.sandbox.user
    if ledger.is_bound(request):
        return Wait(user, Lack.CONCURRENCY, tuple((one.id, 1) for one in ledger.holders(request.identity)), before)
    if request.id != first:
        return Wait(user, None, (), before)
    lacks = ledger.lacks(request)
    if Lack.SHARE in lacks:
        return Wait(user, Lack.SHARE, tuple((one.id, 1) for one in ledger.leases_of(user)), before)
    lack = next((one for one in _ORDER if one in lacks), None)
    return Wait(user, lack, _shares(request, lack, ledger))


def _shares(request: Request, lack: Lack | None, ledger: Ledger) -> tuple[tuple[str, int], ...]:
    leased = [one for one in ledger.workers.values() if one.request is not None]
    fitting = request.needs.cards or ledger.bounds.gpus

    def share(worker: Worker) -> int:
        match lack:
            case Lack.CPU:
                rides = worker.request is not None and worker.request.parent in ledger.workers
                return 0 if worker.paused or rides else worker.needs.millicores
            case Lack.MEMORY:
                return worker.needs.memory_bytes
            case Lack.GPUS:
                return sum(gpu in fitting for gpu in worker.gpus)
            case _:
                return 1 if lack is not None else 0

    held = leased if lack not in (Lack.MEMORY, Lack.GPUS) else [*leased, *ledger.dying.values()]
    return tuple((one.id, amount) for one in held if (amount := share(one)))


# --- in words ---------------------------------------------------------------------------------------------------------


def reason(wait: Wait, function: str, find: Callable[[str], Holder | None]) -> str:
    """Return a wait in words, in one line that is safe to print.

    Args:
        function: the name of the function that waits.
        find: returns the holder that a worker is; None for one that has just ended.
    """
    held = [(amount, holder) for name, amount in wait.holders if (holder := find(name)) is not None]
    held.sort(key=lambda one: (one[1].user == wait.user, one[0], one[1].seconds), reverse=True)
    if wait.lack is Lack.CONCURRENCY:
        only = f" ({_details(held[0][1])})" if len(held) == 1 and _details(held[0][1]) else ""
        return f"max_concurrency of {_name(function)}: {len(wait.holders)} running{only}"
    if wait.lack is Lack.SHARE:
        count = len(wait.holders)
        return f"the most calls of one user at a time: {count} running"
    if wait.before:
        return f"its turn: {wait.before} call{'s' if wait.before > 1 else ''} before it"
    if wait.lack is None or not wait.holders:
        return "its turn: next in line"
    amount = _amount(wait.lack, sum(amount for _, amount in wait.holders))
    by = _people(wait.user, [holder for _, holder in held])
    return f"{amount} held by {by}" if by else f"{amount} about to be free"


def _amount(lack: Lack, total: int) -> str:
    match lack:
        case Lack.CPU:
            return f"{total / 1000:g} CPU{'' if total == 1000 else 's'}"
        case Lack.MEMORY:
            return f"{total / (1 << 30):.1f} GiB of memory" if total >= 1 << 30 else f"{total >> 20} MiB of memory"
        case Lack.GPUS:
            return f"{total} GPU{'' if total == 1 else 's'}"
        case Lack.WORKERS:
            return f"all {total} workers"
        case _:
            return f"all sandboxes, with {total} worker{'' if total == 1 else 's'},"


def _people(user: str, holders: list[Holder]) -> str:
    """Name the first of the user's own calls, count the rest, and name nothing of others."""
    own = [one for one in holders if one.user == user]
    parts = []
    if own:
        details = _details(own[0])
        parts.append(f"{_name(own[0].function)} ({details})" if details else _name(own[0].function))
    if len(own) > 1:
        parts.append(f"{len(own) - 1} other call{'s' if len(own) > 2 else ''}")
    if len(own) < len(holders):
        parts.append("other users")
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _details(holder: Holder) -> str:
    return ", ".join(part for part in (printable(holder.call[:SHORT_ID]), _duration(holder.seconds)) if part)


def _name(function: str) -> str:
    return printable(function[:MAX_NAME]) or "a call"


def _duration(seconds: float) -> str:
    """Return a coarse duration, so that a reason changes rarely: `20 s`, `12 min`, `3 h`."""
    if seconds < 60:
        return f"{int(seconds) // 10 * 10} s" if seconds >= 10 else ""
    return f"{int(seconds) // 60} min" if seconds < 3600 else f"{int(seconds) // 3600} h"
