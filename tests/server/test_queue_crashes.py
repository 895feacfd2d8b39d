"""The queue of a server that is killed at random moments: each request is answered once, or fails with its reason."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import threading
from collections.abc import Iterator

import pytest

from ..waiting import PATIENCE_SECONDS, soak, until
from .queue_app import Front, front

ROUNDS, REQUESTS = soak(4, 100), soak(40, 500)
CLIENTS = 4


@pytest.fixture
def made() -> Iterator[Front]:
    """A server in front of an app."""
    with front() as found:
        yield found


class Submitted:
    """Requests that a server has accepted, by what was asked of it."""

    def __init__(self) -> None:
        self.plain: set[str] = set()
        self.single: set[str] = set()
        self.told: set[str] = set()
        self.keys: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def all(self) -> set[str]:
        """All requests."""
        return self.plain | self.single | self.told


def _submit(made: Front, path: str, share: int, numbers: list[int], found: Submitted, headers: dict[str, str]) -> None:
    """Submit requests until the server is gone; every third is told, every fourth is for one attempt."""
    hook = f"fal_webhook=http%3A%2F%2F127.0.0.1%3A{made.app.port}%2Fhook"
    connection = made.server.connection()
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        for number in numbers:
            kind, more = path + "/sleep", {"Idempotency-Key": f"{share}-{number}"}
            if number % 3 == 0:
                kind += "?" + hook
            elif number % 4 == 0:
                more["x-fal-no-retry"] = "1"
            connection.request("POST", kind, json.dumps(number), {**headers, **more})
            answer = connection.getresponse()
            data = json.loads(answer.read())
            assert answer.status == 200, data
            with found.lock:
                group = found.told if number % 3 == 0 else found.single if number % 4 == 0 else found.plain
                group.add(data["request_id"])
                found.keys[data["request_id"]] = json.dumps(number)


def _round(made: Front, path: str, found: Submitted, first: int, chance: random.Random) -> None:
    """Submit requests from several clients, and kill the server meanwhile."""
    headers = made.user("operator")
    before, wanted = len(found.all), chance.randrange(1, REQUESTS)
    threads = [
        threading.Thread(
            target=_submit,
            args=(made, path, first, list(range(first + share, first + REQUESTS, CLIENTS)), found, headers),
        )
        for share in range(CLIENTS)
    ]
    for one in threads:
        one.start()
    until(lambda: len(found.all) - before >= wanted or not any(one.is_alive() for one in threads))
    made.server.end(signal.SIGKILL)
    for one in threads:
        one.join(PATIENCE_SECONDS)
    made.server.start()


def test_a_server_that_is_killed_answers_each_request_once(made: Front) -> None:
    """What was accepted is answered with its own answer, or fails with its reason where it must not be repeated; webhooks
    are told at least once, and always the same.
    """
    chance = random.Random(14)
    path = made.serve("killed", max_concurrency=4)
    found = Submitted()
    for number in range(ROUNDS):
        _round(made, path, found, number * REQUESTS, chance)
    lost = 0
    for one in found.all:
        state = made.over(path, one)
        status, answer = made.ask("GET", f"{path}/requests/{one}")
        if one in found.single and status == 503:
            assert state["error_type"] == "runner_disconnected", state
            assert made.app.count(one) <= 1
            lost += 1
            continue
        assert (status, answer) == (200, json.loads(found.keys[one])), state
        assert made.app.count(one) >= 1
        if one in found.single:
            assert made.app.count(one) == 1
    assert len(found.all) >= ROUNDS
    assert lost < len(found.single) or not found.single
    for one in found.told:
        told = until(lambda one=one: made.app.told[one])  # type: ignore[misc]
        assert {body for _, body in told} == {told[0][1]}
        assert json.loads(told[0][1])["payload"] == json.loads(found.keys[one])
    assert made.ask("GET", "/applications/operator/killed/queue")[1] == {"size": 0}
