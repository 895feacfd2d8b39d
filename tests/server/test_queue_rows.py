"""The queue's rows without a server: fences, ends that count once, retention, and the order of what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from atoll import errors
from atoll.model.options.queue import QueueSettings
from atoll.server.accounts import rows as accounts
from atoll.server.database.database import Database
from atoll.server.queue import rows
from atoll.server.queue.files import Files
from atoll.server.queue.keeping import Keeping
from atoll.server.queue.order import Entry, Order
from atoll.server.queue.writer import Fenced, Writer, raise_fence
from atoll.server.webhooks import rows as webhooks

from . import postgresql


@pytest.fixture
def database(tmp_path: Path, database_url: str) -> Iterator[Database]:
    """A database of each kind with the users `ann` and `bob`."""
    tmp_path.chmod(0o700)
    postgresql.empty(database_url)
    with Database(tmp_path, database_url) as made:
        with made.writing() as connection:
            for name in ("ann", "bob"):
                accounts.add_user(connection, name)
        yield made


def _user(connection: Connection, name: str) -> str:
    return accounts.find_user(connection, name).id


def _added(connection: Connection, name: str, owner: str = "ann", size: int = 0, url: str = "") -> str:
    values: dict[str, Any] = {
        "id": name,
        "owner": _user(connection, owner),
        "alias": "a",
        "caller": "",
        "priority": 0,
        "submitted": 0.0,
        "deadline": 0.0,
        "no_retry": False,
        "idempotency": None,
        "digest": "",
        "head": "{}",
        "body": b"b",
        "body_bytes": size,
        "url": url,
    }
    return rows.add(connection, values)[0]


def test_an_end_counts_once_and_asks_for_the_webhook_with_it(database: Database) -> None:
    """The second end of a request changes nothing; the first one has added the delivery."""
    with database.writing() as connection:
        _added(connection, "1", url="http://x/")
        assert rows.finish(connection, "1", "", rows.Outcome(200, (), b"first", 5))
        assert not rows.finish(connection, "1", "", rows.Outcome(500, (), b"second", 6))
        assert rows.answer(connection, "1") == b"first"
        assert [one.id for one in webhooks.due(connection, [], [], 10)] == ["1"]
        assert rows.content(connection, "1") is None
        assert not rows.claim(connection, "1", "1")
        assert not rows.open_ones(connection)


def test_a_server_that_another_has_followed_changes_nothing(database: Database) -> None:
    """Changes of the older of two servers are refused, those that share a transaction with others as well."""

    async def run() -> None:
        older = Writer(database, await database.run(raise_fence))
        assert await older.do(partial(_added, name="1")) == "1"
        newer = Writer(database, await database.run(raise_fence))
        made = await asyncio.gather(
            *(older.do(partial(_added, name=str(one))) for one in range(2, 9)), return_exceptions=True
        )
        assert all(isinstance(one, Fenced) for one in made)
        assert await newer.do(partial(_added, name="2")) == "2"

    asyncio.run(run())
    with database.reading() as connection:
        assert rows.known_ids(connection, [str(one) for one in range(9)]) == {"1", "2"}


def test_a_change_that_fails_fails_alone(database: Database) -> None:
    """Of changes that share a transaction the others are made when one fails."""

    def fail(_: Connection) -> str:
        raise ValueError

    async def run() -> list[Any]:
        writer = Writer(database, await database.run(raise_fence))
        acts: list[Any] = [partial(_added, name="1"), fail, partial(_added, name="2")]
        return await asyncio.gather(*(writer.do(act) for act in acts), return_exceptions=True)

    first, failed, second = asyncio.run(run())
    assert (first, second) == ("1", "2")
    assert isinstance(failed, ValueError)


def test_room_is_made_of_answers_that_are_over_and_an_owner_has_a_share(database: Database, tmp_path: Path) -> None:
    """The oldest answers go for a new request; what is not over, or not yet told, stays, and is no room."""

    async def run() -> None:
        files = Files(tmp_path)
        writer = Writer(database, await database.run(raise_fence))
        keeping = Keeping(database, writer, files, QueueSettings(max_bytes=100), {})
        with database.writing() as connection:
            ann, bob = _user(connection, "ann"), _user(connection, "bob")
            for name, owner, url in (("old", "ann", ""), ("told", "ann", "http://x/"), ("his", "bob", "")):
                _added(connection, name, owner, url=url)
                rows.finish(connection, name, "", rows.Outcome(200, (), b"", 20))
        with database.reading() as connection:
            for owner, size in rows.stored(connection).items():
                keeping.changed(owner, size)
        await keeping.reserve(ann, 20)  # her oldest answer goes, nothing of his
        with pytest.raises(errors.QuotaExceeded):
            await keeping.reserve(ann, 20)
        await keeping.reserve(bob, 20)
        files.close()

    asyncio.run(run())
    with database.reading() as connection:
        assert rows.known_ids(connection, ["old", "told", "his"]) == {"told", "his"}


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=30), st.randoms())
def test_the_order_is_by_priority_and_then_by_number(made: list[tuple[int, bool]], chance: Any) -> None:
    """However entries come and go, they leave in their order, and each position is how many leave before."""
    order = Order()
    entries = [Entry(str(n), "", "", "", "", priority=priority, order=n) for n, (priority, _) in enumerate(made)]
    mixed = list(entries)
    chance.shuffle(mixed)
    for one in mixed:
        order.add(one)
    gone = [one for one, (_, goes) in zip(entries, made, strict=True) if goes]
    assert all(order.remove(one) for one in gone)
    assert not any(order.remove(one) for one in gone)
    left = sorted((one for one in entries if one not in gone), key=lambda one: (one.priority, one.order))
    assert order.all() == left
    assert [order.position(one) for one in left] == list(range(len(left)))
    assert [order.take() for _ in left] == left
    assert order.take() is None
