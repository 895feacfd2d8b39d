"""Records of calls: measured, checked, kept."""

from __future__ import annotations

import mmap
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from atoll import errors
from atoll.agent import usage as meter
from atoll.daemon.records.database import DAMAGED, FILE, Database
from atoll.daemon.records.recorder import Recorder
from atoll.engine import call_claims
from atoll.model.records import OUTCOMES, CallRecord
from atoll.model.specs import SandboxKey
from atoll.settings import RecordsSettings

CLAIM = ["c-1", "f", "", 10.0, 11.0, 0.5, 0.4, 1 << 20, 100, 200, "ok", "", ""]
HEADER = {"call": "c-1", "name": "f", "at": 5.0}


def read(message: dict[str, Any]) -> list[list[Any]]:
    return meter.read_slots(message["slots"], message["last"])


def changed(number: int, value: Any) -> list[Any]:
    return [*CLAIM[:number], value, *CLAIM[number + 1 :]]


# --- in the worker ------------------------------------------------------------------------------------------------


Measuring = tuple[meter.Meter, memoryview, list[dict[str, Any]]]


@pytest.fixture
def measuring() -> Iterator[Measuring]:
    """A meter, the sheet it writes, and the records it sends."""
    sheet = memoryview(mmap.mmap(-1, meter.SHEET_BYTES))
    sent: list[dict[str, Any]] = []
    made = meter.Meter(sheet, sent.append)
    yield made, sheet, sent
    if made._reset >= 0:
        os.close(made._reset)


def test_a_sheet_tells_whether_a_call_runs(measuring: Measuring) -> None:
    """Before the first call nothing is known, during one its fields, and between two only that there was one."""
    measured, sheet, _ = measuring
    assert meter.running(sheet) == {}
    for report in (False, True):
        measured.begin(HEADER, ())
        assert [meter.running(sheet)[name] for name in meter.RUNNING[:4]] == ["c-1", "f", "", 5.0]
        measured.end({"type": "result"})
        assert meter.running(sheet) == {"between": True}
        if report:
            measured.report()
            assert meter.running(sheet) == {"between": True}


def test_a_call_is_measured(measuring: Measuring) -> None:
    """A record has what the call used, its children included, and sizes of all that came and went."""
    measured, _, sent = measuring
    measured.begin(HEADER, [bytes(1000), memoryview(bytes(800)).cast("d")])
    begun = time.process_time()
    while time.process_time() - begun < 0.05:
        pass
    block = bytearray(os.urandom(1)) * (40 << 20)
    if (pid := os.fork()) == 0:
        begun = time.process_time()
        while time.process_time() - begun < 0.05:
            pass
        os._exit(0)
    os.waitpid(pid, 0)
    measured.end({"type": "result"}, [b"xyz", bytearray(7)])
    assert measured.waiting
    measured.report()
    ((call, name, parent, queued, _, wall, cpu, peak, came, went, *rest),) = read(sent[0])
    assert (call, name, parent, queued, came, went, rest) == ("c-1", "f", "", 5.0, 1800, 10, ["ok", "", ""])
    assert 0.1 <= cpu <= wall + 0.1
    assert peak >= len(block)
    assert not measured.waiting


