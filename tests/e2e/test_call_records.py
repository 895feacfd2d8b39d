"""What is kept of calls, as the command line shows it, and what a terminal shows while they run."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated
from atoll.host.worker_output import WorkerOutput
from atoll.sdk import futures as futures_of_calls
from atoll.sdk.futures import CallFuture

from ..conftest import Home
from ..waiting import until

pytestmark = pytest.mark.usefixtures("shared_home")

WAIT_SECONDS = 120.0


def calls(home: Home, *arguments: str) -> list[dict[str, Any]]:
    return json.loads(home.atoll("calls", "list", "--json", *arguments).stdout)  # type: ignore[no-any-return]


def wait_record(home: Home, call: str) -> dict[str, Any]:
    """Wait until a call has its record: a worker reports when it has been idle for a moment."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        done = home.atoll("calls", "show", call, "--json", check=False)
        if done.returncode == 0:
            return json.loads(done.stdout)["calls"][0]  # type: ignore[no-any-return]
        assert time.monotonic() < deadline, done.stderr


@isolated
def work(amount: int) -> bytes:
    begun = time.process_time()
    while time.process_time() - begun < 0.1:
        pass
    return b"x" * amount


@isolated
def talk(how: str) -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr, flush=True)
    if how == "raise":
        raise KeyError("missing")
    if how == "die":
        os.kill(os.getpid(), 9)
    if how == "exit":
        sys.exit(4)
    if how == "much":
        print("y" * 100_000)


@isolated
def parent() -> str:
    future = work.submit(1)
    future.result()
    assert isinstance(future, CallFuture)
    return future.call_id


def id_of(call: Any) -> str:
    """Return the id of a call that fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each caller knows what fails
        call()
    assert errors.call_id(caught.value)
    return errors.call_id(caught.value)


def test_a_call_has_a_record(shared_home: Home) -> None:
    """A call that returned is found by its future's id, with what it used."""
    future = work.submit(5_000_000)
    assert isinstance(future, CallFuture)
    assert len(future.result()) == 5_000_000
    record = wait_record(shared_home, future.call_id)
    assert (record["function"], record["outcome"], record["user"], record["parent"]) == ("work", "ok", "local", "")
    assert record["queue_seconds"] >= 0
    assert 0.1 <= record["cpu_seconds"] <= record["wall_seconds"] + 0.1
    assert record["bytes_out"] >= 5_000_000 > record["bytes_in"] > 0
    assert record["peak_bytes"] > 5_000_000
    text = shared_home.atoll("calls", "show", future.call_id).stdout
    assert "peak memory" in text
    assert "work" in shared_home.atoll("calls", "list", "--function", "work", "-n", "1").stdout


@pytest.mark.parametrize(
    ("how", "outcome", "error"),
    [("raise", "error", "KeyError"), ("die", "killed", "WorkerDied"), ("exit", "exited", "SystemExit")],
)
def test_a_call_that_failed_has_a_record_and_its_output(shared_home: Home, how: str, outcome: str, error: str) -> None:
    """Whatever ended a call, `atoll logs CALL` prints what it printed, and how it ended."""
    call = id_of(lambda: talk(how))
    record = wait_record(shared_home, call)
    assert (record["outcome"], record["error"]) == (outcome, error)
    # The caller's tape comes a moment after the worker's record.
    shown = until(lambda: text if "to stdout\n" in (text := shared_home.atoll("logs", call).stdout) else "")
    assert "to stderr\n" in shown
    assert error in shown
    assert call in [one["call"] for one in calls(shared_home, "--outcome", outcome, "--since", "10min")]


