"""`atoll data`, as a person types it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Home

PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"


SUMMARY = re.compile(
    rb"(?s)(.*?)([0-9,]+ files?, [0-9.]+ \w+; sent [0-9,]+ files?, [0-9.]+ \w+; removed [0-9,]+; left out [0-9,]+; [0-9.]+ s\n)"
)
"""What a sync says on stderr, and its last line there."""


def run(
    home: Home, *arguments: str | bytes, stdin: bytes = b"", status: int = 0, complaints: bytes | None = b""
) -> bytes:
    """Run a command in the home directory; return what it printed, or with another status its errors.

    `complaints` is what goes to stderr where the status is 0, but for the line that ends a sync.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "data", *arguments],
        cwd=home.path,
        env=home.environment(),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr.decode()
    if status == 0:
        counted = arguments[0] == "sync" and not {"--dry-run", "--json"} & {*arguments}
        errors, line = (done.stderr, b"") if not counted else re.fullmatch(SUMMARY, done.stderr).groups()  # type: ignore[union-attr]
        assert errors == complaints
        assert bool(line) == counted
    return done.stderr if status else done.stdout


def test_files_go_there_and_back(shared_home: Home, tmp_path: Path) -> None:
    """`put`, `cat`, `get` and `rm` move bytes unchanged, through names, directories and pipes."""
    content = os.urandom(5_000_000)
    (tmp_path / "in").write_bytes(content)
    (tmp_path / "in").chmod(0o640)
    run(shared_home, "put", str(tmp_path / "in"), "cli/file")
    assert run(shared_home, "cat", "/data/cli/file") == content
    run(shared_home, "get", "cli/file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == content
    assert (tmp_path / "out").stat().st_mtime_ns == (tmp_path / "in").stat().st_mtime_ns
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "in").stat().st_mode
    assert run(shared_home, "get", "cli/file", "-") == content
    run(shared_home, "put", "-", "cli/piped", stdin=b"through a pipe")
    run(shared_home, "put", str(tmp_path / "in"), "cli/")
    assert run(shared_home, "ls", "cli") == b"file\nin\npiped\n"
    assert run(shared_home, "cat", "cli/piped", "cli/piped") == b"through a pipe" * 2
    run(shared_home, "rm", "cli/file", "cli/in")
    assert run(shared_home, "ls", "cli") == b"piped\n"
    run(shared_home, "rm", "-rf", "cli")


def test_open_descriptors_and_fifos_are_no_targets(shared_home: Home, tmp_path: Path) -> None:
    """`/dev/stdout`, `>(...)` and a fifo are refused with the way out, `-`; a fifo stays."""
    run(shared_home, "put", "-", "cli-open", stdin=b"content")
    hint = b"hint: `-` is standard output: `atoll data get FILE - > TARGET`"
    printed = run(shared_home, "get", "cli-open", "/dev/stdout", status=1)
    assert b"`/dev/stdout` is a " in printed
    assert hint in printed
    script = f"'{sys.executable}' -c '{PROGRAM}' data get cli-open >(cat)"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=shared_home.environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert hint in done.stderr
    assert os.listdir(tmp_path) == []
    os.mkfifo(tmp_path / "cli-open")
    printed = run(shared_home, "get", "cli-open", str(tmp_path), status=1)
    assert b"`%s/cli-open` is a fifo, which is not replaced" % os.fsencode(tmp_path) in printed
    assert (tmp_path / "cli-open").is_fifo()
    run(shared_home, "rm", "cli-open")


