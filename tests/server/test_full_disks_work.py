"""Revisions, queue and schedules on a disk that is full, or can only be read: named errors, nothing lost, and then it works."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from starlette.requests import Request

from atoll import errors
from atoll.model.options.queue import QueueSettings
from atoll.server.accounts import rows as accounts
from atoll.server.database.database import Database
from atoll.server.endpoints import rows as endpoint_rows
from atoll.server.endpoints.bodies import NewRevision
from atoll.server.endpoints.passing import Answer
from atoll.server.endpoints.receiving import Receiver
from atoll.server.queue import attempt, rows
from atoll.server.queue.files import ANSWER, BODY, INLINE_BYTES, Files
from atoll.server.queue.heads import Head
from atoll.server.queue.order import Entry
from atoll.server.queue.queue import Queue
from atoll.server.schedules import bodies, clock
from atoll.server.schedules import rows as schedule_rows
from atoll.server.schedules.rows import Ended, Sent

from .test_full_disks import BROKEN, Disk, mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a plain user mounts no disks")
REFUSED = {"full": errors.DiskFull, "read-only": errors.StateUnusable}
LARGE = b"x" * (INLINE_BYTES + 1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path, "6m") as found:
        yield found


def upload(directory: Path, name: str) -> None:
    """Receive a function's file."""

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"function": "f", "port": 1}\n' + LARGE, "more_body": False}

    async def receive() -> None:
        with Receiver(directory) as receiver:
            request = Request({"type": "http", "method": "POST", "headers": []}, body)
            await receiver.receive(request, NewRevision, lambda _: [name], lambda _: ())
            receiver.keep()

    asyncio.run(receive())


@pytest.mark.parametrize("how", BROKEN)
def test_a_function_that_cannot_be_kept_leaves_nothing(disk: Disk, how: str) -> None:
    """The upload is refused by name, files of before are whole, and the next one is kept."""
    directory = disk.path / "revisions"
    upload(directory, "old")
    disk.spoil(how)
    with pytest.raises(REFUSED[how], match="the server's functions"):
        upload(directory, "refused")
    disk.mend()
    assert [one.name for one in directory.iterdir() if one.stat().st_size] == ["old"]
    upload(directory, "new")
    assert {one.name for one in directory.iterdir()} - {"refused"} == {"old", "new"}
    assert (directory / "new").read_bytes() == LARGE


class Waits:
    """A pool whose runner never comes."""


@contextlib.asynccontextmanager
async def queue_on(disk: Disk, database: Database) -> AsyncIterator[Queue]:
    """Serve a queue whose requests wait."""

    async def place(*_: str) -> Any:
        await asyncio.Event().wait()

    queue = Queue(database, disk.path / "queue", QueueSettings(), place, lambda: None)
    async with queue.serving():
        yield queue


