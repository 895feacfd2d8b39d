"""The clock of schedules over a database, with the hands of a test: what is fired, once, and what follows of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.server.accounts import rows as account_rows
from atoll.server.database.database import Database
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.schedules import bodies, clock, rows
from atoll.server.schedules.clock import Clock
from atoll.server.schedules.rows import Ended, Sent

from . import postgresql

NOON = 1_774_699_200.0
"""2026-03-28 12:00 UTC."""


class Hands:
    """A clock with a node that a test moves.

    Args:
        sent: activations that the node has, as often as it was told.
        ended: those whose call is over.
    """

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database, self.now = database, NOON
        self.sent: list[str] = []
        self.ended: set[str] = set()
        self.away = False
        self.changed = asyncio.Event()
        monkeypatch.setattr(clock, "send", self._send)
        monkeypatch.setattr(clock, "outcome_of", self._outcome_of)
        monkeypatch.setattr(clock, "PAUSE_SECONDS", 0.01)
        state: Any = None
        self.clock = Clock(state, database, lambda name: Path(name), lambda: self.now)

    async def _send(self, _state: Any, one: Sent, _file: Path, *, again: bool) -> None:
        del again
        if self.away:
            raise errors.HostUnreachable("away", hint="wait")
        self.sent.append(one.id)

    async def _outcome_of(self, _state: Any, one: Sent, _revision: int) -> tuple[int, Ended | None]:
        while one.id not in self.ended:
            self.changed.clear()
            await self.changed.wait()
        return 0, Ended(one.id, self.now, self.now, "ok")

    def end(self, name: str) -> None:
        """Let a call be over."""
        self.ended.add(name)
        self.changed.set()

    async def at(self, seconds: float) -> None:
        """Move to so many seconds after noon, and fire."""
        self.now = NOON + seconds
        await self.clock.fire()

    def states(self, name: str) -> list[str]:
        """Return the states of a schedule's activations, the oldest first."""
        with self.database.reading() as connection:
            return [one.state for one in rows.history(connection, name, 100)][::-1]