def test_streams_that_are_closed(shared_home: Home, tmp_path: Path) -> None:
    """A closed stdin is wrong usage where it is named; what goes to a closed stdout or stderr goes nowhere."""
    run(shared_home, "put", "-", "cli-closed", stdin=b"content")
    for arguments, status, printed, complaints in (
        ("put - cli-never <&-", 2, b"", b"error: stdin is closed\nhint: name a file, or pipe to this command\n"),
        ("cat cli-closed >&-", 0, b"", b""),
        ("get cli-closed - >&-", 0, b"", b""),
        ("ls cli-closed <&- >&-", 0, b"", b""),
        ("cat cli-never 2>&-", 1, b"", b""),
        ("cp cli-closed cli-copied 2>&-", 0, b"", b""),
        ("cat cli-copied <&- 2>&-", 0, b"content", b""),
    ):
        done = subprocess.run(
            ["bash", "-c", f"'{sys.executable}' -c '{PROGRAM}' data {arguments}"],
            cwd=tmp_path,
            env=shared_home.environment(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (status, printed, complaints), arguments
    run(shared_home, "rm", "cli-closed", "cli-copied")
    assert b"cli-never" not in run(shared_home, "ls")


def test_symlinks_to_files_are_fetched_by_name_and_by_pattern(shared_home: Home, tmp_path: Path) -> None:
    """Each gives what it leads to; one that leads nowhere, or out of /data, is named before anything is copied."""
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "in/real/f").write_text("1")
    (tmp_path / "in/a").write_text("2")
    (tmp_path / "in/link").symlink_to("real/f")
    out = tmp_path / "out"
    out.mkdir()
    run(shared_home, "put", str(tmp_path / "in"), "cli-links")
    run(shared_home, "get", "cli-links/*", str(out))
    assert {name: (out / name).read_text() for name in ("a", "link", "real/f")} == {
        "a": "2",
        "link": "1",
        "real/f": "1",
    }
    assert not (out / "link").is_symlink()
    subprocess.run(["rm", "-r", str(out)], check=True)
    out.mkdir()
    for target, words in (("nowhere", b"to what is not there"), ("/etc/passwd", b"leads out of `/data`")):
        (tmp_path / "in/wrong").unlink(missing_ok=True)
        (tmp_path / "in/wrong").symlink_to(target)
        run(shared_home, "rm", "-rf", "cli-links")
        run(shared_home, "put", str(tmp_path / "in"), "cli-links")
        for verb, last in (("get", str(out)), ("cat", ""), ("cp", "cli-links-copy/")):
            printed = run(shared_home, verb, "cli-links/[alw]*", *([last] if last else []), status=1)
            assert words in printed
            assert b"`/data/cli-links/wrong`" in printed
        assert os.listdir(out) == []
        assert b"cli-links-copy" not in run(shared_home, "ls")
    run(shared_home, "rm", "-rf", "cli-links")


def test_names_that_begin_like_options(shared_home: Home, tmp_path: Path) -> None:
    """Behind `--` all are names, as with other programs; before it they are told from options."""
    (tmp_path / "-dash").write_text("a dash\n")

    def data(*arguments: str, status: int = 0) -> str:
        done = shared_home.atoll("data", *arguments, cwd=tmp_path, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout

    data("put", "--", "-dash")
    assert data("cat", "--", "-dash") == "a dash\n"
    assert data("get", "--", "-dash", "-") == "a dash\n"
    data("mv", "--", "-dash", "--moved")
    data("put", "-dash", status=2)
    data("rm", "--moved", status=2)
    assert "--moved\n" in data("ls")
    data("rm", "--", "--moved")
    assert "--moved" not in data("ls")


def test_directories_go_there_and_back(shared_home: Home, tmp_path: Path) -> None:
    """A directory is put and fetched whole, and merged into one that is there."""
    source = tmp_path / "tree"
    (source / "empty").mkdir(parents=True)
    (source / "sub").mkdir()
    for number in range(30):
        (source / f"sub/{number}").write_bytes(b"x" * number)
    (source / "large").write_bytes(bytes(6 << 20))
    (source / "link").symlink_to("/nowhere")
    (source / ".atollignore").write_text("*")
    run(shared_home, "put", str(source))
    run(shared_home, "put", "-", "tree/sub/more", stdin=b"m")
    run(shared_home, "put", str(source), "/data")
    run(shared_home, "get", "tree", str(tmp_path / "copy"))
    copy = tmp_path / "copy"
    (copy / "sub/more").unlink()
    assert subprocess.run(["diff", "-r", "--no-dereference", str(source), str(copy)], check=False).returncode == 0
    assert (copy / "large").stat().st_mtime_ns == (source / "large").stat().st_mtime_ns
    run(shared_home, "get", "tree", str(copy))
    assert (copy / "tree/sub/more").read_bytes() == b"m"
    assert not list(copy.rglob(".atoll-*"))
    run(shared_home, "rm", "--recursive", "--yes", "tree")


def test_a_copy_stays_below_its_place(shared_home: Home, tmp_path: Path) -> None:
    """A symlink that came from the volume leads no later `get` elsewhere; one that the owner names is followed."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    for path in (victim, out, tmp_path / "links/res", tmp_path / "real/res/logs"):
        path.mkdir(parents=True)
    (tmp_path / "links/res/logs").symlink_to(victim)
    (tmp_path / "real/res/logs/authorized_keys").write_text("planted")
    (tmp_path / "to-out").symlink_to(out)
    for destination in ("out", "to-out"):
        for remote, where in (("res", destination), ("res/logs", f"{destination}/res")):
            run(shared_home, "put", str(tmp_path / "links/res"), "res")
            run(shared_home, "get", "/data/res", str(tmp_path / destination))
            assert (out / "res/logs").is_symlink()
            run(shared_home, "rm", "-rf", "res")
            run(shared_home, "put", str(tmp_path / "real/res"), "res")
            run(shared_home, "get", f"/data/{remote}", str(tmp_path / where))
            assert (out / "res/logs/authorized_keys").read_text() == "planted"
            assert os.listdir(victim) == []
            run(shared_home, "rm", "-rf", "res")
            subprocess.run(["rm", "-r", str(out / "res")], check=True)


def test_sync_mirrors(shared_home: Home, tmp_path: Path) -> None:
    """`sync` prints where the mirror is, `--dry-run` what would be done, and its options reach the sync."""
    (tmp_path / "a").write_text("1")
    (tmp_path / "b.log").write_text("1")
    here = ("sync", str(tmp_path), "cli-sync")
    assert b"send    a  (1 bytes)\n" in run(shared_home, *here, "--dry-run")
    left = b"left out 1: `b.log`\n"
    assert run(shared_home, *here, "--exclude", "*.log", "--exclude", "x", complaints=left) == b"/data/sync/cli-sync\n"
    assert run(shared_home, "ls", "sync/cli-sync") == b"a\n"
    (tmp_path / "a").unlink()
    run(shared_home, *here, "--no-delete")
    assert run(shared_home, "ls", "sync/cli-sync") == b"a\nb.log\n"
    run(shared_home, *here)
    assert run(shared_home, "ls", "sync/cli-sync") == b"b.log\n"


def test_sync_names_what_tools_make_and_leaves_it_out_when_asked(shared_home: Home, tmp_path: Path) -> None:
    """`--exclude-dev` is a preset, and `--exclude dev` a pattern."""
    for name in ("main.py", ".git/HEAD", "p/__pycache__/m.pyc", "q/__pycache__/m.pyc", "dev/notes"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(bytes(100 if "__" in name else 1))
    here = ("sync", str(tmp_path / "s"), "cli-tools")
    said = b"mirrored with the rest: `__pycache__` 200 B in 2 directories, `.git` 1 B; `--exclude-dev` leaves out what"
    run(shared_home, *here, complaints=said + b" such tools make\n")
    left = b"left out 3: `.git`, `q/__pycache__`, `p/__pycache__`\n"
    run(shared_home, *here, "--exclude-dev", complaints=left)
    assert run(shared_home, "ls", "sync/cli-tools").split() == [b".git", b"dev", b"main.py", b"p", b"q"]
    left = b"left out 4: `.git`, `dev`, `q/__pycache__` and 1 more\n"
    run(shared_home, *here, "--exclude-dev", "--exclude", "dev", complaints=left)


def test_a_dry_run_fails_where_its_sync_would(shared_home: Home, tmp_path: Path) -> None:
    """A sync that would be refused, since it empties its target, has status 1 with `--dry-run`, too."""
    (tmp_path / "a").write_text("1")
    here = ("sync", str(tmp_path), "cli-refused")
    run(shared_home, *here)
    (tmp_path / "a").unlink()
    for more in ((), ("--json",)):
        assert run(shared_home, *here, "--dry-run", *more, status=1).startswith(b"refused: it empties the target")
    run(shared_home, *here, status=1)
    assert run(shared_home, *here, "--dry-run", "--allow-empty").endswith(b"remove  a\n")


def test_lists_for_people_and_for_programs(shared_home: Home, tmp_path: Path) -> None:
    """`ls` shows names as they are on a pipe, details with `-l`, and everything with `--json`."""
    name = b"caf\xe9\n\x1b[31m"
    (tmp_path / os.fsdecode(name)).write_bytes(b"123")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "directory").mkdir()
    run(shared_home, "sync", str(tmp_path), "/data/cli-list")
    listed = run(shared_home, "ls", "cli-list")
    assert listed == name + b"\ndirectory\nlink\n"
    assert b"-> there\n" in run(shared_home, "ls", "-l", "cli-list")
    found = {item["type"]: item for item in json.loads(run(shared_home, "ls", "--json", "cli-list"))}
    assert found["file"]["name"] == os.fsdecode(name)
    assert (found["file"]["size"], found["symlink"]["target"]) == (3, "there")
    assert json.loads(run(shared_home, "ls", "--json", b"cli-list/" + name))[0]["size"] == 3


def test_names_cannot_act_on_a_terminal(shared_home: Home, tmp_path: Path) -> None:
    """On a terminal control characters in a name are shown as escapes, and a transfer shows how far it is."""
    (tmp_path / "\x1b[31mred").write_bytes(bytes(30 << 20))
    assert b"uploading " in _on_terminal(shared_home, "sync", str(tmp_path), "cli-terminal")
    shown = _on_terminal(shared_home, "ls", "sync/cli-terminal")
    assert shown == b"\\x1b[31mred\r\n"


def _on_terminal(home: Home, *arguments: str) -> bytes:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "data", *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=home.environment(), cwd=home.path
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # EIO: the last one has closed the terminal
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["ls", "missing"], 1, b"/data/missing"),
        (["cat", "missing"], 1, b"/data/missing"),
        (["get", "missing", "x"], 1, b"/data/missing"),
        (["get", "missing", "-"], 1, b"/data/missing"),
        (["put", "missing-here"], 1, b"missing-here"),
        (["put", "-"], 2, b"name the file"),
        (["put", "x", "-"], 2, b"./-"),
        (["cat"], 2, b"name the files to print"),
        (["rm"], 2, b"name the files to remove"),
        (["rm-snapshot"], 2, b"name the snapshots"),
        (["snapshot", "--", "-x"], 1, b"in front"),
        (["sync", "--watch", "--dry-run", ".", "x"], 2, b"exclude each other"),
        (["rm", "missing"], 1, b"/data/missing"),
        (["rm", "/data", "-r"], 1, b"cannot be removed"),
        (["ls", "/etc"], 1, b"not below"),
        (["cat", "../x"], 1, b".."),
        (["sync", "missing-here", "x"], 1, b"missing-here"),
        (["sync", ".", "/data"], 1, b"must name"),
        (["ls", "--unknown"], 2, b""),
        (["get"], 2, b""),
        (["nothing"], 2, b""),
    ],
)
def test_failures_have_a_status_and_say_why(shared_home: Home, arguments: list[str], status: int, words: bytes) -> None:
    """A failed operation is status 1 with the path in its message, wrong usage is status 2; neither is a traceback."""
    printed = run(shared_home, *arguments, status=status)
    assert words in printed
    assert b"Traceback" not in printed


def test_all_are_looked_at_first(shared_home: Home) -> None:
    """Where one argument cannot be served none is, and one that is named twice, or with what is above it, is one."""
    for name in ("a", "d/b"):
        run(shared_home, "put", "-", f"cli-first/{name}", stdin=b"x")
    assert b"is a directory" in run(shared_home, "cat", "cli-first/*", status=1)
    assert run(shared_home, "cat", "cli-first/a", "cli-first/a") == b"xx"
    run(shared_home, "rm", "cli-first/a", "cli-first/a")
    run(shared_home, "rm", "-rf", "cli-first/d/b", "cli-first", "cli-first/d")
    assert b"cli-first" not in run(shared_home, "ls")
    run(shared_home, "snapshot", "cli-first", "--json")
    run(shared_home, "rm-snapshot", "cli-first", "cli-missing", status=1)
    assert b"cli-first" in run(shared_home, "snapshots")
    run(shared_home, "rm-snapshot", "--yes", "cli-first", "cli-first")
    assert b"cli-first" not in run(shared_home, "snapshots")


def test_removing_a_directory_needs_to_be_asked_for(shared_home: Home) -> None:
    """`rm` without `-r` leaves a directory alone and says how to remove it."""
    run(shared_home, "put", "-", "cli-rm/file", stdin=b"x")
    assert b"rm -r" in run(shared_home, "rm", "cli-rm", status=1)
    run(shared_home, "rm", "-rf", "cli-rm")
    assert b"/data/cli-rm" in run(shared_home, "ls", "cli-rm", status=1)


def test_what_removing_promises(shared_home: Home) -> None:
    """`rm` removes nothing where a name is missing or is a directory, and its help promises that and no more."""
    for name in ("a", "d/b"):
        run(shared_home, "put", "-", f"cli-promise/{name}", stdin=b"x")
    for wrong in ("nothing", "d"):
        run(shared_home, "rm", "cli-promise/a", f"cli-promise/{wrong}", status=1)
        assert run(shared_home, "ls", "cli-promise") == b"a\nd\n"
    promise = " ".join(run(shared_home, "rm", "--help").decode().split())
    assert "When one is not there, or is a directory and `-r` is not given, none is removed." in promise
    assert "cannot" not in promise
    run(shared_home, "rm", "-rf", "cli-promise")


def test_patterns_match_on_the_volume(shared_home: Home, tmp_path: Path) -> None:
    """Quoted patterns work in every command that reads names of the volume, and one without a match is an error."""
    for name in ("a.csv", "b.csv", "c.txt"):
        (tmp_path / name).write_text(name)
    run(shared_home, "put", *(str(tmp_path / name) for name in ("a.csv", "b.csv", "c.txt")), "cli-glob/sub/")
    assert run(shared_home, "ls", "/data/cli-glob/*/*.csv") == b"/data/cli-glob/sub/a.csv\n/data/cli-glob/sub/b.csv\n"
    assert run(shared_home, "cat", "cli-glob/**/*.csv") == b"a.csvb.csv"
    (tmp_path / "out").mkdir()
    run(shared_home, "get", "cli-glob/sub/*.csv", "cli-glob/sub/c.txt", str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["a.csv", "b.csv", "c.txt"]
    run(shared_home, "cp", "cli-glob/sub/?.csv", "cli-glob/copies/")
    run(shared_home, "mv", "cli-glob/copies/[a]*", "cli-glob/moved")
    assert run(shared_home, "ls", "cli-glob/copies") == b"b.csv\n"
    run(shared_home, "rm", "cli-glob/sub/*.csv")
    assert run(shared_home, "ls", "cli-glob/sub") == b"c.txt\n"
    for verb in (["ls"], ["cat"], ["rm"], ["get"]):
        assert b"nothing matches" in run(shared_home, *verb, "cli-glob/*.png", status=1)
    run(shared_home, "rm", "-rf", "cli-glob", "cli-nothing")
    assert b"several files" in run(shared_home, "put", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "x", status=1)


def test_copying_and_moving(shared_home: Home) -> None:
    """`cp` and `mv` put things into directories that are there, copy directories with `-r` only, and replace files."""
    run(shared_home, "put", "-", "cli-cp/a/f", stdin=b"f")
    assert b"cp -r" in run(shared_home, "cp", "cli-cp/a", "cli-cp/b", status=1)
    run(shared_home, "cp", "-r", "cli-cp/a", "cli-cp/b")
    run(shared_home, "cp", "-r", "cli-cp/a", "cli-cp/b")
    assert run(shared_home, "ls", "cli-cp/b") == b"a\nf\n"
    run(shared_home, "mv", "cli-cp/a/f", "cli-cp/g")
    printed = run(shared_home, "mv", "-n", "cli-cp/b/f", "cli-cp/g", status=1)
    assert printed == b"error: file exists: `/data/cli-cp/b/f` -> `/data/cli-cp/g`\n"
    run(shared_home, "mv", "cli-cp/b/f", "cli-cp/g", "cli-cp/a")
    assert run(shared_home, "ls", "cli-cp/a", "cli-cp/b") == b"/data/cli-cp/a:\nf\ng\n\n/data/cli-cp/b:\na\n"
    printed = run(shared_home, "mv", "cli-cp/a", "cli-cp/c/d", "cli-cp/missing", status=1)
    assert b"no such file or directory: `/data/cli-cp/c/d`" in printed
    assert b"did you mean `g`" in run(shared_home, "cat", "cli-cp/a/gg", status=1)
    assert run(shared_home, "cp", "cli-cp/a", status=2)
    run(shared_home, "rm", "-rf", "cli-cp")


def test_what_things_take(shared_home: Home) -> None:
    """`du` shows sizes for people, in bytes, by directory, and as data."""
    run(shared_home, "put", "-", "cli-du/a/f", stdin=bytes(1_000_000))
    run(shared_home, "put", "-", "cli-du/b/f", stdin=bytes(10))
    assert b"/data/cli-du\n" in run(shared_home, "du", "cli-du")
    lines = run(shared_home, "du", "-b", "--depth", "1", "cli-du").decode().splitlines()
    assert [line.partition("\t")[2] for line in lines] == ["/data/cli-du", "/data/cli-du/a", "/data/cli-du/b"]
    (found,) = json.loads(run(shared_home, "du", "--json", "cli-du"))
    assert (found["apparent_bytes"], found["files"], found["directories"]) == (1_000_010, 2, 2)
    assert found["allocated_bytes"] >= 1_000_000
    assert found["disk_bytes"] > found["disk_free_bytes"] > 0
    run(shared_home, "rm", "-rf", "cli-du")


def test_plans_as_data(shared_home: Home, tmp_path: Path) -> None:
    """`sync --json` prints the plan and what was left out, also with `--dry-run`."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("12345")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "left.log").write_text("x")
    here = ("sync", str(tmp_path), "cli-plan", "--exclude", "*.log", "--json")
    plan = json.loads(run(shared_home, *here, "--dry-run"))
    assert (plan["target"], plan["done"], plan["skipped"]) == ("/data/sync/cli-plan", False, ["left.log"])
    assert (plan["files"], plan["bytes"]) == (1, 5)
    found = {item["path"]: item["operation"] for item in plan["operations"]}
    assert {path: found[path] for path in ("d", "d/f", "link")} == {"d": "mkdir", "d/f": "send", "link": "link"}
    assert json.loads(run(shared_home, *here))["done"]
    assert json.loads(run(shared_home, *here))["operations"] == []
    (tmp_path / "d/f").unlink()
    assert {"operation": "remove", "path": "d/f"} in json.loads(run(shared_home, *here))["operations"]
