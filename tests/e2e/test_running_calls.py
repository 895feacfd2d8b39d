"""Calls that are not over, as other processes see and end them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, local
from atoll.agent.landlock import Landlock
from atoll.sdk.futures import CallFuture

from ..conftest import Home
from ..environments import Machine
from ..terminal_screen import TerminalProgram
from ..waiting import until

FIELDS = {
    "call",
    "function",
    "state",
    "since",
    "queued_at",
    "memory_bytes",
    "peak_bytes",
    "cpu_seconds",
    "worker",
    "sandbox",
    "environment",
    "position",
    "detail",
    "machine_type",
    "resources",
    "parent",
    "detached",
}


@isolated(keep_alive=60)
def hold(seconds: float = 600.0) -> str:
    spent = bytearray(40_000_000)
    print("holds", flush=True)
    time.sleep(seconds)
    return f"held {len(spent)}"


@isolated(keep_alive=60)
def other() -> str:
    return "other"


@isolated(grace=2.0)
def stubborn() -> str:
    signal.signal(signal.SIGINT, lambda *_: None)
    print("is deaf", flush=True)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.05)
    return "never"


@isolated(keep_alive=60)
def parent() -> str:
    return hold()


@pytest.fixture
def small_home(atoll_home: Home) -> Home:
    """A machine with one slot."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\n")
    return atoll_home


def rows() -> dict[str, dict[str, Any]]:
    """Return the rows by id."""
    return {row["call"]: row for row in local.request("calls.running", {})["calls"]}


def row_of(future: Future[Any], state: str) -> dict[str, Any]:
    """Wait until a call is in a state; return its row."""
    return until(lambda: row if (row := rows().get(id_of(future), {})).get("state") == state else {})


def id_of(future: Future[Any]) -> str:
    assert isinstance(future, CallFuture)
    return future.call_id


def outcome(home: Home, call: str) -> str:
    """Wait for the record of a call; return its outcome."""

    def look() -> str:
        done = home.atoll("calls", "show", call, "--json", check=False)
        calls = json.loads(done.stdout)["calls"] if done.returncode == 0 else []
        return calls[0]["outcome"] if calls else ""

    return until(look)


def test_calls_are_seen_and_cancelled_from_another_process(small_home: Home) -> None:
    """One that runs and one that waits have their rows; each can be cancelled, and its caller is told."""
    begun = time.time()
    first = hold.submit()
    running = row_of(first, "running")
    second = other.submit()
    row_of(second, "waiting")
    until(lambda: rows()[id_of(second)]["position"] == 0)
    waiting = rows()[id_of(second)]
    assert set(running) >= FIELDS
    assert set(running) == set(waiting)
    assert (running["function"], running["parent"], running["detached"]) == ("hold", "", False)
    assert begun - 1 < running["queued_at"] <= running["since"] <= time.time()
    assert running["worker"]
    assert running["sandbox"]
    until(lambda: rows()[id_of(first)]["memory_bytes"] > 40_000_000)
    assert (waiting["function"], waiting["position"], waiting["worker"]) == ("other", 0, "")
    until(lambda: f"held by hold ({id_of(first)[:8]}" in rows()[id_of(second)]["detail"])

    text = small_home.atoll("calls", "list", "--running").stdout.splitlines()
    assert [line.split()[:3] for line in text[1:]] == [
        [id_of(first)[:8], "hold", "running"],
        [id_of(second)[:8], "other", "waiting"],
    ]
    said = small_home.atoll("cancel", id_of(first)[:8], id_of(second)[:4]).stdout.splitlines()
    # the one that waits is cancelled first, so that the end of the other does not let it begin
    assert said[0].startswith(f"cancelled {id_of(second)[:8]} other, which waited for")
    assert said[1].startswith(f"cancelled {id_of(first)[:8]} hold, which ran for")
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        second.result()
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        first.result()
    assert [outcome(small_home, id_of(one)) for one in (first, second)] == ["cancelled"] * 2
    again = small_home.atoll("cancel", id_of(first), "ffffffffffff", check=False)
    assert (again.returncode, "is over: cancelled" in again.stderr, "no call has" in again.stderr) == (1, True, True)
    assert other() == "other"
    assert rows() == {}


