"""The store of detached calls, and spools: states, bounds, damage."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from atoll import errors
from atoll.detached.batches import batches, unwanted
from atoll.detached.bundles import Bundle
from atoll.detached.damage import refuse_damaged
from atoll.detached.database import FILE
from atoll.detached.files import STRAY_SECONDS
from atoll.detached.rows import Row
from atoll.detached.store import LOST, Store
from atoll.keeper.answer import MEMORY_BYTES, Answer
from atoll.keeper.output import LOST as LOST_OUTPUT
from atoll.keeper.output import KeptOutput
from atoll.model import spool
from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.model.spool import CRC, RetryRule, Spool, StoredNames
from atoll.model.stored_call import StoredBundle, StoredCall
from atoll.sdk.detached import answers
from atoll.settings import DetachedSettings
from atoll.wire.frames import Decoder, Message, encode

OPTIONS = DetachedSettings(max_bytes=1000, call_bytes=600)


def fill(file: BinaryIO, size: int = 10) -> None:
    file.write(bytes(size))


def full(file: BinaryIO) -> None:
    file.write(b"half")
    file.flush()
    raise OSError(28, "No space left on device")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "detached"


def opened(directory: Path, options: DetachedSettings = OPTIONS) -> Store:
    return Store(directory, options)


def accepted(store: Store, *calls: str, batch: str = "", user: str = "me", retries: int = 0, size: int = 10) -> None:
    rule = Row.rule_text(RetryRule(retries, wait_seconds=0.0)) if retries else ""
    rows = [
        Row(
            call, user, "f", batch, number, f"spool-{calls[0]}", number, retries=rule, spool_bytes=0 if number else size
        )
        for number, call in enumerate(calls)
    ]
    store.accept(rows, partial(fill, size=size), size)


def test_a_call_goes_from_state_to_state_once(directory: Path) -> None:
    """Each change has the state before it as its condition."""
    store = opened(directory)
    accepted(store, "a")
    assert not store.again("a", 0.0)
    assert store.begin("a")
    assert not store.begin("a")
    assert not store.cancel_waiting("a")
    assert store.end("a", "ok", None, 5, 7)
    assert not store.end("a", "lost", None, 0, 0)
    row = store.find("me", "a")
    assert (row.state, row.outcome, row.attempts, row.result_bytes, row.output_bytes) == ("finished", "ok", 1, 5, 7)
    assert row.revision == 4
    assert not (directory / "spools" / "spool-a").exists()
    store.close()


def test_what_ran_is_lost_or_waits_again(directory: Path) -> None:
    """`recover` gives it its end; another process sees the rows of a store that was never closed."""
    store = opened(directory)
    accepted(store, "plain")
    accepted(store, "again", retries=1)
    accepted(store, "waiting")
    for call in ("plain", "again"):
        assert store.begin(call)
    other = opened(directory)
    assert [row.call for row in other.recover()] == ["plain"]
    assert {row.call: row.state for row in other.listed("me")} == {
        "plain": "finished",
        "again": "waiting",
        "waiting": "waiting",
    }
    assert other.begin("again")
    assert [row.call for row in other.recover()] == ["again"]
    assert other.find("me", "again").failure["code"] == "call_lost"
    assert other.left() == {"waiting": 1}
    other.close()
    store.close()


def test_a_keeper_with_an_old_row_changes_nothing_of_a_resumed_item(directory: Path) -> None:
    """It was cancelled and resumed meanwhile: neither its beginning nor its end is that of the keeper's attempt."""
    store = opened(directory)
    accepted(store, "a", batch="batch")
    old = store.find("me", "a")
    assert store.cancel_waiting("a")
    assert store.renew("me", "batch") == 1
    assert not store.begin("a", old.revision)
    assert not store.end("a", "cancelled", None, 0, 0, waiting=old.revision)
    new = store.find("me", "a")
    assert (new.state, new.outcome) == ("waiting", "")
    assert store.end("a", "refused", None, 0, 0, waiting=new.revision)
    store.close()


