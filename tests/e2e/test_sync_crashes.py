"""Whatever is killed, whenever: the target is the old tree or the new one, byte for byte, and the next sync ends equal.

A peer, a client or a recovery kills itself (SIGKILL) at a step that it reaches, or is killed at a random moment. What
is compared right after that is what lookups find: names, kinds, contents, modes and times of files. The modes and
times of directories that are set in place are compared when a peer has been there again, as everything else is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atoll import linux
from atoll.errors import DiskFull, QuotaExceeded, StateUnusable
from atoll.storage import crash_points
from atoll.storage.client.volume import VolumeClient
from atoll.storage.peer.main import main as peer_main
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync import cleanup
from atoll.storage.sync.cleanup import clean, collect
from atoll.storage.sync.client import SyncOptions
from atoll.storage.volume import staging
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel

from ..conftest import Home
from ..lean import Lean
from ..waiting import soak, until
from .test_sync import fill, snapshot

MOMENTS = soak(36, 300)
DAEMONS = soak(6, 20)
KEPT = ("locks", "index-")
"""What peers keep in staging at rest."""

Shot = dict[bytes, tuple[object, ...]] | None


@dataclass(frozen=True)
class Case:
    """A change of a tree.

    Args:
        first: makes the old tree; None where there is none.
        then: makes the new tree out of a copy of the old.
        steps: the least number of steps that a peer takes.
    """

    first: Callable[[Path], None] | None
    then: Callable[[Path], None]
    options: SyncOptions = field(default_factory=SyncOptions)
    exchange: bool = True


def _write(path: Path, text: str, mode: int = 0o644, mtime: int = 1_000_000_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.utime(path, (mtime, mtime))


def _tree(root: Path) -> None:
    for name in ("a", "d/b", "d/c", "d/e/f", "d/e/g", "m/n"):
        _write(root / name, name)
    (root / "l").symlink_to("a")


def _many(root: Path) -> None:
    _write(root / "a", "changed")
    _write(root / "d/b", "d/b", mode=0o600)
    _write(root / "new/x/y", "y")
    (root / "d/c").unlink()
    (root / "l").unlink()
    (root / "l").symlink_to("d")
    (root / "d").chmod(0o700)
    os.utime(root, (5, 5))


def _one(root: Path) -> None:
    _write(root / "d/e/f", "changed")
    os.utime(root / "d", (7, 7))


def _two(root: Path) -> None:
    _write(root / "d/e/f", "changed")
    _write(root / "d/e/h", "new")
    (root / "d").chmod(0o555)


def _locked(root: Path) -> None:
    _tree(root)
    for name in ("d/e", "d"):
        (root / name).chmod(0o555)
    root.chmod(0o555)


def _in_locked(root: Path) -> None:
    for name in ("", "d", "d/e"):
        (root / name).chmod(0o755)
    _write(root / "d/e/f", "changed")
    for name in ("d/e", "d", ""):
        (root / name).chmod(0o555)


def _locked_two(root: Path) -> None:
    for name in ("", "d", "d/e"):
        (root / name).chmod(0o755)
    _write(root / "d/b", "changed")
    _write(root / "d/e/f", "changed")
    for name in ("d/e", "d", ""):
        (root / name).chmod(0o555)


def _directory(root: Path) -> None:
    for name in ("p/q/a", "p/q/b"):
        _write(root / name, name)


def _times(root: Path) -> None:
    (root / "d/e").chmod(0o700)
    for name in ("d/e", "d", "m", ""):
        os.utime(root / name, (9, 9))


def _gone(root: Path) -> None:
    for path in (root / "d/e").iterdir():
        path.unlink()
    (root / "d/e").rmdir()


def _kind(root: Path) -> None:
    _gone(root)
    _write(root / "d/e", "a file")


CASES = {
    "all is new": Case(None, _tree),
    "many changes": Case(_tree, _many),
    "one file": Case(_tree, _one),
    "one file comes": Case(_tree, lambda root: _write(root / "d/new", "new")),
    "one symlink": Case(_tree, lambda root: (root / "d/link").symlink_to("x")),
    "one directory comes": Case(_tree, _directory),
    "one directory goes": Case(_tree, _gone),
    "a directory becomes a file": Case(_tree, _kind),
    "one directory": Case(_tree, _two),
    "one mode of a file": Case(_tree, lambda root: (root / "d/b").chmod(0o400)),
    "modes and times of directories": Case(_tree, _times),
    "a file in directories that cannot be written": Case(_locked, _in_locked),
    "directories that cannot be written": Case(_locked, _locked_two),
    "names that stay": Case(_tree, _many, SyncOptions(delete=False)),
    "no exchange": Case(_tree, _many, SyncOptions(atomic=False), exchange=False),
}


def relaxed(shot: Shot) -> Shot:
    """Leave out what a switch in the midst of a tree sets afterwards: modes and times of directories."""
    return shot and {name: entry[:1] if entry[0] == "directory" else entry for name, entry in shot.items()}


class Lab:
    """Syncs to one target of one volume, by processes that die when they are told to.

    Args:
        volume: an empty directory.
    """

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.target = volume / "data/t"
        self.options = SyncOptions()
        self.exchange = True

    def shot(self) -> Shot:
        """Read what stands at the target."""
        return snapshot(self.target) if os.path.lexists(self.target) else None

    def sync(self, source: Path, die_at: int | str = -1, who: str = "nobody") -> bool:
        """Sync in two processes of which one dies at its step of this number or name; return whether it did not get
        there."""
        ours, theirs = socket.socketpair()

        def peer() -> None:
            theirs_only(ours)
            if not self.exchange:
                setattr(linux, "renameat2", _unable)
            if who == "peer":
                crash_points.arm(_Killer(die_at))
            peer_main([str(theirs.fileno()), DAEMON, str(self.volume)])

        def client() -> None:
            theirs_only(theirs)
            if who == "client":
                crash_points.arm(_Killer(die_at))
            _sync(ours, source, self.options)

        pids = [_fork(peer), _fork(client)]
        ours.close()
        theirs.close()
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        assert all(status in (0, signal.SIGKILL) for status in statuses) or who == "peer", statuses
        return signal.SIGKILL not in statuses

    def recover(self) -> None:
        """Let a peer come that dies at its first step, then one that dies at its second, until one has done it all."""
        for number in range(100):

            def work(number: int = number) -> None:
                crash_points.arm(_Killer(number))
                clean(VolumeRoot(str(self.volume)))

            if os.waitpid(_fork(work), 0)[1] == 0:
                return
        raise AssertionError("recovery never ends")

    def tidy(self) -> None:
        """Check that nothing is left behind when old trees have been collected."""
        clean_up(self)
        left = [name for name in os.listdir(self.volume / "staging") if not name.startswith(KEPT)]
        assert not left
        assert not os.listdir(self.volume / "staging/locks")


def theirs_only(other: socket.socket) -> None:
    other.close()


def _unable(*_: Any) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class _Killer:
    def __init__(self, at: int | str) -> None:
        self._at = at
        self._number = 0

    def __call__(self, name: str, _: dict[str, Any]) -> None:
        if self._at in (self._number, name):
            os.kill(os.getpid(), signal.SIGKILL)
        self._number += 1


def _sync(end: socket.socket, source: Path, options: SyncOptions) -> None:
    with VolumeClient(Channel(end)) as client:
        client.sync(str(source), "t", options)


def _fork(work: Callable[[], object]) -> int:
    """Run `work` in a child, whose status is 1 when it fails."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        if os.environ.get("ATOLL_TEST_VERBOSE"):
            print(type(error), error, flush=True)
    finally:
        os._exit(status)


