"""Questions before something is removed, on a real terminal and without one; Ctrl-C in the middle of a command."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atoll import Volume
from atoll.cli import main

from ..conftest import Home
from ..environments import Machine
from ..waiting import PATIENCE_SECONDS

AGAIN_SECONDS = 20.0
"""Seconds after which a person presses Ctrl-C again."""
PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"


def typed(home: Home, *arguments: str, answer: str = "", until: str = "[y/N] ") -> tuple[int, str, str]:
    """Run a command with a terminal for stdin and stderr; type the answer, or Ctrl-C, when the text has come.

    Returns:
        the exit status, what it printed, and all that the terminal showed.
    """
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(
        command, cwd=home.path, env=home.environment(), stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as run:
        os.close(theirs)
        shown = ""
        try:
            interrupted = False
            while True:
                if interrupted and not select.select([ours], [], [], AGAIN_SECONDS)[0]:
                    run.send_signal(signal.SIGINT)  # the first one came just before the read, which does not see it
                try:
                    data = os.read(ours, 65536).decode()
                except OSError:  # all others have closed it
                    data = ""
                if not data:
                    break
                shown += data
                if answer and until in shown:
                    if answer == "^C":
                        run.send_signal(signal.SIGINT)
                        interrupted = True
                    else:
                        os.write(ours, answer.encode())
                    answer = ""
            assert run.stdout is not None
            printed = run.stdout.read()
            status = run.wait(PATIENCE_SECONDS)
        finally:
            os.close(ours)
    return status, printed, shown.replace("\r\n", "\n")


@dataclass
class Printed:
    """The end of a command that ran in this process: its status, and that which it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def said(atoll_home: Home, capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    """Run a command in this process, where no terminal is."""

    def run(*arguments: str) -> Printed:
        capsys.readouterr()
        status = main.run(list(arguments))
        return Printed(status, *capsys.readouterr())

    return run


def tree_of(volume: Volume, name: str = "tree") -> Path:
    """Make a directory with two files on the volume; return its path on the host."""
    for file in ("a", "b"):
        volume.write_bytes(f"/data/{name}/{file}", b"x" * 1000)
    home = Path(os.environ["ATOLL_HOME"])
    return next(home.glob("volumes/*/data")) / name


def test_a_tree_is_removed_after_a_question(atoll_home: Home, said: Callable[..., Printed]) -> None:
    """`rm -r` names files and bytes on a terminal, and removes for `y` alone; elsewhere it wants `--yes` or `-f`."""
    with Volume() as volume:
        tree = tree_of(volume)
        refused = said("data", "rm", "-r", "tree")
        assert (refused.status, tree.exists()) == (2, True)
        assert "2 files" in refused.err
        assert "hint: say `--yes`" in refused.err
        assert said("data", "rm", "-r", "--dry-run", "tree").out == "would remove /data/tree\n"
        for answer in ("\n", "\x04"):
            status, _, shown = typed(atoll_home, "data", "rm", "-r", "tree", answer=answer)
            assert (status, tree.exists()) == (1, True)
            assert "/data/tree  2 files, 2.0 KiB" in shown
            assert "no snapshot has them" in shown
            assert shown.endswith("nothing was changed\n")
        status, _, shown = typed(atoll_home, "data", "rm", "-r", "tree", answer="^C")
        assert (status, tree.exists(), shown.count("interrupted"), "Traceback" in shown) == (130, True, 1, False)
        status, _, _ = typed(atoll_home, "data", "rm", "-r", "tree", answer="y\n")
        assert (status, tree.exists()) == (0, False)
        for flag in ("--yes", "-f"):  # a script says so
            tree_of(volume)
            assert said("data", "rm", "-r", flag, "tree").status == 0
            assert not tree.exists()
        volume.mkdir("/data/empty")
        assert said("data", "rm", "-r", "empty").status == 0  # no loss


def test_snapshots_go_and_come_after_a_question(atoll_home: Home, said: Callable[..., Printed]) -> None:
    """`rm-snapshot` and `restore` name files, sizes and effects; a restore keeps the present state and needs no `--yes`."""
    with Volume() as volume:
        tree = tree_of(volume)
        volume.snapshot("one", "/data/tree")
        volume.remove("/data/tree/a")
        volume.write_bytes("/data/tree/new", b"new")
    assert said("data", "restore", "one", "--dry-run").out.splitlines() == ["+ /data/tree/a", "- /data/tree/new"]
    status, _, shown = typed(atoll_home, "data", "restore", "one", answer="n\n")
    assert (status, (tree / "new").exists()) == (1, True)
    assert "1 newer file will go, 1 come back, 0 change; the present state is kept as a snapshot" in shown
    kept = said("data", "restore", "one").out.strip()
    assert (tree / "a").exists()
    refused = said("data", "rm-snapshot", "one", kept)
    assert (refused.status, "2 snapshots, 4 files" in refused.err) == (2, True), refused.err
    assert "would remove one" in said("data", "rm-snapshot", "one", "--dry-run").out
    assert typed(atoll_home, "data", "rm-snapshot", "one", answer="y\n")[0] == 0
    assert said("data", "rm-snapshot", kept, "--yes").status == 0
    assert json.loads(said("data", "snapshots", "--json").out) == []


def test_prune_names_sizes_and_leaves_what_was_not_meant(
    atoll_home: Home, machine: Machine, said: Callable[..., Printed]
) -> None:
    """`--cache` empties caches and leaves environments; on a terminal each prune asks, and names what it costs."""
    machine.wheel("alpha")
    wanted = ["-r", "alpha", "-r", "--no-index", "-r", f"--find-links {machine.wheels}"]
    key = said("env", "build", *wanted).out.strip()
    cache = atoll_home.path / "environments" / ".cache"

    def listed() -> list[str]:
        return [one["key"] for one in json.loads(said("env", "list", "--json").out)]

    def files() -> list[Path]:
        return [path for path in cache.rglob("*") if path.is_file() and path.name == "alpha.py"]

    assert files()
    dry = json.loads(said("env", "prune", "--cache", "--dry-run", "--json").out)
    assert dry["removed"] == []
    assert dry["cache_bytes"] >= dry["freed_bytes"] >= 0
    status, _, shown = typed(atoll_home, "env", "prune", "--cache", answer="n\n")
    assert (status, bool(files())) == (1, True)
    assert "of packages kept for further builds" in shown
    assert "download their packages again" in shown
    status, printed, _ = typed(atoll_home, "env", "prune", "--cache", answer="y\n")
    assert (status, listed(), files()) == (0, [key], [])
    assert printed.startswith("removed ")
    status, _, shown = typed(atoll_home, "env", "prune", answer="n\n")
    assert (status, listed()) == (1, [key])
    assert f"{key[:8]}  Python " in shown
    assert "1 environment, " in shown
    assert "built again when a function asks for it" in shown
    status, printed, _ = typed(atoll_home, "env", "prune", "--all", answer="y\n")
    assert (status, listed()) == (0, [])
    for wrong in (["--cache", "--all"], ["--cache", "--unused-days", "2"]):
        assert said("env", "prune", *wrong).status == 2


def test_ctrl_c_is_one_line(atoll_home: Home) -> None:
    """A command that follows ends with status 130, one line and no traceback."""
    log = atoll_home.path / "logs" / "daemon.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("begun\n")
    command = [sys.executable, "-c", PROGRAM, "logs", "-f"]
    with subprocess.Popen(
        command, env=atoll_home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == b"begun\n"
        follow.send_signal(signal.SIGINT)
        _, errors = follow.communicate(timeout=PATIENCE_SECONDS)
    assert (follow.returncode, errors) == (130, b"interrupted\n")
