"""Completion, driven in the shells themselves: commands, options, and values that only the machine knows."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.cli import completion_values as values
from atoll.cli.completion import scripts, table
from atoll.cli.main import command_table
from atoll.daemon.records.database import Database
from atoll.model.records import CallRecord

from ..conftest import Home
from ..waiting import PATIENCE_SECONDS

KEY = "3f9c" + "0" * 28
PROGRAM = """
    import atoll
    from atoll import isolated

    raise SystemExit("completion runs no program")

    def helper(): ...

    @isolated
    def train(rows: int, learning_rate=0.1, *, name: str = "x"):
        '''Train a model.'''

    @atoll.isolated(requirements=["numpy"])
    async def score(): ...
    """


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a program, a state directory without a daemon, and `atoll` on the `PATH`."""
    home, work, programs = tmp_path / "home", tmp_path / "work", tmp_path / "bin"
    for directory in (
        work / "pkg",
        programs,
        home / "environments" / KEY,
        home / "volumes/local/snapshots/trees/before",
    ):
        directory.mkdir(parents=True)
    (home / "environments" / KEY / "record.json").write_text('{"python_version": "3.12", "requirements": ["numpy"]}')
    for name in ("runs/a.csv", "runs/b.csv", "readme.md", "bad\nname"):
        path = home / "volumes/local/data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (home / "volumes/local/data/out").symlink_to("/etc")
    database = Database(home / "records")
    database.write(
        [CallRecord("abcd1234-1", "train", "local", outcome="ok"), CallRecord("ff001122-1", "x\x1b[2J", "local")]
    )
    database.close()
    (home / "detached").mkdir()
    with contextlib.closing(sqlite3.connect(home / "detached" / "calls.db")) as calls, calls:
        calls.execute("CREATE TABLE calls (id INTEGER PRIMARY KEY, call, function, state, outcome, queued_at)")
        rows = [("d0000001-1", "train", "running", "", 0.0), ("d0000002-1", "train", "finished", "ok", 0.0)]
        calls.executemany("INSERT INTO calls (call, function, state, outcome, queued_at) VALUES (?, ?, ?, ?, ?)", rows)
    (work / "program.py").write_text(textwrap.dedent(PROGRAM))
    (work / "pkg/mod.py").write_text("def plain(): ...\n")
    (work / "broken.py").write_text("def (\n")
    runner = programs / "atoll"
    runner.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'from atoll.cli.main import main; main()' \"$@\"\n")
    runner.chmod(0o755)
    for shell in table.SHELLS:
        (tmp_path / shell).write_text(scripts.script(shell, table.commands(command_table())))
    monkeypatch.setenv("ATOLL_HOME", str(home))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(work)
    return tmp_path


CASES = [
    ("atoll stat", {"status"}),
    ("atoll env sh", {"show"}),
    ("atoll env prune --un", {"--unused-days"}),
    ("atoll env show 3f", {KEY}),
    ("atoll run program.py::", {"program.py::train", "program.py::score"}),
    ("atoll run program.py::t", {"program.py::train"}),
    ("atoll run pkg.mod::p", {"pkg.mod::plain"}),
    ("atoll run pr", {"program.py"}),
    ("atoll run program.py::train --l", {"--learning-rate"}),
    ("atoll run broken.py::", set()),
    ("atoll calls list --outcome time", {"timeout"}),
    ("atoll calls list --function tr", {"train"}),
    ("atoll logs abcd", {"abcd1234-1"}),
    ("atoll logs d0", {"d0000001-1", "d0000002-1"}),
    ("atoll cancel ", {"d0000001-1"}),
    ("atoll exec d0", {"d0000001-1"}),
    ("atoll attach ", {"d0000001-1", "d0000002-1"}),
    ("atoll calls result d0", {"d0000001-1", "d0000002-1"}),
    ("atoll data rm -r /data/r", {"/data/runs/", "/data/readme.md"}),
    ("atoll data cat runs/a", {"runs/a.csv"}),
    ("atoll data cat out/pass", set()),
    ("atoll data restore b", {"before"}),
    ("atoll completion z", {"zsh"}),
    ("atoll env prune --unused-days ", set()),
    ("atoll nonsense wo", set()),
]


