"""The table of checks of a volume's file system, each with its trial (`atoll doctor --data`).

A trial works in an open, empty directory, and reads back the data that it wrote: a file system may accept a call and
ignore it. Trials of two processes start a second Python (`SecondProcess`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atoll import linux
from atoll.storage.content import copy
from atoll.storage.selftest.second_process import SecondProcess

_MOVE = "set `ATOLL_HOME` to a directory on ext4, XFS or btrfs"
_PAGE_BYTES = 4096
_HOLE_BYTES = 64 << 20
_LARGE_BYTES = 5 << 30
_LINES = 200
_MOMENT_NS = 1_234_567_890_123_456_789
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Missing(Exception):
    """A trial does not work, though the system raised no error."""


@dataclass(frozen=True)
class Check:
    """One promise and its trial.

    Args:
        name, needed, loses, fix: see `Finding`.
        attempt: the trial, in an open, empty directory; it returns its finding, and raises `Missing` or `OSError`.
    """

    name: str
    needed: bool
    attempt: Callable[[int], str]
    loses: str
    fix: str = _MOVE


# --- names -------------------------------------------------------------------------------------------------------------


def _rename(directory: int) -> str:
    _make(directory, "old", b"old")
    _make(directory, "new", b"new")
    held = os.open("old", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.rename("new", "old", src_dir_fd=directory, dst_dir_fd=directory)
        _expect(_read(directory, "old") == b"new", "the name leads to the old file")
        _expect(os.listdir(directory) == ["old"], "both names are there afterwards")
        _expect(os.pread(held, 10, 0) == b"old", "a reader of the old file reads something else")
    finally:
        os.close(held)
    return "a file takes another's place in one step"


def _exchange(directory: int) -> str:
    for name in ("one", "two"):
        os.mkdir(name, dir_fd=directory)
    os.mkdir("one/mark", dir_fd=directory)
    linux.exchange(directory, "one", directory, "two")
    _expect(_exists(directory, "two/mark") and not _exists(directory, "one/mark"), "nothing was exchanged")
    return "two directories change places in one step"


def _links(directory: int) -> str:
    _make(directory, "one", b"1")
    os.link("one", "two", src_dir_fd=directory, dst_dir_fd=directory)
    one, two = (os.stat(name, dir_fd=directory) for name in ("one", "two"))
    _expect(os.path.samestat(one, two) and two.st_nlink == 2, "the link is a file of its own")
    os.unlink("one", dir_fd=directory)
    _expect(_read(directory, "two") == b"1", "the file went with its first name")
    return "tried"


def _symlinks(directory: int) -> str:
    target = "no/such/" + "target" * 100
    os.symlink(target, "link", dir_fd=directory)
    _expect(os.readlink("link", dir_fd=directory) == target, "a symlink came back changed")
    _make(directory, "file", b"1")
    os.symlink("file", "way", dir_fd=directory)
    _expect(_read(directory, "way") == b"1", "a symlink does not lead to its target")
    return "tried"


def _long_names(directory: int) -> str:
    name = "n" * 255
    _make(directory, name)
    _expect(os.listdir(directory) == [name], "the name came back changed")
    return "names of 255 bytes"


def _case(directory: int) -> str:
    _make(directory, "Name", b"1")
    _expect(not _exists(directory, "name"), "`Name` and `name` are one file")
    _make(directory, "name", b"2")
    _expect(_read(directory, "Name") == b"1", "`Name` and `name` are one file")
    return "`Name` and `name` are two files"


def _removed_while_open(directory: int) -> str:
    with _file(directory, "gone", b"there") as descriptor:
        os.unlink("gone", dir_fd=directory)
        _expect(os.listdir(directory) == [], "another name appears when an open file is removed")
        os.pwrite(descriptor, b"still", 5)
        _expect(os.pread(descriptor, 10, 0) == b"therestill", "it cannot be read any more")
    return "a reader keeps an open file"


# --- contents ----------------------------------------------------------------------------------------------------------


def _durable(directory: int) -> str:
    with _file(directory, "file", b"x" * _PAGE_BYTES) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    os.fsync(directory)
    linux.sync_filesystem(directory)
    return "files, directories and the whole file system"


def _sparse(directory: int) -> str:
    with _file(directory, "holes") as descriptor:
        os.pwrite(descriptor, b"end", _HOLE_BYTES)
        os.fsync(descriptor)
        taken = os.fstat(descriptor).st_blocks * 512
        _expect(os.pread(descriptor, 10, _HOLE_BYTES // 2) == bytes(10), "a hole does not read as zeros")
        _expect(taken < _HOLE_BYTES // 2, f"a hole of {_HOLE_BYTES >> 20} MiB takes {taken >> 20} MiB")
        os.ftruncate(descriptor, _LARGE_BYTES)
        _expect(os.fstat(descriptor).st_size == _LARGE_BYTES, "a file cannot have 5 GiB")
    return "holes take no space"


def _reflinks(directory: int) -> str:
    if not copy.can_clone(directory):
        raise Missing("copies do not share blocks")
    return "copies share blocks: snapshots cost nothing"


# --- attributes --------------------------------------------------------------------------------------------------------


def _modes(directory: int) -> str:
    _make(directory, "file")
    for mode in (0o640, 0o444, 0o4711, 0o600):
        _chmod(directory, "file", mode)
        found = stat.S_IMODE(os.stat("file", dir_fd=directory).st_mode)
        _expect(found == mode, f"mode {mode:04o} became {found:04o}")
    return "permission bits are kept"


def _chmod(directory: int, name: str, mode: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def _times(directory: int) -> str:
    with _file(directory, "file") as descriptor:
        os.utime(descriptor, ns=(_MOMENT_NS, _MOMENT_NS))
        found = os.fstat(descriptor).st_mtime_ns
    _expect(found == _MOMENT_NS, f"a modification time is off by {abs(found - _MOMENT_NS) / 1e9:.9f} s")
    return "in nanoseconds"


def _attributes(directory: int) -> str:
    with _file(directory, "file") as descriptor:
        os.setxattr(descriptor, "user.atoll", b"value")
        _expect(os.getxattr(descriptor, "user.atoll") == b"value", "an attribute came back changed")
        _expect("user.atoll" in os.listxattr(descriptor), "an attribute is not listed")
    return "`user.` attributes"


# --- between processes -------------------------------------------------------------------------------------------------


def _flock(directory: int) -> str:
    return _locks(directory, "flock", lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _record_locks(directory: int) -> str:
    return _locks(directory, "lockf", lambda descriptor: fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _locks(directory: int, kind: str, lock: Callable[[int], None]) -> str:
    with _file(directory, "lock") as descriptor:
        with SecondProcess(directory, "lock") as second:
            second.ask(kind)
            try:
                lock(descriptor)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                raise Missing("two processes hold one lock at the same time")
        lock(descriptor)  # free again: the other holder was killed
    return "one holder at a time; a lock ends with its holder"


def _maps(directory: int) -> str:
    with _file(directory, "map", bytes(_PAGE_BYTES)) as descriptor:
        with mmap.mmap(descriptor, _PAGE_BYTES) as page, SecondProcess(directory, "map") as second:
            page[0:5] = b"hello"
            _expect(second.ask("map") == "hello", "another process does not see writes to a shared map")
            _expect(page[10:15] == b"there", "writes of another process to a shared map are not seen")
        _expect(os.pread(descriptor, 5, 10) == b"there", "writes to a shared map cannot be read from the file")
    return "shared writes are seen at once"


def _appends(directory: int) -> str:
    with _file(directory, "log", flags=os.O_APPEND) as descriptor, SecondProcess(directory, "log") as second:
        second.begin("append")
        for number in range(_LINES):
            os.write(descriptor, b"ours %04d\n" % number)
        second.end()
    lines = _read(directory, "log").splitlines()
    wanted = sorted(b"%s %04d" % (who, number) for who in (b"ours", b"them") for number in range(_LINES))
    _expect(sorted(lines) == wanted, f"{2 * _LINES} appended lines became {len(set(lines) & set(wanted))}")
    return "from two processes, none lost"


# --- parts of the trials -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _file(directory: int, name: str, content: bytes = b"", flags: int = 0) -> Iterator[int]:
    """Make a file, and keep it open for the trial."""
    descriptor = os.open(name, _NEW | flags, 0o600, dir_fd=directory)
    try:
        if content:
            linux.write_all(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def _make(directory: int, name: str, content: bytes = b"") -> None:
    """Make a file and close it."""
    with _file(directory, name, content):
        pass


def _read(directory: int, name: str) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _expect(so: bool, otherwise: str) -> None:
    if not so:
        raise Missing(otherwise)


CHECKS = (
    Check("atomic rename", True, _rename, "a file that is replaced may be missing, or torn, for a moment"),
    Check("atomic exchange", True, _exchange, "`sync_dir` refuses to replace a directory, unless `atomic=False`"),
    Check("durable writes", True, _durable, "written data may be gone after a loss of power"),
    Check("`flock` locks", True, _flock, "syncs and downloads of one target run into each other"),
    Check("`fcntl` locks", True, _record_locks, "SQLite databases are damaged by two writers"),
    Check(
        "shared memory maps",
        True,
        _maps,
        "SQLite in WAL mode, LMDB and NumPy's `memmap` of two processes go wrong",
    ),
    Check("appends", True, _appends, "logs that several functions write lose lines"),
    Check("removed while open", True, _removed_while_open, "a function that reads a file which is replaced fails"),
    Check("hard links", True, _links, "each sync and each snapshot copies all files"),
    Check(
        "symlinks",
        True,
        _symlinks,
        "directories with symlinks cannot be mirrored; Hugging Face's cache is copies",
    ),
    Check("permission bits", True, _modes, "mirrors are not exact, and programs are not executable"),
    Check("modification times", True, _times, "files count as changed at each sync, and travel again"),
    Check("names of 255 bytes", True, _long_names, "files with long names cannot be mirrored"),
    Check("case in names", True, _case, "of two names that differ in case only one is kept"),
    Check("sparse files", False, _sparse, "disk images and databases take all the space that they announce"),
    Check("extended attributes", False, _attributes, "programs that keep `user.` attributes fail"),
    Check(
        "reflinks",
        False,
        _reflinks,
        "snapshots copy changed files, and copies take space and time",
        "use btrfs, or XFS with `reflink=1`",
    ),
)
"""In the order of the report."""