@pytest.fixture
def database(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """A database of each kind with a user `ann`."""
    tmp_path.chmod(0o700)
    postgresql.empty(database_url)
    with Database(tmp_path, database_url) as found:
        with found.writing() as connection:
            account_rows.add_user(connection, "ann")
        yield found


def scheduled(database: Database, monkeypatch: pytest.MonkeyPatch, **rule: str) -> str:
    """Return the id of a schedule of each minute, made at noon."""
    monkeypatch.setattr("atoll.server.schedules.rows.time.time", lambda: NOON - 1)
    with database.writing() as connection:
        user = account_rows.find_user(connection, "ann").id
        revision = f"revision-{len(rows.all_of(connection, user))}"
        endpoint_rows.add(connection, user, endpoint_rows.plain(revision, "tick", 1), "")
        return rows.add(connection, user, revision, bodies.Rule("* * * * *", **rule))


async def until_states(hands: Hands, name: str, wanted: list[str]) -> None:
    """Wait until the database has the states."""
    async with asyncio.timeout(60):
        while hands.states(name) != wanted:  # noqa: ASYNC110 - the database sends no event
            await asyncio.sleep(0.005)


def test_runs_of_each_policy(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose predecessor has not ended is left out, waits for it, or begins beside it."""
    names = {overlap: scheduled(database, monkeypatch, overlap=overlap) for overlap in ("skip", "queue", "allow")}

    async def work() -> None:
        hands = Hands(database, monkeypatch)
        async with hands.clock.running():
            await hands.at(0)
            for name in names.values():
                await until_states(hands, name, ["running"])
            await hands.at(60)
            await until_states(hands, names["skip"], ["running", "skipped"])
            await until_states(hands, names["queue"], ["running", "waiting"])
            await until_states(hands, names["allow"], ["running", "running"])
            for one in list(hands.sent):
                hands.end(one)
            await until_states(hands, names["queue"], ["finished", "running"])
            await until_states(hands, names["skip"], ["finished", "skipped"])
            await hands.at(120)
            await until_states(hands, names["skip"], ["finished", "skipped", "running"])
            assert len(hands.sent) == len(set(hands.sent))

    asyncio.run(work())


def test_a_server_that_is_killed_neither_loses_nor_doubles_a_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next server sends what has a row and was not sent, and follows the rest."""
    name = scheduled(database, monkeypatch, overlap="allow")

    async def first() -> None:
        hands = Hands(database, monkeypatch)
        hands.away = True
        async with hands.clock.running():
            await hands.at(0)
            await until_states(hands, name, ["waiting"])

    async def second() -> None:
        hands = Hands(database, monkeypatch)
        hands.now = NOON + 10
        async with hands.clock.running():
            await until_states(hands, name, ["running"])
            await hands.clock.fire()
            assert hands.states(name) == ["running"]
            assert len(hands.sent) == 1

    async def third() -> None:
        hands = Hands(database, monkeypatch)
        async with hands.clock.running():
            await hands.at(30)
            with database.reading() as connection:
                (run,) = rows.history(connection, name, 10)
            hands.end(run.id)
            await until_states(hands, name, ["finished"])
            assert hands.sent == []

    for work in (first, second, third):
        asyncio.run(work())


def test_missed_runs_after_an_absence(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was away for ten minutes begins as many runs as the policy says, and the history tells of others."""
    names = {
        missed: scheduled(database, monkeypatch, missed=missed, overlap="allow") for missed in ("skip", "once", "all")
    }

    async def work() -> None:
        hands = Hands(database, monkeypatch)
        async with hands.clock.running():
            await hands.at(600)
            await until_states(hands, names["skip"], ["skipped", "running", "running"])
            await until_states(hands, names["all"], ["running"] * 11)
            assert hands.states(names["once"])[-2:] == ["running", "running"]
            await hands.clock.fire()
            assert len(hands.sent) == 15

    asyncio.run(work())


def test_paused_and_cancelled_schedules_have_no_runs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused one runs from its next moment on when it is resumed; a cancelled one never does."""
    name, other = scheduled(database, monkeypatch), scheduled(database, monkeypatch)

    async def work() -> None:
        hands = Hands(database, monkeypatch)
        with database.writing() as connection:
            user = account_rows.find_user(connection, "ann").id
            for one, state in ((name, rows.PAUSED), (other, rows.CANCELLED)):
                assert rows.set_state(connection, user, one, state).next_run == 0
        async with hands.clock.running():
            await hands.at(600)
            assert hands.states(name) == hands.states(other) == []
            monkeypatch.setattr("atoll.server.schedules.rows.time.time", lambda: NOON + 601)
            with database.writing() as connection:
                resumed = rows.set_state(connection, user, name, rows.ACTIVE)
                with pytest.raises(errors.CallerError, match="does not run again"):
                    rows.set_state(connection, user, other, rows.ACTIVE)
            assert resumed.next_run == NOON + 660
            hands.clock.put(name, resumed.next_run)
            await hands.at(660)
            await until_states(hands, name, ["running"])
            assert hands.states(other) == []

    asyncio.run(work())


def test_history_is_bounded_and_goes_with_its_user(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old activations are removed, those under way are not; a removed user has no schedules."""
    name = scheduled(database, monkeypatch, overlap="allow", missed="all")
    monkeypatch.setattr(rows, "MOST_KEPT", 5)
    with database.writing() as connection:
        rows.fire(connection, [name], NOON + 600)
        made = rows.history(connection, name, 100)
        rows.note(connection, [], [Ended(one.id, NOON, NOON, "ok") for one in made[1:]])
        rows.expire(connection, NOON + 600)
        left = rows.history(connection, name, 100)
        assert [one.id for one in left] == [one.id for one in made[:5]]
        rows.expire(connection, NOON + rows.KEPT_SECONDS + 3600)
        assert [one.state for one in rows.history(connection, name, 100)] == ["waiting"]
        account_rows.remove_user(connection, account_rows.find_user(connection, "ann"))
        assert rows.next_runs(connection) == []
        assert rows.under_way(connection) == []


def test_two_servers_of_one_database_make_a_run_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older server that fires what another has fired makes nothing, and hears of the next run."""
    names = [scheduled(database, monkeypatch, overlap="allow") for _ in range(20)]
    start = threading.Barrier(4)

    def fire() -> tuple[list[Sent], list[tuple[float, str]]]:
        start.wait()
        with database.writing() as connection:
            return rows.fire(connection, names, NOON)

    with ThreadPoolExecutor(4) as threads:
        found = [one.result() for one in [threads.submit(fire) for _ in range(4)]]
    assert sorted(one.schedule for sent, _ in found for one in sent) == sorted(names)
    for _, following in found:
        assert sorted(following) == sorted((NOON + 60, name) for name in names)
    with database.reading() as connection:
        assert all(len(rows.history(connection, name, 9)) == 1 for name in names)
