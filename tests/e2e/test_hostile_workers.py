"""Functions that take hold of their own worker's channel: their caller gets a named error in bounded time."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.process import is_stopped
from tests.conftest import Home

from ..waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")


def own_worker() -> Any:
    """Return the worker that this code runs in, which nothing in Python hides from it."""
    found = [one for one in gc.get_objects() if type(one).__name__ == "Worker" and hasattr(one, "_control")]
    return found[0]


@isolated(timeout=60, results="data", keep_alive=0)
def give_back(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    worker = own_worker()
    worker._words[2] = 0
    worker._data.send({"type": "revoked", "epoch": worker._epoch})
    os._exit(0)


@isolated(timeout=2, results="data", keep_alive=0)
def flood(kind: str) -> None:
    worker = own_worker()
    worker._words[2] = 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        worker._data.send_many([({"type": kind}, [])] * 100)


@isolated()
def close_everything(seconds: float) -> None:
    os.closerange(3, 1000)
    time.sleep(seconds)


@isolated(keep_alive=120, timeout=3, env={"HOSTILE": "stops"})
def stop_later(data: bytes) -> int:
    def stop() -> None:
        time.sleep(0.5)  # behind the answer
        os.kill(os.getpid(), signal.SIGSTOP)

    threading.Thread(target=stop, daemon=True).start()
    return len(data)


def test_a_call_that_is_given_back_again_and_again_ends(shared_home: Home) -> None:
    """A worker that starts the call and says that it has not is believed a bounded number of times."""
    path = f"/data/given-back-{time.monotonic_ns()}"
    with pytest.raises(errors.WorkerDied, match="gave the call back"):
        give_back(path)
    (kept,) = (shared_home.path / "volumes").glob(f"*{path}")
    assert len(kept.read_text()) <= 25


@pytest.mark.parametrize("kind", ["need", "unheard-of"])
def test_a_flood_of_frames_does_not_pass_the_timeout(kind: str) -> None:
    """Whatever the worker sends, the call ends."""
    with pytest.raises((errors.ProtocolMismatch, errors.CallTimeout)):
        flood(kind)


def test_a_function_that_closes_all_descriptors_is_named() -> None:
    """The idiom of daemons, `os.closerange(3, ...)`, gives `WorkerDied` that says so; the next call works."""
    with pytest.raises(errors.WorkerDied, match="closed its channel"):
        close_everything(30)
    with pytest.raises(errors.WorkerDied):
        close_everything(0)
    assert isolated(abs)(-1) == 1


def test_a_large_argument_to_a_worker_that_does_not_read_keeps_its_timeout(shared_home: Home) -> None:
    """A worker that stops between two calls cannot hold the next one's caller."""

    assert stop_later(b"") == 0
    until(lambda: stopped_workers(shared_home))
    with pytest.raises(errors.CallTimeout):
        stop_later(bytes(8 << 20))
    assert stop_later(bytes(8 << 20)) == 8 << 20


def test_a_worker_that_stopped_between_calls_serves_no_other_program(shared_home: Home, tmp_path: Path) -> None:
    """Another program's call finds a warm worker that has stopped itself, and runs in a new one."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, threading, time\n"
        "from atoll import isolated\n"
        "def stop():\n"
        "    time.sleep(2)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "@isolated(keep_alive=120, env={'HOSTILE': 'stopped'})\n"
        "def stop_later():\n"
        "    threading.Thread(target=stop, daemon=True).start()\n"
        "    return os.environ['ATOLL_WORKER_ID']\n"
        "print(stop_later())\n"
    )
    first = shared_home.python(str(program)).stdout.strip()
    until(lambda: first in stopped_workers(shared_home))
    assert shared_home.python(str(program)).stdout.strip() not in ("", first)


def stopped_workers(home: Home) -> set[str]:
    """Return the ids of the workers that a signal has stopped."""
    workers = json.loads(home.atoll("status", "--json").stdout)["workers"]
    return {worker["id"] for worker in workers if worker["pid"] and is_stopped(worker["pid"])}


def test_volume_is_reached(shared_home: Home) -> None:
    """The path of the volume that the tests above look into is the one that functions write to."""

    @isolated()
    def write(path: str) -> None:
        Path(path).write_text("here")

    path = f"/data/reached-{time.monotonic_ns()}"
    write(path)
    (kept,) = (shared_home.path / "volumes").glob(f"*{path}")
    assert kept.read_text() == "here"


def test_a_timeout_of_a_month_leaves_the_sandbox_alone() -> None:
    """The sandbox lives on while a call's deadline lies beyond what the kernel can wait for at a time."""

    def run(seconds: float) -> int:
        time.sleep(seconds)  # beyond the agent's next look
        return os.getpid()

    run_long = isolated(timeout=30 * 86400, env={"HOSTILE": "month"})(run)
    assert run_long(1) == run_long(1)
