"""Questions before something is removed, on a real terminal and without one; Ctrl-C in the middle of a command."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Home
from ..environments import Machine
from ..waiting import PATIENCE_SECONDS

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
            while True:
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
                    else:
                        os.write(ours, answer.encode())
                    answer = ""
            assert run.stdout is not None
            printed = run.stdout.read()
            status = run.wait(PATIENCE_SECONDS)
        finally:
            os.close(ours)
    return status, printed, shown.replace("\r\n", "\n")


@pytest.fixture
def tree(atoll_home: Home) -> Path:
    """A directory with two files on the volume, and its path on the host."""
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, "data", "put", "-", f"tree/{name}"],
            input=b"x" * 1000,
            env=atoll_home.environment(),
            check=True,
        )
    (path,) = atoll_home.path.glob("volumes/*/data/tree")
    return path


def test_a_tree_is_removed_after_a_question(atoll_home: Home, tree: Path) -> None:
    """`rm -r` names files and bytes on a terminal, and removes for `y` alone; elsewhere it wants `--yes` or `-f`."""
    refused = atoll_home.atoll("data", "rm", "-r", "tree", check=False)
    assert (refused.returncode, tree.exists()) == (2, True)
    assert "2 files" in refused.stderr
    assert "hint: say `--yes`" in refused.stderr
    assert atoll_home.atoll("data", "rm", "-r", "--dry-run", "tree").stdout == "would remove /data/tree\n"
    for answer in ("n\n", "\n", "\x04"):
        status, _, shown = typed(atoll_home, "data", "rm", "-r", "tree", answer=answer)
        assert (status, tree.exists()) == (1, True)
        assert "/data/tree  2 files, 2.0 KiB" in shown
        assert "no snapshot has them" in shown
        assert shown.endswith("nothing was changed\n")
    status, _, shown = typed(atoll_home, "data", "rm", "-r", "tree", answer="^C")
    assert (status, tree.exists(), shown.count("interrupted"), "Traceback" in shown) == (130, True, 1, False)
    status, _, _ = typed(atoll_home, "data", "rm", "-r", "tree", answer="y\n")
    assert (status, tree.exists()) == (0, False)


@pytest.mark.parametrize("flag", ["--yes", "-f"])
def test_a_script_says_yes(atoll_home: Home, tree: Path, flag: str) -> None:
    """With `--yes` or `-f` nothing is asked; an empty directory is no loss and needs neither."""
    (tree.parent / "empty").mkdir()
    os.chown(tree.parent / "empty", tree.stat().st_uid, tree.stat().st_gid)
    atoll_home.atoll("data", "rm", "-r", "empty")
    atoll_home.atoll("data", "rm", "-r", flag, "tree")
    assert not tree.exists()


def test_snapshots_go_and_come_after_a_question(atoll_home: Home, tree: Path) -> None:
    """`rm-snapshot` and `restore` name files, sizes and effects; a restore keeps the present state and needs no `--yes`."""
    atoll_home.atoll("data", "snapshot", "one", "--path", "/data/tree")
    (tree / "a").unlink()
    (tree / "new").write_text("new")
    os.chown(tree / "new", tree.stat().st_uid, tree.stat().st_gid)
    assert atoll_home.atoll("data", "restore", "one", "--dry-run").stdout.splitlines() == [
        "+ /data/tree/a",
        "- /data/tree/new",
    ]
    status, _, shown = typed(atoll_home, "data", "restore", "one", answer="n\n")
    assert (status, (tree / "new").exists()) == (1, True)
    assert "1 newer file will go, 1 come back, 0 change; the present state is kept as a snapshot" in shown
    kept = atoll_home.atoll("data", "restore", "one").stdout.strip()
    assert (tree / "a").exists()
    refused = atoll_home.atoll("data", "rm-snapshot", "one", kept, check=False)
    assert (refused.returncode, "2 snapshots, 4 files" in refused.stderr) == (2, True), refused.stderr
    assert "would remove one" in atoll_home.atoll("data", "rm-snapshot", "one", "--dry-run").stdout
    assert typed(atoll_home, "data", "rm-snapshot", "one", answer="y\n")[0] == 0
    atoll_home.atoll("data", "rm-snapshot", kept, "--yes")
    assert json.loads(atoll_home.atoll("data", "snapshots", "--json").stdout) == []


def test_prune_names_sizes_and_leaves_what_was_not_meant(atoll_home: Any, machine: Machine) -> None:
    """`--cache` empties caches and leaves environments; on a terminal each prune asks, and names what it costs."""
    machine.wheel("alpha")
    wanted = ["-r", "alpha", "-r", "--no-index", "-r", f"--find-links {machine.wheels}"]
    key = atoll_home.atoll("env", "build", *wanted).stdout.strip()
    cache = atoll_home.path / "environments" / ".cache"

    def listed() -> list[str]:
        return [one["key"] for one in json.loads(atoll_home.atoll("env", "list", "--json").stdout)]

    def files() -> list[Path]:
        return [path for path in cache.rglob("*") if path.is_file() and path.name == "alpha.py"]

    assert files()
    dry = json.loads(atoll_home.atoll("env", "prune", "--cache", "--dry-run", "--json").stdout)
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
        assert atoll_home.atoll("env", "prune", *wrong, check=False).returncode == 2


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