def test_what_a_caller_reads_after_its_worker_ended_is_kept(shared_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that reads the last output only when the daemon has ended the lease still has it in the log."""
    keep = WorkerOutput._keep

    def keep_late(worker: WorkerOutput, data: bytes, call: str) -> None:
        ended = select.poll()
        ended.register(worker._control, select.POLLIN)
        assert ended.poll(1000 * WAIT_SECONDS)
        keep(worker, data, call)

    monkeypatch.setattr(WorkerOutput, "_keep", keep_late)
    call = id_of(lambda: talk("die"))
    wait_record(shared_home, call)
    shown = until(lambda: text if "to stderr\n" in (text := shared_home.atoll("logs", call).stdout) else "")
    assert "to stdout\n" in shown


def test_a_good_call_before_a_fatal_one_is_not_lost(shared_home: Home) -> None:
    """Calls that a worker had not reported when a later one killed it have records all the same."""
    before = talk.submit("quietly")
    before.result()
    call = id_of(lambda: talk("die"))
    wait_record(shared_home, call)
    assert isinstance(before, CallFuture)
    assert wait_record(shared_home, before.call_id)["outcome"] == "ok"


def test_only_the_end_of_much_output_is_kept(shared_home: Home) -> None:
    """Of a call that prints much its last 64 KiB are kept, and the log says so."""
    future = talk.submit("much")
    future.result()
    assert isinstance(future, CallFuture)
    wait_record(shared_home, future.call_id)
    (found,) = json.loads(shared_home.atoll("logs", future.call_id, "--json").stdout)["calls"]
    assert found["printed_bytes"] > 100_000
    assert len(found["output"]) == 64 << 10
    assert set(found["output"].replace("to stderr\n", "")) == {"y", "\n"}  # the two streams meet as they come
    assert "are not kept" in shared_home.atoll("logs", future.call_id).stdout


def test_a_nested_call_names_its_parent(shared_home: Home) -> None:
    """The record of a call that a function made says which call made it, and the other way round."""
    future = parent.submit()
    child = future.result()
    assert isinstance(future, CallFuture)
    assert wait_record(shared_home, child)["parent"] == future.call_id
    shown = json.loads(shared_home.atoll("calls", "show", future.call_id, "--json").stdout)
    assert [one["call"] for one in shown["children"]] == [child]


def test_calls_that_never_ran_have_records(shared_home: Home) -> None:
    """A call whose environment cannot be built is there as refused, one that was cancelled as cancelled."""
    refused = id_of(work.on(requirements=["./does-not-exist-at-all"]).submit(1).result)
    record = wait_record(shared_home, refused)
    assert (record["outcome"], record["error"], record["started_at"]) == ("refused", "EnvironmentBuildError", 0)
    sleep = isolated(time.sleep)
    future = sleep.submit(60)
    assert isinstance(future, CallFuture)
    until(future.running)
    sleep.cancel(future)
    with pytest.raises(errors.CallCancelled):
        future.result()
    assert wait_record(shared_home, future.call_id)["outcome"] == "cancelled"


def test_a_killed_caller_leaves_record_and_output(shared_home: Home, tmp_path: Path) -> None:
    """When the calling program is killed, its call is recorded as cancelled, with what it had printed."""
    program = tmp_path / "program.py"
    program.write_text(
        "import time\nfrom atoll import isolated\n"
        "@isolated\ndef wait_for_kill():\n    print('got this far', flush=True)\n    time.sleep(60)\n"
        "future = wait_for_kill.submit()\nprint(future.call_id, flush=True)\nfuture.result()\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        call = caller.stdout.readline().strip()
        assert caller.stdout.readline() == "got this far\n"
        caller.kill()
    assert wait_record(shared_home, call)["outcome"] == "cancelled"
    assert "got this far" in shared_home.atoll("logs", call).stdout


def test_calls_differ_in_what_people_see(shared_home: Home) -> None:
    """The first 8 characters of the ids of a process's calls are all different, also after a fork."""
    starts = {futures_of_calls.new_id()[:8] for _ in range(20_000)}
    assert len(starts) == 20_000
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, futures_of_calls.new_id().encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        assert file.read().partition("-")[2] != futures_of_calls.new_id().partition("-")[2]
    os.wait()


def test_an_id_lasts_as_long_as_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 2**32 calls, where the first characters come again, the ids are still new."""
    first, stride = 7, futures_of_calls._STRIDE
    ids = []
    for count in (0, 1, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 33):
        monkeypatch.setattr(futures_of_calls, "_counter", itertools.count(first + count * stride))
        ids.append(futures_of_calls.new_id())
    assert len(set(ids)) == len(ids)
    assert ids[0][:8] == ids[3][:8]


def test_wrong_questions(shared_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown or ambiguous id, a wrong filter and a negative number are refused with the next step."""
    start = f"{time.time_ns() & 0xFFFF:04x}"
    monkeypatch.setattr(futures_of_calls, "_counter", itertools.count(int(start, 16) << 16))
    futures = [work.submit(1) for _ in range(2)]
    for future in futures:
        future.result()
        assert isinstance(future, CallFuture)
        wait_record(shared_home, future.call_id)
    unknown = shared_home.atoll("calls", "show", "nonesuch", check=False)
    assert (unknown.returncode, "hint:" in unknown.stderr) == (1, True)
    ambiguous = shared_home.atoll("logs", start, check=False)
    assert (ambiguous.returncode, "more than one" in ambiguous.stderr) == (1, True)
    assert all(f"`{future.call_id}` (work)" in ambiguous.stderr for future in futures if isinstance(future, CallFuture))
    short = shared_home.atoll("logs", start[:3], check=False)
    assert (short.returncode, "4 characters" in short.stderr) == (1, True)
    assert shared_home.atoll("logs", f"{start}0001").returncode == 0
    for wrong in (["-n", "-1"], ["-n", "0"], ["--outcome", "nope"], ["--since", "yesterday"]):
        assert shared_home.atoll("calls", "list", *wrong, check=False).returncode == 2
    assert shared_home.atoll("calls", "show", "", check=False).returncode == 2
    assert shared_home.atoll("logs", "-n", "-1", check=False).returncode == 2


# --- the live line ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from atoll import isolated

@isolated
def slow(seconds):
    time.sleep(seconds)

@isolated
def bar():
    for step in range(6):
        print(f"\\rstep {step}", end="")
        time.sleep(0.4)
    print()

if sys.argv[1] == "slow":
    print("prompt: ", end="", flush=True)
    slow(1.5)
    print("done")
elif sys.argv[1] == "quick":
    from atoll.sdk.display import live_line
    live_line.SHOW_SECONDS = 60  # quick, however loaded the machine is
    slow(0)
    print("done")
elif sys.argv[1] == "bar":
    bar()
elif sys.argv[1] == "several":
    for future in [slow.submit(2) for _ in range(3)]:
        future.result()
    print("done")
elif sys.argv[1] == "interrupted":
    slow(60)
elif sys.argv[1] == "logged":
    isolated(lambda: print([sys.stdout.isatty()], "logged"))()
"""


def on_terminal(home: Home, tmp_path: Path, *arguments: str, interrupt: str = "", **env: str) -> str:
    """Run the program on a terminal of its own and return all that it wrote there."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    variables = {name: value for name, value in home.environment().items() if name not in ("NO_COLOR", "TERM")}
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, str(program), *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**variables, "TERM": "xterm", **env},
    ) as child:
        os.close(other)
        written = b""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if not select.select([main], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(main, 1 << 16)
            except OSError:
                break
            written += data
            if interrupt and interrupt.encode() in written:
                os.write(main, b"\x03")
                interrupt = ""
        assert child.wait(120) is not None
    os.close(main)
    return written.decode()


def after_erasing(written: str) -> str:
    """What is left when each drawn line has been erased: draws put the cursor back, an erase clears behind it."""
    written = re.sub(r"\x1b\[\?7l.*?\x1b8\x1b\[\?7h", "", written)
    return re.sub(r"\x1b7\x1b\[1B\r\x1b\[J\x1b8|\x1b\[J", "", written)


@pytest.fixture
def warm(shared_home: Home, tmp_path: Path) -> None:
    """Let the daemon have said what it says once."""
    work(1)


@pytest.mark.usefixtures("warm")
def test_the_log_has_what_went_to_a_terminal(shared_home: Home, tmp_path: Path) -> None:
    """Its text as the function has printed it."""
    on_terminal(shared_home, tmp_path, "logged")
    latest = ("-n", "1", "--since", "10min")
    assert until(lambda: "[True] logged" in shared_home.atoll("logs", calls(shared_home, *latest)[0]["call"]).stdout)


@pytest.mark.usefixtures("warm")
def test_a_terminal_shows_one_line_while_a_call_runs(shared_home: Home, tmp_path: Path) -> None:
    """The line names the function, is dim, and leaves nothing behind, not even of what the program had printed."""
    written = on_terminal(shared_home, tmp_path, "slow")
    assert "\x1b[2mrunning slow · " in written
    assert after_erasing(written) == "prompt: done\r\n"
    assert written.rstrip().rfind("\x1b[J") > written.rfind("\x1b8")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {}])
