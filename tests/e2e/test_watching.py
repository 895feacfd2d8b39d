"""`atoll data sync --watch`: a mirror that stays current while somebody edits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.sync import watch
from atoll.storage.sync.watch import Watcher

from ..conftest import Home
from ..waiting import PATIENCE_SECONDS
from .test_sync import snapshot

PROGRAM = "import sys; from atoll.cli.main import main; sys.exit(main())"
SECONDS = PATIENCE_SECONDS


class Keeper:
    """The command, running.

    Args:
        home: whose daemon.
        source: what it watches.
        name: the target.
    """

    def __init__(self, home: Home, source: Path, name: str, *options: str) -> None:
        self.home, self.source = home, source
        self.mirror = home.path / "volumes/local/data/sync" / name
        command = [sys.executable, "-c", PROGRAM, "data", "sync", "--watch", *options, str(source), name]
        self.process = subprocess.Popen(
            command, cwd=home.path, env=home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    def lines(self) -> list[str]:
        with self._news:
            return list(self._lines)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def wait(self, ready: Callable[[], Any]) -> None:
        """Wait for what follows from a line; looked at again after each."""
        deadline = time.monotonic() + SECONDS
        with self._news:
            while not ready():
                assert self.process.poll() is None, self._lines
                assert time.monotonic() < deadline, self._lines
                self._news.wait(0.05)

    def wait_event(self, name: str, after: int = 0) -> dict[str, Any]:
        """Wait for an event of that name behind the first `after` lines."""
        self.wait(lambda: any(event["event"] == name for event in self.events()[after:]))
        return next(event for event in self.events()[after:] if event["event"] == name)

    def wait_equal(self) -> None:
        """Wait until the mirror is what the source is."""

        def equal() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return snapshot(self.mirror) == snapshot(self.source)
            return False

        self.wait(equal)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; return the status and what was printed to stderr."""
        assert self.process.stderr is not None
        self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        self._reader.join()
        with self.process.stderr as errors:
            text = errors.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status, text


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a file."""
    path = tmp_path / "source"
    path.mkdir()
    (path / "first").write_text("1")
    return path


@contextlib.contextmanager
def keeping(home: Home, source: Path, name: str, *options: str) -> Iterator[Keeper]:
    """Keep a mirror, and end it by Ctrl-C."""
    keeper = Keeper(home, source, name, *options)
    try:
        yield keeper
        status, errors = keeper.end()
        assert (status, "Traceback" in errors) == (130, False), errors
    finally:
        if keeper.process.poll() is None:
            keeper.end(signal.SIGKILL)


def test_a_mirror_follows_what_an_editor_does(shared_home: Home, source: Path) -> None:
    """Saves, atomic saves, new directories, renames, removals, modes and a burst of files arrive, and nothing else."""
    with keeping(shared_home, source, "watched", "--json") as keeper:
        keeper.wait_event("watching")
        keeper.wait_equal()
        (source / "first").write_text("2")
        keeper.wait_equal()
        (source / "first.tmp").write_text("3")
        os.replace(source / "first.tmp", source / "first")
        keeper.wait_equal()
        (source / "deep/er/still").mkdir(parents=True)
        (source / "deep/er/still/file").write_text("x")
        keeper.wait_equal()
        (source / "deep").rename(source / "moved")
        keeper.wait_equal()
        (source / "moved/er/still/file").write_text("in a directory that was moved")
        keeper.wait_equal()
        (source / "first").chmod(0o600)
        keeper.wait_equal()
        for number in range(500):
            (source / "moved" / f"{number}").write_text(f"{number}")
        keeper.wait_equal()
        os.mkdir(os.fsencode(source) + b"/\xff\xfe")
        Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe/\xfe")).write_text("no text")
        keeper.wait_equal()
        shutil.rmtree(source / "moved")
        keeper.wait_equal()
        events = keeper.events()
    assert [event["event"] for event in events[:2]] == ["synced", "watching"]
    assert {event["event"] for event in events[2:]} == {"synced"}
    assert all(event["put"] or event["removed"] for event in events[2:])
    assert len(events) < 40  # a burst is not a sync for each file
    assert {"at", "sent", "bytes", "seconds", "paths"} <= events[0].keys()


def test_what_is_left_out_wakes_nobody(shared_home: Home, source: Path) -> None:
    """Changes of excluded names cause no sync, and new rules count from their change on."""
    (source / ".atollignore").write_text("*.log\n")
    (source / "cache").mkdir()
    with keeping(shared_home, source, "watched-rules", "--json", "--exclude", "cache/") as keeper:
        keeper.wait_event("watching")
        after = len(keeper.events())
        (source / "a.log").write_text("x")
        (source / "cache/file").write_text("x")
        (source / "seen").write_text("x")
        assert "seen" in keeper.wait_event("synced", after)["paths"]
        assert sorted(os.listdir(keeper.mirror)) == [".atollignore", "first", "seen"]
        (source / ".atollignore").write_text("")
        keeper.wait(lambda: (keeper.mirror / "a.log").exists())
        assert not (keeper.mirror / "cache").exists()


def test_a_directory_that_vanishes_is_waited_for(shared_home: Home, source: Path) -> None:
    """While the source is gone the mirror stays; when it is back, or replaced, the mirror follows again."""
    with keeping(shared_home, source, "watched-gone", "--json") as keeper:
        keeper.wait_event("watching")
        aside = source.with_name("aside")
        source.rename(aside)
        keeper.wait_event("gone")
        assert (keeper.mirror / "first").read_text() == "1"
        aside.rename(source)
        keeper.wait_event("back")
        (source / "second").write_text("2")
        keeper.wait_equal()
        shutil.copytree(source, aside)
        (aside / "third").write_text("3")
        source.rename(source.with_name("old"))
        aside.rename(source)
        keeper.wait_equal()
        (source / "fourth").write_text("4")
        keeper.wait_equal()


@pytest.mark.as_user
def test_a_failed_sync_is_told_and_made_good(shared_home: Home, source: Path) -> None:
    """What cannot be mirrored is an event with the reason; the next change is synced when it can be."""
    with keeping(shared_home, source, "watched-fifo", "--json") as keeper:
        keeper.wait_event("watching")
        os.mkfifo(source / "fifo")
        failed = keeper.wait_event("failed")
        assert failed["code"] == "sync"
        assert "fifo" in failed["message"]
        (source / "fifo").unlink()
        (source / "second").write_text("2")
        keeper.wait_equal()


def test_an_emptied_directory_empties_no_mirror(shared_home: Home, source: Path) -> None:
    """A source that loses all that it has for a moment is an error, unless that was allowed; the mirror follows later."""
    with keeping(shared_home, source, "watched-empty", "--json") as keeper:
        keeper.wait_event("watching")
        (source / "first").unlink()
        keeper.wait_event("failed")
        assert (keeper.mirror / "first").read_text() == "1"
        (source / "first").write_text("2")
        keeper.wait_equal()
    with keeping(shared_home, source, "watched-empty", "--json", "--allow-empty") as keeper:
        keeper.wait_event("watching")
        (source / "first").unlink()
        keeper.wait_equal()


def test_the_daemon_may_end_meanwhile(atoll_home: Home, source: Path) -> None:
    """A daemon that is killed or stopped is started again by the next change; lines for people say what was done."""
    with keeping(atoll_home, source, "watched-daemon") as keeper:
        keeper.wait(lambda: any(line.startswith("watching `") for line in keeper.lines()))
        for number, end in enumerate([signal.SIGKILL, signal.SIGTERM]):
            pid = atoll_home.daemon_pid()
            assert pid is not None
            gone = os.pidfd_open(pid)
            os.kill(pid, end)
            import select

            assert select.select([gone], [], [], SECONDS)[0]
            os.close(gone)
            (source / "more").write_text("x" * number)
            keeper.wait_equal()
        # The mirror is current a moment before its line is printed.
        keeper.wait(lambda: any("1 changed, " in line and line.endswith(": more\n") for line in keeper.lines()))


def test_wrong_usage_is_an_error_at_once(shared_home: Home, tmp_path: Path) -> None:
    """A source that is missing from the start, and options that contradict each other, end the command."""
    for arguments, status in (
        (["--watch", str(tmp_path / "none"), "x"], 1),
        (["--watch", "--dry-run", str(tmp_path), "x"], 2),
    ):
        done = shared_home.atoll("data", "sync", *arguments, check=False)
        assert done.returncode == status
        assert done.stderr.startswith("error: ")


LIMITED = """
import sys, threading
from pathlib import Path
Path("/proc/sys/user/max_inotify_watches").write_text("3")
from atoll.storage.sync.watch import Watcher
told = []
for paths in Watcher(sys.argv[1], (), "", lambda *words: told.append(words)).changes():
    if "changed" in paths:
        break
    Path(sys.argv[1], "changed").write_text("x")