def in_bash(place: Path, lines: list[str]) -> list[set[str]]:
    """Return that which bash would offer for lines; words come without the part before the last colon."""
    program = f"source '{place / 'bash'}'\n" + "".join(
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _atoll; printf '%s\\n' \"${{COMPREPLY[@]}}\" ==\n"
        for line in lines
    )
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = [set(part.split("\n")) - {""} for part in done.stdout.split("==\n")[:-1]]
    before = [line.split(" ")[-1].rpartition(":")[::2] for line in lines]
    return [
        {f"{start}:{word}" if start else word for word in one} for one, (start, _) in zip(found, before, strict=True)
    ]


def in_fish(place: Path, lines: list[str]) -> list[set[str]]:
    program = f"source '{place / 'fish'}'\n" + "".join(f"complete -C '{line}'; echo ==\n" for line in lines)
    environment = {**os.environ, "HOME": str(place), "XDG_CONFIG_HOME": str(place / "config")}
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return [{line.split("\t")[0] for line in part.split("\n")} - {""} for part in done.stdout.split("==\n")[:-1]]


@pytest.mark.parametrize(("shell", "offered"), [("bash", in_bash), ("fish", in_fish)])
def test_shells_offer_what_fits(place: Path, shell: str, offered: Callable[[Path, list[str]], list[set[str]]]) -> None:
    """Each line has the words that fit; nothing runs a program or starts a daemon, and a broken file is silence."""
    if shutil.which(shell) is None:
        pytest.skip(f"`{shell}` is not installed")
    for (line, expected), found in zip(CASES, offered(place, [line for line, _ in CASES]), strict=True):
        assert found == expected, line
    assert not (place / "home" / "run").exists()


class Typing:
    """An interactive shell on a pseudo terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.execvpe(command[0], command, environment)
        self.shown = ""

    def type(self, text: str, until: str) -> str:
        """Type, and return all that has appeared since when the other text is there."""
        self.shown = ""
        os.write(self.terminal, text.encode())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while until not in self.shown:
            assert select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))[0], self.shown
            self.shown += os.read(self.terminal, 65536).decode("utf-8", "replace")
        return self.shown

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_person_presses_tab(place: Path, shell: str) -> None:
    """On a terminal the key completes a command, a function after the colons, and a path without a space behind it."""
    if shutil.which(shell) is None:
        pytest.skip(f"`{shell}` is not installed")
    environment = {**os.environ, "HOME": str(place), "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    options = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    typing = Typing([shell, *options], environment)
    try:
        if shell == "zsh":
            ready = "autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste; bindkey -e; PS1='$ '; "
        else:
            ready = "bind 'set enable-bracketed-paste off'; "
        typing.type(f"{ready} source '{place / shell}'; echo rea''dy\n", "ready\r\n")
        typing.type("echo BEGIN; : atoll\x01\x0b", "")
        for typed, completed in (
            ("atoll stat\t", "status "),
            ("atoll run program.py::tr\t", "program.py::train "),
            ("atoll data cat /data/ru\ta\t", "/data/runs/a.csv "),
            ("atoll env show 3f\t", f"{KEY} "),
        ):
            shown = typing.type(f"{typed}#\x01printf '<%s>\\n' '\x05'\n", "#>\r\n")
            assert f" {completed}#>" in shown, shown
        typing.type("exit\n", "exit")
    finally:
        typing.close()


HOSTILE = (
    "model$(touch PWNED).bin",
    "best`touch PWNED`",
    "a;touch PWNED;b",
    "two words",
    "it's",
    "$HOME",
    "~x",
    "{a,b}",
    "!!",
)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_name_is_never_code(place: Path, shell: str) -> None:
    """A name that a function has made in the volume, completed and entered, is one word: the shell runs nothing of it."""
    if shutil.which(shell) is None:
        pytest.skip(f"`{shell}` is not installed")
    data = place / "home/volumes/local/data"
    for number, name in enumerate(HOSTILE):
        (data / f"h{number}").mkdir()
        (data / f"h{number}" / name).touch()
    environment = {**os.environ, "HOME": str(place), "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    options = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    typing = Typing([shell, *options], environment)
    try:
        ready = "bind 'set enable-bracketed-paste off'; set +H; "
        if shell == "zsh":
            ready = "autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste; bindkey -e; PS1='$ '; "
        typing.type(f"{ready} source '{place / shell}'; echo rea''dy\n", "ready\r\n")
        for number, name in enumerate(HOSTILE):
            shown = typing.type(f"atoll data cat h{number}/\tX\x01printf '<%s>\\n' \x05\n", "X>\r\n")
            assert f"<h{number}/{name}>\r\n<X>" in shown, shown
        typing.type("exit\n", "exit")
    finally:
        typing.close()
    assert not list(place.rglob("PWNED"))


def test_values_are_clean_and_errors_silent(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that act on a terminal are left out, their descriptions too; unknown kinds and broken state print nothing."""
    for arguments in (
        ["volume", ""],
        ["call", ""],
        ["call-function", ""],
        ["target", ""],
        ["parameter", "", "program.py"],
    ):
        assert values.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").replace("\t", "").isprintable()
    assert "ff001122-1\n" in printed
    assert "bad" not in printed
    for directory in ("records", "detached"):
        (place / "home" / directory / "calls.db").write_bytes(b"damaged" * 1000)
    for arguments in (["call", ""], ["nonsense", "x"], [], ["target", "broken.py::"], ["volume", "/etc/pass"]):
        assert values.main(arguments) == 0
    assert capsys.readouterr() == ("/data/\n" * 0, "")


