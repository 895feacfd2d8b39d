"""Requests about many detached calls at once: in pieces between which others are served, and the same when sent again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pytest

from atoll import errors
from atoll.daemon.detached import requests
from atoll.daemon.detached.calls import Detached
from atoll.detached.batches import MOST_AT_ONCE
from atoll.detached.rows import Row
from atoll.detached.store import Store
from atoll.model import spool
from atoll.model.records import CallRecord
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.model.stored_call import StoredCall
from atoll.settings import DetachedSettings, Settings
from atoll.wire import sealed_file

COUNT = 3 * MOST_AT_ONCE + 7
SECONDS = 30.0
Records: TypeAlias = "asyncio.Queue[CallRecord]"


def fill(file: BinaryIO) -> None:
    file.write(b"x")


def kept(store: Store, user: str, batch: str, count: int = COUNT) -> None:
    rows = [Row(f"{batch}-{number}", user, "f", batch, number, f"spool-{batch}", number) for number in range(count)]
    store.accept(rows, fill, 1)


class Sizes:
    """The number of rows that each transaction of a store changes."""

    def __init__(self, store: Store) -> None:
        self.found: list[int] = []
        self._begin = store.transaction
        store.transaction = self._transaction  # type: ignore[method-assign]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._begin() as connection:
            before = connection.total_changes
            yield connection
            self.found.append(connection.total_changes - before)


def run(tmp_path: Path, work: Any) -> None:
    """Do asynchronous work with the detached calls of a daemon whose keeper is not there."""

    async def main() -> None:
        records: Records = asyncio.Queue()
        detached = Detached(Settings(tmp_path, detached=DetachedSettings()), print, records.put_nowait)
        try:
            async with asyncio.timeout(SECONDS):
                await work(detached, records)
        finally:
            await detached.close()

    asyncio.run(main())


def ask(detached: Detached, verb: str, **arguments: Any) -> Coroutine[Any, Any, Any]:
    channel: Any = type("Channel", (), {"take_descriptors": None})
    return requests.handle(detached, "u-ann", f"detached.{verb}", arguments, channel)


def test_a_large_batch_is_cancelled_and_forgotten_in_pieces(tmp_path: Path) -> None:
    """No transaction changes more than a piece, from the last call to the first; each call has its record and its end."""

    async def work(detached: Detached, records: Records) -> None:
        await detached.ask(lambda store: kept(store, "u-ann", "batch"))
        await detached.ask(lambda store: store.begin("batch-0"))
        sizes = await detached.ask(Sizes)
        told: list[Row] = []
        detached.cancel = told.extend  # type: ignore[method-assign, assignment]
        assert (await ask(detached, "cancel", batch="batch"))[0] == {"calls": COUNT}
        assert records.qsize() == COUNT - 1
        assert [row.number for row in told if row.state == "running"] == [0]
        assert (
            told[0].number > told[MOST_AT_ONCE].number
        )  # the keeper takes the first ones, and would find others there
        rows = await detached.ask(lambda store: store.listed("u-ann", batch="batch"))
        assert len({row.ended for row in rows}) == COUNT
        assert (await ask(detached, "cancel", batch="batch"))[0] == {"calls": 1}
        assert (await ask(detached, "forget", batch="batch"))[0] == {"calls": COUNT - 1}
        assert 0 < max(sizes.found) <= MOST_AT_ONCE + 1  # the spool counts no more, in the row that has it
        with pytest.raises(errors.CallUnknown):
            await ask(detached, "cancel", batch="other")

    run(tmp_path, work)


def test_a_cancellation_is_done_whole_where_its_client_goes(tmp_path: Path) -> None:
    """Each later piece is cancelled too."""

    async def work(detached: Detached, records: Records) -> None:
        await detached.ask(lambda store: kept(store, "u-ann", "batch"))
        task = asyncio.ensure_future(ask(detached, "cancel", batch="batch"))
        await records.get()
        task.cancel()
        await asyncio.wait([task])
        for _ in range(COUNT - 1):
            await records.get()
        assert await detached.ask(lambda store: store.counts("u-ann", "batch")) == {"cancelled": COUNT}

    run(tmp_path, work)


# --- the same calls again ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def spool_of(*ids: str) -> Iterator[int]:
    """Make a spool of calls as a client sends it; give its descriptor."""
    template = StoredCall(Call("", b"f", b""), LeaseSpec(EnvironmentSpec(), network="none"), None)
    descriptor = sealed_file.make_of(spool.pieces(template, [Call(one, b"f", b"") for one in ids], batch="batch"))
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def sent() -> Iterator[int]:
    """A spool with three calls."""
    with spool_of("call-0", "call-1", "call-2") as descriptor:
        yield descriptor


def test_calls_that_are_kept_already_need_no_room(tmp_path: Path, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has lost the answer sends its spool again: it gets the answer, although the user has no more left."""
    with contextlib.closing(Store(tmp_path, DetachedSettings())) as store:
        monkeypatch.setattr(requests, "MOST_WAITING", 3)
        found = [requests._keep(store, "u-ann", "spool-1", sent, 1 << 20) for _ in range(2)]
        assert found == [["call-0", "call-1", "call-2"]] * 2
        assert store.left() == {"waiting": 3}
        with spool_of("call-3") as more, pytest.raises(errors.DetachedFull, match="no room for 1 more"):
            requests._keep(store, "u-ann", "spool-2", more, 1 << 20)


def test_the_answer_is_short_however_many_calls_are_kept(
    tmp_path: Path, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of 100,000 calls are more than an answer may have: the first ones are enough, and all are kept."""
    monkeypatch.setattr(requests, "MOST_ITEMS", 2)

    async def work(detached: Detached, _: Records) -> None:
        detached.look = print  # type: ignore[method-assign]
        channel: Any = type("Channel", (), {"take_descriptors": staticmethod(lambda count: [os.dup(sent)] * count)})
        answer = await requests.handle(detached, "u-ann", "detached.accept", {"spool": "spool-1"}, channel)
        assert answer[0] == {"calls": ["call-0", "call-1"]}
        assert await detached.ask(Store.left) == {"waiting": 3}

    run(tmp_path, work)