def test_queued_requests_are_kept_or_refused(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is refused by name; those of before are there after a restart; an end that cannot be written comes later."""
    monkeypatch.setattr("atoll.server.queue.lines.LEAST_REST", 0.01)
    small = LARGE[:INLINE_BYTES]

    def entry(number: int) -> Entry:
        return Entry(f"{number:08d}-0000-0000-0000-000000000000", user, "ann", "a", user, body_bytes=2)

    more: dict[str, Any] = {"idempotency": None, "digest": "", "url": ""}
    head = Head("POST", "/", [], "", "https", "", False)

    async def first() -> None:
        async with queue_on(disk, database) as queue:
            await queue.submit(entry(1), head, b"{}", more)
            await queue.submit(entry(2), head, b"{}", more)
            disk.spoil("full")
            full = None
            for number in range(3, 3000):  # SQLite has free pages for some
                try:
                    await queue.submit(entry(number), head, small, more)
                except errors.DiskFull as error:
                    full = error
                    break
            assert full is not None
            assert queue.size(user, "a") == number - 1  # none that was refused waits
            one = queue.entries[entry(1).id]
            ending = asyncio.ensure_future(queue.cancel(one))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ending), 0.2)
            disk.mend()
            assert await ending
            await queue.submit(entry(5000), head, b"{}", more)

    with Database(disk.path) as database:
        with database.writing() as connection:
            accounts.add_user(connection, "ann")
            user = accounts.find_user(connection, "ann").id
        asyncio.run(first())

        async def second() -> None:
            async with queue_on(disk, database) as queue:
                assert {entry(2).id, entry(5000).id} <= queue.entries.keys()
                assert entry(1).id not in queue.entries
                found = await queue.find(entry(1).id)
                assert found is not None
                assert found.state == rows.OVER

        asyncio.run(second())


@pytest.mark.parametrize("how", BROKEN)
def test_an_answer_that_cannot_be_kept_is_asked_for_again(
    disk: Disk, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one is refused by name and the request is to be sent again; then it is kept whole."""

    class Exchange:
        reusable = True

        async def pieces(self) -> AsyncIterator[bytes]:
            for _ in range(20):
                yield LARGE

    @contextlib.asynccontextmanager
    async def passed(*_: object) -> AsyncIterator[Answer]:
        yield Answer(200, [], Exchange())  # type: ignore[arg-type]

    monkeypatch.setattr(attempt, "passed", passed)
    monkeypatch.setattr(attempt, "_seconds", lambda _: None)
    (disk.path / "queue").mkdir()
    files, nothing = Files(disk.path / "queue"), Waits()

    async def body() -> None:
        async with files.writing("b", BODY) as file:
            await file.write(LARGE)
            await file.keep()

    asked = Head("POST", "/", [], "", "https", "", False).asked("a", "")

    async def made() -> attempt.Attempted:
        return await attempt.attempted(nothing, nothing, asked, b"", 0, files, 1 << 30)  # type: ignore[arg-type]

    disk.spoil(how)
    with pytest.raises(REFUSED[how], match="the queue's directory"):
        asyncio.run(body())
    found = asyncio.run(made())
    assert (found.outcome.status, found.outcome.error_type, found.again) == (507, "disk_full", True)
    disk.mend()
    found = asyncio.run(made())
    assert (found.outcome.status, found.outcome.answer, found.outcome.size) == (200, None, 20 * len(LARGE))
    assert files.path("a", ANSWER).read_bytes() == LARGE * 20
    asyncio.run(body())
    assert files.path("b", BODY).read_bytes() == LARGE
    files.close()


def test_schedules_fire_when_there_is_room(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot be written is not lost and not made twice; a node without room for it is asked again."""
    sent: list[str] = []
    full = [errors.DiskFull("full", hint="free space"), errors.StateUnusable("read-only", hint="mount it")]

    async def send(_state: Any, one: Sent, _file: Path, *, again: bool) -> None:
        del again
        if full:
            raise full.pop()
        sent.append(one.id)

    async def outcome_of(_state: Any, one: Sent, _revision: int) -> tuple[int, Ended]:
        return 0, Ended(one.id, 1.0, 2.0, "ok")

    monkeypatch.setattr(clock, "send", send)
    monkeypatch.setattr(clock, "outcome_of", outcome_of)
    monkeypatch.setattr(clock, "PAUSE_SECONDS", 0.01)

    def add(connection: Connection) -> tuple[str, float]:
        accounts.add_user(connection, "ann")
        user = accounts.find_user(connection, "ann").id
        endpoint_rows.add(connection, user, endpoint_rows.plain("revision", "tick", 1), "")
        name = schedule_rows.add(connection, user, "revision", bodies.Rule("* * * * *"))
        return name, schedule_rows.find(connection, user, name).next_run

    async def scenario(database: Database) -> None:
        name, due = await database.run(add)
        state: Any = None
        moved = clock.Clock(state, database, Path, lambda: due + 1)
        for at, one in await database.run(schedule_rows.next_runs, writes=False):
            moved.put(one, at)
        disk.spoil("full")
        with contextlib.suppress(errors.AtollError):  # all of the room that SQLite has left
            for number in range(3000):
                await database.run(partial(endpoint_rows.add, user=_user(database), found=_filler(number), alias=""))
        with pytest.raises(errors.DiskFull):
            await moved.fire()
        assert await database.run(lambda connection: schedule_rows.history(connection, name, 9), writes=False) == []
        disk.mend()
        async with moved.running():
            async with asyncio.timeout(60):
                while not await database.run(_over, writes=False):  # noqa: ASYNC110 - the database sends no event
                    await asyncio.sleep(0.005)
        assert len(sent) == 1
        assert not full

    def _over(connection: Connection) -> bool:
        found = schedule_rows.history(connection, schedule_rows.next_runs(connection)[0][1], 9)
        return [one.state for one in found] == ["finished"]

    with Database(disk.path) as database:
        asyncio.run(scenario(database))


def _user(database: Database) -> str:
    with database.reading() as connection:
        return accounts.find_user(connection, "ann").id


def _filler(number: int) -> dict[str, Any]:
    return {**endpoint_rows.plain(f"filler-{number}", "f", 1), "options": "x" * 4000}
