"""`atoll shell` and `atoll exec`: commands beside functions, on this machine and on a server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from atoll import errors
from atoll.sdk.futures import CallFuture

from ..terminal_screen import TerminalProgram
from ..waiting import until
from .conftest import Place

PROGRAM = [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())"]


def waits(mark: str) -> None:
    import time
    from pathlib import Path

    Path("/tmp/mine").write_text(mark)
    print("waits", flush=True)
    time.sleep(600)


@pytest.fixture
def call(place: Place) -> Iterator[str]:
    """The id of a call that runs and waits."""
    future: Future[None] = place.isolated(waits, env={"CASE": "visited"}).submit("mine")
    assert isinstance(future, CallFuture)
    until(lambda: seen(place, future.call_id).startswith("waits"))
    yield future.call_id
    place.host.request("calls.cancel", {"call": future.call_id})
    with pytest.raises(errors.CallCancelled):
        future.result()


def seen(place: Place, call: str) -> str:
    with contextlib.suppress(errors.ResourcesUnavailable):  # it has no worker yet
        rows = place.host.request("calls.output", {"call": call, "seen": 0})["unfinished"]
        return str(rows[0]["output"]) if rows else ""
    return ""


def environment(place: Place) -> dict[str, str]:
    return {**os.environ, **place.variables}


def run(place: Place, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    given = {"capture_output": True, "timeout": 120, **options}
    return subprocess.run([*PROGRAM, *arguments], env=environment(place), check=False, **given)


def test_a_command_beside_a_call(place: Place, call: str) -> None:
    """It has the function's files and variables; its streams are three, and its status is passed on."""
    done = run(place, "exec", call[:8], "sh", "-c", "cat; cat /tmp/mine; echo $CASE >&2; exit 7", input=b"typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"typed\nmine", b"visited\n")
    done = run(place, "exec", call, "sh", "-c", "kill -KILL $$", input=b"")
    assert done.returncode == 128 + signal.SIGKILL
    assert run(place, "exec", call, "no-such-program", input=b"").returncode == 127
    done = run(place, "exec", "ffffffffff", "true", input=b"")
    assert (done.returncode, b"no call that runs" in done.stderr) == (1, True)


def test_much_goes_both_ways(place: Place, call: str) -> None:
    """Megabytes of input come back as output, whole, whatever is read first."""
    sent = os.urandom(1 << 20) * 12
    done = run(place, "exec", call, "cat", input=sent)
    assert done.returncode == 0
    assert done.stdout == sent


def test_a_reader_that_has_gone_is_told(place: Place, call: str) -> None:
    """A command that prints without an end finds a broken pipe, and ends."""
    with subprocess.Popen(
        [*PROGRAM, "exec", call, "yes"], env=environment(place), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as printer:
        assert printer.stdout is not None
        assert printer.stdout.readline() == b"y\n"
        printer.stdout.close()
        assert printer.wait(60) == 128 + signal.SIGPIPE


def test_a_command_on_a_terminal(place: Place, call: str) -> None:
    """It has a terminal of the caller's size, which follows it; Ctrl-C reaches the command, and not its caller."""
    shell = TerminalProgram([*PROGRAM, "exec", call], environment(place), columns=70, rows=20)
    try:
        shell.until(r"\(atoll\) ")
        shell.press("stty size; test -t 0 && echo a-$((40 + 2))-terminal\r")
        shell.until(r"20 70\s+a-42-terminal")
        shell.resize(90, 25)
        shell.press("until stty size | grep '25 90'; do sleep 0.05; done\r")
        shell.until(r"25 90\s")
        shell.press("echo st''art; sleep 600\r")
        shell.until("start")
        shell.press("\x03")
        shell.until(r"\^C")
        shell.press("exit 5\r")
        assert shell.finish() == 5
    finally:
        shell.close()


def test_a_shell_in_an_environment(place: Place) -> None:
    """Without a call: `/data`, the environment's Python, and the status of the last command."""
    script = b"touch /data/by-shell; python -c 'import sys; print(sys.prefix)'; ls /data; exit 3\n"
    done = run(place, "shell", input=script)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "/opt/atoll/env"
    assert "by-shell" in lines


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_command_ends_with_its_client(place: Place, call: str, tmp_path: Path, end: signal.Signals) -> None:
    """Also one that takes no notice of the end of its streams."""
    script = "import atoll.cli.main, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = ["exec", call, "sh", "-c", "trap '' TERM HUP PIPE INT; echo $$; while :; do sleep 0.1; done"]
    text = f"{script}sys.argv[1:] = {command!r}\nsys.exit(atoll.cli.main.main())\n"
    with place.program(tmp_path / "client.py", text) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        client.send_signal(end)
        client.wait(60)
    until(lambda: run(place, "exec", call, "test", "-e", f"/proc/{pid}", input=b"").returncode == 1)
