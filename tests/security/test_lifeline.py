"""Sandboxes end with their launcher, whatever code in them does to the first process of their namespace."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.orphans import OrphanPipe
from atoll.sandbox.policy import confine
from atoll.settings import Settings

from ..conftest import Home
from ..sandbox.conftest import ROOT, Someone, someone
from ..waiting import PATIENCE_SECONDS, until
from ..waiting import ended as process_ended

pytestmark = pytest.mark.as_user
__all__ = ["someone"]

ATTACK = (Path(__file__).parent / "disarm.py").read_text()
# Chains of processes, each of which starts its successor in a session of its own and ends, faster than anyone looks.
STORM = ATTACK.replace(
    "            signal.pause()\n",
    """            for _ in range(8):
                if os.fork() == 0:
                    break
            while True:
                if os.fork() != 0:
                    os._exit(0)
                os.setsid()
""",
    1,
)

# A launcher whose event loop never turns: does its sandbox run anything?
BUSY = """
import asyncio, os, select, sys
from pathlib import Path
from atoll.sandbox.identity import Identities
from atoll.sandbox.launch import Launcher
from atoll.sandbox.policy import confine
from atoll.settings import Settings

async def main():
    settings = Settings(Path(sys.argv[1]))
    launcher = Launcher(settings)
    ours, theirs = os.pipe()
    policy = confine(["echo"], machine=launcher.machine, identity=Identities(settings).user("someone"), binds=[])
    sandbox = launcher.launch(policy, stdout=theirs)
    os.close(theirs)
    early = select.select([ours], [], [], 0.3)[0]
    print(bool(early), await sandbox.wait(), os.read(ours, 2))

asyncio.run(main())
"""


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], PATIENCE_SECONDS)[0])


@contextmanager
def launched(someone: Someone, code: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Give the launcher of a sandbox that runs the code, which has attacked, and a pipe that its processes hold."""
    ours, theirs = os.pipe()
    argv = someone.argv(
        someone.python_command(code, str(theirs)), binds=[[someone.base, someone.base, False]], descriptors=[theirs]
    )
    with subprocess.Popen(
        argv, env=someone.environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[theirs]
    ) as launcher:
        try:
            os.close(theirs)
            assert readable(ours)
            assert os.read(ours, 1) in (b"d", b"-")  # a module like Yama may keep a process from its parent
            yield launcher, ours
        finally:
            launcher.kill()
            os.close(ours)


def killers(launcher: int) -> list[int]:
    """Return the orphan killers of a launcher."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"orphan_killer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("code", [ATTACK, STORM], ids=["attack", "storm"])
def test_a_sandbox_that_has_taken_over_its_first_process_dies_with_its_launcher(someone: Someone, code: str) -> None:
    """Without its parent-death signal and with the orphan killer's pipe open, while its processes multiply."""
    with launched(someone, code) as (launcher, held):
        launcher.kill()
        launcher.wait()
        assert readable(held)
        assert os.read(held, 1) == b""


def test_a_killed_orphan_killer_has_a_successor_that_knows_all_sandboxes(someone: Someone) -> None:
    """The launcher starts another one at once, and a later end of the launcher ends the sandbox."""
    with launched(someone, ATTACK) as (launcher, held):
        (first,) = killers(launcher.pid)
        os.kill(first, signal.SIGKILL)
        (second,) = until(lambda: [pid for pid in killers(launcher.pid) if pid != first])
        launcher.kill()
        launcher.wait()
        assert readable(held)
        assert os.read(held, 1) == b""
        assert process_ended(second)


def test_no_code_runs_before_the_orphan_killer_knows_the_sandbox(someone: Someone) -> None:
    """A launcher that is busy, and could be killed meanwhile, has no sandbox that runs anything yet."""
    done = subprocess.run(
        [*someone.prefix, someone.python, "-c", BUSY, str(someone.home)],
        env=someone.environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("False 0 b'\\n'\n", 0), done.stderr


def test_a_first_process_that_shows_no_descriptors_is_held_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox of a setuid bubblewrap, whose descriptors a plain user cannot list, runs and is known."""
    monkeypatch.setattr(OrphanPipe, "holds", lambda _pipe, _pid: False)

    async def run() -> tuple[str, int, int]:
        settings = Settings(tmp_path)
        launcher = Launcher(settings)
        policy = confine(
            ["echo", "here"], machine=launcher.machine, identity=Identities(settings).user("someone"), binds=[]
        )
        done = await launcher.run(policy)
        launcher.abandon()
        return done.output, done.status, launcher._orphan_pipe.killer_pid

    output, status, killer = asyncio.run(run())
    os.waitpid(killer, 0)
    assert (output, status) == ("here\n", 0)


def test_a_function_that_has_taken_over_the_first_process_ends_with_the_daemon(atoll_home: Home) -> None:
    """On a kernel without Landlock, where a plain user's function does reach pid 1, nothing outlives the daemon."""
    program = (
        f"from atoll import isolated\ncode = {ATTACK!r}\n"
        "@isolated(network='none', keep_alive=600)\n"
        "def attack():\n    import os, signal\n    names = {}\n    exec(code, names)\n    letter = names['attack']()\n"
        "    os.kill(os.getppid(), signal.SIGSTOP)\n"  # the agent, which would end what the worker leaves behind
        "    if os.fork() == 0:\n        os.setsid()\n        while True: signal.pause()\n"
        "    return letter\nprint(attack())\n"
    )
    kernel = str(Path(__file__).parent / "old_kernel.py")
    letter = atoll_home.python(kernel, sys.executable, "-c", program).stdout.strip()
    assert letter == "-" if os.geteuid() == 0 else letter in ("d", "-")
    daemon = atoll_home.daemon_pid()
    assert daemon is not None
    os.kill(daemon, signal.SIGKILL)
    assert atoll_home.wait_processes() == []
