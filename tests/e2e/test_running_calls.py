"""Calls that are not over, as other processes see and end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, local
from atoll.sdk.futures import CallFuture

from ..conftest import Home
from ..environments import Machine
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


@isolated(grace=3.0)
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
    said = small_home.atoll("cancel", id_of(second)[:4]).stdout
    assert said.startswith(f"cancelled {id_of(second)[:8]} other, which waited for")
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        second.result()
    said = small_home.atoll("cancel", id_of(first)[:8]).stdout
    assert said.startswith(f"cancelled {id_of(first)[:8]} hold, which ran for")
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        first.result()
    assert [outcome(small_home, id_of(one)) for one in (first, second)] == ["cancelled"] * 2
    again = small_home.atoll("cancel", id_of(first), "ffffffffffff", check=False)
    assert (again.returncode, "is over: cancelled" in again.stderr, "no call has" in again.stderr) == (1, True, True)
    assert other() == "other"
    assert rows() == {}


def test_a_call_that_does_not_end_has_its_grace(small_home: Home) -> None:
    """The command says how long a deaf call may go on; then it is killed, and its caller gets the same error."""
    future = stubborn.submit()
    row_of(future, "running")
    until(lambda: "is deaf" in small_home.atoll("logs", id_of(future), check=False).stdout)
    said = small_home.atoll("cancel", id_of(future)).stdout
    assert said.startswith(f"interrupted {id_of(future)[:8]} stubborn, which ran for")
    assert "it has 3 s to end" in said
    with pytest.raises(errors.CallCancelled, match="atoll cancel"):
        future.result()


def test_a_nested_call_names_its_parent(small_home: Home) -> None:
    """Both calls of a chain run; the inner one is cancelled by itself, and the outer one gets the error."""
    future = parent.submit()
    outer = row_of(future, "running")
    inner = until(lambda: next((row for row in rows().values() if row["parent"] == id_of(future)), {}))
    assert (outer["parent"], inner["function"]) == ("", "hold")
    small_home.atoll("cancel", inner["call"])
    with pytest.raises(errors.CallCancelled):
        future.result()


def test_a_call_whose_environment_is_built(atoll_home: Home, tmp_path: Path) -> None:
    """It has the step of the build in its row, and a cancellation ends the build."""
    tree = Machine.tree(None, "slow", "    import time; time.sleep(600)\n", tmp_path)  # type: ignore[arg-type]
    future = isolated(requirements=[str(tree)])(abs).submit(-1)
    row = row_of(future, "building")
    assert (row["function"], row["worker"], row["position"]) == ("abs", "", -1)
    assert until(lambda: rows()[id_of(future)]["detail"])
    said = atoll_home.atoll("cancel", id_of(future)).stdout
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


def test_output_is_followed_to_the_outcome(atoll_home: Home) -> None:
    """The lines come while the call runs; the command ends with the call, and tells its outcome."""
    future = speak.submit()
    row_of(future, "running")
    code = "import sys; from atoll.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "logs", "-f", id_of(future)[:8]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "one \u20ac\n"
        assert "running for" in atoll_home.atoll("logs", id_of(future)).stdout
        (atoll_home.path / "volumes" / "local" / "data" / "go").touch()
        lines = follower.stdout.read().splitlines()
        assert follower.wait() == 1
    assert lines[0] == "two"
    assert "speak: error after" in lines[1]
    assert lines[2].startswith("KeyError: 'over'")
    with pytest.raises(KeyError):
        future.result()
    shown = json.loads(atoll_home.atoll("status", "--json").stdout)
    assert {"daemon", "capacity", "calls", "sandboxes", "workers"} == set(shown)
    assert "machine type" in atoll_home.atoll("status").stdout


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
