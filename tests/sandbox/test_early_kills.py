"""A sandbox that is killed while it is made leaves nothing, whoever is killed."""

from __future__ import annotations

import subprocess
import uuid

import pytest

from ..waiting import soak, until
from .conftest import ROOT, Someone
from .early import left

pytestmark = pytest.mark.as_user


def finish(someone: Someone, what: str, rounds: int) -> str:
    """Run the killing program, wait until none of its processes is left, and return its output."""
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
    until(lambda: not left(word))
    return done.stdout


def test_a_killed_launcher_leaves_no_sandbox_that_was_being_made(someone: Someone) -> None:
    """After SIGKILL of a process that launches sandboxes all the time, none of their processes is there."""
    finish(someone, "launcher", soak(10, 25))


@pytest.mark.parametrize("what", ["sandbox", "run"])
def test_a_sandbox_that_is_killed_while_it_is_made_is_gone(someone: Someone, what: str) -> None:
    """Of sandboxes that are killed, or whose `run` is cancelled, in their first milliseconds, no process is there."""
    printed = finish(someone, what, soak(50, 150))
    if what == "sandbox":
        assert int(printed) == 0, "when `kill` has returned"
