"""The server killed at random moments under a full queue and a schedule: answers, webhooks and activations, each as promised.

`SOAK=1` is the long form; `ATOLL_CRASH_ROUNDS`, `ATOLL_CRASH_REQUESTS` and `ATOLL_CRASH_SEED` change it. A failure names its
seed and round.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import select
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from atoll import Host, isolated
from atoll.sdk.apps.scheduling import schedule

from ..waiting import PATIENCE_SECONDS, soak, until
from .queue_app import Front, front

ROUNDS = int(os.environ.get("ATOLL_CRASH_ROUNDS", soak("1", "100")))
REQUESTS = int(os.environ.get("ATOLL_CRASH_REQUESTS", soak("40", "500")))
SEED = int(os.environ.get("ATOLL_CRASH_SEED", "14"))
CLIENTS = 4
EVERY_SECONDS = 2
"""Between two activations."""


def note() -> None:
    """Leave a line for each run."""
    with open("/data/runs", "a") as file:
        file.write("run\n")


@pytest.fixture
def made() -> Iterator[Front]:
    """A server in front of an app."""
    with front() as found:
        yield found


@dataclass(frozen=True)
class Wanted:
    """A request of a round.

    Args:
        number: its body.
        is_single: it may not be repeated.
        is_told: it has a webhook.
    """

    number: int

    @property
    def is_single(self) -> bool:
        return self.number % 4 == 0

    @property
    def is_told(self) -> bool:
        return self.number % 3 == 0


@dataclass
class Round:
    """The requests of one round, and their ids as the server has given them."""

    wanted: list[Wanted]
    ids: dict[int, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _submit(made: Front, path: str, this: Round, share: list[Wanted], headers: dict[str, str]) -> None:
    """Submit requests, each until the server has said that it has it: a repetition has the key of the first time."""
    try:
        for one in share:
            until(lambda one=one: _accepted(made, path, this, one, headers))  # type: ignore[misc]
    except BaseException as error:
        this.failures.append(repr(error))
        raise


def _accepted(made: Front, path: str, this: Round, one: Wanted, headers: dict[str, str]) -> bool:
    hook = f"?fal_webhook=http%3A%2F%2F127.0.0.1%3A{made.app.port}%2Fhook" if one.is_told else ""
    more = {"Idempotency-Key": f"{SEED}-{one.number}", **({"x-fal-no-retry": "1"} if one.is_single else {})}
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        with contextlib.closing(made.server.connection()) as connection:
            connection.request("POST", f"{path}/held{hook}", json.dumps(one.number), {**headers, **more})
            answer = connection.getresponse()
            data = json.loads(answer.read())
        assert answer.status == 200, data
        with this.lock:
            this.ids[one.number] = data["request_id"]
        return True
    return False


def _kill(made: Front, chance: random.Random) -> None:
    """Kill the server at a moment that nothing else decides, and start it; now and then once more as it begins."""
    select.select([], [], [], chance.uniform(0, 0.05))
    made.server.end(signal.SIGKILL)
    made.server.start()
    if chance.random() < 0.3:
        _kill(made, chance)


def _round(made: Front, path: str, this: Round, chance: random.Random) -> None:
    """Submit requests from several clients; kill the server while they come, when all wait, and while they are served."""
    made.app.hold()
    headers = made.user("operator")
    threads = [
        threading.Thread(target=_submit, args=(made, path, this, this.wanted[share::CLIENTS], headers))
        for share in range(CLIENTS)
    ]
    first, second = (chance.randrange(1, len(this.wanted)) for _ in range(2))
    for one in threads:
        one.start()
    until(lambda: len(this.ids) >= first or this.failures)
    _kill(made, chance)
    for one in threads:
        one.join(2 * PATIENCE_SECONDS)
    assert not this.failures, this.failures
    _kill(made, chance)
    made.app.release()
    until(lambda: sum(made.app.count(one) > 0 for one in tuple(this.ids.values())) >= second)
    _kill(made, chance)


def _check(made: Front, path: str, this: Round) -> int:
    """Check what has become of each request of a round; return how many were lost with their reason."""
    lost = 0
    assert len(set(this.ids.values())) == len(this.wanted), "a repetition was another request"
    for one in this.wanted:
        name = this.ids[one.number]
        state = made.over(path, name)
        answers = [made.ask("GET", f"{path}/requests/{name}") for _ in range(2)]
        assert answers[0] == answers[1]
        status, answer = answers[0]
        payload = answer
        if one.is_single and status == 503:
            assert state["error_type"] == "runner_disconnected", state
            assert made.app.count(name) <= 1
            lost, payload = lost + 1, None
        else:
            assert (status, answer) == (200, one.number), (state, answer)
            assert made.app.count(name) == 1 if one.is_single else made.app.count(name) >= 1
        if one.is_told:
            told = until(lambda name=name: made.app.told[name])  # type: ignore[misc]
            assert {body for _, body in told} == {told[0][1]}
            data = json.loads(told[0][1])
            assert data["request_id"] == name
            assert (data["status"], data["payload"]) == ("ERROR" if payload is None else "OK", payload)
        else:
            assert not made.app.told[name]
    return lost


class Runs:
    """The activations of a schedule of the operator's, as its history has them: it forgets the oldest."""

    def __init__(self, made: Front) -> None:
        server = made.server
        self.host: Any = Host(server.url, key_id=server.key[0], key_secret=server.key[1])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.client_variables.items():
                patch.setenv(name, value)
            function = isolated(host=self.host, network="none", overlap="allow", missed="all")(note)
            self.name = schedule(function, f"*/{EVERY_SECONDS} * * * * *")["id"]
        self.found: dict[str, dict[str, Any]] = {}

    def look(self) -> bool:
        """Take the history in; return whether there is any."""
        path = f"/v1/schedules/{self.name}/activations?limit=1000"
        self.found |= {one["id"]: one for one in self.host.server.ask("GET", path)["activations"]}
        return bool(self.found)

    def check(self, made: Front) -> None:
        """End the schedule, and check that each moment had one activation, which ran once."""
        self.host.server.ask("DELETE", f"/v1/schedules/{self.name}")

        def over() -> bool:
            self.look()
            return {one["state"] for one in self.found.values()} == {"finished"}

        until(over)
        assert {one["outcome"] for one in self.found.values()} == {"ok"}
        moments = sorted(int(one["due"]) for one in self.found.values())
        assert moments == list(range(moments[0], moments[-1] + 1, EVERY_SECONDS))
        (written,) = made.server.home.path.glob("volumes/*/data/runs")
        assert len(written.read_text().splitlines()) == len(moments)
        self.host.close()


def test_a_server_that_is_killed_answers_each_request_once(made: Front) -> None:
    """What was accepted is answered with its own answer, or fails with its reason where it must not be repeated; webhooks
    are told at least once, and always the same; a schedule's runs are neither lost nor doubled.
    """
    chance = random.Random(SEED)
    path = made.serve("killed", max_concurrency=4)
    runs = Runs(made)
    until(runs.look)
    lost = 0
    for number in range(ROUNDS):
        this = Round([Wanted(one) for one in range(number * REQUESTS, (number + 1) * REQUESTS)])
        try:
            _round(made, path, this, chance)
            lost += _check(made, path, this)
            runs.look()
        except BaseException as error:
            error.add_note(f"seed {SEED}, round {number}")
            raise
    assert lost < ROUNDS * REQUESTS / 4
    runs.check(made)
    assert made.ask("GET", "/applications/operator/killed/queue")[1] == {"size": 0}