def test_a_lost_call_is_judged_by_its_attempts_up_to_now(directory: Path) -> None:
    """The row in the keeper's hands is older than the attempt: it would allow a second run that nobody asked for."""
    store = opened(directory)
    accepted(store, "a")
    old = store.find("me", "a")
    assert store.begin("a")
    assert not store.lose(old, LOST)
    assert store.find("me", "a").outcome == "lost"
    store.close()


def test_a_running_call_that_is_cancelled_is_not_made_again(directory: Path) -> None:
    """Its keeper was killed before it could end it: `retries` are for losses, and this one is unwanted."""
    store = opened(directory)
    accepted(store, "a", retries=3, batch="batch")
    assert store.begin("a")
    assert unwanted(store) == []
    assert store.cancel_all(["a"]) == []
    assert unwanted(store) == ["a"]
    assert [row.call for row in store.recover()] == ["a"]
    assert store.find("me", "a").outcome == "cancelled"
    assert store.renew("me", "batch") == 1
    assert store.begin("a")
    assert unwanted(store) == []
    store.close()


def test_calls_are_taken_in_order_and_past_functions_that_are_full(directory: Path) -> None:
    """And when they are due."""
    store = opened(directory)
    for call, identity in (("a", "one"), ("b", "one"), ("c", "two")):
        store.accept([Row(call, "me", identity=identity, spool=call, max_concurrency=1)], fill, 10)

    def first(*taken: str, full: tuple[str, ...] = ()) -> str | None:
        row = store.next(time.time(), taken, [("me", one) for one in full])
        return row.call if row is not None else None

    assert (first(), first("a"), first("a", full=("one",)), first("a", "b", "c")) == ("a", "b", "c", None)
    due = time.time() + 1000
    assert store.begin("a")
    assert store.again("a", due)
    assert first() == "b"
    assert store.next_due(time.time()) == due
    store.accept([Row("d", "you", identity="one", spool="d", max_concurrency=1)], fill, 10)
    assert first("c", full=("one",)) == "d"  # another user's call of the same function
    store.close()


def test_nobody_finds_the_calls_of_another_user(directory: Path) -> None:
    """By id, by its beginning, in lists and in batches."""
    store = opened(directory)
    accepted(store, "abc-1", "abd-1", batch="batch")
    for asked in ("abc-1", "abc", "ab", ""):
        with pytest.raises(errors.CallUnknown, match="no detached call"):
            store.find("you", asked)
    assert store.listed("you") == store.items("you", "batch", "all", -1, 10) == []
    assert store.counts("you", "batch") == {}
    assert store.renew("you", "batch") == 0
    assert store.find("me", "abc").call == "abc-1"
    with pytest.raises(errors.CallUnknown, match="more than one"):
        store.find("me", "ab")
    with pytest.raises(ValueError, match="id of another"):
        accepted(store, "abc-1", user="you")
    store.close()


def test_the_same_spool_may_be_sent_again(directory: Path) -> None:
    """A client whose daemon ended before the answer does so."""
    store = opened(directory)
    accepted(store, "a")
    assert store.begin("a")
    accepted(store, "a")
    assert store.find("me", "a").state == "running"
    store.close()


def test_a_full_store_refuses(directory: Path) -> None:
    """By the size of one, and of all; nothing is removed for it."""
    store = opened(directory)
    accepted(store, "a", size=600)
    with pytest.raises(errors.DetachedFull, match="one detached call may have"):
        accepted(store, "b", size=601)
    with pytest.raises(errors.DetachedFull, match="atoll calls forget"):
        accepted(store, "b", size=500)
    assert sorted(os.listdir(directory / "spools")) == ["spool-a"]
    assert store.begin("a")
    assert store.end("a", "ok", None, 0, 0)
    accepted(store, "b", size=500)
    store.close()


