"""Detached calls: they outlive their program, and each has one outcome, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import BatchHandle, CallHandle, IsolatedFunction, errors, isolated, local
from atoll.keeper.main import LEAST_AT_A_TIME
from tests import conftest
from tests.conftest import Home

from ..waiting import ended, soak, until

SECONDS = 120.0

PROGRAM = """
import os, sys, time
from atoll import isolated

FACTOR = 3

@isolated(local_modules=[])
def work(number, seconds=0.0, client=""):
    with open(f"/data/marks-{number}{client}", "a") as file:
        file.write("x")
    print("working on", number, flush=True)
    while os.path.exists("/data/hold"):
        time.sleep(0.01)
    time.sleep(seconds)
    return number * FACTOR

def spawn(numbers, seconds, retries):
    for number in numbers:
        print(number, work.on(retries=retries).spawn(number, seconds, f"-{os.getpid()}").id, flush=True)

if __name__ == "__main__":
    first, last, seconds, retries = sys.argv[1:]
    spawn(range(int(first), int(last)), float(seconds), int(retries))
    sys.stdin.read()
"""


class Island:
    """A state directory with the marks that calls of `PROGRAM` leave, one for each time that they run."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.data = home.path / "volumes" / "local" / "data"
        self.file = home.path / "program.py"
        self.file.write_text(PROGRAM)
        self.work: IsolatedFunction[..., int] = runpy.run_path(str(self.file))["work"]

    def begin(self, first: int, last: int, seconds: float = 0.0, retries: int = 0) -> subprocess.Popen[str]:
        """Start a program that spawns a call for each number, prints their ids, and stays."""
        return subprocess.Popen(
            [sys.executable, str(self.file), *map(str, (first, last, seconds, retries))],
            env=self.home.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def spawn(self, number: int, retries: int = 0, **options: Any) -> CallHandle[int]:
        """Spawn one call."""
        return self.work.on(retries=retries, **options).spawn(number)

    def marks(self, number: int, client: int | None = None) -> int:
        """Return how often a call has run, that of a client or of this process."""
        path = self.data / (f"marks-{number}" if client is None else f"marks-{number}-{client}")
        return len(path.read_text()) if path.exists() else 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have calls go on until the end of the context."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "hold").touch()
        try:
            yield
        finally:
            (self.data / "hold").unlink()

    def kill_daemon(self) -> None:
        """End the daemon by SIGKILL, and wait for it."""
        pid = self.home.daemon_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert ended(pid)

    def keepers(self) -> list[int]:
        """Return the pids of this directory's keepers."""
        found = []
        for pid in self.home.processes():
            with contextlib.suppress(OSError):
                if b"atoll.keeper.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


@pytest.fixture(scope="module")
def _home() -> Iterator[Home]:
    with conftest.own_home() as home:
        yield home


@pytest.fixture
def island(_home: Home, monkeypatch: pytest.MonkeyPatch) -> Island:
    """A state directory of this module, with an environment and no marks."""
    monkeypatch.setenv("ATOLL_HOME", str(_home.path))
    made = Island(_home)
    assert made.spawn(0).result(SECONDS) == 0
    for path in made.data.glob("marks-*"):
        path.unlink()
    return made


SMALL = """
[pool]
daemon_idle_seconds = 0.2
[detached]
at_a_time = 1
max_bytes = 1_500_000
call_bytes = 1_000_000
"""


@pytest.fixture(scope="module")
def _small_home() -> Iterator[Home]:
    with conftest.own_home() as home:
        (home.path / "settings.toml").write_text(SMALL)
        yield home


@pytest.fixture
def small(_small_home: Home, monkeypatch: pytest.MonkeyPatch) -> Island:
    """A state directory with little room, where one detached call is made at a time."""
    monkeypatch.setenv("ATOLL_HOME", str(_small_home.path))
    made = Island(_small_home)
    assert made.spawn(0).result(SECONDS) == 0
    return made


def kill(program: subprocess.Popen[str]) -> list[str]:
    """End a program by SIGKILL; return the lines that it has printed and nobody has read."""
    program.kill()
    return program.communicate()[0].splitlines()


@pytest.mark.as_user
def test_a_call_outlives_its_program(island: Island) -> None:
    """The program is killed while its call runs: another one gets the result, and the output."""
    with island.held():
        program = island.begin(14, 15)
        assert program.stdout is not None
        call = program.stdout.readline().split()[-1]
        kill(program)
        until(lambda: island.marks(14, program.pid))
    handle: CallHandle[int] = CallHandle.from_id(call[:8])
    assert handle.id == call
    assert handle.result(SECONDS) == handle.result() == 42
    assert "".join(handle.logs()) == "working on 14\n"
    assert island.marks(14, program.pid) == 1


def records_of(call: str) -> list[dict[str, Any]]:
    """Return the records of a call, one for each attempt."""
    calls: list[dict[str, Any]] = local.request("calls.list", {"limit": 1000})["calls"]
    return [one for one in calls if one["call"] == call]


def test_calls_of_several_programs_have_their_records(island: Island) -> None:
    """One worker serves them all, by one lease of the keeper's."""
    calls = []
    for number in (20, 21):
        program = island.begin(number, number + 1)
        assert program.stdout is not None
        calls.append(program.stdout.readline().split()[-1])
        CallHandle(calls[-1]).wait(SECONDS)
        kill(program)
    for call in calls:
        until(lambda call=call: any(one["worker"] for one in records_of(call)))  # type: ignore[misc]


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("victim", ["daemon", "keeper", "stop"])
def test_a_call_that_runs_is_lost_with_the_daemon_unless_it_has_retries(
    island: Island, victim: str, retries: int
) -> None:
    """It is never made again without; what waited or was finished stays."""
    with island.held():
        call = island.spawn(2, retries)
        until(lambda: island.marks(2))
        if victim == "daemon":
            island.kill_daemon()
        elif victim == "keeper":
            (keeper,) = island.keepers()
            os.kill(keeper, signal.SIGKILL)
        else:
            said = island.home.atoll("stop").stdout
            assert "1 detached call ran" in said
    if retries:
        assert call.result(SECONDS) == 6
    else:
        with pytest.raises(errors.CallLost, match="the daemon ended while the call ran"):
            call.result(SECONDS)
        assert call.status().outcome == "lost"
    assert island.marks(2) == 1 + retries
    expected = ["lost", "ok"] if retries else ["lost"]
    if victim == "stop":  # the daemon has time for the records of what it ends
        until(lambda: [one["outcome"] for one in reversed(records_of(call.id))] == expected)
    else:
        until(lambda: records_of(call.id) and records_of(call.id)[0]["outcome"] == expected[-1])


@pytest.mark.as_user
def test_waiting_calls_run_when_the_next_daemon_starts(small: Island) -> None:
    """They survive `atoll stop`, which says so, and a kill; they run by themselves then."""
    with small.held():
        first = small.spawn(1)
        until(lambda: small.marks(1))
        others = [small.spawn(number) for number in (2, 3)]
        assert "2 detached calls wait for the next daemon" in small.home.atoll("stop").stdout
        assert first.wait(SECONDS).outcome == "lost"
        until(lambda: small.marks(2))
        small.kill_daemon()
    assert small.marks(3) == 0
    assert [one.wait(SECONDS).outcome for one in others] == ["lost", "ok"]
    assert [small.marks(number) for number in (1, 2, 3)] == [1, 1, 1]


def test_calls_that_hang_keep_no_others_waiting(island: Island) -> None:
    """A call that takes no part of the machine takes no place of another one either."""
    hung = island.work.on(cpu=0.01, memory="32MB", keep_alive=0)
    with island.held():
        calls = [hung.spawn(20) for _ in range(LEAST_AT_A_TIME + 1)]
        until(lambda: all(call.status().state == "running" for call in calls))
        assert all(call.cancel() for call in calls[1:])
    assert calls[0].result(SECONDS) == 60


def test_a_call_that_has_no_place_says_so(small: Island) -> None:
    """While the bound is met; the call in the keeper's hands has no such reason."""
    with small.held():
        first = small.spawn(4)
        until(lambda: small.marks(4))
        second = small.spawn(0)
        detail = until(lambda: second.status().detail)
        assert detail == "1 detached call is made at a time (`detached.at_a_time`)"
        shown = small.home.atoll("calls", "list", "--running", "--json").stdout
        assert shown.count("detached.at_a_time") == 1
        assert first.status().detail == ""
    assert (second.result(SECONDS), second.status().detail) == (0, "")


def test_a_daemon_with_detached_calls_does_not_leave(small: Island) -> None:
    """It has no client, and is idle for longer than `daemon_idle_seconds`; afterwards it leaves, and so does the keeper."""
    with small.held():
        call = small.spawn(5, keep_alive=0)
        until(lambda: small.marks(5))
        pid = small.home.daemon_pid()
        assert pid is not None
        assert not ended(pid, 1.0)
    assert ended(pid)
    assert small.keepers() == []
    assert call.result(SECONDS) == 15


@pytest.mark.as_user
def test_a_stopped_keeper_ends_with_its_daemon(island: Island) -> None:
    """SIGSTOP holds its calls; the next daemon's keeper gives them their end."""
    with island.held():
        call = island.spawn(6)
        until(lambda: island.marks(6))
        (keeper,) = island.keepers()
        os.kill(keeper, signal.SIGSTOP)
        island.home.atoll("stop")
        assert ended(keeper)
    assert call.wait(SECONDS).outcome == "lost"
    assert island.marks(6) == 1


@pytest.mark.as_user
def test_secrets_of_a_call_go_with_its_end(island: Island) -> None:
    """Variables, arguments and index settings are in a file that others cannot read, and in no other."""
    secret = f"secret-{os.urandom(8).hex()}"
    detached = island.home.path / "detached"

    def files() -> list[Path]:
        places = (detached, island.home.path / "logs", island.home.path / "records")
        paths = [path for place in places for path in place.rglob("*") if path.is_file()]
        return [path for path in paths if secret.encode() in path.read_bytes()]

    with island.held():
        call = island.spawn(30, env={"TOKEN": secret})
        until(lambda: island.marks(30))
        (path,) = files()
        assert path.parent == detached / "spools"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(detached.stat().st_mode) == 0o700
    assert call.result(SECONDS) == 90
    assert files() == []


def held_factor() -> int:
    import kept_once  # type: ignore[import-not-found]

    Path("/data/factor").touch()
    while os.path.exists("/data/hold"):
        time.sleep(0.01)
    return int(kept_once.FACTOR)


def test_modules_of_the_project_are_kept_once(island: Island, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all calls that wait or run, also over a restart; the file goes with the last."""
    detached = island.home.path / "detached"
    (island.home.path / "kept_once.py").write_text(f"FACTOR = 5\n# {'x' * 200_000}\n")
    monkeypatch.syspath_prepend(island.home.path)
    function = isolated(local_modules=["kept_once"], max_concurrency=1)(held_factor)
    with island.held():
        calls = [function.spawn() for _ in range(3)]
        (bundle,) = (detached / "bundles").iterdir()
        assert bundle.stat().st_size > 200_000
        assert b"x" * 1000 not in b"".join(path.read_bytes() for path in (detached / "spools").iterdir())
        until(lambda: (island.data / "factor").exists())
        island.home.atoll("stop")
    assert [one.wait(SECONDS).outcome for one in calls] == ["lost", "ok", "ok"]
    assert calls[2].result() == 5
    until(lambda: list((detached / "bundles").iterdir()) == [])  # the file goes after the outcome


@pytest.mark.as_user
def test_a_daemon_that_is_replaced_hands_over(island: Island) -> None:
    """It makes no further call; its keeper ends with the calls that run, and the next daemon's goes on."""
    with island.held():
        first = island.spawn(40)
        until(lambda: island.marks(40))
        old = island.home.daemon_pid()
        assert local.request_running("drain", {}) is not None
        until(lambda: local.request_running("status", {}) is None)
        second = island.spawn(41)
        assert island.home.daemon_pid() != old
        assert [str(one.status()) for one in (first, second)] == ["running", "waiting"]
    assert (first.result(SECONDS), second.result(SECONDS)) == (120, 123)
    assert [island.marks(number) for number in (40, 41)] == [1, 1]
    assert old is not None
    assert ended(old)


def test_a_call_under_the_daemon_before_is_cancelled(island: Island) -> None:
    """Status says under whom it runs, and that others wait for it; the keeper before looks at what is cancelled."""
    with island.held():
        first = island.spawn(42)
        until(lambda: island.marks(42))
        assert local.request_running("drain", {}) is not None
        until(lambda: local.request_running("status", {}) is None)
        second = island.spawn(43)
        until(lambda: "daemon before" in second.status().detail)
        assert "runs under the daemon before" in first.status().detail
        said = island.home.atoll("cancel", first.id[:8]).stdout
        assert said.startswith((f"cancelled {first.id[:8]} work", f"told {first.id[:8]} work to end"))
        assert first.wait(SECONDS).outcome == "cancelled"
        until(lambda: island.marks(43))
        assert second.status().detail == ""
    assert second.result(SECONDS) == 129


def test_damage_is_an_outcome_or_a_named_error(island: Island) -> None:
    """A spool, a result, and the file of rows: nothing else is lost with them."""
    detached = island.home.path / "detached"
    good = island.spawn(7)
    assert good.result(SECONDS) == 21
    (result,) = (detached / "results").glob(good.id)
    data = bytearray(result.read_bytes())
    data[len(data) // 2] ^= 1
    result.write_bytes(data)
    with pytest.raises(errors.StateUnusable, match="cannot be read"):
        good.result()
    function = island.work.on(max_concurrency=1)
    with island.held():
        holding = [function.spawn(100 + number) for number in range(3)]
        until(lambda: any(island.marks(100 + number) for number in range(3)))
        island.home.atoll("stop")
        for path in (detached / "spools").iterdir():
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    assert Counter(one.wait(SECONDS).outcome for one in holding) == {"lost": 1, "refused": 2}
    with island.held():
        holding = [function.spawn(200 + number) for number in range(3)]
        until(lambda: any(island.marks(200 + number) for number in range(3)))
        island.home.atoll("stop")
        with contextlib.closing(sqlite3.connect(detached / "calls.db", isolation_level=None)) as rows:
            for change, one in (("place = 99", holding[1]), ("state = 'weird', place = 'x'", holding[2])):
                rows.execute(f"UPDATE calls SET {change} WHERE call = ?", (one.id,))
    assert [one.wait(SECONDS).outcome for one in holding] == ["lost", "refused", "refused"]
    with pytest.raises(errors.StateUnusable, match="has no call 99"):
        holding[1].result()
    island.home.atoll("stop")
    (detached / "calls.db").write_bytes(b"no database" * 1000)
    for name in ("calls.db-wal", "calls.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (detached / name).unlink()
    with pytest.raises(errors.StateUnusable, match=r"calls\.db"):
        good.status()
    assert island.home.python("-c", "from atoll import isolated; print(isolated(len)('abc'))").stdout == "3\n"
    (detached / "calls.db").unlink()
    assert island.spawn(8).result(SECONDS) == 24


def lie(path: str, answer: dict[str, Any]) -> None:
    """Answer in the place of the worker, and end it."""
    import gc

    with open(path, "a") as file:
        file.write("x")
    (worker,) = (one for one in gc.get_objects() if type(one).__name__ == "Worker" and hasattr(one, "_control"))
    worker._words[2] = 0
    worker._data.send(answer)
    os._exit(0)


@pytest.mark.parametrize("node", ["x", 5, None, {}, {"type": "T", "text": "t", "bases": 7}])
def test_a_worker_that_lies_about_its_error_runs_its_call_once(island: Island, node: Any) -> None:
    """The keeper takes any words for an exception."""
    call = isolated(local_modules=[], keep_alive=0)(lie).spawn(
        "/data/marks-lie", {"type": "error", "error": {"exceptions": [node]}}
    )
    assert call.wait(SECONDS).outcome == "error"
    assert (island.data / "marks-lie").read_text() == "x"
    (island.data / "marks-lie").unlink()


def test_items_that_are_cancelled_and_resumed_are_made(island: Island) -> None:
    """A cancellation is of the attempt that it has found, and not of the one after `resume`."""
    batch = island.work.spawn_map(range(30))
    for _ in range(8):
        batch.cancel()
        batch.wait(SECONDS)
        batch.resume()
    assert batch.wait(SECONDS) == {"ok": 30}


def numbers(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(400_000)


def test_a_generator_has_a_bound(small: Island) -> None:
    """More than one call may have is an error, and ends the generator."""
    call = isolated(local_modules=[])(numbers).spawn(1_000_000)
    assert call.wait(SECONDS).outcome == "error"
    with pytest.raises(errors.DetachedFull, match="the generator gave more"):
        call.result()
    call.forget()


LITTLE = """
[detached]
max_bytes = 15_000_000
call_bytes = 10_000_000
"""


def test_a_full_store_refuses_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the way out; finished calls stay, and make room when they are forgotten.

    Names of pytest's own modules, at most 1 MiB, travel with each call: the sizes here leave room for them.
    """
    with conftest.own_home() as home:  # of this test alone: what earlier ones left would count
        (home.path / "settings.toml").write_text(LITTLE)
        monkeypatch.setenv("ATOLL_HOME", str(home.path))
        function = isolated(local_modules=[])(double)
        with pytest.raises(errors.DetachedFull, match="one detached call may have"):
            function.spawn(bytes(10_000_000))
        first = function.spawn(bytes(4_000_000))
        assert len(first.result(SECONDS)) == 8_000_000
        second = function.spawn(bytes(4_000_000))
        with pytest.raises(errors.DetachedFull):
            second.result(SECONDS)
        assert second.status().outcome == "error"
        with pytest.raises(errors.DetachedFull, match=r"atoll calls forget"):
            function.spawn(bytes(8_000_000))
        assert len(first.result()) == 8_000_000
        first.forget()
        assert len(function.spawn(bytes(4_000_000)).result(SECONDS)) == 8_000_000


def double(data: bytes) -> bytes:
    return data + data


def test_the_command_line_leaves_and_finds_calls(island: Island) -> None:
    """`run --detach`, `attach`, `calls list --running`, `cancel`, `calls result`, `calls forget`."""
    home = island.home
    target = f"{island.file}::work"
    done = home.atoll("run", "--detach", target, "--number", "9")
    call = done.stdout.strip()
    assert f"atoll attach {call[:8]}" in done.stderr
    attached = home.atoll("attach", call[:8])
    assert attached.stdout == "working on 9\n27\n"
    assert home.atoll("calls", "show", call[:4]).returncode == 0
    for command in (["logs"], ["calls", "show"], ["cancel"]):  # a beginning so short may be meant for another call
        assert "4 characters" in home.atoll(*command, call[:3], check=False).stderr
    assert home.atoll("calls", "result", call, "-o", str(home.path / "result.pickle")).returncode == 0
    assert home.python("-c", "import pickle; print(pickle.load(open('result.pickle', 'rb')))").stdout == "27\n"
    assert home.atoll("calls", "forget", call).returncode == 0
    assert "no detached call has the id" in home.atoll("attach", call, check=False).stderr
    with island.held():
        call = home.atoll("run", "--detach", target, "--number", "10").stdout.strip()
        until(lambda: island.marks(10))
        assert call[:8] in home.atoll("calls", "list", "--running").stdout
        assert home.atoll("calls", "result", call, check=False).returncode == 1
        code = "import sys; from atoll.cli.main import main; sys.exit(main())"
        with subprocess.Popen(
            [sys.executable, "-c", code, "attach", call],
            env=home.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline() == "working on 10\n"
            follower.send_signal(signal.SIGINT)
            assert "the call goes on" in follower.communicate()[1]
            assert follower.returncode == 130
        assert str(CallHandle(call).status()) == "running"
        assert home.atoll("cancel", call[:8]).returncode == 0
    failed = home.atoll("attach", call, check=False)
    assert failed.returncode == 1
    assert "cancelled" in failed.stderr


def test_the_command_line_knows_batches(island: Island, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each with counts; they are followed, cancelled and removed by the beginning of their ids."""
    home = island.home
    monkeypatch.setenv("COLUMNS", "80")
    batch = island.work.on(max_concurrency=1).spawn_map(range(40, 45))
    short = batch.id[:8]
    followed = home.atoll("attach", short)
    assert followed.stdout == f"batch {short} of work: 5 ok\n"
    with island.held():
        other = island.work.on(max_concurrency=1).spawn_map(range(50, 53))
        until(lambda: any(island.marks(number) for number in range(50, 53)))
        first, second, *_ = home.atoll("calls", "list", "--batches", "-n", "2").stdout.splitlines()[1:]
        assert first.split()[:3] == [other.id[:8], "work", "0/3"]
        assert "2 waiting · 1 running" in first
        assert second.split()[:5] == [short, "work", "5/5", "5", "ok"]
        said = home.atoll("cancel", other.id[:8]).stdout
        assert said.startswith(f"cancelled 3 calls of batch {other.id[:8]} work; `resume()`")
    assert other.wait(SECONDS) == {"cancelled": 3}
    assert "nothing to cancel" in home.atoll("cancel", other.id[:8]).stdout
    attached = home.atoll("attach", other.id, check=False)
    assert (attached.returncode, "3 cancelled" in attached.stdout) == (1, True)
    assert "is a batch of `work`" in home.atoll("calls", "result", short, check=False).stderr
    assert BatchHandle.from_id(other.id[:8]) == other
    assert home.atoll("calls", "forget", other.id[:8]).stdout == "removed 3 calls\n"
    with pytest.raises(errors.CallUnknown):
        BatchHandle.from_id(other.id[:8])


# --- the sweep --------------------------------------------------------------------------------------------------------


class Killer(threading.Thread):
    """Kills daemon and keeper at random moments until it is told to end."""

    def __init__(self, island: Island, seed: int) -> None:
        super().__init__()
        self._island = island
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.kills: Counter[str] = Counter()

    def run(self) -> None:
        while not self._over.wait(self._random.uniform(0.05, 0.8)):
            if self._random.random() < 0.5:
                for keeper in self._island.keepers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(keeper, signal.SIGKILL)
                        self.kills["keeper"] += 1
            else:
                self._island.kill_daemon()
                self.kills["daemon"] += 1

    def finish(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.parametrize("retries", [0, 30])
def test_each_call_has_one_outcome_under_kills(island: Island, retries: int) -> None:
    """Client, keeper and daemon are killed at random; no call is lost without an outcome, none runs twice unasked."""
    count, calls = soak(12, 200), dict[int, tuple[str, int]]()
    chance = random.Random(retries)
    killer = Killer(island, retries)
    killer.start()
    clients = 0
    try:
        while (first := max(calls, default=0) + 1) <= count:
            program = island.begin(first, count + 1, seconds=0.05, retries=retries)
            clients += 1
            assert program.stdout is not None
            lines: list[str] = []
            while len(lines) < min(chance.randint(1, soak(6, 20)), count + 1 - first):
                if not (line := program.stdout.readline()):
                    break  # it has failed, because daemons were killed faster than it could ask
                lines.append(line)
            for line in (*lines, *kill(program)):
                if len(found := line.split()) == 2:
                    calls[int(found[0])] = found[1], program.pid
    finally:
        killer.finish()
    assert set(calls) == set(range(1, count + 1))
    outcomes: Counter[str] = Counter()
    for number, (call, client) in calls.items():
        handle: CallHandle[int] = CallHandle(call)
        status = handle.wait(SECONDS)
        outcomes[status.outcome] += 1
        marks = island.marks(number, client)
        if status.outcome == "ok":
            assert handle.result() == 3 * number
            assert 1 <= marks <= status.attempts <= 1 + retries
        else:
            assert (status.outcome, retries) == ("lost", 0)
            assert marks <= status.attempts == 1
    # also of calls that a client has spawned and was killed before it could say so
    until(lambda: not local.request("calls.running", {})["calls"])
    if not retries:
        assert {len(path.read_text()) for path in island.data.glob("marks-*")} == {1}
    else:
        assert set(outcomes) == {"ok"}
    print(f"{clients} clients, {dict(killer.kills)} kills, outcomes {dict(outcomes)}")


def counted(batch: BatchHandle[int]) -> dict[str, int]:
    """Return the counts of a batch; none while daemons are killed faster than they can be asked."""
    with contextlib.suppress(errors.HostUnreachable):
        return batch.counts()
    return {}


def test_a_batch_survives_kills(island: Island) -> None:
    """All items have an outcome, those that were lost are resumed, and no item runs twice before that."""
    count = soak(20, 200)
    batch = island.work.spawn_map(range(count), [0.1] * count)
    killer = Killer(island, 5)
    killer.start()
    try:
        until(lambda: sum(killer.kills.values()) >= soak(2, 40) or counted(batch).get("ok") == count)
    finally:
        killer.finish()
    first = batch.wait(SECONDS)
    assert sum(first.values()) == count
    assert set(first) <= {"ok", "lost"}
    assert all(island.marks(number) <= 1 for number in range(count))
    assert batch.resume() == first.get("lost", 0)
    assert list(batch.results(timeout=SECONDS)) == [3 * number for number in range(count)]
    print(f"{dict(killer.kills)} kills, outcomes {first}")
