"""Detached calls: they outlive their program, and each has one outcome, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atoll import CallHandle
from tests.conftest import Home

from ..waiting import until

pytestmark = [pytest.mark.as_user]

PROGRAM = """
import os, sys, time
from atoll import isolated

FACTOR = 3

@isolated
def work(number, mark=True):
    print("working on", number, flush=True)
    if mark:
        with open(f"/data/marks-{number}", "a") as file:
            file.write("x")
    while os.path.exists("/data/hold"):
        time.sleep(0.01)
    return number * FACTOR

if __name__ == "__main__":
    print(work.spawn(int(sys.argv[1])).id, flush=True)
    sys.stdin.read()
"""


def marks(home: Home, number: int) -> int:
    """Return how often a call has run."""
    path = home.path / "volumes" / "local" / "data" / f"marks-{number}"
    return len(path.read_text()) if path.exists() else 0


def hold(home: Home) -> Path:
    """Have calls of the program go on until the returned file is removed."""
    path = home.path / "volumes" / "local" / "data" / "hold"
    path.touch()
    return path


def begin(home: Home, tmp_path: Path, number: int) -> tuple[subprocess.Popen[str], str]:
    """Start a program that spawns a call; return it and the call's id."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, str(file), str(number)],
        env=home.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, program.stdout.readline().strip()


def kill(program: subprocess.Popen[str]) -> None:
    """End a program by SIGKILL."""
    program.kill()
    program.communicate()


def test_a_call_outlives_its_program(atoll_home: Home, tmp_path: Path) -> None:
    """The program is killed while its call waits or runs: another one gets the result, and the output."""
    program, call = begin(atoll_home, tmp_path, 14)
    kill(program)
    handle = CallHandle.from_id(call[:8])
    assert handle.id == call
    assert handle.result(timeout=60) == 42
    assert handle.result() == 42
    assert "".join(handle.logs()) == "working on 14\n"
    assert str(handle.status()) == "ok"
    assert marks(atoll_home, 14) == 1


def test_a_call_that_ran_when_the_daemon_was_killed_is_lost_and_not_made_again(
    atoll_home: Home, tmp_path: Path
) -> None:
    """Without `retries` it has run once; one that waited for the next daemon runs there."""
    from atoll import errors

    program, first = begin(atoll_home, tmp_path, 1)
    kill(program)
    assert CallHandle.from_id(first).result(timeout=60) == 3
    held = hold(atoll_home)
    program, call = begin(atoll_home, tmp_path, 2)
    kill(program)
    until(lambda: marks(atoll_home, 2))
    pid = atoll_home.daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    held.unlink()
    with pytest.raises(errors.CallLost, match="the daemon ended while the call ran"):
        CallHandle.from_id(call).result(timeout=60)
    assert CallHandle.from_id(first).result(timeout=60) == 3
    assert marks(atoll_home, 2) == 1
