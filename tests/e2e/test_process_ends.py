"""Ends of workers, and of the children that functions fork, as Python ends a program."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import Volume, errors, isolated
from tests.conftest import Home

from ..waiting import soak, until

pytestmark = pytest.mark.usefixtures("shared_home")

kept: list[Any] = []


@isolated
def forked(how: str) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    atexit.register(print, f"handler of {how}", flush=True)
    if how == "raises":
        raise ValueError("in the child")
    if how.startswith("exits"):
        sys.exit(3 if how == "exits" else how)
    with open("/data/of-a-child", "w") as file:
        file.write(how)
    return 0


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [("returns", 0, ""), ("raises", 1, "ValueError: in the child"), ("exits", 3, ""), ("exits here", 1, "exits here")],
)
def test_a_forked_child_ends_with_its_own_status(
    capfd: pytest.CaptureFixture[str], how: str, status: int, said: str
) -> None:
    """A child that comes back from the function has the status, traceback and exit functions of a program's end."""
    assert forked(how) == status
    out, err = capfd.readouterr()
    assert f"handler of {how}" in out
    assert said in err
    assert "running.call" not in err  # no frame of Atoll's is between


@isolated
def leave_much(name: str, endless: bool = False) -> None:
    """Leave a function for the exit, an open file, one with an end of its own, and a thread."""
    import builtins
    import gzip

    file = open(f"/data/{name}-buffered", "w")
    packed = gzip.open(f"/data/{name}.gz", "wb")
    file.write("the end")
    packed.write(b"packed")
    builtins.kept = [file, packed]  # type: ignore[attr-defined]
    started = threading.Event()

    def work() -> None:
        started.set()
        with open(f"/data/{name}-thread", "w") as done:
            done.write("joined")

    threading.Thread(target=work).start()
    started.wait()
    if endless:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    atexit.register(lambda: Path(f"/data/{name}-handler").touch())


def assert_left(name: str) -> None:
    volume = Volume()
    until(lambda: volume.exists(f"{name}.gz") and volume.read_bytes(f"{name}.gz").endswith(b"\x06\x00\x00\x00"))
    until(lambda: volume.exists(f"{name}-handler"), 20)
    assert volume.read_text(f"{name}-buffered") == "the end"
    assert volume.read_text(f"{name}-thread") == "joined"


def test_a_worker_whose_time_is_over_ends_in_good_order() -> None:
    """When `keep_alive` has passed, exit functions run and open files are flushed."""
    leave_much.on(keep_alive=0)("expired")
    assert_left("expired")


def test_a_thread_without_an_end_costs_the_exit_functions_nothing() -> None:
    """A thread that never ends is waited for a while, and exit functions run all the same."""
    leave_much.on(keep_alive=0)("endless", endless=True)
    assert_left("endless")


def test_idle_workers_that_are_not_wanted_end_in_good_order(atoll_home: Home) -> None:
    """A worker between two calls ends as a program does when another call takes its place, and at `atoll stop`."""
    (atoll_home.path / "settings.toml").write_text("[pool]\nslots = 1\nmax_workers = 1\nmax_sandboxes = 1\n")
    program = "from tests.e2e.test_process_ends import leave_much; leave_much.on(keep_alive=1000)('replaced')"
    atoll_home.python("-c", program, cwd=Path(__file__).parents[2])  # its end gives the lease back
    leave_much.on(keep_alive=1000, env={"OTHER": "worker"})("stopped")
    assert_left("replaced")
    atoll_home.stop()
    assert_left("stopped")


def test_exit_in_a_function_is_an_end_in_good_order(capfd: pytest.CaptureFixture[str]) -> None:
    """Output of exit functions after `sys.exit` belongs to the call, and the status is the program's."""

    @isolated
    def leave() -> None:
        atexit.register(print, "goodbye")
        sys.exit(4)

    with pytest.raises(errors.WorkerDied, match=r"sys\.exit\(4\)"):
        leave()
    assert "goodbye" in capfd.readouterr().out


@pytest.mark.parametrize("held_up", soak([True], [False, True]))
def test_an_exit_function_that_hangs_does_not_keep_the_worker(held_up: bool) -> None:
    """A worker has ended after the grace, also one that masks the signal for it."""

    @isolated(keep_alive=0)
    def hang(held_up: bool) -> None:
        atexit.register(time.sleep, 1000)
        if held_up:
            atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGALRM])

    hang(held_up)

    def workers() -> list[Any]:
        from atoll import local

        found = local.request_running("status", {})
        return [one for one in found["workers"] if one["function"].endswith("hang")] if found else []

    until(lambda: not workers())


def test_files_belong_to_everybody_by_default() -> None:
    """Functions have the file mode mask 022, not the daemon's own."""

    @isolated
    def modes() -> tuple[int, int]:
        with contextlib.suppress(FileNotFoundError):
            os.remove("/data/masked")
        os.makedirs("/data/masked.d", exist_ok=True)
        os.close(os.open("/data/masked", os.O_CREAT | os.O_WRONLY, 0o666))
        return os.stat("/data/masked").st_mode & 0o777, os.stat("/data/masked.d").st_mode & 0o777

    assert modes() == (0o644, 0o755)


@isolated
def forked_with(end: str) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if end == "interrupted":
        raise KeyboardInterrupt
    sys.exit(int(end))


@pytest.mark.parametrize(
    ("end", "status"), [("interrupted", -signal.SIGINT), (str(1 << 70), 255), (str((1 << 40) + 3), 3), ("-1", 255)]
)
def test_a_forked_childs_status_is_that_of_a_program(end: str, status: int) -> None:
    """An interrupted child is ended by SIGINT, and a status that no C number holds is 255."""
    assert forked_with(end) == status