def test_a_call_that_does_not_end_has_its_grace(shared_home: Home) -> None:
    """The command says how long a deaf call may go on; then it is killed, and its caller gets the same error."""
    future = stubborn.submit()
    row_of(future, "running")
    until(lambda: "is deaf" in shared_home.atoll("logs", id_of(future), check=False).stdout)
    said = shared_home.atoll("cancel", id_of(future)).stdout
    assert said.startswith(f"interrupted {id_of(future)[:8]} stubborn, which ran for")
    assert "it has 2 s to end" in said
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        future.result()


def test_a_nested_call_names_its_parent(shared_home: Home) -> None:
    """Both calls of a chain run; the inner one is cancelled by itself, and the outer one gets the error."""
    future = parent.submit()
    outer = row_of(future, "running")
    inner = until(lambda: next((row for row in rows().values() if row["parent"] == id_of(future)), {}))
    assert (outer["parent"], inner["function"]) == ("", "hold")
    shared_home.atoll("cancel", inner["call"])
    with pytest.raises(errors.CallCancelled):
        future.result()


def test_a_call_whose_environment_is_built(shared_home: Home, tmp_path: Path) -> None:
    """It has the step of the build in its row, and a cancellation ends the build."""
    tree = Machine.tree(None, "slow", "    import time; time.sleep(600)\n", tmp_path)  # type: ignore[arg-type]
    future = isolated(requirements=[str(tree)])(abs).submit(-1)
    row = row_of(future, "building")
    assert (row["function"], row["worker"], row["position"]) == ("abs", "", -1)
    assert until(lambda: rows()[id_of(future)]["detail"])
    said = shared_home.atoll("cancel", id_of(future)).stdout
    assert said.startswith(f"cancelled {id_of(future)[:8]} abs, whose environment was being built for")
    with pytest.raises(errors.CallCancelled):
        future.result()
    assert rows() == {}


@isolated(keep_alive=60)
def speak() -> None:
    print("one \u20ac", flush=True)
    while not os.path.exists("/data/go"):
        time.sleep(0.02)
    print("two", end="", flush=True)
    raise KeyError("over")


def test_output_is_followed_to_the_outcome(shared_home: Home) -> None:
    """The lines come while the call runs; the command ends with the call, and tells its outcome."""
    future = speak.submit()
    row_of(future, "running")
    code = "import sys; from atoll.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "logs", "-f", id_of(future)[:8]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one \u20ac\n"
        assert "running for" in shared_home.atoll("logs", id_of(future)).stdout
        (data_of(shared_home) / "go").touch()
        lines = follower.stdout.read().splitlines()
        assert follower.wait() == 1
    assert lines[0] == "two"
    assert "speak: error after" in lines[1]
    assert lines[2].startswith("KeyError: 'over'")
    with pytest.raises(KeyError):
        future.result()
    shown = json.loads(shared_home.atoll("status", "--json").stdout)
    assert {"daemon", "capacity", "calls", "sandboxes", "workers"} == set(shown)
    assert "machine type" in shared_home.atoll("status").stdout


def test_a_detached_call_has_a_row_and_is_cancelled(small_home: Home) -> None:
    """One that runs and one that waits are marked, and end as cancelled."""
    first, second = hold.spawn(), other.spawn()
    until(lambda: rows().get(first.id, {}).get("state") == "running")
    until(lambda: rows().get(second.id, {}).get("state") == "waiting")
    assert [rows()[one.id]["detached"] for one in (first, second)] == [True, True]
    for handle in (second, first):
        assert handle.id[:8] in small_home.atoll("cancel", handle.id[:8]).stdout
        with pytest.raises(errors.CallCancelled):
            handle.result(60.0)
    assert rows() == {}


@isolated(keep_alive=60, env={"CASE": "visited"})
def sleeps(mark: str) -> None:
    threading.Thread(target=time.sleep, args=(600.0,), daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(9))
    Path("/tmp/mine").write_text("mine")
    Path("/data", mark).touch()
    time.sleep(600.0)


