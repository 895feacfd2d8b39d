"""The requests that wait, in the order in which they are to be served. Pure.

Theory of operation. Each user has a line of their own: requests of programs in the order in which they came, and those
of functions by turns with them. The next to be served is the first of the line whose user has the fewest running cores
for their weight. Of users with as many the one goes first who has waited longest since the last grant, then the one who
came first. So a user with 10,000 requests holds up another's first one for as long as one call takes, at most.

With one user nothing is compared: the line is the order.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from atoll.engine.actions import Request
from atoll.engine.ledger import Worker
from atoll.model.specs import WorkerKey

_MOST_SERVED = 10_000
"""Users whose last grant is remembered."""

_LEAST_MILLICORES = 1
"""What a request that takes no computing time counts, so that no user goes first for ever."""


class WaitingLine:
    """The requests that wait.

    Args:
        workers: those that live, by id; looked at, never changed.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._nested = 0
        self._served: dict[str, int] = {}
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __contains__(self, request: str) -> bool:
        return request in self._requests

    def __getitem__(self, request: str) -> Request:
        return self._requests[request]

    def values(self) -> Iterable[Request]:
        """Return the requests in the order in which they came."""
        return self._requests.values()

    def count(self, user: str | None) -> int:
        """Return how many requests wait, of one user or of all."""
        return len(self._requests) if user is None else self._users[user]

    def add(self, request: Request) -> None:
        """Put a request at the end of its user's line."""
        self._requests[request.id] = request
        self._users[request.key.sandbox.user] += 1
        self._nested += request.parent is not None

    def remove(self, request: str) -> bool:
        """Take a request out; return whether it has waited."""
        found = self._requests.pop(request, None)
        if found is None:
            return False
        user = found.key.sandbox.user
        self._users[user] -= 1
        if not self._users[user]:
            del self._users[user]
        self._nested -= found.parent is not None
        return True

    def serve(self, request: str) -> None:
        """Take a request out that has got its worker: those of its user come later than others' from now on."""
        self._count += 1
        user = self._requests[request].key.sandbox.user
        self._served.pop(user, None)
        self._served[user] = self._count
        if len(self._served) > _MOST_SERVED:
            del self._served[next(iter(self._served))]
        self.remove(request)

    @property
    def only(self) -> tuple[str, WorkerKey] | None:
        """The client and the key of all requests, where these are the same; None where they differ."""
        requests = iter(self._requests.values())
        first = next(requests, None)
        # A process asks once for each use: so more than one of the same use are few, and others end the look.
        if first is None or any(one.client != first.client or one.key != first.key for one in requests):
            return None
        return first.client, first.key

    def in_turn(self) -> Iterable[Request]:
        """Return the requests in the order in which they are to be served; later changes do not count."""
        if len(self._users) > 1:
            return self._fairly()
        return self._turns(self._requests.values())

    def nested(self) -> list[Request]:
        """Return the requests of functions, in the order in which they are to be served."""
        if not self._nested:
            return []
        return [request for request in self.in_turn() if request.parent is not None]

    def line(self, user: str) -> list[Request]:
        """Return the requests of a user, in their own order."""
        if len(self._users) == 1 and user in self._users:
            return self._turns(self._requests.values())
        return self._turns(one for one in self._requests.values() if one.key.sandbox.user == user)

    def positions(self) -> dict[str, int]:
        """Return how many of its own user's requests are before each one."""
        lines = [self._turns(line) for line in self._lines().values()]
        return {one.id: place for line in lines for place, one in enumerate(line)}

    def _lines(self) -> dict[str, list[Request]]:
        if len(self._users) == 1:
            return {next(iter(self._users)): list(self._requests.values())}
        lines: dict[str, list[Request]] = {}
        for request in self._requests.values():
            lines.setdefault(request.key.sandbox.user, []).append(request)
        return lines

    def _turns(self, line: Iterable[Request]) -> list[Request]:
        """Return one user's requests in their order: each comes behind as many as its caller holds or has asked for."""
        if not self._nested:
            return list(line)
        before: Counter[str] = Counter()  # leases that the caller holds or asked for earlier
        turns: list[tuple[int, Request]] = []
        for request in line:
            caller = request.parent or ""
            if caller not in before:
                parent = self._workers.get(caller)
                before[caller] = 0 if parent is None else parent.children
            turns.append((before[caller], request))
            before[caller] += 1
        return [request for _, request in sorted(turns, key=lambda turn: turn[0])]

    def _fairly(self) -> Iterator[Request]:
        running = running_millicores(self._workers.values())
        lines = {user: iter(self._turns(line)) for user, line in self._lines().items()}
        served = dict(self._served)
        count = self._count
        # The place of the line makes each entry unique: requests are never compared.
        heap = [
            (running[user] / first.share.weight, served.get(user, 0), place, user, first)
            for place, (user, line) in enumerate(lines.items())
            if (first := next(line, None)) is not None
        ]
        heapq.heapify(heap)
        while heap:
            _, _, place, user, request = heap[0]
            yield request
            running[user] += max(request.needs.millicores, _LEAST_MILLICORES)
            count += 1
            following = next(lines[user], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (running[user] / following.share.weight, count, place, user, following))


def running_millicores(workers: Iterable[Worker]) -> Counter[str]:
    """Return the computing time that each user's leases take; calls that wait for nested ones lend theirs to these."""
    found: Counter[str] = Counter()
    for worker in workers:
        if worker.request is not None and not worker.paused and not worker.children:
            found[worker.key.sandbox.user] += worker.needs.millicores
    return found
