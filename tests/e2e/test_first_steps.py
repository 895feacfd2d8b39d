"""`atoll init`, `atoll version`, and the flags that choose the display."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import __version__
from atoll.cli import init, main
from atoll.sdk.display import mode

from ..conftest import Home, own_home
from ..environments import Machine
from ..waiting import until


@pytest.fixture
def atoll_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A state directory as a first user has it, without the files that other tests share."""
    with own_home(library_there=False) as home:
        monkeypatch.setenv("ATOLL_HOME", str(home.path))
        yield home


def test_the_first_program_runs_at_once(atoll_home: Home, machine: Machine, tmp_path: Path) -> None:
    """The command that `init` prints works as it is, with a package and a file that stays; a flag silences the build."""
    machine.wheel("humanize", files={"humanize.py": "def ordinal(number): return f'{number}th'\n"})
    index = {"UV_FIND_LINKS": str(machine.wheels), "UV_OFFLINE": "1"}
    written = atoll_home.atoll("init", "my project", cwd=tmp_path).stdout.splitlines()
    assert written == [
        "wrote my project/first.py",
        "wrote my project/.atollignore",
        "next: atoll run 'my project/first.py' --name Ada",
    ]
    run = ["run", "my project/first.py", "--name", "Ada"]
    quiet = atoll_home.atoll("-q", *run, cwd=tmp_path, env=index)
    assert (quiet.stdout, "uilt environment" in quiet.stderr) == ("Hello Ada, this is your 1th visit.\n", False)
    assert "uilding" not in quiet.stderr
    loud = atoll_home.atoll("run", "-v", *run[1:], cwd=tmp_path, env=index)
    assert loud.stdout == "Hello Ada, this is your 2th visit.\n"
    assert atoll_home.python("my project/first.py", cwd=tmp_path, env=index).stdout.endswith("3th visit.\n")
    used = until(lambda: _usage(atoll_home, calls=3))
    assert [(one["key"], one["calls"], one["failed"]) for one in used["rows"]] == [("visit", 3, 0)]
    assert used["rows"][0]["peak_bytes"] > 0
    assert used["disk"]["environments_bytes"] > 0
    assert used["disk"]["data_bytes"] > 0
    found = json.loads(atoll_home.atoll("version", "--json").stdout)
    assert found["daemon"] == {"version": __version__, "pid": atoll_home.daemon_pid()}


def _usage(home: Home, *, calls: int) -> dict[str, Any]:
    """Return the usage when the records have so many calls; they are written some time after the calls."""
    found: dict[str, Any] = json.loads(home.atoll("usage", "--json").stdout)
    return found if found["total"]["calls"] >= calls else {}


def test_init_overwrites_nothing(atoll_home: Home, tmp_path: Path) -> None:
    """A file that is there stays as it is, also behind a symlink that leads nowhere; the others are written."""
    (tmp_path / init.PROGRAM).symlink_to(tmp_path / "elsewhere.py")
    (tmp_path / ".atollignore").write_text("mine\n")
    said = atoll_home.atoll("init", cwd=tmp_path).stdout.splitlines()
    assert said[:2] == ["kept first.py, which is there already", "kept .atollignore, which is there already"]
    assert (tmp_path / ".atollignore").read_text() == "mine\n"
    assert not (tmp_path / "elsewhere.py").exists()


def test_init_names_a_directory_that_it_cannot_make(atoll_home: Home) -> None:
    """A directory that cannot be is one error with its name and a hint."""
    done = atoll_home.atoll("init", "/proc/x", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot write `/proc/x`: No such file or directory\nhint: name another directory\n"


def test_version_starts_nothing(atoll_home: Home) -> None:
    """Versions are those of this machine, and the daemon is none where none runs."""
    found = json.loads(atoll_home.atoll("version", "--json").stdout)
    assert set(found) == {"atoll", "python", "platform", "uv", "bwrap", "daemon", "server"}
    assert (found["atoll"], found["daemon"]) == (__version__, None)
    assert found["uv"][0].isdigit()
    assert found["bwrap"][0].isdigit()
    assert "daemon    none runs" in atoll_home.atoll("version").stdout
    assert atoll_home.daemon_pid() is None


@pytest.mark.usefixtures("tmp_path")
def test_flags_choose_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-q` and `-v` count before and after the command's name; behind a program they are its own."""
    chosen = list[tuple[str, bool]]()
    monkeypatch.setattr(mode, "choose", lambda display="", *, more=False: chosen.append((display, more)))
    for given, rest in (
        (["-q", "run", "f.py"], ["run", "f.py"]),
        (["run", "--verbose", "f.py", "-v"], ["run", "f.py", "-v"]),
        (["run", "f.py", "-q"], ["run", "f.py", "-q"]),
        (["--version", "-q"], ["--version", "-q"]),
        ([], []),
    ):
        assert main._displayed(given) == rest
    assert chosen == [("none", False), ("", True)]
