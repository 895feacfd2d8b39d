"""The client checks who the daemon is, and who can change the files that it trusts, before it sends or reads a byte.

Attacks come from a second uid, which only root can take on; a plain user's part are directories that others may write.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import json
import os
import pwd
import select
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors, isolated, ownership, settings, sync_dir
from atoll.cli.main import run
from atoll.host import daemon_start
from atoll.storage.sync import index
from atoll.wire.channel import short_name

from ..conftest import Home

pytestmark = pytest.mark.as_user

VICTIM, OTHER = 54_321, 54_322
"""Uids without an account."""
needs_root = pytest.mark.root


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every user can enter."""
    path = Path(tempfile.mkdtemp(prefix="atoll-clients-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_user(uid: int, action: Callable[[], Any]) -> Any:
    """Return the value of an action that a child does as that user; an error comes as its code or its type's name."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            become(uid)
            answer = action()
        except errors.AtollError as error:
            answer = error.code
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def become(uid: int) -> None:
    if uid != os.getuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: its files in /proc are its own again


def made(path: Path, mode: int, uid: int | None = None) -> Path:
    """Make a directory with exactly this mode, of this user."""
    path.mkdir()
    path.chmod(mode)
    if uid is not None:
        os.chown(path, uid, uid)
    return path


class FakeDaemon:
    """A process of another user that listens, and counts the connections and bytes that come."""

    def __init__(self, path: Path, uid: int) -> None:
        self._ready, ready = os.pipe()
        end, self._end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._end)
            os._exit(self._serve(path, uid, ready, end))
        os.close(ready)
        os.close(end)
        assert os.read(self._ready, 5) == b"ready"

    @staticmethod
    def _serve(path: Path, uid: int, ready: int, end: int) -> int:
        listener = socket.socket(socket.AF_UNIX)
        with short_name(path) as name:
            listener.bind(name)
        os.chmod(path, 0o777)
        os.chown(path, uid, uid)
        become(uid)
        listener.listen()  # the kernel names the user who listens
        os.write(ready, b"ready")
        taken, sources = 0, list[Any]([end, listener])
        while end not in (found := select.select(sources, [], [])[0]):
            for one in found:
                if one is listener:
                    sources.append(listener.accept()[0])
                else:
                    taken += len(one.recv(1 << 16))
                    sources.remove(one)
                    one.close()
        os.write(ready, f" {taken}".encode())
        return 0

    def close(self) -> int:
        """End it; return the bytes that clients have sent."""
        os.close(self._end)
        with open(self._ready, "rb") as file:
            taken = int(file.read())
        os.waitpid(self.pid, 0)
        return taken


@contextlib.contextmanager
def fake_daemon(path: Path, uid: int = OTHER) -> Iterator[FakeDaemon]:
    """Give a fake daemon; nothing may have been sent to it at the end."""
    daemon = FakeDaemon(path, uid)
    try:
        yield daemon
    finally:
        taken = daemon.close()
    assert taken == 0


def ask(home: Path) -> str:
    """Ask the daemon of this state directory, as calls do."""
    message = {"type": "request", "name": "status", "arguments": {"password": "hunter2"}}
    daemon_start.open_connection(settings.load(home), message).close()
    return "asked"


# --- another user's daemon --------------------------------------------------------------------------------------------


def home_of_another(base: Path, victim: int) -> Path:
    """The other user makes the victim's state directory, in a directory that everybody may write."""
    made(base / "open", 0o777)
    made(base / "open/home", 0o755, OTHER)
    made(base / "open/home/run", 0o755, OTHER)
    return base / "open" / "home"


def home_in_sticky(base: Path, victim: int) -> Path:
    """The same in a directory such as `/tmp`."""
    made(base / "open", 0o1777)
    made(base / "open/home", 0o755, OTHER)
    made(base / "open/home/run", 0o755, OTHER)
    return base / "open" / "home"


def parent_of_another(base: Path, victim: int) -> Path:
    """The victim's own directory is below one of the other user, who can exchange it."""
    made(base / "theirs", 0o755, OTHER)
    made(base / "theirs/home", 0o700, victim)
    made(base / "theirs/home/run", 0o700, victim)
    return base / "theirs" / "home"


def link_of_another(base: Path, victim: int) -> Path:
    """The other user's symlink leads to a directory of the victim."""
    made(base / "open", 0o1777)
    made(base / "real", 0o700, victim)
    made(base / "real/run", 0o700, victim)
    (base / "open/home").symlink_to(base / "real")
    os.lchown(base / "open/home", OTHER, OTHER)
    return base / "open" / "home"


def run_of_another(base: Path, victim: int) -> Path:
    """`run/` was made by the other user, while that could be."""
    made(base / "home", 0o755, victim)
    made(base / "home/run", 0o755, OTHER)
    return base / "home"


def open_run(base: Path, victim: int) -> Path:
    """Everybody may write to `run/`, and the other user has."""
    made(base / "home", 0o755, victim)
    made(base / "home/run", 0o777, victim)
    return base / "home"


def own_run(base: Path, victim: int) -> Path:
    """All directories are in order, and the one who listens is not the victim."""
    made(base / "home", 0o755, victim)
    made(base / "home/run", 0o755, victim)
    return base / "home"


PLACES = [home_of_another, home_in_sticky, parent_of_another, link_of_another, run_of_another, open_run, own_run]


@needs_root
@pytest.mark.parametrize("victim", [0, VICTIM])
@pytest.mark.parametrize("place", PLACES)
def test_another_users_daemon_is_sent_nothing(base: Path, place: Callable[[Path, int], Path], victim: int) -> None:
    """A client refuses it with a named error; neither function, nor credentials, nor a greeting has left."""
    home = place(base, victim)
    with fake_daemon(home / "run" / "daemon.sock"):
        assert as_user(victim, lambda: ask(home)) == "state_untrusted"


@needs_root
def test_no_command_talks_to_another_users_daemon(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status`, `stop`, `logs` and a sync fail with the error as well: nothing is signalled, and no log is shown."""
    home = own_run(base, 0)
    made(home / "logs", 0o700, OTHER)
    (home / "logs" / "daemon.log").write_text("planted\n")
    monkeypatch.setenv("ATOLL_HOME", str(home))
    with fake_daemon(home / "run" / "daemon.sock") as daemon:
        for arguments in (["status"], ["stop"], ["logs"], ["calls", "list"], ["data", "ls"]):
            assert run(arguments) == 1
            assert "nothing was" in capsys.readouterr().err
        assert os.waitpid(daemon.pid, os.WNOHANG) == (0, 0)


@needs_root
def test_the_error_says_whose_and_what_to_do(base: Path) -> None:
    """Path, user and mode are in the error."""
    home = home_in_sticky(base, 0)
    with pytest.raises(errors.StateUnusable, match=f"belongs to the user {OTHER}, .*\nhint: set ATOLL_HOME") as caught:
        settings.load(home)
    assert caught.value.code == "state_untrusted"
    assert caught.value.details == {"path": str(home), "uid": OTHER, "mode": "0755"}


# --- directories above, and modes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [True, False])
def test_a_directory_above_that_all_may_write_is_refused(base: Path, make: bool) -> None:
    """Even where the state directory does not exist yet: nothing is made there."""
    above = made(base / "open", 0o777)
    if make:
        made(above / "home", 0o700)
    with pytest.raises(errors.StateUnusable, match="can be changed by every user"):
        settings.load(above / "home")
    with pytest.raises(errors.StateUnusable, match="can be changed by every user"):
        daemon_start.prepare_home(settings.Settings(above / "home"))
    assert (above / "home").exists() == make


@pytest.mark.parametrize("mode", [0o1777, 0o755, 0o700, 0o775])
def test_usual_directories_above_are_taken(base: Path, mode: int) -> None:
    """A sticky one, one of this user, and one that its own group may write, as umask 002 makes them."""
    above = made(base / "above", mode)
    os.chown(above, -1, os.getuid() if os.getuid() == 0 else os.getgid())
    options = settings.load(above / "a" / "home")
    daemon_start.prepare_home(options)
    assert stat.S_IMODE(options.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((above / "a").stat().st_mode) & 0o022 == 0


def test_below_a_private_directory_modes_do_not_matter(base: Path) -> None:
    """No other user can come there, as in pytest's `tmp_path`."""
    made(base / "private", 0o700)
    home = made(made(base / "private/open", 0o777) / "home", 0o777)
    (home / "settings.toml").write_text("[pool]\nslots = 3\n")
    (home / "settings.toml").chmod(0o666)
    assert settings.load(home).pool.slots == 3


@needs_root
def test_a_group_of_others_may_not_write_above(base: Path) -> None:
    """A directory above that a shared group may write is refused."""
    above = made(base / "shared", 0o775)
    os.chown(above, 0, 100)
    with pytest.raises(errors.StateUnusable, match="can be changed by the group"):
        settings.load(above / "home")


@pytest.mark.parametrize(
    ("name", "members", "accounts", "own"),
    [
        ("ada", [], {"ada": 700}, True),
        ("ada", ["ada"], {"ada": 700}, True),
        ("ada", ["ada", "eve"], {"ada": 700}, False),
        ("ada", [], {"ada": 700, "eve": 700}, False),
        ("staff", [], {"ada": 700}, False),
        ("", [], {}, False),
    ],
)
def test_a_group_is_this_users_own(
    monkeypatch: pytest.MonkeyPatch, name: str, members: list[str], accounts: dict[str, int], own: bool
) -> None:
    """By its name, as Debian makes one for each user, and with nobody else in it; a shared first group is not."""
    people = {
        user: pwd.struct_passwd((user, "x", 1000 + place, gid, "", "/", "/"))
        for place, (user, gid) in enumerate(accounts.items())
    }

    def group(gid: int) -> grp.struct_group:
        if not name:
            raise KeyError(gid)
        return grp.struct_group((name, "x", gid, members))

    def account(uid: int) -> pwd.struct_passwd:
        return next((one for one in people.values() if one.pw_uid == uid), None) or pwd.struct_passwd(("?",) * 7)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(grp, "getgrgid", group)
    monkeypatch.setattr(pwd, "getpwuid", account)
    monkeypatch.setattr(pwd, "getpwall", lambda: list(people.values()))
    assert ownership._is_own_group(700) is own


def test_a_group_without_an_entry_is_this_users_if_it_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that gives its volume a group by number."""
    monkeypatch.setattr(os, "getgroups", lambda: [2_000_000_001])
    assert ownership._is_own_group(2_000_000_001)
    assert not ownership._is_own_group(2_000_000_002)


def test_a_directory_that_is_exchanged_after_its_check_is_not_used(base: Path) -> None:
    """The checked directory is an open descriptor; its path is not looked up again."""
    made(made(base / "home", 0o700) / "run", 0o700)
    with ownership.directory(base / "home") as home:
        (base / "home").rename(base / "checked")
        made(made(base / "home", 0o700) / "run", 0o700)
        with home.enter("run") as run:
            os.close(run.open("mark", os.O_WRONLY | os.O_CREAT))
    assert (base / "checked" / "run" / "mark").exists()
    assert not (base / "home" / "run" / "mark").exists()


def test_an_open_state_directory_is_closed(base: Path) -> None:
    """A state directory of this user that others may write loses these rights; others may go on reading."""
    home = made(base / "home", 0o777)
    daemon_start.prepare_home(settings.load(home))
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    made(home / "sync", 0o777)
    assert not index.load(home / "sync" / "some.index")
    assert stat.S_IMODE((home / "sync").stat().st_mode) == 0o755


def test_symlinks_of_this_user_are_followed(base: Path) -> None:
    """A state directory and a `settings.toml` may be symlinks, absolute, relative, and several."""
    home = made(base / "real", 0o755)
    (base / "dotfiles").mkdir()
    (base / "dotfiles" / "atoll.toml").write_text("[pool]\nslots = 5\n")
    (home / "settings.toml").symlink_to("../dotfiles/atoll.toml")
    (base / "second").symlink_to("./real")
    (base / "first").symlink_to(base / "second")
    assert settings.load(base / "first").pool.slots == 5
    (base / "loop").symlink_to("loop")
    with pytest.raises(errors.StateUnusable, match="cannot read"):
        settings.load(base / "loop")


def test_a_symlink_out_of_a_private_directory_gains_nothing(base: Path) -> None:
    """Directories behind it are checked like all others."""
    made(base / "private", 0o700)
    made(made(base / "open", 0o777) / "home", 0o755)
    for number, target in enumerate(("../open/home", str(base / "open" / "home"))):
        (base / "private" / f"home{number}").symlink_to(target)
        with pytest.raises(errors.StateUnusable, match="can be changed by every user"):
            settings.load(base / "private" / f"home{number}")


def test_a_state_directory_in_a_user_namespace(base: Path) -> None:
    """Where root has no number, as in a container of a plain user, its directories count as root's."""
    me = os.getuid() or VICTIM
    os.chown(base, me, -1)
    home = made(base / "home", 0o700)
    os.chown(home, me, -1)

    def enter() -> Any:
        libc, uid, gid = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
        if libc.unshare(0x10000000) != 0:  # CLONE_NEWUSER
            return "no user namespaces"
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        assert os.stat("/").st_uid not in (0, uid)
        daemon_start.prepare_home(settings.load(home))
        return sorted(os.listdir(home))

    answer = as_user(me, enter)
    if answer == "no user namespaces":
        pytest.skip(answer)
    assert answer == ["logs", "run"]


# --- files ------------------------------------------------------------------------------------------------------------


@needs_root
def test_settings_of_another_user_are_refused(base: Path) -> None:
    """A planted `settings.toml` could name the program that makes sandboxes."""
    home = made(base / "home", 0o755)
    (home / "settings.toml").write_text('[sandbox]\nbwrap = "/tmp/mine"\n')
    os.chown(home / "settings.toml", OTHER, OTHER)
    with pytest.raises(errors.StateUnusable, match="belongs to the user"):
        settings.load(home)


@pytest.mark.parametrize(
    ("kind", "words"), [("open", "every user"), ("fifo", "no ordinary file"), ("directory", "no ord")]
)
def test_settings_that_are_no_file_of_this_user_alone_are_refused(base: Path, kind: str, words: str) -> None:
    """A file that all may write, and a fifo, which would hold its reader for ever."""
    home = made(base / "home", 0o755)
    path = home / "settings.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
        path.chmod(0o666)
    with pytest.raises(errors.StateUnusable, match=words):
        settings.load(home)


@pytest.mark.parametrize("name", ["logs/daemon.log", "run/daemon.lock"])
@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_files_that_the_client_opens_for_the_daemon_are_ordinary(base: Path, name: str, kind: str) -> None:
    """A planted symlink would have the client write to a file of its user; a fifo would hold it."""
    options = settings.load(made(base / "home", 0o755))
    daemon_start.prepare_home(options)
    victim, planted = base / "victim", options.home / name
    if kind == "symlink":
        victim.write_text("mine")
        planted.symlink_to(victim)
    else:
        os.mkfifo(planted)
    with pytest.raises(errors.StateUnusable, match="no ordinary file"):
        daemon_start.start(options)
    assert kind == "fifo" or victim.read_text() == "mine"


@needs_root
@pytest.mark.parametrize("part", ["file", "directory"])
def test_an_index_of_another_user_is_refused(base: Path, part: str) -> None:
    """An index decides which files of a sync count as unchanged."""
    path = made(made(base / "home", 0o755) / "sync", 0o755) / "some.index"
    index.save(path, index.Index(generation="planted"))
    assert index.load(path).generation == "planted"
    os.chown(path if part == "file" else path.parent, OTHER, OTHER)
    with pytest.raises(errors.StateUnusable, match="belongs to the user"):
        index.load(path)
    before = sorted(path.parent.iterdir())
    index.save(path.with_name("another.index"), index.Index(generation="new"))
    assert part == "file" or sorted(path.parent.iterdir()) == before


def test_a_sync_inside_a_function_has_an_index(shared_home: Home) -> None:
    """The home directory of a sandbox may be written by all: they are the user's own functions."""

    @isolated
    def sync() -> list[str]:
        os.makedirs("/tmp/source", exist_ok=True)
        Path("/tmp/source/file").write_text("content")
        sync_dir("/tmp/source", "mirrored")
        sync_dir("/tmp/source", "mirrored")
        return [path.suffix for path in settings.default_home().glob("sync/*")]

    assert sync() == [".index"]


@needs_root
@pytest.mark.parametrize("name", ["agents", "agents/0.1.0-planted", "environments", "volumes", "records"])
def test_a_daemon_does_not_begin_with_planted_directories(atoll_home: Home, name: str) -> None:
    """The code of agents is mounted in sandboxes; a daemon refuses to start where another user can change it."""
    atoll_home.path.chmod(0o755)
    path = atoll_home.path / name
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, OTHER, OTHER)
    with pytest.raises(errors.StateUnusable, match=f"`{path}` belongs to the user"):
        daemon_start.start(settings.load(atoll_home.path))
    assert not (atoll_home.path / "run" / "daemon.sock").exists()
