"""The memory limit of a worker, enforced for real by the kernel or by the watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.sandbox.limits.limits import Limit, Limits
from atoll.sandbox.limits.memory_watchdog import started_at
from atoll.settings import Settings

pytestmark = pytest.mark.as_user

LIMIT = 128 << 20

# Waits for a byte, then takes what it is told in a child, which stays until the next.
HOG = """
import os, sys
os.read(0, 1)
inner = os.fork()
if inner == 0:
    kept = [bytearray(b"x" * (1 << 20)) for _ in range(int(sys.argv[1]))]
    print("taken", flush=True)
    os.read(0, 1)
    os._exit(0)
os.waitpid(inner, 0)
os.read(0, 1)
print("survived", flush=True)
"""


@pytest.fixture(params=["kernel", "watchdog"])
def limits(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Limits]:
    """Limits of each kind."""
    made = Limits(Settings(tmp_path), kernel=request.param == "kernel")
    if request.param == "kernel" and made.kind == "watchdog":
        pytest.skip("no cgroup can be made here")
    yield made
    made.close()


@contextlib.contextmanager
def hog(mebibytes: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOG, str(mebibytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def poll_until_end(limits: Limits, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        limits.poll()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


def gone(limit: Limit, limits: Limits) -> None:
    limit.close()
    deadline = time.monotonic() + 120
    while (limits._closing or limits._busy) and time.monotonic() < deadline:
        limits.poll()
    assert not limits._closing


def test_a_hog_is_killed_and_the_limit_says_so(limits: Limits) -> None:
    """A worker whose child takes more than the limit is ended whole; limit and peak are known, also after `close`."""
    limit = limits.open("worker/1", LIMIT)
    with hog(400) as process:
        limit.add(process.pid)
        go(process)
        poll_until_end(limits, process)
        assert process.returncode == -signal.SIGKILL
        assert process.stdout is not None
        assert "survived" not in process.stdout.read()
    exceeded = limit.exceeded()
    assert exceeded is not None
    assert exceeded[0] == LIMIT
    assert LIMIT * 0.9 < exceeded[1] < 700 << 20
    gone(limit, limits)
    assert limit.exceeded() == exceeded


def test_a_worker_below_its_limit_is_left_alone(limits: Limits) -> None:
    """What it uses is measured, with its children, and nothing is recorded."""
    limit = limits.open("worker", LIMIT)
    with hog(40) as process:
        limit.add(process.pid)
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        limits.poll()
        assert 40 << 20 <= limit.memory_bytes() < LIMIT
        assert process.poll() is None
        go(process)
        go(process)
        assert process.stdout.readline() == "survived\n"
    assert limit.exceeded() is None
    gone(limit, limits)


def test_a_killed_worker_did_not_exceed(limits: Limits) -> None:
    """A SIGKILL from elsewhere is never taken for the limit."""
    limit = limits.open("worker", LIMIT)
    with hog(40) as process:
        limit.add(process.pid)
        process.kill()
        process.wait()
        limits.poll()
    assert limit.exceeded() is None
    gone(limit, limits)


def test_a_process_that_has_ended_can_be_added(limits: Limits) -> None:
    """Adding a worker that died in the meantime is no error."""
    limit = limits.open("worker", LIMIT)
    with hog(1) as process:
        process.kill()
        process.wait()
        limit.add(process.pid)
    gone(limit, limits)


def test_the_next_daemon_ends_and_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """Groups of a daemon that was killed go at the next start, with their processes; those of a live one stay."""
    settings = Settings(tmp_path)
    first = Limits(settings)
    if first.kind == "watchdog":
        pytest.skip("no cgroup can be made here")
    code = (
        "import sys, pathlib, subprocess\nfrom atoll.settings import Settings\nfrom atoll.sandbox.limits.limits import Limits\n"
        "limits = Limits(Settings(pathlib.Path(sys.argv[1])))\nlimit = limits.open('w', 1 << 28)\n"
        "child = subprocess.Popen(['sleep', '1000'])\nlimit.add(child.pid)\n"
        "print(child.pid, limits._places[0].directory, flush=True)\nsys.stdin.read()"
    )
    live = first.open("live", LIMIT)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        pid, directory = daemon.stdout.readline().split()
        assert os.path.isdir(directory)
        daemon.kill()
    orphan = os.pidfd_open(int(pid))
    second = Limits(settings)
    deadline = time.monotonic() + 120
    while os.path.isdir(directory) and time.monotonic() < deadline:
        second.poll()
    assert not os.path.isdir(directory)
    assert started_at(int(pid)) == 0
    os.close(orphan)
    assert live.memory_bytes() >= 0
    assert "live" in "".join(os.listdir(first._places[0].directory)), "that of a live daemon stays"
    live.close()
    first.close()
    base = Path(directory).parent
    second.close()
    assert not base.exists(), "nothing of Atoll stays when the last daemon leaves"
