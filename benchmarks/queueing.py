"""Requests through the server's queue, beside Celery and procrastinate: seconds from the submit to the answer, and a rate.

    make bench SUITE=queueing

The function is an app of this process that answers at once, so what is measured is the queue: a request on the disk, its
way to a runner and back, its end on the disk, and the client's questions.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from queue_peers import Peer, celery, procrastinate
from table import Comparison, Row, Samples, command_line, finish, say
from tests.server.queue_app import Front, front

BODY = b'{"x": 1}'


class Client:
    """One connection of a client's."""

    def __init__(self, made: Front, path: str) -> None:
        self._connection = made.server.connection()
        self._headers, self._path = made.user("operator"), path

    def ask(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """Return an answer whose body has not been read."""
        self._connection.request(method, path, body, self._headers)
        return self._connection.getresponse()

    def submit(self) -> str:
        """Queue a request, and return its id."""
        return str(json.loads(self.ask("POST", self._path + "/echo", BODY).read())["request_id"])

    def answer(self, request: str) -> bytes:
        """Wait for the end of a request by its stream of states, and return the answer."""
        self.ask("GET", f"{self._path}/requests/{request}/status/stream").read()
        return self.ask("GET", f"{self._path}/requests/{request}").read()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextlib.contextmanager
def served(places: int) -> Iterator[tuple[Front, str]]:
    """Run a server with an endpoint that has so many places; yield it with the queue's path."""
    with front() as made:
        yield made, made.serve("bench", max_concurrency=1, max_multiplexing=places, keep_alive=60)


def latencies(made: Front, path: str, count: int) -> list[float]:
    """Return the seconds from submit to answer of requests one after the other."""
    with contextlib.closing(Client(made, path)) as client:
        return list(timed(lambda: client.answer(client.submit()), count))


def timed(work: Callable[[], object], count: int) -> Iterator[float]:
    """Yield the seconds that a piece of work takes, each time."""
    for _ in range(count):
        began = time.perf_counter()
        work()
        yield time.perf_counter() - began


def rate(made: Front, path: str, clients: int, count: int) -> float:
    """Return how many requests a second are submitted and answered by several clients, each submitting all first."""

    def work() -> None:
        with contextlib.closing(Client(made, path)) as client:
            for one in [client.submit() for _ in range(count)]:
                assert client.answer(one) == BODY

    return clients * count / at_once(work, clients)


def rate_of(peer: Peer, count: int) -> float:
    """Return the same of a peer, whose one client submits all first: Celery's waits for results in one thread."""
    began = time.perf_counter()
    for wait in [peer.submit(BODY.decode()) for _ in range(count)]:
        wait()
    return count / (time.perf_counter() - began)


def at_once(work: Callable[[], None], times: int) -> float:
    """Return the seconds that a piece of work takes several threads at once."""
    threads = [threading.Thread(target=work) for _ in range(times)]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return time.perf_counter() - began


def main() -> int:
    options = command_line("Measure the server's queue, beside Celery and procrastinate.", 20).parse_args()
    rounds = 1 if options.tiny else max(1, options.rounds)
    block, clients, each = (2, 2, 2) if options.tiny else (20, 8, 25)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True))
        )
        kinds = [celery, procrastinate]
        places = [place / str(number) for number in range(len(kinds))]
        for one in places:
            one.mkdir()
        place.chmod(0o755)
        found = [stack.enter_context(kind(one)) for kind, one in zip(kinds, places, strict=True)]
        peers = [peer for peer in found if peer is not None]
        made, path = stack.enter_context(served(16))
        times, rates = Samples("submit to answer"), Samples(f"submitted and answered, {clients} clients")
        theirs = [(peer, Samples(peer.name), Samples(peer.name)) for peer in peers]
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}")
            taken = latencies(made, path, block)
            others = [list(timed(lambda peer=peer: peer.submit(BODY.decode())(), block)) for peer in peers]  # type: ignore[misc]
            if number:
                times.seconds += taken
                for (_, samples, _), seconds in zip(theirs, others, strict=True):
                    samples.seconds += seconds
        for _ in range(max(1, rounds // 5)):
            rates.seconds.append(1 / rate(made, path, clients, each))
            for peer, _, samples in theirs:
                samples.seconds.append(1 / rate_of(peer, clients * each))
        best = min((samples for _, samples, _ in theirs), key=lambda one: one.median, default=None)
        rows += [Comparison(times, samples, aim=0.7 if samples is best else None) for _, samples, _ in theirs]
        rows += [Comparison(rates, samples, amount=1.0, unit="requests/s") for _, _, samples in theirs]
        if not theirs:
            rows += [Comparison(times), Comparison(rates, amount=1.0, unit="requests/s")]
    notes = [
        f"{rounds} rounds of {block} requests one after the other, taking turns; the first is not counted.",
        "Atoll's client asks for the state by its stream, and then for the answer; both ends are on the disk.",
        *(f"{name} is not here." for name, peer in zip(("Redis", "PostgreSQL"), found, strict=True) if peer is None),
    ]
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