def test_no_answer_imports_the_command_line(place: Path) -> None:
    """A value costs a bare interpreter and the standard library: neither cyclopts nor rich nor the SDK."""
    code = (
        "import sys\nfrom atoll.cli import main\ntry:\n    main.main(['__complete', 'target', 'program.py::'])\n"
        "except SystemExit:\n    print(*sorted({name for name in sys.modules if name.startswith('atoll')}))\n"
        "    print('cyclopts' in sys.modules, 'rich' in sys.modules, 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["program.py::train\tTrain a model.", "program.py::score"]
    assert lines[3] == "False False False"
    assert not {name for name in lines[2].split() if name.startswith(("atoll.sdk", "atoll.host", "atoll.daemon"))}


def test_every_argument_has_a_kind() -> None:
    """Each positional value of each command is known to the table, so that a new one is not forgotten."""
    commands = table.commands(command_table())
    plain = {one.path for one in commands if one.positional[:1] == (table.NOTHING,)}
    names = {"data snapshot", "users add", "secrets set", "secrets delete", "node join", "nodes add"}
    of_server = (
        "alias ",
        "apps ",
        "crons ",
        "function delete",
        "function logs",
        "queue ",
    )  # ids and names at a server, which a press of a key does not ask
    files = {"deploy", "function serve", "function schedule"}  # a file is completed by the shell itself
    assert {one for one in plain if not one.startswith(of_server)} <= names | files
    assert {one.path for one in commands} >= {"", "run", "data", "data rm", "env prune", "completion"}
    kinds = {kind for one in commands for kind in (*one.positional, *(kind for _, kind in one.takes))}
    assert {
        kind for kind in kinds if kind not in {table.NOTHING, table.FILE, table.DIRECTORY} and kind[0] != "="
    } <= set(values._KINDS)


def test_a_running_call_is_offered(atoll_home: Home, tmp_path: Path) -> None:
    """The id of a call that runs is a value, with its function and state; a daemon that is stuck is no answer."""
    (tmp_path / "program.py").write_text(
        "import time\nfrom atoll import isolated\n@isolated\ndef forever():\n    print('begun', flush=True)\n    time.sleep(1000)\n"
    )
    command = [sys.executable, "-c", "from atoll.cli.main import main; main()", "run", "program.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"begun\n"
            (line,) = atoll_home.atoll("__complete", "call", "").stdout.splitlines()
            call, about = line.split("\t")
            assert about.startswith("forever running ")
            assert atoll_home.atoll("__complete", "call", call[:5]).stdout.startswith(call)
            pid = atoll_home.daemon_pid()
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                assert atoll_home.atoll("__complete", "call", "").stdout == ""
            finally:
                os.kill(pid, signal.SIGCONT)
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 130