@pytest.mark.parametrize("way", ["end", "cancel"])
def test_an_outcome_that_is_seen_has_freed_its_spool(
    directory: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A keeper that is killed at any instant leaves no spool of an ended call that counts, and its file goes in time."""
    store, other = opened(directory), opened(directory)
    accepted(store, "a", size=400)
    if way == "end":
        store.begin("a")
    original, seen = Store.transaction, list[tuple[str, int]]()

    @contextlib.contextmanager
    def transaction(self: Store) -> Iterator[sqlite3.Connection]:
        with original(self) as connection:
            yield connection
        seen.append((other.rows("WHERE call = 'a'")[0].state, other.used_bytes()))

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Store, "transaction", transaction)
        patched.setattr(store.files, "remove", killed)
        with pytest.raises(SystemExit):
            store.end("a", "error", None, 0, 0) if way == "end" else store.cancel_waiting("a")
    assert seen == [("finished", 0)]
    path = directory / "spools" / "spool-a"
    assert path.exists()
    os.utime(path, (0, 0))
    other.expire()
    assert not path.exists()
    store.close()
    other.close()


def test_a_full_disk_keeps_nothing_of_a_call(directory: Path) -> None:
    """No row, and no part of the file."""
    store = opened(directory)
    with pytest.raises(errors.DiskFull):
        store.accept([Row("a", "me", spool="s")], full, 10)
    with pytest.raises(errors.DiskFull):
        store.write_result("a", full)
    assert os.listdir(directory / "spools") == os.listdir(directory / "results") == []
    assert store.listed("me") == []
    store.close()


def test_finished_calls_expire_with_their_files(directory: Path) -> None:
    """Others stay; files that no row names go when they are old."""
    store = opened(directory, replace(OPTIONS, keep_days=1.0))
    for call in ("old", "new", "waiting"):
        accepted(store, call)
    for call in ("old", "new"):
        assert store.begin(call)
        store.write_result(call, fill)
        assert store.end(call, "ok", None, 10, 0)
    store.change("ended_at = 1000", "call = ?", ("old",))
    for name in ("stray", "fresh"):
        (directory / "results" / name).write_bytes(b"x")
    os.utime(directory / "results" / "stray", (0, time.time() - 2 * STRAY_SECONDS))
    store.expire()
    assert sorted(row.call for row in store.listed("me")) == ["new", "waiting"]
    assert sorted(os.listdir(directory / "results")) == ["fresh", "new"]
    assert store.forget(store.listed("me")) == 1
    assert [row.call for row in store.listed("me")] == ["waiting"]
    store.close()


def test_a_batch_keeps_its_spool_while_items_may_be_resumed(directory: Path) -> None:
    """Items are counted, listed in order and by their ends, and renewed."""
    store = opened(directory)
    accepted(store, "a", "b", "c", batch="batch")
    for call, outcome in (("c", "ok"), ("a", "error")):
        assert store.begin(call)
        assert store.end(call, outcome, None, 0, 0)
    assert store.cancel_waiting("b")
    assert store.counts("me", "batch") == {"ok": 1, "error": 1, "cancelled": 1}
    assert [row.call for row in store.items("me", "batch", "failed", -1, 10)] == ["a", "b"]
    assert [row.call for row in store.items("me", "batch", "ended", 0, 10)] == ["c", "a", "b"]
    assert (directory / "spools" / "spool-a").exists()
    assert store.renew("me", "batch") == 2
    for call in ("a", "b"):
        assert store.begin(call)
        assert store.end(call, "ok", None, 0, 0)
    assert store.used_bytes() == 0
    assert not (directory / "spools" / "spool-a").exists()
    store.close()


def test_batches_have_their_counts_and_are_found_by_a_beginning(directory: Path) -> None:
    """Newest first, of their user alone; many calls of one are cancelled at once, each with an end of its own."""
    store = opened(directory)
    accepted(store, "a1", "a2", "a3", batch="aaaa-1")
    accepted(store, "b1", batch="aaaa-2")
    accepted(store, "c1", user="you", batch="aaaa-3")
    accepted(store, "d1")
    assert store.begin("a1")
    assert store.end("a1", "error", None, 0, 0)
    assert store.begin("a2")
    new, old = batches(store, "me")
    assert (new.batch, new.counts) == ("aaaa-2", {"waiting": 1})
    assert (old.counts, old.unfinished) == ({"error": 1, "running": 1, "waiting": 1}, 2)
    assert [one.batch for one in batches(store, "me", "aaaa-1")] == ["aaaa-1"]
    assert [one.batch for one in batches(store, "me", limit=1)] == ["aaaa-2"]
    assert [row.call for row in store.cancel_all(["a1", "a2", "a3", "b1", "unknown"])] == ["a3", "b1"]
    assert [row.ended for row in store.items("me", "aaaa-1", "ended", 0, 9)] == [1, 2]
    assert [path.name for path in sorted((directory / "spools").iterdir())] == [
        "spool-a1",
        "spool-b1",
        "spool-c1",
        "spool-d1",
    ]
    store.close()


def test_a_damaged_file_is_a_named_error(directory: Path) -> None:
    """It names the file, and leaves it as it is."""
    directory.mkdir(mode=0o700)
    (directory / FILE).write_bytes(b"nothing" * 1000)
    with pytest.raises(errors.StateUnusable, match=FILE):
        opened(directory)
    assert (directory / FILE).read_bytes() == b"nothing" * 1000


@pytest.mark.parametrize("damage", ["state = 'weird'", "due_at = 'abc'", "attempts = 'zz'", "place = x'00'"])
def test_a_damaged_row_is_refused(directory: Path, damage: str) -> None:
    """Others are as they were; the damaged call ends once, with an error that says so."""
    store = opened(directory)
    accepted(store, "a")
    accepted(store, "b")
    store.change(damage, "call = ?", ("a",))
    assert [refuse_damaged(store), refuse_damaged(store)] == [1, 0]
    row = store.find("me", "a")
    assert (row.state, row.outcome, row.failure["code"]) == ("finished", "refused", "state_unusable")
    assert all(type(getattr(row, name)) in (int, float) for name in ("due_at", "attempts", "place"))
    assert store.left() == {"waiting": 1}
    store.close()


def test_a_damaged_row_leads_to_no_file_elsewhere(directory: Path) -> None:
    """Its spool is removed at its end, by its name."""
    store = opened(directory)
    accepted(store, "a")
    other = directory.parent / "other"
    other.write_text("of somebody else")
    store.change("spool = '../../other'", "call = ?", ("a",))
    assert store.begin("a")
    assert store.end("a", "refused", None, 0, 0)
    assert other.exists()
    assert store.files.open("spools", "../../other") is None
    store.close()


def test_an_earlier_versions_file_gets_the_new_columns(directory: Path) -> None:
    """With their defaults."""
    opened(directory).close()
    connection = sqlite3.connect(directory / FILE)
    connection.execute("DROP INDEX calls_by_end")
    connection.execute("ALTER TABLE calls DROP COLUMN ended")
    connection.execute("INSERT INTO calls (call, user) VALUES ('old', 'me')")
    connection.commit()
    connection.close()
    store = opened(directory)
    assert store.find("me", "old").ended == 0
    store.close()


def test_the_same_renewal_again_changes_nothing(directory: Path) -> None:
    """A client whose daemon ended before the answer asks again: with a new function, and without one."""
    store = opened(directory)
    accepted(store, "a", "b", batch="batch")
    for call in ("a", "b"):
        assert store.begin(call)
        assert store.end(call, "error", None, 0, 0)
    like = Row("", "me", "g", spool="new")
    assert [store.renew("me", "batch", like, fill) for _ in range(2)] == [2, 2]
    assert (directory / "spools" / "new").exists()
    assert store.begin("a")
    assert store.end("a", "error", None, 0, 0)
    assert store.renew("me", "batch", like, fill) == 2
    assert store.find("me", "a").outcome == "error"
    assert store.renew("me", "batch", replace(like, spool="newer"), fill) == 1
    assert store.begin("a")
    assert store.end("a", "error", None, 0, 0)
    assert [store.renew("me", "batch", request="asked") for _ in range(2)] == [1, 1]
    assert store.renew("me", "batch", request="other") == 0
    store.close()


def test_a_spool_that_a_row_names_is_not_removed(directory: Path) -> None:
    """Two daemons take the same renewal at once: the later one finds nothing to do."""
    store, other = opened(directory), opened(directory)
    accepted(store, "a", batch="batch")
    assert store.cancel_waiting("a")
    like, begin = Row("", "me", "g", spool="new", request="asked"), store.transaction

    def late() -> Any:
        assert other.renew("me", "batch", like, fill) == 1
        return begin()

    store.transaction = late  # type: ignore[method-assign]
    assert store.renew("me", "batch", replace(like, spool="newer"), fill) == 1
    assert (directory / "spools" / "new").exists()
    assert not (directory / "spools" / "newer").exists()
    store.close()
    other.close()


def test_many_calls_are_cancelled_and_forgotten_at_once(directory: Path) -> None:
    """In one transaction each, so that a process that ends meanwhile leaves all or none."""
    store = opened(directory)
    calls = [f"call-{number}" for number in range(50)]
    accepted(store, *calls, batch="batch")
    assert store.begin(calls[0])
    begin, count = store.transaction, 0

    def counted() -> Any:
        nonlocal count
        count += 1
        return begin()

    store.transaction = counted  # type: ignore[method-assign]
    assert [row.call for row in store.cancel_all(calls)] == calls[1:]
    assert unwanted(store) == calls[:1]
    rows = store.listed("me", batch="batch")
    assert len({row.ended for row in rows}) == len(rows)
    assert store.forget(rows) == 49
    assert count <= 3
    store.close()


# --- bundles ----------------------------------------------------------------------------------------------------------

MODULES = Bundle("digest", 300, partial(fill, size=300))


def with_modules(store: Store, call: str, *, batch: str = "", digest: str = "digest") -> None:
    row = Row(call, "me", "f", batch, spool=f"spool-{call}", spool_bytes=10, bundle=digest, bundle_bytes=300)
    store.accept([row], fill, 10, MODULES._replace(digest=digest))


def bundles(directory: Path) -> list[str]:
    return sorted(os.listdir(directory / "bundles"))


def test_calls_of_the_same_modules_share_their_file(directory: Path) -> None:
    """It counts once, and goes with the last call that needs it; one with other modules has its own."""
    store = opened(directory)
    for call in ("a", "b", "c"):
        with_modules(store, call)
    assert (bundles(directory), store.used_bytes()) == (["digest"], 330)
    with_modules(store, "d", digest="other")
    assert (bundles(directory), store.used_bytes()) == (["digest", "other"], 640)
    for call in ("a", "b", "d"):
        assert store.begin(call)
        assert store.end(call, "ok", None, 0, 0)
    assert (bundles(directory), store.used_bytes()) == (["digest"], 310)
    assert store.cancel_waiting("c")
    assert (bundles(directory), store.used_bytes()) == ([], 0)
    with_modules(store, "e")
    assert bundles(directory) == ["digest"]
    store.close()


def test_modules_stay_for_the_items_of_a_batch_that_failed(directory: Path) -> None:
    """Until they are made again, by another function, or forgotten."""
    store = opened(directory)
    for call in ("a", "b"):
        with_modules(store, call, batch="batch")
        assert store.begin(call)
        assert store.end(call, "error", None, 0, 0)
    assert bundles(directory) == ["digest"]
    assert store.forget(store.listed("me", batch="batch")[-1:]) == 1
    assert bundles(directory) == ["digest"]
    like = Row("", "me", "g", spool="new", bundle="other", bundle_bytes=300)
    assert store.renew("me", "batch", like, fill, MODULES._replace(digest="other")) == 1
    assert bundles(directory) == ["other"]
    assert store.cancel_waiting("b")
    assert store.forget(store.listed("me")) == 1
    assert bundles(directory) == []
    assert store.renew("me", "batch", like, fill, MODULES._replace(digest="other")) == 0
    assert bundles(directory) == []
    store.close()


def test_a_file_that_goes_before_its_row_comes_is_written_again(directory: Path) -> None:
    """Another process ends the last call of these modules between the look at the file and the transaction."""
    store, other = opened(directory), opened(directory)
    with_modules(other, "last")
    begin = store.transaction

    def late() -> Any:
        if other.find("me", "last").state == "waiting":
            other.cancel_waiting("last")
            assert bundles(directory) == []
        return begin()

    store.transaction = late  # type: ignore[method-assign]
    with_modules(store, "a")
    assert bundles(directory) == ["digest"]
    store.close()
    other.close()


def test_modules_without_a_row_go_when_they_are_old(directory: Path) -> None:
    """A process was killed between file and row, or between row and file."""
    store = opened(directory)
    with_modules(store, "a")
    for name in ("digest", "stray", "fresh"):
        (directory / "bundles" / name).write_bytes(b"x")
    for name in ("digest", "stray"):
        os.utime(directory / "bundles" / name, (0, time.time() - 2 * STRAY_SECONDS))
    store.expire()
    assert bundles(directory) == ["digest", "fresh"]
    store.close()


# --- spools -----------------------------------------------------------------------------------------------------------


def stored(count: int = 2) -> bytes:
    spec = LeaseSpec(EnvironmentSpec(requirements=("numpy",)), "f")
    like = Call("", b"function", b"", name="f", texts=b"texts", texts_digest="t", stream=True)
    calls = [like.again(f"call-{number}", b"arguments", (bytearray(b"buffer"), b""), 1.5) for number in range(count)]
    calls[-1:] = [replace(one, texts=b"other", texts_digest="o") for one in calls[-1:]]
    names = StoredNames({"__main__": {"A": b"pickle"}}, {"__main__": {"B": "too large"}})
    rule = RetryRule(2, (("builtins", "OSError"),))
    made = spool.pieces(StoredCall(like, spec, None), calls, batch="b", retries=rule, certificates="PEM", names=names)
    return b"".join(made)


def test_a_spool_comes_back_as_it_was() -> None:
    """Function, arguments, texts of their own, certificates, names, retries."""
    data = stored()
    file = io.BytesIO(data)
    found = Spool.from_file(file)
    assert found.size_bytes == len(data)
    assert (found.batch, found.function, found.stream, found.retries.count) == ("b", "f", True, 2)
    template = found.template(file)
    first, second = (found.call(file, number, template) for number in range(2))
    assert (first.id, first.arguments, [bytes(part) for part in first.buffers]) == (
        "call-0",
        b"arguments",
        [b"buffer", b""],
    )
    assert (first.texts, second.texts, second.texts_digest, second.at) == (b"texts", b"other", "o", 1.5)
    assert found.certificates(file) == "PEM"
    names = found.names(file)
    assert names.answer({"module": "__main__", "name": "A"}) == ({}, [b"pickle"])
    assert names.answer({"module": "__main__", "name": "B"})[0] == {"missing": "too large"}
    assert names.answer({"module": "__main__"})[0] == {"names": ["A", "B"]}
    assert names.answer({"module": "__main__", "snapshot": True, "known": ["A"]})[0]["names"] == []
    assert "does not travel" in names.answer({"module": "other", "name": "A"})[0]["missing"]


def test_the_modules_are_behind_everything_else() -> None:
    """They come back as they were, by their digest; the file without them is a spool."""
    like = Call("", b"function", b"", name="f")
    bundle = StoredBundle({"digest": "d", "modules": ["a"]}, [b"first", b"", memoryview(b"third")])
    stored = StoredCall(like, LeaseSpec(EnvironmentSpec(), "f"), bundle)
    data = b"".join(spool.pieces(stored, [like.again("call", b"arguments", (), 1.5)]))
    found = Spool.from_file(io.BytesIO(data))
    modules = data[found.size_bytes :]
    assert (len(modules), spool.modules_digest([modules])) == (found.modules_bytes, found.modules_digest)
    back = StoredBundle.from_bytes(modules)
    assert (back.header, [bytes(part) for part in back.contents]) == (bundle.header, [b"first", b"", b"third"])
    own = io.BytesIO(data[: found.size_bytes])
    assert Spool.from_file(own).template(own).bundle is None
    for damaged in (b"", modules[:-1], modules + b"x", b"\0\0\0\x02{}", b"\0\0\0\x02[]"):
        with pytest.raises(ValueError, match="modules"):
            StoredBundle.from_bytes(damaged)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: b"OTHER" + data[5:],
        lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    ],
)
def test_other_bytes_are_no_spool(damage: Callable[[bytes], bytes]) -> None:
    """Of any length, and with any bit changed."""
    with pytest.raises(ValueError, match="spool"):
        Spool.from_file(io.BytesIO(damage(stored())))


def test_damage_of_a_part_is_found_before_it_is_used() -> None:
    """Each byte behind the header belongs to a part with a CRC."""
    data = stored(1)
    start = Spool.from_file(io.BytesIO(data))._start
    for place in range(start, len(data)):
        file = io.BytesIO(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = Spool.from_file(file)
        with pytest.raises(ValueError, match="damaged"):
            found.names(file), found.certificates(file), found.call(file, 0, found.template(file))


@pytest.mark.parametrize(
    ("on", "kinds", "covered"),
    [
        ((), [("builtins", "ValueError")], False),
        ([("builtins", "ValueError")], [("m", "Own"), ("builtins", "ValueError")], True),
        ([("builtins", "Exception")], [("m", "Own")], True),
        ([("builtins", "Exception")], [("builtins", "SystemExit")], False),
        ([("builtins", "BaseException")], [("builtins", "SystemExit")], True),
        ([("builtins", "OSError")], [("builtins", "ValueError")], False),
    ],
)
def test_retries_cover_exceptions_by_the_names_of_their_types(
    on: list[tuple[str, str]], kinds: list[tuple[str, str]], covered: bool
) -> None:
    """As `isinstance` does where the types are at hand."""
    assert RetryRule(1, tuple(on)).names(kinds) is covered


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_long_generators_items_are_in_a_file_and_bounded(tmp_path: Path) -> None:
    """Not in memory; what is too much is an error, and what came before is not damaged by it."""
    item = Message({"type": "yield"}, [bytes(5 << 20)])
    answer = Answer(tmp_path, 50 << 20)
    for _ in range(9):
        answer.add(item)
        assert sum(map(len, answer._pieces)) <= MEMORY_BYTES
    with pytest.raises(errors.DetachedFull, match="generator"):
        answer.add(Message({"type": "yield"}, [bytes(6 << 20)]))
    answer.add(Message({"type": "result"}, [b"end"]))
    with open(tmp_path / "result", "wb") as file:
        answer.fill(file)
    with open(tmp_path / "result", "rb") as file:
        messages = answers._messages(file)
    assert [message.type for message in messages] == ["yield"] * 9 + ["result"]
    assert os.listdir(tmp_path) == ["result"]
    answer.close()


def test_headers_count_too(tmp_path: Path) -> None:
    """A worker may send items without contents."""
    answer, item = Answer(tmp_path, 300), Message({"type": "yield", "pad": "x" * 100}, [])
    answer.add(item)
    answer.add(item)
    with pytest.raises(errors.DetachedFull):
        answer.add(item)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_a_mark_in_an_output(tmp_path: Path) -> None:
    """The call goes on; what the disk takes at the call's end is there, else a line in place of the last bytes."""
    for at_end, expected in ((True, b"a" * 6000 + b"b" * 6000), (False, None)):
        path = tmp_path / f"output-{at_end}"
        output = KeptOutput(path, 1 << 20, lambda _state, _line: None)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # a write beyond is short, then an error
            output.stdout(b"a" * 6000)
            output.stdout(b"b" * 6000)
            if at_end:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            size = output.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        found = path.read_bytes()
        assert len(found) == size
        assert found == (expected or (b"a" * 6000 + b"b" * 6000)[: 8192 - len(LOST_OUTPUT)] + LOST_OUTPUT)


def test_of_a_long_output_the_middle_is_left_out(tmp_path: Path) -> None:
    """The file has its beginning, a line that says so, and its end."""
    path = tmp_path / "output"
    output = KeptOutput(path, 1000, lambda _state, _line: None)
    for number in range(1000):
        output.stdout(f"line {number}\n".encode())
    size = output.close()
    text = path.read_text()
    assert len(text) == size <= 1100
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 998\nline 999\n")
    assert "bytes of output are left out here" in text
    assert output.tail().endswith("line 999\n")


def test_a_result_larger_than_a_step_of_its_buffer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that grows while its file is read takes all of it."""
    monkeypatch.setattr(Decoder, "_STEP_BYTES", 1 << 20)
    large = os.urandom(5 << 20)
    data = b"".join(bytes(piece) for piece in encode({"type": "result"}, [b"pickle", large]))
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data + CRC.pack(zlib.crc32(data)))
        file.seek(0)
        (message,) = answers._messages(file)
    assert bytes(message.buffers[1]) == large


def test_a_spool_of_an_earlier_version_is_found_by_its_name(directory: Path) -> None:
    """Its row has no client's id beside the file's name: the same calls again change nothing."""
    store = opened(directory)
    accepted(store, "a", batch="batch")
    known = replace(store.find("me", "a"), request="")
    store.accept([replace(known, spool="drawn", request="spool-a")], fill, 10)
    assert store.listed("me") == [known]
    assert not (directory / "spools" / "drawn").exists()
    with pytest.raises(ValueError, match="another one"):
        store.accept([replace(known, spool="drawn", request="spool-b")], fill, 10)
    store.close()


def test_a_spool_is_never_written_over(directory: Path) -> None:
    """Calls are made from it: a second file of the name is refused, and the first one stays."""
    store = opened(directory)
    accepted(store, "a", batch="batch")
    spool_a = directory / "spools" / "spool-a"
    before = spool_a.read_bytes()
    with pytest.raises(errors.StateUnusable):
        store.accept([Row("b", "other", spool="spool-a")], partial(fill, size=20), 20)
    accepted(store, "c", batch="others", user="other")
    assert store.cancel_waiting("c")
    with pytest.raises(errors.StateUnusable):
        store.renew("other", "others", Row("", "other", spool="spool-a"), fill)
    assert spool_a.read_bytes() == before
    store.close()


def test_functions_of_resumed_batches_take_room(directory: Path) -> None:
    """Each counts while a call may need it, and its file goes with the last of them."""
    store = opened(directory)
    accepted(store, "a", batch="batch")
    for number in range(5):
        assert store.cancel_waiting("a")
        like = Row("", "me", spool=f"new-{number}", spool_bytes=300)
        assert store.renew("me", "batch", like, partial(fill, size=300)) == 1
        assert store.used_bytes() == 310
        assert sorted(os.listdir(directory / "spools")) == [f"new-{number}", "spool-a"]
    assert store.cancel_waiting("a")
    with pytest.raises(errors.DetachedFull):
        store.renew("me", "batch", Row("", "me", spool="large", spool_bytes=601), fill)
    assert store.forget(store.listed("me")) == 1
    assert os.listdir(directory / "spools") == []
    store.close()