@isolated(keep_alive=60, env={"CASE": "visited"})
def computes() -> None:
    Path("/data/computes").touch()
    re.match(r"(a+)+$", "a" * 60 + "b")  # in C, and for longer than anybody waits


def data_of(home: Home) -> Path:
    return home.path / "volumes" / "local" / "data"


def asleep(home: Home, mark: str) -> Future[Any]:
    """Return a call of `sleeps` that does."""
    (data_of(home) / mark).unlink(missing_ok=True)
    future = sleeps.submit(mark)
    until((data_of(home) / mark).exists)
    return future


def in_sandbox(home: Home, call: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return home.atoll("exec", call, *command, **options)


def test_stacks_of_a_call_that_sleeps_and_of_one_that_computes_in_c(shared_home: Home) -> None:
    """Each thread has its frames, whatever the function does, and the call goes on."""
    sleeping = asleep(shared_home, "stacks")
    for _ in range(3):
        threads = json.loads(shared_home.atoll("stack", id_of(sleeping), "--json").stdout)["threads"]
        assert threads[0]["name"] == "main thread"
        assert threads[0]["frames"][0]["function"] == "sleeps"
        assert threads[0]["frames"][0]["file"] == __file__
        assert [one["frames"][0]["function"] for one in threads[1:]] == ["run"]
    text = shared_home.atoll("stack", id_of(sleeping)[:8]).stdout
    assert text.startswith(f"{id_of(sleeping)[:8]}  sleeps  running for ")
    assert f"    sleeps ({__file__}:" in text
    computing = computes.submit()
    until(lambda: (data_of(shared_home) / "computes").exists())
    functions = [frame["function"] for frame in until(lambda: frames_of(shared_home, computing, "match"))]
    assert functions == ["match", "computes"]
    assert {id_of(sleeping), id_of(computing)} <= set(rows())
    assert shared_home.atoll("stack", "ffffffffff", check=False).returncode == 1
    assert shared_home.atoll("cancel", id_of(sleeping), id_of(computing)).returncode == 0
    for future in (sleeping, computing):
        with pytest.raises(errors.CallCancelled):
            future.result()


def frames_of(home: Home, future: Future[Any], first: str) -> list[dict[str, Any]]:
    """Return the frames of a call's main thread, if it is in this function."""
    frames = json.loads(home.atoll("stack", id_of(future), "--json").stdout)["threads"][0]["frames"]
    return frames if frames[0]["function"] == first else []


def test_a_command_in_the_sandbox_of_a_running_call(shared_home: Home) -> None:
    """It has the worker's user, variables, files and processes, can reach the memory of none, and ends with the worker."""
    assert other() == "other"  # its worker stays, and the sandbox with it
    future = asleep(shared_home, "visited")
    call = id_of(future)[:8]
    until(lambda: in_sandbox(shared_home, call, "cat", "/tmp/mine", check=False).stdout == "mine")
    done = in_sandbox(
        shared_home, call, "sh", "-c", "echo $CASE; id -u; ls /data; cat /proc/*/comm; exit 7", check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 7
    assert lines[0] == "visited"
    assert (lines[1] != "0") or os.geteuid() != 0
    assert "visited" in lines
    assert lines.count("python") >= 2
    assert in_sandbox(shared_home, call, "no-such-program", check=False).returncode == 127
    program = """
import atoll, glob
def readable(path):
    try:
        return bool(open(path).read())
    except OSError:
        return False
status = open("/proc/self/status").read()
print(atoll.__name__, "NoNewPrivs:\\t1" in status, "Seccomp:\\t2" in status)
print(sum(map(readable, glob.glob("/proc/[0-9]*/environ"))))
"""
    lines = in_sandbox(shared_home, call, "python", "-c", program).stdout.splitlines()
    assert lines[0] == "atoll True True"
    landlock = Landlock()
    landlock.close()
    assert lines[1] == "1" or landlock.abi < 2  # its own alone
    row = rows()[id_of(future)]
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())", "exec", call, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as visitor:
        assert visitor.stdin is not None
        assert visitor.stdout is not None
        visitor.stdin.write("hello\n")
        visitor.stdin.flush()
        assert visitor.stdout.readline() == "hello\n"
        groups = groups_of(shared_home, "cat")
        assert groups == groups_of(shared_home, "_atoll_agent", pid=worker_pid(shared_home, row["worker"]))
        shared_home.atoll("cancel", call)
        assert visitor.wait() == 128 + signal.SIGTERM  # interrupted with the worker
    with pytest.raises(errors.CallCancelled):
        future.result()


def worker_pid(home: Home, worker: str) -> int:
    found = json.loads(home.atoll("status", "--json").stdout)["workers"]
    return next(int(one["pid"]) for one in found if one["id"] == worker)


def groups_of(home: Home, name: str, pid: int = 0) -> str:
    """Return the control groups of the process of a sandbox with this command."""
    for entry in [str(pid)] if pid else filter(str.isdigit, os.listdir("/proc")):
        place = Path("/proc", entry)
        with contextlib.suppress(OSError):
            named = (place / "cmdline").read_bytes() == f"{name}\0".encode()
            if pid or (named and str(home.path) in (place / "mountinfo").read_text()):
                return (place / "cgroup").read_text()
    raise AssertionError(f"no process {name}")


PROGRAM = [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())"]


def test_top_and_a_shell_on_a_terminal(shared_home: Home) -> None:
    """The live table leads to stacks, output and the end of a call; a shell inside has a terminal with job control."""
    future = asleep(shared_home, "visited")
    call = id_of(future)[:8]
    shell = TerminalProgram([*PROGRAM, "exec", call], shared_home.environment())
    try:
        shell.until(r"\(atoll\) ")
        shell.press("test -t 0 && echo on-a-$((40 + 2))-terminal; set -o | grep monitor\r")
        shell.until(r"on-a-42-terminal\s+monitor\s+on")
        shell.press("exit 5\r")
        assert shell.finish() == 5
    finally:
        shell.close()
    view = TerminalProgram([*PROGRAM, "top"], {**shared_home.environment(), "TERM": "xterm-256color"})
    try:
        view.until(rf"{call}\s+sleeps\s+running")
        assert "for functions:" in view.text
        view.press("s")
        view.until(r"main thread\s+sleeps\s+\(")
        view.press("q")
        view.until(rf"{call}\s+sleeps\s+running")
        view.press("c")
        view.until(rf"Cancel call {call}\?")
        view.press("y")
        view.until(rf"cancelled {call} sleeps")
        view.press("q")
        assert view.finish() == 0
    finally:
        view.close()
    with pytest.raises(errors.CallCancelled):
        future.result()
    assert "no call runs or waits" in shared_home.atoll("top").stdout


@isolated(keep_alive=60, results="data")
def hostile(victim: str) -> None:
    """Claim another call's id and a name that would act on a terminal, in the memory that the agent reads."""
    import gc

    from atoll.agent.usage import _BEGIN, Meter

    meter = next(one for one in gc.get_objects() if isinstance(one, Meter))
    place, name = meter._slot, b"\x1b[2J\nforged"
    fields = list(_BEGIN.unpack_from(meter._sheet, place))
    _BEGIN.pack_into(meter._sheet, place, float("inf"), float("nan"), -1.0, fields[3], victim.encode(), name, b"")
    Path("/data/hostile").touch()
    time.sleep(600.0)


def test_a_function_cannot_pose_as_a_call_of_another_program(shared_home: Home) -> None:
    """Its row has no id of others, its times are sane, and its name cannot act on the terminal."""
    victim = f"{'f' * 8}-{'0' * 12}"
    future = hostile.submit(victim)
    until(lambda: (data_of(shared_home) / "hostile").exists())
    found = rows()
    assert victim not in found
    (row,) = found.values()
    assert row["call"] == id_of(future)
    assert 0 < row["queued_at"] <= row["since"] <= time.time() + 1
    text = shared_home.atoll("calls", "list", "--running").stdout
    assert text.count("\n") == 2
    assert "\x1b" not in text
    assert shared_home.atoll("cancel", victim, check=False).returncode == 1
    assert shared_home.atoll("cancel", id_of(future)).returncode == 0
    with pytest.raises(errors.AtollError):
        future.result()