def test_the_peak_of_a_call_is_its_own(measuring: Measuring) -> None:
    """A call that uses little after one that used much has a small peak, where the kernel lets it be measured."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("no /proc/self/clear_refs")
    measured, _, sent = measuring
    measured.begin(HEADER, [])
    block = bytearray(os.urandom(1)) * (200 << 20)
    del block
    measured.end({"type": "result"})
    measured.begin(HEADER, [])
    measured.end({"type": "result"})
    measured.report()
    first, second = (record[7] for record in read(sent[0]))
    assert first - second > 100 << 20


def test_records_wait_for_a_batch_and_errors_do_not(measuring: Measuring) -> None:
    """Good calls are reported together, at most `SLOTS` of them; a failed one at once, with those before it."""
    measured, _, sent = measuring
    for _ in range(meter.SLOTS):
        measured.begin(HEADER, [])
        measured.end({"type": "result"})
    assert not sent
    measured.begin(HEADER, [])
    assert len(read(sent[0])) == meter.SLOTS
    frames = [["prog.py", 3, "f", "1 / 0", None, None, None]]
    described = {"exceptions": [{"type": "ZeroDivisionError", "text": "division by zero", "frames": frames}]}
    measured.end({"type": "error", "error": described})
    assert read(sent[1])[-1][10:12] == ["error", "ZeroDivisionError"]
    assert read(sent[1])[-1][12].splitlines()[:2] == ["division by zero", '  File "prog.py", line 3, in f']


def test_what_a_killed_worker_did_not_report_is_on_its_sheet(measuring: Measuring) -> None:
    """The agent finds the calls that were not reported, and the one that was running."""
    measured, sheet, _ = measuring
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert meter.left(sheet, usage) == ([], None)
    for name in ("a", "b"):
        measured.begin({**HEADER, "call": name}, [])
        measured.end({"type": "result"})
    waiting, running = meter.left(sheet, usage)
    assert ([one[0] for one in waiting], running) == (["a", "b"], None)
    measured.begin({**HEADER, "call": "c", "parent": "p"}, [b"12"])
    waiting, running = meter.left(sheet, usage)
    assert [one[0] for one in waiting] == ["a", "b"]
    assert running is not None
    assert (running[0], running[2], running[7], running[8]) == ("c", "p", usage.ru_maxrss << 10, 2)


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.binary(min_size=400, max_size=400), st.integers(0, (1 << 64) - 1))
def test_a_hostile_sheet_gives_records_that_are_checked(noise: bytes, count: int) -> None:
    """Whatever code in a worker writes on its sheet, the agent reads it, and the daemon takes or refuses it."""
    sheet = memoryview(bytearray(count.to_bytes(8, "little") + noise * 200)[: meter.SHEET_BYTES])
    waiting, running = meter.left(sheet, resource.getrusage(resource.RUSAGE_SELF))
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1")
    message = {"records": waiting, "call": running}
    found = place.last_records(message, nested=False, error=None, left=False)
    assert len(found) <= meter.SLOTS + 1


# --- in the daemon ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        None,
        {},
        [None],
        [[]],
        [CLAIM[:-1]],
        *([changed(number, None)] for number in range(13)),
        *([changed(number, {"a": 1})] for number in range(13)),
        [changed(0, "")],
        [changed(3, -1.0)],
        [changed(4, float("nan"))],
        [changed(5, float("inf"))],
        [changed(6, True)],
        [changed(7, 1.5)],
        [changed(8, 1 << 60)],
        [changed(9, -1)],
        [changed(10, "killed")],
        [changed(10, "out_of_memory")],
    ],
)
def test_what_a_worker_cannot_claim(claims: Any) -> None:
    """Wrong types, sizes and outcomes that only the daemon can know are refused."""
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1")
    with pytest.raises(ValueError, match=r"record|report"):
        list(place.records(claims, nested=False))


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"slots": "", "last": []},
        {"slots": "zz", "last": []},
        {"slots": "00" * 311, "last": []},
        {"slots": "00" * 312 * 102, "last": []},
        {"slots": "00" * 312, "last": []},
        {"slots": "ff" * 312, "last": []},
        {"slots": "61" * 312, "last": ["killed", "", ""]},
        {"slots": "61" * 312, "last": [1, 2, 3]},
        {"slots": 5, "last": []},
    ],
)
def test_reports_that_are_none(message: dict[str, Any]) -> None:
    """A report that is not whole, names no call or holds no numbers is refused."""
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1")
    with pytest.raises(ValueError, match=r".+"):
        list(place.reported(message, nested=False))


def test_a_record_says_what_the_daemon_knows() -> None:
    """User, environment, sandbox and worker are the daemon's; texts are cut; a parent only where there can be one."""
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1")
    claim = [*CLAIM[:12], "m" * 100_000]
    claim[1], claim[2] = "f\0\ud800" * 1000, "p-1"
    (record,) = place.records([claim], nested=False)
    assert (record.user, record.environment, record.sandbox, record.worker) == ("u", "e", "s1", "w1")
    assert (len(record.function) <= 200, len(record.message), record.parent) == (True, 8200, "")
    assert record.queue_seconds == 1.0
    (nested,) = place.records([claim], nested=True)
    assert nested.parent == "p-1"


def test_a_worker_that_reports_too_much_is_cut_off() -> None:
    """Records over the rate are left out, and come through again when time has passed."""
    now = [0.0]
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1", clock=lambda: now[0])
    assert (
        len(list(place.records([CLAIM] * (call_claims.MOST_PER_SECOND + 500), nested=False)))
        == call_claims.MOST_PER_SECOND
    )
    assert list(place.records([CLAIM], nested=False)) == []
    now[0] = 0.5
    assert (
        len(list(place.records([CLAIM] * call_claims.MOST_PER_SECOND, nested=False)))
        == call_claims.MOST_PER_SECOND // 2
    )