def _lab(place: Path) -> Lab:
    """Return a lab on a fresh volume."""
    (place / "volume").mkdir()
    return Lab(place / "volume")


@pytest.fixture(scope="module")
def lean() -> Iterator[Lean]:
    """A process that forks peers and clients."""
    with contextlib.closing(Lean()) as made:
        yield made


def _sources(case: Case, where: Path) -> tuple[Path | None, Path]:
    """Make the two local directories of a case."""
    old, new = where / "old", where / "new"
    new.mkdir()
    if case.first is not None:
        case.first(new)
        subprocess.run(["cp", "-a", str(new), str(old)], check=True)
    case.then(new)
    return old if case.first is not None else None, new


def _reset(lab: Lab, old: Path | None) -> None:
    lab.options = SyncOptions(atomic=lab.exchange)
    if old is not None:
        assert lab.sync(old)
    elif lab.target.exists():
        subprocess.run(["rm", "-rf", str(lab.target)], check=True)


WHOLE = ("all is new", "many changes", "no exchange")
"""Cases that die at every step in the short form as well; the others at every third one."""
EVERY = [
    pytest.param(name, "peer", 0, 1, id=name)
    if name in WHOLE
    else pytest.param(name, "peer", place % 3, soak(3, 1), id=name)
    for place, name in enumerate(CASES)
]
EVERY.append(pytest.param("many changes", "client", 0, 1, id="the client, many changes"))


