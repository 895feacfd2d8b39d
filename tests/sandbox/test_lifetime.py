"""A sandbox ends with its owner, whole."""

from __future__ import annotations

import os
import select
import subprocess

import pytest

from .conftest import Someone

pytestmark = pytest.mark.as_user

# A grandchild in a session of its own holds the descriptor open, and ignores what can be ignored.
ESCAPE = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(int(sys.argv[1]), b"1")
        signal.pause()
    os._exit(0)
signal.pause()
"""


def ended(descriptor: int, seconds: float) -> bool:
    """Return whether every process that holds the other end has ended within the time."""
    readable, _, _ = select.select([descriptor], [], [], seconds)
    return bool(readable) and os.read(descriptor, 1) == b""


def test_a_sandbox_dies_with_a_parent_that_is_killed(someone: Someone) -> None:
    """After SIGKILL of the launching process, a double-forked grandchild is gone within two seconds."""
    ours, theirs = os.pipe()
    command = someone.python_command(ESCAPE, str(theirs))
    argv = someone.argv(command, binds=[[someone.base, someone.base, False]], descriptors=[theirs])
    with subprocess.Popen(
        argv, env=someone.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs]
    ) as launcher:
        os.close(theirs)
        readable, _, _ = select.select([ours], [], [], 120)
        assert readable, "the grandchild has started"
        assert os.read(ours, 1) == b"1"
        assert not ended(ours, 0.05), "and it lives"
        launcher.kill()
        launcher.wait()
        assert ended(ours, 2.0)
    os.close(ours)


def test_kill_returns_when_every_process_is_gone(someone: Someone) -> None:
    """Once `Sandbox.kill` has returned, no process of the sandbox holds a descriptor any more."""
    ready, tell = os.pipe()
    # Memory that takes the kernel a while to give back: a return that comes too early is seen.
    code = "kept = bytearray(b'x') * (200 << 20)\n" + ESCAPE
    done = someone.confine_python(code, str(tell), descriptors=[tell], keep=[ready], kill_after=ready)
    os.close(tell)
    os.close(ready)
    assert done.report["status"] == -9
    assert done.report["failure"] is None
    assert done.report["gone"]


def test_a_sandbox_ends_with_its_command(someone: Someone) -> None:
    """When the command exits, a child that it left behind is ended, and the command's status is reported."""
    ours, theirs = os.pipe()
    code = "import os, signal, sys\nif os.fork() == 0:\n    os.setsid(); signal.pause()\nos._exit(7)"
    done = someone.confine_python(code, descriptors=[theirs])
    os.close(theirs)
    assert done.report["status"] == 7
    assert done.report["started"]
    assert ended(ours, 0)
    os.close(ours)


@pytest.mark.parametrize("number", [9, 11])
def test_a_signal_of_the_command_is_told_by_128_and_its_number(someone: Someone, number: int) -> None:
    """A command that a signal ends gives 128 and the signal's number, and that is no failure of the sandbox."""
    done = someone.confine(["sh", "-c", f"kill -{number} $$"])
    assert done.report["status"] == 128 + number
    assert done.report["failure"] is None