def test_a_quick_call_or_a_plain_terminal_shows_nothing(shared_home: Home, tmp_path: Path, env: dict[str, str]) -> None:
    """A call that is answered at once draws nothing; nor does any on a terminal that cannot move its cursor."""
    written = on_terminal(shared_home, tmp_path, "slow" if env else "quick", **env)
    assert written == ("prompt: done\r\n" if env else "done\r\n")


@pytest.mark.usefixtures("warm")
def test_a_progress_bar_comes_through_untouched(shared_home: Home, tmp_path: Path) -> None:
    """While a function's line has no end, the display is in the row below it."""
    row_below = "\x1bD\x1b[1A\x1b7\x1b[1B\r\x1b[J\x1b[2mrunning bar"
    written = on_terminal(shared_home, tmp_path, "bar")
    assert row_below in written
    assert after_erasing(written) == "".join(f"\rstep {step}" for step in range(6)) + "\r\n"


@pytest.mark.usefixtures("warm")
def test_several_calls_share_the_line(shared_home: Home, tmp_path: Path) -> None:
    """Calls at the same time are counted in one line; without colours where none are wanted."""
    written = on_terminal(shared_home, tmp_path, "several", NO_COLOR="1")
    assert re.search("[23] calls: ", written)
    assert "\x1b[2m" not in written
    assert after_erasing(written) == "done\r\n"


@pytest.mark.usefixtures("warm")
def test_nothing_is_left_of_the_line_after_an_interrupt(shared_home: Home, tmp_path: Path) -> None:
    """Ctrl-C erases the line before the traceback."""
    written = on_terminal(shared_home, tmp_path, "interrupted", interrupt="running slow")
    left = after_erasing(written)
    assert "KeyboardInterrupt" in left
    assert "running slow" not in left
    assert re.match(
        r"\^C\r\n\x1b\[31m✗\x1b\[39m slow · interrupted · [\d.]+ m?s( · waited \d+ s)?( · peak [\d.]+ [KM]iB)? · id [0-9a-f]{8}\r\nTraceback",
        left,
    )


@pytest.mark.usefixtures("warm")
def test_nothing_is_drawn_without_a_terminal(shared_home: Home, tmp_path: Path) -> None:
    """Where output is a pipe, it has what the program and the function print, and nothing else."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = shared_home.python(str(program), "slow")
    assert (done.stdout, done.stderr) == ("prompt: done\n", "")