@pytest.mark.parametrize(("name", "who", "first", "stride"), EVERY)
def test_killed_at_every_step(name: str, who: str, first: int, stride: int, lean: Lean, tmp_path: Path) -> None:
    """A sync that dies at any of its steps, and whose recovery dies at each of its own, leaves the old tree or the new
    one, and the next sync ends equal."""
    lean.run(killed_at_every_step, name, who, first, stride, tmp_path)


def killed_at_every_step(name: str, who: str, first: int, stride: int, place: Path) -> None:
    """See the test of this name."""
    case, lab = CASES[name], _lab(place)
    old, new = _sources(case, place)
    seen = set[bool]()
    lab.exchange = case.exchange
    for number in range(first * (stride > 1), 200, stride):
        _reset(lab, old)
        before = lab.shot()
        assert before == (snapshot(old) if old else None)
        lab.options = case.options
        survived = lab.sync(new, number, who)
        found = lab.shot()
        if survived:
            if case.options.delete:
                assert found == snapshot(new)
            assert number > 3
            lab.tidy()
            break
        reference = _wanted(case, new, before)
        if case.exchange:
            assert relaxed(found) in (relaxed(before), relaxed(reference)), number
        lab.recover()
        found = lab.shot()
        assert found in (before, reference), number
        seen.add(found == before)
        assert lab.sync(new)
        assert lab.shot() == reference
        lab.tidy()
    else:
        raise AssertionError("the sync never ends")
    assert seen == {True, False} or who == "client"


def _wanted(case: Case, new: Path, before: Shot) -> Shot:
    """Return what the target is to be after the sync."""
    if case.options.delete:
        return snapshot(new)
    assert before is not None
    return {**before, **snapshot(new)}


