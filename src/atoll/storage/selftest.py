"""Does the file system under a volume do what programs rely on? Each thing is tried for real.

What concerns two processes is tried with a second one, a Python of its own that is started for it (see `Partner`).
What is tried stays in one directory below `staging`, on the volume's own file system, and is removed. A switch that
says that something works is not believed, and an answer that pretends is found out: what was written is read back.

A check returns what it found, and raises `Missing` or an `OSError` where the thing does not work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atoll.storage import filesystem, reflink
from atoll.storage.filesystem import OPEN_DIRECTORY, VolumeRoot
from atoll.storage.findings import Finding
from atoll.storage.mounts import kind_of
from atoll.storage.networked import promises
from atoll.storage.partner import Partner

_PAGE_BYTES = 4096
_HOLE_BYTES = 64 << 20
_LARGE_BYTES = 5 << 30
_LEAST_FREE_BYTES = 1 << 30
_LEAST_FREE_INODES = 10_000
_LINES = 200
_MOMENT_NS = 1_234_567_890_123_456_789
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MOVE = "set `ATOLL_HOME` to a directory on ext4, XFS or btrfs"


class Missing(Exception):
    """What was tried does not work, though the system raised no error."""


@dataclass(frozen=True)
class Check:
    """Something to try.

    Args:
        name, needed, loses, fix: see `Finding`.
        attempt: tries it below an open, empty directory.
    """

    name: str
    needed: bool
    attempt: Callable[[int], str]
    loses: str
    fix: str = _MOVE


def examine(volume: VolumeRoot) -> Iterator[Finding]:
    """Try everything on a volume's file system, one after the other.

    Raises:
        OSError: nothing can be tried: the disk is full, or cannot be written.
    """
    with _scratch(volume) as scratch:
        kind = kind_of(scratch)
        yield Finding("file system", True, True, kind or "of a kind that `/proc` does not tell")
        for number, check in enumerate(CHECKS):
            name = f"{number}"
            os.mkdir(name, 0o700, dir_fd=scratch)
            directory = os.open(name, OPEN_DIRECTORY, dir_fd=scratch)
            try:
                yield tried(check, directory)
            finally:
                os.close(directory)
        yield from _room(scratch)
        yield from promises(kind)


def tried(check: Check, directory: int) -> Finding:
    """Try one thing in an open, empty directory; what goes wrong is what is found."""
    try:
        detail = check.attempt(directory)
    except Missing as error:
        return Finding(check.name, check.needed, False, str(error), check.loses, check.fix)
    except (OSError, ValueError) as error:
        text = (getattr(error, "strerror", None) or str(error)).lower()
        return Finding(check.name, check.needed, False, text, check.loses, check.fix)
    return Finding(check.name, check.needed, True, detail)


@contextlib.contextmanager
def _scratch(volume: VolumeRoot) -> Iterator[int]:
    """Make a directory below staging that is removed at the end; it is locked, so that nobody takes it for a leftover."""
    name = volume.temporary_name("tree")
    os.mkdir(name, 0o700, dir_fd=volume.staging)
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=volume.staging)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
        volume.discard(volume.staging, name)


# --- names ----------------------------------------------------------------------------------------------------------


def _rename(directory: int) -> str:
    _make(directory, "old", b"old")
    _make(directory, "new", b"new")
    held = os.open("old", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.rename("new", "old", src_dir_fd=directory, dst_dir_fd=directory)
        _expect(_read(directory, "old") == b"new", "the name leads to the old file")
        _expect(os.listdir(directory) == ["old"], "both names are there afterwards")
        _expect(os.pread(held, 10, 0) == b"old", "who has the old file open reads something else")
    finally:
        os.close(held)
    return "a file takes another's place in one step"


def _exchange(directory: int) -> str:
    for name in ("one", "two"):
        os.mkdir(name, dir_fd=directory)
    os.mkdir("one/mark", dir_fd=directory)
    filesystem.exchange(directory, "one", directory, "two")
    _expect(_exists(directory, "two/mark") and not _exists(directory, "one/mark"), "nothing was exchanged")
    return "two directories change places in one step"


def _no_replace(directory: int) -> str:
    _make(directory, "one", b"1")
    _make(directory, "two", b"2")
    with contextlib.suppress(FileExistsError):
        filesystem.renameat2(directory, "one", directory, "two", filesystem.RENAME_NOREPLACE)
    _expect(_read(directory, "two") == b"2", "a file was replaced that was not to be")
    filesystem.renameat2(directory, "one", directory, "three", filesystem.RENAME_NOREPLACE)
    _expect(_read(directory, "three") == b"1", "the new name does not lead to the file")
    return "tried"


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
    _make(directory, name, b"")
    _expect(os.listdir(directory) == [name], "the name came back changed")
    return "names of 255 bytes"


def _byte_names(directory: int) -> str:
    names = [b"\xff\xfe", b"new\nline", b"\\ : * ?", "é".encode(), "e\u0301".encode(), b"trailing. "]
    for name in names:
        _make(directory, os.fsdecode(name), b"")
    _expect(sorted(os.fsencode(name) for name in os.listdir(directory)) == sorted(names), "names came back changed")
    return "any bytes but `/` and NUL"


def _case(directory: int) -> str:
    _make(directory, "Name", b"1")
    _expect(not _exists(directory, "name"), "`Name` and `name` are one file")
    _make(directory, "name", b"2")
    _expect(_read(directory, "Name") == b"1", "`Name` and `name` are one file")
    return "`Name` and `name` are two files"


def _removed_while_open(directory: int) -> str:
    descriptor = _make(directory, "gone", b"there", keep=True)
    try:
        os.unlink("gone", dir_fd=directory)
        _expect(os.listdir(directory) == [], "another name appears when an open file is removed")
        os.pwrite(descriptor, b"still", 5)
        _expect(os.pread(descriptor, 10, 0) == b"therestill", "it cannot be read any more")
    finally:
        os.close(descriptor)
    return "who has a file open keeps it"


# --- contents -------------------------------------------------------------------------------------------------------


def _durable(directory: int) -> str:
    descriptor = _make(directory, "file", b"x" * _PAGE_BYTES, keep=True)
    try:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    os.fsync(directory)
    filesystem.sync_filesystem(directory)
    return "files, directories and the whole file system"


def _sparse(directory: int) -> str:
    descriptor = _make(directory, "holes", b"", keep=True)
    try:
        os.pwrite(descriptor, b"end", _HOLE_BYTES)
        os.fsync(descriptor)
        taken = os.fstat(descriptor).st_blocks * 512
        _expect(os.pread(descriptor, 10, _HOLE_BYTES // 2) == bytes(10), "a hole does not read as zeros")
        _expect(taken < _HOLE_BYTES // 2, f"a hole of {_HOLE_BYTES >> 20} MiB takes {taken >> 20} MiB")
        os.ftruncate(descriptor, _LARGE_BYTES)
        _expect(os.fstat(descriptor).st_size == _LARGE_BYTES, "a file cannot have 5 GiB")
    finally:
        os.close(descriptor)
    return "holes take no space"


def _allocation(directory: int) -> str:
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # Not `posix_fallocate`, which writes zeros where the file system cannot.
        if libc.fallocate(descriptor, 0, ctypes.c_longlong(0), ctypes.c_longlong(1 << 20)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        info = os.fstat(descriptor)
        _expect(info.st_size == 1 << 20 and info.st_blocks * 512 >= 1 << 20, "nothing was allocated")
    finally:
        os.close(descriptor)
    return "space can be had in advance"


def _direct(directory: int) -> str:
    flags = _NEW | getattr(os, "O_DIRECT", 0)
    descriptor = os.open("file", flags, 0o600, dir_fd=directory)
    try:
        with mmap.mmap(-1, _PAGE_BYTES) as page:  # aligned
            page[:] = b"d" * _PAGE_BYTES
            os.pwrite(descriptor, page, 0)
    finally:
        os.close(descriptor)
    _expect(_read(directory, "file") == b"d" * _PAGE_BYTES, "what was written cannot be read")
    return "past the page cache"


def _reflinks(directory: int) -> str:
    if not reflink.can_clone(directory):
        raise Missing("copies do not share blocks")
    return "copies share blocks: snapshots cost nothing"


# --- attributes -----------------------------------------------------------------------------------------------------


def _modes(directory: int) -> str:
    _make(directory, "file", b"")
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
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        os.utime(descriptor, ns=(_MOMENT_NS, _MOMENT_NS))
        found = os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
    _expect(found == _MOMENT_NS, f"a modification time is off by {abs(found - _MOMENT_NS) / 1e9:.9f} s")
    return "in nanoseconds"


def _attributes(directory: int) -> str:
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        os.setxattr(descriptor, "user.atoll", b"value")
        _expect(os.getxattr(descriptor, "user.atoll") == b"value", "an attribute came back changed")
        _expect("user.atoll" in os.listxattr(descriptor), "an attribute is not listed")
    finally:
        os.close(descriptor)
    return "`user.` attributes"


# --- between processes ----------------------------------------------------------------------------------------------


def _flock(directory: int) -> str:
    return _locks(directory, "flock", lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _record_locks(directory: int) -> str:
    return _locks(directory, "lockf", lambda descriptor: fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _locks(directory: int, kind: str, lock: Callable[[int], None]) -> str:
    descriptor = _make(directory, "lock", b"", keep=True)
    try:
        with Partner(directory, "lock") as partner:
            partner.ask(kind)
            try:
                lock(descriptor)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                raise Missing("two processes hold one lock at the same time")
        lock(descriptor)  # the other one was killed
    finally:
        os.close(descriptor)
    return "one holder at a time; a lock ends with its holder"


def _maps(directory: int) -> str:
    descriptor = _make(directory, "map", bytes(_PAGE_BYTES), keep=True)
    try:
        with mmap.mmap(descriptor, _PAGE_BYTES) as page, Partner(directory, "map") as partner:
            page[0:5] = b"hello"
            _expect(partner.ask("map") == "hello", "another process does not see what is written to a shared map")
            _expect(page[10:15] == b"there", "what another process writes to a shared map is not seen")
        _expect(os.pread(descriptor, 5, 10) == b"there", "what is written to a shared map cannot be read from the file")
    finally:
        os.close(descriptor)
    return "shared writes are seen at once"


def _appends(directory: int) -> str:
    descriptor = os.open("log", _NEW | os.O_APPEND, 0o600, dir_fd=directory)
    try:
        with Partner(directory, "log") as partner:
            partner.begin("append")
            for number in range(_LINES):
                os.write(descriptor, b"ours %04d\n" % number)
            partner.end()
    finally:
        os.close(descriptor)
    lines = _read(directory, "log").splitlines()
    wanted = sorted(b"%s %04d" % (who, number) for who in (b"ours", b"them") for number in range(_LINES))
    _expect(sorted(lines) == wanted, f"{2 * _LINES} appended lines became {len(set(lines) & set(wanted))}")
    return "from two processes, none lost"


# --- what there is --------------------------------------------------------------------------------------------------


def _room(directory: int) -> Iterator[Finding]:
    status = os.fstatvfs(directory)
    free = status.f_bavail * status.f_frsize
    enough = free >= _LEAST_FREE_BYTES
    lost = "" if enough else "functions cannot write much more"
    fix = "" if enough else "remove something from `/data`, or set `ATOLL_HOME` to a larger disk"
    yield Finding("free space", False, enough, f"{free / (1 << 30):.1f} GiB", lost, fix)
    enough = not status.f_files or status.f_favail >= _LEAST_FREE_INODES
    detail = f"{status.f_favail:,} files" if status.f_files else "no limit"
    lost = "" if enough else "no more files can be made, though there may be space"
    yield Finding("free inodes", False, enough, detail, lost, "" if enough else "remove files that are not needed")


# --- what the checks are made of ------------------------------------------------------------------------------------


def _make(directory: int, name: str, content: bytes, *, keep: bool = False) -> int:
    descriptor = os.open(name, _NEW, 0o600, dir_fd=directory)
    try:
        filesystem.write_all(descriptor, content)
    except BaseException:
        os.close(descriptor)
        raise
    if not keep:
        os.close(descriptor)
    return descriptor


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
    Check("rename without replacing", False, _no_replace, "two programs that make the same name may both succeed"),
    Check("durable writes", True, _durable, "what was written may be gone after a loss of power"),
    Check("`flock` locks", True, _flock, "syncs and downloads of one target run into each other"),
    Check("`fcntl` locks", True, _record_locks, "SQLite databases are damaged by two writers"),
    Check("shared memory maps", True, _maps, "SQLite in WAL mode, LMDB and NumPy's `memmap` of two processes go wrong"),
    Check("appends", True, _appends, "logs that several functions write lose lines"),
    Check("removed while open", True, _removed_while_open, "a function that reads a file which is replaced fails"),
    Check("hard links", True, _links, "each sync and each snapshot copies all files"),
    Check("symlinks", True, _symlinks, "directories with symlinks cannot be mirrored; Hugging Face's cache is copies"),
    Check("permission bits", True, _modes, "mirrors are not exact, and programs are not executable"),
    Check("modification times", True, _times, "files count as changed at each sync, and travel again"),
    Check("names of 255 bytes", True, _long_names, "files with long names cannot be mirrored"),
    Check("case in names", True, _case, "of two names that differ in case only one is kept"),
    Check("names of any bytes", False, _byte_names, "files whose names are not text in UTF-8 cannot be mirrored"),
    Check("sparse files", False, _sparse, "disk images and databases take all the space that they announce"),
    Check("preallocation", False, _allocation, "programs that want space in advance write zeros instead"),
    Check("extended attributes", False, _attributes, "programs that keep `user.` attributes fail"),
    Check("direct input and output", False, _direct, "databases that want `O_DIRECT` fail or fall back"),
    Check(
        "reflinks",
        False,
        _reflinks,
        "snapshots copy what has changed, and copies take space and time",
        "use btrfs, or XFS with `reflink=1`",
    ),
)
"""In the order in which they are told."""