@pytest.mark.parametrize(
    ("error", "left", "outcome"),
    [
        (errors.WorkerDied("x", signal=9), False, "killed"),
        (errors.WorkerDied("x", exit_status=3), False, "exited"),
        (errors.WorkerDied("x", signal=9), True, "cancelled"),
        (errors.OutOfMemory("x", signal=9, limit_bytes=10, peak_bytes=77), True, "out_of_memory"),
        (errors.CallTimeout("x"), True, "timeout"),
        (errors.SandboxUnavailable("x"), False, "lost"),
    ],
)
def test_why_a_call_was_lost(error: errors.AtollError, left: bool, outcome: str) -> None:
    """What ended the worker decides the outcome; a kill after the caller has left is a cancelled call."""
    place = call_claims.Place(SandboxKey("u", "e"), "s1", "w1")
    (record,) = place.last_records({"call": changed(10, "lost")}, nested=False, error=error, left=left)
    assert record.outcome == outcome
    assert record.outcome in OUTCOMES
    assert record.peak_bytes == (77 if outcome == "out_of_memory" else 1 << 20)


# --- on the disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    kept = Recorder(tmp_path / "records", RecordsSettings())
    yield kept
    kept.close()


def record(call: str, at: float | None = None, **values: Any) -> CallRecord:
    moment = time.time() if at is None else at
    return CallRecord(call, "f", "u", queued_at=moment, started_at=moment, **values)


def listed(recorder: Recorder, **filters: Any) -> list[str]:
    return [one.call for one in recorder.ask(lambda database: database.list("u", filters, 1000)).result(20)]


def test_records_are_found_again(recorder: Recorder) -> None:
    """Records come newest first, by their user, and by each filter."""
    recorder.add(record("a-1", 100.0 + time.time(), outcome="error", parent="p"))
    recorder.add(record("a-10"))
    recorder.add(CallRecord("other", "f", "someone else", queued_at=time.time()))
    assert listed(recorder) == ["a-1", "a-10"]
    assert listed(recorder, outcome="error") == listed(recorder, parent="p") == listed(recorder, call="a-1") == ["a-1"]
    assert listed(recorder, start="a-") == ["a-1", "a-10"]
    assert listed(recorder, start="a%") == listed(recorder, since=time.time() + 500) == []


def test_an_output_belongs_to_a_call_and_a_worker(recorder: Recorder) -> None:
    """What is printed later replaces what was there; another worker's claim to the same call stays apart."""
    recorder.add_output(("c", "u", "w1", 3, b"one"))
    recorder.add_output(("c", "u", "w1", 6, b"onetwo"))
    recorder.add_output(("c", "u", "w2", 1, b"!"))
    assert recorder.ask(lambda database: database.output("u", "c", "w1")).result(20) == (6, b"onetwo")
    assert recorder.ask(lambda database: database.output("v", "c", "w1")).result(20) == (0, b"")


def test_records_are_bounded_by_age_and_size(tmp_path: Path) -> None:
    """The old go, then the oldest, until what is left fits; the newest stay."""
    database = Database(tmp_path)
    database.write([record("old", 5.0)])
    for number in range(100):
        calls = [record(f"c-{number}-{one}", message="m" * 500) for one in range(10)]
        database.write(calls, [(f"c-{number}-0", "u", "w", 5000, os.urandom(5000))])
    database.prune(time.time() - 3600, 300_000)
    assert database.used_bytes() <= 300_000
    left = [one.call for one in database.list("u", {}, 10_000)]
    assert "old" not in left
    assert "c-99-9" in left
    database.close()
    assert (tmp_path / FILE).stat().st_size <= 310_000


def test_records_of_one_user_make_no_room_for_another(tmp_path: Path) -> None:
    """Whoever has many calls and much output loses their own oldest; those of others stay, also where they are older."""
    database = Database(tmp_path)
    calls = [replace(record(f"a-{one}", message="m" * 100), user="ann") for one in range(50)]
    database.write(calls, [("a-0", "ann", "w", 20_000, os.urandom(20_000))])
    for number in range(100):
        many = [record(f"c-{number}-{one}", message="m" * 500) for one in range(10)]
        database.write(many, [(f"c-{number}-0", "u", "w", 5000, os.urandom(5000))])
    database.prune(time.time() - 3600, 300_000)
    assert database.used_bytes() <= 300_000
    assert {one.call for one in database.list("ann", {}, 10_000)} == {one.call for one in calls}
    assert database.output("ann", "a-0", "w")[0] == 20_000
    left = [one.call for one in database.list("u", {}, 10_000)]
    assert left[0] == "c-99-9"
    assert "c-0-0" not in left
    database.close()


