"""Requests through the server's queue: seconds from the submit to the answer, and submits and answers a second.

The function is an app of this process that answers at once, so what is measured is the queue: a request on the disk, its
way to a runner and back, its end on the disk, and the client's questions.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from table import Comparison, Samples, command_line, finish
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
    found = []
    with contextlib.closing(Client(made, path)) as client:
        for _ in range(count):
            began = time.perf_counter()
            assert client.answer(client.submit()) == BODY
            found.append(time.perf_counter() - began)
    return found


def rate(made: Front, path: str, clients: int, count: int) -> float:
    """Return how many requests a second are submitted and answered by several clients, all submitted first."""

    def work() -> None:
        with contextlib.closing(Client(made, path)) as client:
            requests = [client.submit() for _ in range(count)]
            for one in requests:
                assert client.answer(one) == BODY

    threads = [threading.Thread(target=work) for _ in range(clients)]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return clients * count / (time.perf_counter() - began)


def main() -> int:
    options = command_line("Measure the server's queue.", 300).parse_args()
    count = 8 if options.tiny else max(8, options.rounds)
    times, rates = Samples("submit to answer"), Samples("submitted and answered, 8 clients")
    with served(16) as (made, path):
        latencies(made, path, 2 if options.tiny else 20)
        times.seconds += latencies(made, path, count)
        rates.seconds.append(1 / rate(made, path, 8, max(1, count // 4)))
    rows = [Comparison(times), Comparison(rates, amount=1.0, unit="requests/s")]
    notes = [
        f"{count} requests one after the other; the client asks for the state by its stream, and then for the answer."
    ]
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
