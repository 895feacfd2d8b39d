"""Files of revisions that no row names: of a server that was killed between the two, and of users who are gone."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from atoll.server.accounts import rows as accounts
from atoll.server.accounts.bodies import NewUser
from atoll.server.database.database import Database
from atoll.server.endpoints import rows
from atoll.server.endpoints.bodies import NewRevision
from atoll.server.endpoints.receiving import Receiver, remove_strays

from ..waiting import until
from .process import PROGRAM, Server, running

KILLED = f"""
import os, signal
from atoll.server.endpoints import rows
add = rows.add

def adds(connection, user, found, alias):
    if alias == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return add(connection, user, found, alias)

rows.add = adds
{PROGRAM}
"""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that is killed by a revision for the alias `killed`, before that has its row."""
    with running(tls=False, program=KILLED) as found:
        yield found


def register(server: Server, alias: str, headers: dict[str, str]) -> str:
    """Register something that never runs; return the id of the revision."""
    facts = {"function": "app", "port": 8080, "alias": alias}
    body = json.dumps(facts).encode() + b"\nnothing that runs"
    status, data = server.ask("POST", "/v1/revisions", body, headers)
    assert status == 201, data
    return str(data["id"])


def names(server: Server) -> set[str]:
    return {one.name for one in (server.home.path / "server" / "revisions").iterdir()}


def test_files_without_a_row_are_removed(server: Server) -> None:
    """After a kill between file and row, and for a user who was removed; the files of others stay."""
    ann = server.add_user(NewUser("ann")).key
    assert ann is not None
    hers = register(server, "hers", {"Authorization": f"Key {ann.id}:{ann.secret}"})
    mine = register(server, "mine", server.headers())
    assert names(server) == {hers, mine}
    with contextlib.suppress(OSError, http.client.HTTPException):
        register(server, "killed", server.headers())
    server.end()
    assert len(names(server)) == 3
    server.source = PROGRAM
    server.start()
    until(lambda: names(server) == {hers, mine})
    assert server.ask("DELETE", "/v1/users/ann", None, server.headers())[0] == 200
    server.end()
    server.start()
    until(lambda: names(server) == {mine})


def test_files_that_come_stay(tmp_path: Path) -> None:
    """A file of an upload that has no row yet is not removed, however long it takes; one of no upload is."""
    directory = tmp_path / "revisions"
    half, rest = asyncio.Event(), asyncio.Event()

    async def scenario(database: Database) -> None:
        with database.writing() as connection:
            accounts.add_user(connection, "ann")
            user = accounts.find_user(connection, "ann").id

        async def pieces() -> dict[str, Any]:
            if not half.is_set():
                half.set()
                return {"type": "http.request", "body": b'{"function": "f", "port": 1}\nhalf', "more_body": True}
            await rest.wait()
            return {"type": "http.request", "body": b" and half", "more_body": False}

        async def upload() -> None:
            request = Request({"type": "http", "method": "POST", "headers": []}, pieces)
            with Receiver(directory) as receiver:
                _, (spool,) = await receiver.receive(request, NewRevision, lambda _: ["coming"], lambda _: ())
                row = rows.plain("coming", "f", spool.size_bytes)
                await database.run(lambda connection: rows.add(connection, user, row, ""))
                receiver.keep()

        task = asyncio.ensure_future(upload())
        while not (directory / "coming").exists():  # noqa: ASYNC110 - the disk sends no event
            await asyncio.sleep(0.005)
        (directory / "stray").write_bytes(b"x")
        assert await remove_strays(directory, database) == 1
        assert [one.name for one in directory.iterdir()] == ["coming"]
        rest.set()
        await task
        assert await remove_strays(directory, database) == 0
        assert (directory / "coming").read_bytes() == b"half and half"
        with database.writing() as connection:
            accounts.remove_user(connection, accounts.find_user(connection, "ann"))
        assert await remove_strays(directory, database) == 1
        assert list(directory.iterdir()) == []

    with Database(tmp_path) as database:
        asyncio.run(scenario(database))