def test_records_of_many_users_fit_as_well(tmp_path: Path) -> None:
    """Users who have as much as one another each lose their oldest."""
    database = Database(tmp_path)
    for number in range(20):
        database.write(replace(record(f"{user}-{number}", message="m" * 500), user=f"u{user}") for user in range(100))
    database.prune(time.time() - 3600, 300_000)
    assert database.used_bytes() <= 300_000
    for user in range(100):
        left = [one.call for one in database.list(f"u{user}", {}, 100)]
        assert left[:3] == [f"{user}-{number}" for number in (19, 18, 17)]
    database.close()


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"", "cut"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes | str) -> None:
    """A file that SQLite cannot use is kept under another name, and a new one takes its place."""
    directory = tmp_path / "records"
    database = Database(directory)
    database.write([record(f"c{number}", message="m" * 1000) for number in range(200)])
    database.close()
    path = directory / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * 8192 + whole[12288:] if isinstance(content, str) else content)
    recorder = Recorder(directory, RecordsSettings())
    recorder.add(record("new"))
    assert "new" in listed(recorder)
    recorder.close()
    assert (directory / DAMAGED).exists() == (content != b"")


def test_a_locked_file_delays_nobody(tmp_path: Path) -> None:
    """While another program holds the file, adding takes no time, and records come through afterwards or are lost."""
    directory = tmp_path / "records"
    recorder = Recorder(directory, RecordsSettings())
    recorder.add(record("before"))
    assert listed(recorder) == ["before"]
    other = sqlite3.connect(directory / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for number in range(10):
        recorder.add(record(f"meanwhile-{number}"))
    assert threading.active_count() < 50
    other.execute("ROLLBACK")
    other.close()
    recorder.add(record("after"))
    assert {"before", "after"} <= set(listed(recorder))
    recorder.close()


def test_a_place_that_cannot_be_written_costs_only_the_records(tmp_path: Path, caplog: Any) -> None:
    """Where the directory cannot be made, calls go on, it is logged once, and asking is a named error."""
    (tmp_path / "records").write_text("a file")
    recorder = Recorder(tmp_path / "records", RecordsSettings())
    for number in range(3):
        recorder.add(record(f"c{number}"))
        with pytest.raises(errors.StateUnusable):
            listed(recorder)
    recorder.close()
    assert [one.message for one in caplog.records if "records_not_kept" in one.message][1:] == []


def test_nothing_is_kept_where_nothing_is_wanted(tmp_path: Path) -> None:
    """With `keep_days` 0 no file is made."""
    recorder = Recorder(tmp_path / "records", RecordsSettings(keep_days=0))
    recorder.add(record("c"))
    recorder.add_output(("c", "u", "w", 1, b"x"))
    recorder.close()
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "bad",
    [
        record("bad", message="\ud800"),
        record("bad\ud800"),
        record("bad", float("nan")),
        record("bad", bytes_in=1 << 70),
    ],
)
def test_a_record_with_values_that_sqlite_lacks_harms_no_other(tmp_path: Path, bad: CallRecord) -> None:
    """Texts with halves of surrogate pairs, NaN and long numbers are what a worker claims; the others' records stay."""
    recorder = Recorder(tmp_path / "records", RecordsSettings())
    recorder.add(record("first"))
    assert listed(recorder) == ["first"]
    for one in (record("before"), bad, record("after")):
        recorder.add(one)
    recorder.add_output(("bad\ud800", "u", "w", 1 << 65, b"tail"))
    assert {"first", "before", "after"} <= set(listed(recorder))
    assert len(listed(recorder)) == 4
    recorder.close()
    assert not (tmp_path / "records" / DAMAGED).exists()


@pytest.mark.parametrize(
    "ask",
    [
        lambda database: database.list("u", {"function": "\ud800"}, 10),
        lambda database: database.list("u", {}, 1 << 70),
        lambda database: 1 // 0,
    ],
)
def test_a_question_that_fails_costs_no_record(tmp_path: Path, ask: Any) -> None:
    """It fails for its asker; what others add at the time is written."""
    recorder = Recorder(tmp_path / "records", RecordsSettings())
    for number in range(3):
        with pytest.raises((ValueError, ArithmeticError)):
            recorder.ask(ask).result(10)
        recorder.add(record(f"c{number}"))
    recorder.close()
    database = Database(tmp_path / "records")
    assert {one.call for one in database.list("u", {}, 10)} == {"c0", "c1", "c2"}
    database.close()


def test_records_wait_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """They come through when it can be again."""
    directory = tmp_path / "records"
    directory.write_text("in the way")
    recorder = Recorder(directory, RecordsSettings())
    recorder.add(record("early"))
    with pytest.raises(errors.StateUnusable):
        recorder.ask(lambda database: database.used_bytes()).result(10)
    directory.unlink()
    assert listed(recorder) == ["early"]
    recorder.close()
