"""A sandbox that is killed while it is made leaves nothing, whoever is killed."""

from __future__ import annotations

import subprocess
import time
import uuid

import pytest

from .conftest import ROOT, Someone
from .early import left


def finish(someone: Someone, what: str, rounds: int) -> tuple[str, list[int]]:
    """Run the killing program; return what it printed and the processes that are there two seconds later."""
    word = uuid.uuid4().hex
    done = subprocess.run(
        [
            *someone.prefix,
            someone.python,
            str(ROOT / "tests/sandbox/early.py"),
            what,
            str(someone.home),
            str(rounds),
            word,
        ],
        env=someone.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 2.0
    while (found := left(word)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done.stdout, found


def test_a_killed_launcher_leaves_no_sandbox_that_was_being_made(someone: Someone) -> None:
    """After SIGKILL of a process that launches sandboxes all the time, none of their processes is there."""
    _, found = finish(someone, "launcher", 25)
    assert not found


@pytest.mark.parametrize("what", ["sandbox", "run"])
def test_a_sandbox_that_is_killed_while_it_is_made_is_gone(someone: Someone, what: str) -> None:
    """Of sandboxes that are killed, or whose `run` is cancelled, in their first milliseconds, no process is there."""
    printed, found = finish(someone, what, 150)
    assert not found
    if what == "sandbox":
        assert int(printed) == 0, "when `kill` has returned"
