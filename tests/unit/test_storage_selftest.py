"""The self-test of a volume's file system: green where things work, red for each thing that does not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll import linux
from atoll.errors import SyncError
from atoll.model.findings import Finding, check_finding
from atoll.storage.client.volume import VolumeClient
from atoll.storage.content import copy
from atoll.storage.protocol.replies import PROGRAM
from atoll.storage.selftest.checks import CHECKS, Check
from atoll.storage.selftest.examine import NoRoom, examine, tried
from atoll.storage.selftest.network_disks import promises
from atoll.storage.selftest.second_process import SecondProcess
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel

from ..volumes import serving

pytestmark = pytest.mark.as_user

BY_NAME = {check.name: check for check in CHECKS}
REAL = SimpleNamespace(**{name: getattr(os, name) for name in ("open", "stat", "utime", "fstat")})


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """An open, empty directory."""
    (tmp_path / "scratch").mkdir()
    descriptor = os.open(tmp_path / "scratch", OPEN_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def raising(number: int) -> Callable[..., Any]:
    """Return what fails with that error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def nothing(*_: Any, **__: Any) -> None:
    """Pretend."""


def copying(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    with os.fdopen(os.open(old, os.O_RDONLY, dir_fd=src_dir_fd), "rb") as source:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT, dir_fd=dst_dir_fd), "wb") as target:
            target.write(source.read())


