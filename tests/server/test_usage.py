"""Accounting: machine time of users, from the node's records into the server's database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.daemon.records.database import Database as Records
from atoll.model.records import CallRecord
from atoll.server.accounts.bodies import NewUser
from atoll.server.database.database import Database
from atoll.server.usage import gathering, sums

from .process import Server

DAY = 1_764_400_000.0  # 2025-11-29, in UTC


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    tmp_path.chmod(0o700)
    with Database(tmp_path) as made:
        yield made


class Node:
    """A node with real records, and nothing else of one."""

    def __init__(self, directory: Path) -> None:
        self.records = Records(directory)

    def request(self, _: None, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert name == "calls.export"
        generation, found = self.records.export(arguments["after"], arguments["limit"])
        if generation != arguments["generation"]:
            generation, found = self.records.export(0, arguments["limit"])
        return {"generation": generation, "records": list(found)}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "records")
    yield made
    made.records.close()


def record(user: str, function: str = "f", **more: Any) -> CallRecord:
    figures = {"queued_at": DAY, "wall_seconds": 2.0, "cpu_seconds": 1.0, "peak_bytes": 100, "gpus": 2, **more}
    return CallRecord("call", function, user, **figures)


def read(database: Database, by: tuple[str, ...] = ("user",), user: str | None = None) -> list[dict[str, Any]]:
    with database.reading() as connection:
        return sums.read(connection, user=user, since="", until="", by=by)


def test_sums_have_every_call_once(database: Database, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever transaction of the gathering fails, and however often it runs, each call is counted once."""
    monkeypatch.setattr(gathering, "BATCH", 3)
    node.records.write([record("ann"), record("bob", outcome="error"), record("ann", "g", queued_at=DAY + 86400)])
    gathering.gather(database, node)
    node.records.write([record("ann") for _ in range(10)])

    def failing(*_: Any) -> bool:
        monkeypatch.setattr(sums, "add", whole)
        raise errors.StateUnusable("cut off")

    whole = sums.add

    def half(*arguments: Any) -> bool:
        whole(*arguments)
        return failing()

    monkeypatch.setattr(sums, "add", half)  # a crash after the sums, before the end of the transaction
    with pytest.raises(errors.StateUnusable):
        gathering.gather(database, node)
    for _ in range(2):
        gathering.gather(database, node)
    found = {row["user"]: row for row in read(database)}
    assert {user: row["calls"] for user, row in found.items()} == {"ann": 12, "bob": 1}
    assert found["bob"] | {"name": "", "function": "", "day": ""} == {
        "user": "bob",
        "name": "",
        "function": "",
        "day": "",
        "calls": 1,
        "failed": 1,
        "wall_seconds": 2.0,
        "cpu_seconds": 1.0,
        "memory_byte_seconds": 200.0,
        "gpu_seconds": 4.0,
    }
    by_day = {(row["function"], row["day"]): row["calls"] for row in read(database, ("function", "day"), "ann")}
    assert by_day == {("f", "2025-11-29"): 11, ("g", "2025-11-30"): 1}


def test_numbers_are_never_given_again(database: Database, node: Any) -> None:
    """After all records have expired, the next one still counts; so do those of a file that was made anew."""
    node.records.write([record("ann"), record("ann")])
    gathering.gather(database, node)
    node.records.prune(DAY + 1, 1 << 30)
    node.records.write([record("ann")])
    gathering.gather(database, node)
    assert read(database)[0]["calls"] == 3
    other = Node(Path(node.records._connection.execute("PRAGMA database_list").fetchone()[2]).parent / "new")
    other.records.write([record("ann")])
    gathering.gather(database, other)
    other.records.close()
    assert read(database)[0]["calls"] == 4


def test_two_gatherers_count_once(database: Database, node: Any) -> None:
    """One whose records another has added meanwhile adds nothing."""
    node.records.write([record("ann")])
    generation, found = node.records.export(0, 10)
    with database.writing() as connection:
        assert sums.add(connection, generation, 0, found)
        assert not sums.add(connection, generation, 0, found)
    assert read(database)[0]["calls"] == 1


def test_names_of_functions_are_bounded(database: Database, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a new name for each call fills no table; names are cut, and odd ones kept readable."""
    monkeypatch.setattr(sums, "MOST_FUNCTIONS", 5)
    node.records.write([record("ann", f"f{number}") for number in range(50)])
    node.records.write([record("bob", name, queued_at=queued) for name, queued in (("x" * 5000, 0.0), ("", 1e300))])
    gathering.gather(database, node)
    found = read(database, ("function",), "ann")
    assert (len(found), found[0]["function"], found[0]["calls"]) == (6, sums.OTHER, 45)
    assert sorted(len(row["function"]) for row in read(database, ("function",), "bob")) == [1, 256]


def test_the_route_shows_ones_own_and_operators_everybodys(server: Server) -> None:
    """`/v1/usage` by user, function and day; others' figures need the scope and the operator."""
    ann = server.add_user(NewUser("usage-ann"))
    assert ann.key is not None
    with sqlite3.connect(server.home.path / "server" / "server.db", timeout=30) as connection:
        for user in (ann.user.id, "someone"):
            connection.execute("INSERT INTO usage VALUES (?, 'f', '2026-01-02', 3, 1, 4.0, 5.0, 6.0, 7.0)", (user,))
    connection.close()
    headers = {"Authorization": f"Key {ann.key.id}:{ann.key.secret}", "Atoll-Protocol": "1"}
    status, found = server.ask("GET", "/v1/usage?by=function,day&since=2026-01-01&until=2026-01-31", headers=headers)
    assert status == 200
    (row,) = found["usage"]
    assert (row["function"], row["day"], row["calls"], row["gpu_seconds"]) == ("f", "2026-01-02", 3, 7.0)
    assert server.ask("GET", "/v1/usage?all=1", headers=headers)[0] == 403
    status, found = server.ask("GET", "/v1/usage?all=1&by=user&until=2026-01-31")
    assert {row["user"]: row["name"] for row in found["usage"]}.items() >= {
        ann.user.id: "usage-ann",
        "someone": "",
    }.items()
    for query in ("since=yesterday", "by=colour", "since=2026-01-01'"):
        status, found = server.ask("GET", f"/v1/usage?{query}", headers=headers)
        assert (status, found["error"]["code"]) == (400, "caller_error")
    shown = server.home.atoll("admin", "usage", "--by-user", "--json")
    assert {row["user"] for row in json.loads(shown.stdout)} >= {ann.user.id, "someone"}
