"""`atoll server --demo`: one command that serves, runs programs, and leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, Home
from ..waiting import PATIENCE_SECONDS, ended

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT / "examples")!r})
from on_cloud import preferences_on_cloud, upload_to_cloud
preferences_on_cloud()
upload_to_cloud()
"""

FAILING = """
import os, pathlib, atoll
print(atoll.cloud)
beside = pathlib.Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
arguments = [pathlib.Path(f"/proc/{one}/cmdline").read_bytes().decode().split("\\0") for one in beside]
print([one[one.index("--home") + 1] for one in arguments if "--home" in one][0])
raise SystemExit(7 if os.environ["ATOLL_HOST"] else 0)
"""


def test_a_demonstration_takes_no_other_options(atoll_home: Home) -> None:
    """An address, a state directory or certificates beside `--demo` are wrong usage, and nothing starts."""
    for options in (("--listen", "0.0.0.0:9999"), ("--home", "/nowhere"), ("--share-uid-between-users",)):
        done = atoll_home.atoll("server", "--demo", *options, check=False)
        assert (done.returncode, "leave the other options out" in done.stderr) == (2, True), done.stderr


@pytest.mark.as_user
def test_a_demonstration_runs_the_seeds_programs_and_ends(atoll_home: Home) -> None:
    """The functions of the first examples run on a server of its own; a program that fails ends it with its status.

    The network, whose packages have 600 MB, is left to `make quickstart-server`.
    """
    program, failing = atoll_home.path / "program.py", atoll_home.path / "failing.py"
    program.write_text(PROGRAM)
    failing.write_text(FAILING)
    done = atoll_home.atoll("server", "--demo", str(program), str(failing), str(program), check=False)
    assert done.returncode == 7, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a server at http://127.0.0.1:")
    *shown, home = [line for line in lines[1:] if not line.startswith(("===", "    ("))]
    assert shown == [
        "stored the preferences of user 7 in /data/user_7_preferences.txt",
        "another call reads: hiking, jazz, black tea",
        "uploaded to /data/sync/remote_dir",
        "customers.csv",
        "orders.csv",
        "readme.txt",
        "cloud",
    ]
    assert home.startswith("/tmp/atoll-demo-")
    assert not Path(home).exists()
    assert atoll_home.daemon_pid() is None
    assert not [line for line in Path("/proc/net/unix").read_text().splitlines() if home in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demonstration_that_is_ended_ends_its_server(atoll_home: Home, number: signal.Signals) -> None:
    """Also by the end of `make`, or of the terminal: server, node and files are gone, and a program that runs is."""
    program = atoll_home.path / "program.py"
    program.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-c", "from atoll.cli.main import main; main()", "server", "--demo", str(program)]
    with subprocess.Popen(command, env=atoll_home.environment(), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        while not said.strip().isdigit():
            said = demo.stdout.readline()
            assert said, "it ended by itself"
        pid = int(said)
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        arguments = [Path(f"/proc/{one}/cmdline").read_bytes().decode().split("\0") for one in children]
        (home,) = (one[one.index("--home") + 1] for one in arguments if "--home" in one)
        demo.send_signal(number)
        assert demo.wait(PATIENCE_SECONDS) == 128 + number
    assert all(map(ended, [*map(int, children), pid]))
    assert not Path(home).exists()


def test_programs_need_the_demonstration(atoll_home: Home) -> None:
    """A server that serves everybody runs no program."""
    assert "programs are for `--demo`" in atoll_home.atoll("server", "program.py", check=False).stderr


def test_a_missing_program_starts_no_server(atoll_home: Home) -> None:
    """The files are looked for first."""
    done = atoll_home.atoll("server", "--demo", "nothing.py", check=False)
    assert done.returncode == 2
    assert "there is no file `nothing.py`" in done.stderr
    assert "a server at" not in done.stdout