def open_where(refused: Callable[[str, int], bool], number: int) -> Callable[..., int]:
    """Return an `open` that refuses some names or flags."""

    def stand_in(name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if refused(os.fsdecode(name), flags):
            raise OSError(number, os.strerror(number))
        found: int = REAL.open(name, flags, mode, dir_fd=dir_fd)
        return found

    return stand_in


def is_no_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def lower_open(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    found: int = REAL.open(name.lower(), flags, mode, dir_fd=dir_fd)
    return found


def lower_stat(name: str, **options: Any) -> os.stat_result:
    found: os.stat_result = REAL.stat(name.lower() if isinstance(name, str) else name, **options)
    return found


def whole_seconds(path: Any, *, ns: tuple[int, int]) -> None:
    REAL.utime(path, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))


def private_map(descriptor: int, length: int) -> mmap.mmap:
    return REAL_MMAP(descriptor, length, flags=mmap.MAP_PRIVATE)


def no_holes(descriptor: int) -> Any:
    info = REAL.fstat(descriptor)
    return SimpleNamespace(st_size=info.st_size, st_blocks=(info.st_size + 511) // 512)


def dropping(descriptor: int, content: bytes) -> int:
    return len(content) if bytes(content).startswith(b"ours") else REAL_WRITE(descriptor, content)


def without_flags(old_parent: int, old: str, new_parent: int, new: str, flags: int) -> None:
    os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)


REAL_MMAP, REAL_WRITE = mmap.mmap, os.write
FAILURES: list[tuple[str, Any, str, Any, str]] = [
    ("atomic rename", os, "rename", nothing, "leads to the old file"),
    ("atomic rename", os, "rename", raising(errno.EIO), "input/output error"),
    ("atomic exchange", linux, "exchange", raising(errno.EINVAL), "invalid argument"),
    ("atomic exchange", linux, "exchange", nothing, "nothing was exchanged"),
    ("durable writes", os, "fsync", raising(errno.EINVAL), "invalid argument"),
    ("durable writes", linux, "sync_filesystem", raising(errno.EIO), "input/output error"),
    ("`flock` locks", fcntl, "flock", nothing, "two processes hold one lock"),
    ("`flock` locks", fcntl, "flock", raising(errno.ENOLCK), "no locks available"),
    ("`fcntl` locks", fcntl, "lockf", nothing, "two processes hold one lock"),
    ("shared memory maps", mmap, "mmap", private_map, "does not see"),
    ("shared memory maps", mmap, "mmap", raising(errno.ENODEV), "no such device"),
    ("appends", os, "write", dropping, "400 appended lines became 200"),
    ("removed while open", os, "pread", raising(errno.ESTALE), "stale file handle"),
    ("removed while open", os, "listdir", lambda _fd: [".nfs0001"], "another name appears"),
    ("hard links", os, "link", raising(errno.EPERM), "operation not permitted"),
    ("hard links", os, "link", copying, "a file of its own"),
    ("symlinks", os, "symlink", raising(errno.EPERM), "operation not permitted"),
    ("symlinks", os, "readlink", lambda *_, **__: "elsewhere", "came back changed"),
    ("permission bits", os, "fchmod", nothing, "mode 0640 became 0600"),
    ("modification times", os, "utime", whole_seconds, "off by 0.123456789 s"),
    ("names of 255 bytes", os, "open", open_where(lambda name, _: len(name) > 143, errno.ENAMETOOLONG), "too long"),
    ("case in names", os, "open", lower_open, "are one file"),
    ("sparse files", os, "fstat", no_holes, "a hole of 64 MiB takes 64 MiB"),
    ("sparse files", os, "ftruncate", raising(errno.EFBIG), "too large"),
    ("extended attributes", os, "setxattr", raising(errno.EOPNOTSUPP), "not supported"),
    ("reflinks", copy, "can_clone", lambda _fd: False, "do not share blocks"),
]


@pytest.mark.parametrize("check", [check for check in CHECKS if check.needed], ids=lambda check: check.name)
def test_what_is_needed_works_here(check: Check, directory: int) -> None:
    """On the file system of the tests each needed thing is found to work, with a word about it."""
    found = tried(check, directory)
    assert found == Finding(check.name, True, True, found.detail)
    assert found.detail


@pytest.mark.parametrize(
    ("name", "place", "function", "stand_in", "words"),
    FAILURES,
    ids=[f"{row[0]}: {row[2]} {n}" for n, row in enumerate(FAILURES)],
)
def test_each_thing_is_seen_to_fail(
    name: str, place: Any, function: str, stand_in: Any, words: str, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the file system refuses or pretends, the finding is red and says what is lost and what mends it."""
    check = BY_NAME[name]
    with monkeypatch.context() as patch:
        patch.setattr(place, function, stand_in)
        if stand_in is lower_open:
            patch.setattr(os, "stat", lower_stat)
        found = tried(check, directory)
    assert (found.works, found.needed) == (False, check.needed)
    assert words in found.detail
    assert found.loses
    assert found.fix


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the quota is used up")]
)
def test_what_found_no_room_is_not_missing(
    number: int, reason: str, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written, that comes first, with what could not be tried; only what was seen to fail fails."""
    monkeypatch.setattr(linux, "write_all", raising(number))
    monkeypatch.setattr(os, "symlink", raising(errno.EPERM))
    with VolumeRoot(str(volume)) as root:
        kind, room, *found = list(examine(root))
    assert kind.name == "file system"
    assert (room.name, room.needed, room.works, room.detail) == ("room for trials", True, False, reason)
    assert "could not be tried: atomic rename, durable writes" in room.loses
    assert "larger disk" in room.fix
    failed = {finding.name for finding in found if not finding.works and finding.name in BY_NAME}
    assert failed - {"reflinks"} == {"symlinks"}
    assert "atomic exchange" in {finding.name for finding in found}
    assert all(name not in room.loses for name in failed)


def test_a_second_process_without_room_is_no_lack(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the second process found no room is told apart from what it was refused."""
    program = f"print('no {errno.ENOSPC} No space left on device', flush=True)"
    monkeypatch.setattr("atoll.storage.selftest.second_process._PROGRAM", program)
    with pytest.raises(NoRoom, match="disk is full"):
        tried(BY_NAME["`flock` locks"], directory)


@pytest.mark.root
def test_a_full_disk_lacks_room_alone(tmp_path: Path) -> None:
    """On a real disk that is full to its last byte no ability is said to be missing for it."""
    mount = tmp_path / "mount"
    mount.mkdir()
    on("tmpfs", ["-o", "size=4M", "none"], mount)
    try:
        empty = {finding.name for finding in examined(mount) if not finding.works}
        with contextlib.suppress(OSError), (mount / "data/full").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        found = examined(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert next(finding.name for finding in found if not finding.works) == "room for trials"
    assert {finding.name for finding in found if not finding.works} - empty == {"room for trials"}


def test_every_check_is_seen_to_fail() -> None:
    """The table above has each of them."""
    assert {row[0] for row in FAILURES} == BY_NAME.keys()


def test_a_second_process_that_hangs_or_dies_is_an_error(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that does not answer in time, or ends, fails its check, and is gone afterwards."""
    monkeypatch.setattr("atoll.storage.selftest.second_process._SECONDS", 0.2)
    monkeypatch.setattr("atoll.storage.selftest.second_process._PROGRAM", "import time; time.sleep(1000)")
    assert "hangs" in tried(BY_NAME["`flock` locks"], directory).detail
    monkeypatch.setattr("atoll.storage.selftest.second_process._SECONDS", 20.0)
    monkeypatch.setattr("atoll.storage.selftest.second_process._PROGRAM", "")
    os.unlink("lock", dir_fd=directory)
    with pytest.raises((OSError, TimeoutError), match=r"ended at it|Broken pipe"):
        with SecondProcess(directory, "x") as second:
            second.ask("flock")
    with pytest.raises(ChildProcessError):
        os.waitpid(second.pid, os.WNOHANG)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume's directory."""
    path = tmp_path / "volume"
    path.mkdir()
    return path


def test_a_peer_examines_its_volume_and_leaves_nothing(volume: Path) -> None:
    """Over the wire each finding arrives as it was made, and nothing is left below staging."""
    with serving(volume, PROGRAM) as sock, VolumeClient(Channel(sock)) as client:
        found = client.selftest()
        again = client.selftest()
    names = ["file system", *BY_NAME, "free space", "free inodes"]
    assert [finding.name for finding in found] == names == [finding.name for finding in again]
    assert all(finding.works for finding in found if finding.needed)
    assert [name for name in os.listdir(volume / "staging") if name.startswith(("tree-", "trash-"))] == []


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {**Finding("a", True, True).to_data(), "more": 1},
        {**Finding("a", True, True).to_data(), "works": 1},
        {**Finding("a", True, True).to_data(), "name": None},
        {**Finding("a", True, True).to_data(), "detail": "x" * 10_000},
    ],
)
def test_malformed_findings_are_refused(data: Any) -> None:
    """What is no finding, or is beyond all bounds, is an error."""
    with pytest.raises(SyncError, match="malformed"):
        check_finding(data)


def examined(volume: Path) -> list[Finding]:
    """Have a peer that is a process of its own examine a volume."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "atoll.storage.peer.main", str(theirs.fileno()), PROGRAM, str(volume)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with VolumeClient(Channel(ours)) as client:
        found = client.selftest()
    assert process.wait(120) == 0
    return found


def on(kind: str, options: list[str], path: Path) -> None:
    subprocess.run(["mount", "-t", kind, *options, str(path)], check=True, capture_output=True)


@pytest.mark.root
def test_real_file_systems_are_told_apart(tmp_path: Path) -> None:
    """An ext4 like the first ones, and one in memory, are red exactly where they lack something."""
    mount = tmp_path / "mount"
    mount.mkdir()
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    made = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if made is None:
        pytest.skip("needs `mkfs.ext4`")
    features = "^extent,^64bit,^has_journal,^metadata_csum,^flex_bg,^extra_isize"
    subprocess.run([made, "-q", "-F", "-I", "128", "-O", features, str(image)], check=True, capture_output=True)
    expected = {
        "ext4": {"modification times", "reflinks", "free space", "free inodes"},
        "ramfs": {"extended attributes", "reflinks", "free space"},
    }
    for kind, options in (("ext4", ["-o", "loop", str(image)]), ("ramfs", ["none"])):
        on(kind, options, mount)
        try:
            found = examined(mount)
        finally:
            subprocess.run(["umount", str(mount)], check=True)
        assert found[0].detail == kind
        assert {finding.name for finding in found if not finding.works} == expected[kind]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ext4", set()),
        ("btrfs", set()),
        ("", set()),
        ("fuse.gocryptfs", set()),
        ("nfs4", {"SQLite in WAL mode", "appends", "fresh reads", "locks"}),
        ("fuse.juicefs", {"SQLite in WAL mode", "appends", "fresh reads", "locks"}),
        ("9p", {"SQLite in WAL mode", "appends", "fresh reads", "locks"}),
        ("ceph", {"SQLite in WAL mode"}),
        ("lustre", {"SQLite in WAL mode", "locks"}),
    ],
)
def test_network_file_systems_are_warned_of(kind: str, names: set[str]) -> None:
    """What a kind does not promise between machines is told, each with what is lost and a way; never as needed."""
    found = list(promises(kind))
    assert {finding.name for finding in found} == {f"several machines: {name}" for name in names}
    assert all(not finding.works and not finding.needed and finding.loses and finding.fix for finding in found)
    assert bool(found) == linux.is_network(kind)


def test_the_kind_of_a_file_system_is_found() -> None:
    """The kind is that of the mount, by path or by an open directory; what cannot be told is empty."""
    assert linux.kind_of("/proc") == "proc"
    descriptor = os.open("/proc", os.O_RDONLY)
    try:
        assert linux.kind_of(descriptor) == "proc"
    finally:
        os.close(descriptor)
    assert linux.kind_of("/no/such/directory") == ""