@contextlib.contextmanager
def _mounted(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _random_trees(where: Path, dice: random.Random, size: int) -> list[Path]:
    trees = []
    for number in range(2):
        root = where / f"tree-{number}"
        root.mkdir()
        fill(root)
        (root / "large").write_bytes(dice.randbytes(size))
        for name in range(60):
            (root / f"file-{name}").write_bytes(dice.randbytes(3000 + number))
        (root / f"only-{number}").write_text("x")
        trees.append(root)
    return trees


def _sweep(lab: Lab, trees: list[Path], dice: random.Random, moments: int, *, full: bool = False) -> tuple[int, int]:
    """Kill client or peer at random moments; return how many were, and how often the new tree was there then."""
    shots = [snapshot(tree) for tree in trees]
    assert lab.sync(trees[0])
    standing, killed, switched = 0, 0, 0
    took: list[float] = []
    while killed < moments:
        wanted = 1 - standing
        ours, theirs = socket.socketpair()
        started = time.monotonic()

        def peer(ours: socket.socket = ours, theirs: socket.socket = theirs) -> None:
            ours.close()
            peer_main([str(theirs.fileno()), DAEMON, str(lab.volume)])

        def client(ours: socket.socket = ours, theirs: socket.socket = theirs, wanted: int = wanted) -> None:
            theirs.close()
            _sync(ours, trees[wanted], SyncOptions())

        pids = [_fork(peer), _fork(client)]
        ours.close()
        theirs.close()
        dice.shuffle(pids)
        victim, other = pids
        # The first rounds, and one of twenty after them, are left alone, to know how long one takes.
        spare = len(took) < 3 or dice.random() < 0.05
        ended = _wait(victim, 60 if spare else dice.uniform(0, sorted(took)[len(took) // 2]))
        if not ended:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            killed += 1
        os.waitpid(other, 0)
        found = lab.shot()
        assert found in shots
        standing = shots.index(found)
        if spare:
            took.append(time.monotonic() - started)
            assert standing == wanted or full
            clean_up(lab)
        elif not ended:
            switched += standing == wanted
    for tree, shot in zip(trees, shots, strict=True):
        clean_up(lab)
        assert lab.sync(tree)
        assert lab.shot() == shot
    lab.tidy()
    return killed, switched


def clean_up(lab: Lab) -> None:
    """Remove what has been replaced, and what dead peers were just making, as if half a minute had passed."""

    def later() -> None:
        setattr(cleanup, "QUIET_SECONDS", -1.0)
        staging.KINDS["new"] = staging.KINDS["new"]._replace(seconds=-1.0)
        collect(VolumeRoot(str(lab.volume)))

    assert os.waitpid(_fork(later), 0)[1] == 0


@pytest.mark.parametrize("options", [SyncOptions(exclude=("out",)), SyncOptions(delete=False)], ids=["out", "kept"])
def test_what_functions_do_before_a_recovery_stands(tmp_path: Path, options: SyncOptions) -> None:
    """Names that stay are deleted and replaced (by older files, too) between a crash and its recovery: so they remain,
    and what had come to the old tree before the switch is there."""
    lab = _lab(tmp_path)
    source = tmp_path / "source"
    _tree(source)
    lab.options = options
    assert lab.sync(source)
    out = lab.target / "out"
    for name in ("deleted", "replaced", "kept"):
        _write(out / name, name)
    _many(source)
    assert not lab.sync(source, "exchanged", "peer")
    (out / "deleted").unlink()
    _write(out / "replaced.new", "by an older file")
    os.utime(out / "replaced.new", (1, 1))
    (out / "replaced.new").rename(out / "replaced")
    ((old,)) = (lab.volume / "staging").glob("switch-*")
    _write(old / "out/late", "came to the old tree")
    lab.recover()
    clean_up(lab)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "replaced": "by an older file",
        "kept": "kept",
        "late": "came to the old tree",
    }
    lab.tidy()


def _wait(pid: int, seconds: float) -> bool:
    """Wait for the end of a child, at most some seconds; return whether it has ended and was reaped."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            return False
    finally:
        os.close(descriptor)
    os.waitpid(pid, 0)
    return True


@pytest.mark.timeout(400)
def test_killed_at_random_moments(lean: Lean, tmp_path: Path) -> None:
    """SIGKILL of client or peer at any moment leaves the old tree or the new one, and the next sync ends equal."""
    lean.run(killed_at_random_moments, tmp_path)


def killed_at_random_moments(place: Path) -> None:
    """See the test of this name."""
    dice = random.Random(os.environ.get("ATOLL_TEST_SEED"))
    killed, switched = _sweep(_lab(place), _random_trees(place, dice, 1_500_000), dice, MOMENTS * 2 // 3)
    print(f"{killed} killed, {switched} after the switch")
    assert 0 < switched < killed


@pytest.mark.root
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_killed_at_random_moments_while_the_disk_fills_up(lean: Lean, tmp_path: Path) -> None:
    """The same where not everything that dead syncs have left fits on the disk beside the new tree."""
    lean.run(killed_while_the_disk_fills_up, tmp_path)


def killed_while_the_disk_fills_up(place: Path) -> None:
    """See the test of this name."""
    dice = random.Random(os.environ.get("ATOLL_TEST_SEED"))
    trees = _random_trees(place, dice, 600_000)
    with _mounted(place / "disk", "3m"):
        _sweep(_lab(place / "disk"), trees, dice, MOMENTS // 3, full=True)


SYNC = "import sys; from atoll import sync_dir; print(sync_dir(sys.argv[1], 't'))"


def _kill_daemon(home: Home) -> None:
    pid = home.daemon_pid()
    if pid is not None and pid in home.processes():
        os.kill(pid, signal.SIGKILL)


def test_the_daemon_is_killed_at_random_moments(atoll_home: Home, tmp_path: Path) -> None:
    """SIGKILL of the daemon ends the peer with it: the tree is the old one or the new one, the next sync ends equal,
    and the next daemon begins to remove what was replaced."""
    dice = random.Random(os.environ.get("ATOLL_TEST_SEED"))
    trees = _random_trees(tmp_path, dice, 1_500_000)
    shots = [snapshot(tree) for tree in trees]
    atoll_home.python("-c", SYNC, str(trees[0]))
    volume = atoll_home.path / "volumes/local"
    took = 0.0
    for number in range(DAEMONS):
        started = time.monotonic()
        program = subprocess.Popen(
            [sys.executable, "-c", SYNC, str(trees[number % 2])],
            env=atoll_home.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number < 2:
            assert program.wait() == 0
            took = time.monotonic() - started
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(dice.uniform(took / 3, took))
        _kill_daemon(atoll_home)
        program.wait()
        assert snapshot(volume / "data/sync/t") in shots
    for tree, shot in zip(trees, shots, strict=True):
        atoll_home.python("-c", SYNC, str(tree))
        assert snapshot(volume / "data/sync/t") == shot
    _kill_daemon(atoll_home)
    atoll_home.python("-c", "from atoll import Volume; Volume().listdir()")
    left = first = set(os.listdir(volume / "staging"))
    assert any(name.startswith("old-") for name in first)
    until(lambda: first - set(os.listdir(volume / "staging")))  # slowly: the rest would take a minute
    left = set(os.listdir(volume / "staging"))
    assert all(name.startswith((*KEPT, "old-", "new-")) for name in left)


NAMED = {
    errno.ENOSPC: DiskFull,
    errno.EDQUOT: QuotaExceeded,
    errno.EIO: StateUnusable,
    errno.EROFS: StateUnusable,
}


class _Failing:
    def __init__(self, number: int, error: int) -> None:
        self._left = number
        self._error = error

    def __call__(self, _: str, __: dict[str, Any]) -> None:
        self._left -= 1
        if self._left == -1:
            raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize(
    ("name", "error", "stride"),
    [
        ("many changes", errno.ENOSPC, 1),
        ("one file", errno.EIO, 2),
        ("one directory goes", errno.EROFS, 2),
        ("names that stay", errno.EDQUOT, 2),
    ],
)
def test_an_error_at_every_step(name: str, error: int, stride: int, lean: Lean, tmp_path: Path) -> None:
    """A file system that fails at any step (full, quota, broken, read-only) is an error with a name, after which the
    target is the old tree or the new one, nothing is left behind, and the next sync on the same channel ends equal."""
    lean.run(an_error_at_every_step, name, error, stride, tmp_path)


def an_error_at_every_step(name: str, error: int, stride: int, place: Path) -> None:
    """See the test of this name."""
    case, lab = CASES[name], _lab(place)
    old, new = _sources(case, place)
    assert old is not None
    unharmed = 0
    for number in range(0, 200, stride):
        _reset(lab, old)
        before = lab.shot()
        reference = _wanted(case, new, before)
        ours, theirs = socket.socketpair()

        def peer(number: int = number, ours: socket.socket = ours, theirs: socket.socket = theirs) -> None:
            ours.close()
            crash_points.arm(_Failing(number, error))
            peer_main([str(theirs.fileno()), DAEMON, str(lab.volume)])

        pid = _fork(peer)
        theirs.close()
        failed = False
        with VolumeClient(Channel(ours)) as client:
            try:
                client.sync(str(new), "t", case.options)
            except NAMED[error]:
                failed = True
                assert lab.shot() in (before, reference), number
                left = os.listdir(lab.volume / "staging")
                assert not [item for item in left if item.startswith(("record-", "switch-", "trash-"))], number
                client.sync(str(new), "t", case.options)
            assert lab.shot() == reference
        assert os.waitpid(pid, 0)[1] == 0
        lab.tidy()
        unharmed = 0 if failed else unharmed + 1
        if unharmed == 4:  # the steps are over; one alone may be of something that need not succeed
            return
    raise AssertionError("the sync never ends")