assert len(told) == 1 and "limit" in told[0][0] and "max_user_watches" in told[0][1], told
print("fine")
"""


def test_where_the_system_cannot_tell_it_is_looked_through(source: Path) -> None:
    """With the limit of watches reached, changes are found by polling, and how to raise the limit is said."""
    for number in range(20):
        (source / f"{number}").mkdir()
    command = ["unshare", "--user", "--map-root-user", "--", sys.executable, "-c", LIMITED, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "unshare" in done.stderr or "max_inotify_watches" in done.stderr:
        pytest.skip(f"no user namespace with a limit of its own: {done.stderr.splitlines()[-1]}")
    assert done.stdout == "fine\n", done.stderr


def test_network_file_systems_are_looked_through(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another machine may change files unseen, the directory is polled from the start."""
    monkeypatch.setattr(linux, "kind_of", lambda _path: "fuse.sshfs")
    monkeypatch.setattr(watch, "_POLL_MS", 50)
    told: list[str] = []
    for paths in Watcher(str(source), (), "", lambda text, _hint: told.append(text)).changes():
        if "new" in paths:
            break
        (source / "new").write_text("x")
    assert "network file system" in told[0]


def test_what_cannot_be_watched_at_all_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When polling fails as well, the error says to sync without watching."""
    import watchfiles

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no way")

    monkeypatch.setattr(watchfiles, "watch", broken)
    with pytest.raises(SyncError, match="cannot be watched"):
        list(Watcher(str(source), (), "", lambda *_: None).changes())


@pytest.mark.as_user
def test_a_directory_that_may_not_be_read_is_no_obstacle_where_it_is_left_out(source: Path) -> None:
    """A directory without permissions stops no watching of the others."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (source / "closed").mkdir(mode=0)
    for paths in Watcher(str(source), ("closed",), "", lambda *_: None).changes():
        if "new" in paths:
            break
        (source / "new").write_text("x")
    (source / "closed").chmod(0o700)
