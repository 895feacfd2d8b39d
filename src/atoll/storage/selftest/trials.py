"""The trials of the self-test: each tries one thing in an open, empty directory, and reads back what it did.

A trial returns what it found, and raises `Missing` or an `OSError` where the thing does not work. See `selftest`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable

from atoll import linux
from atoll.storage.content import copy
from atoll.storage.selftest.second_process import Partner

_PAGE_BYTES = 4096
_HOLE_BYTES = 64 << 20
_LARGE_BYTES = 5 << 30
_LINES = 200
_MOMENT_NS = 1_234_567_890_123_456_789
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Missing(Exception):
    """What was tried does not work, though the system raised no error."""


# --- names ----------------------------------------------------------------------------------------------------------


def rename(directory: int) -> str:
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


def exchange(directory: int) -> str:
    for name in ("one", "two"):
        os.mkdir(name, dir_fd=directory)
    os.mkdir("one/mark", dir_fd=directory)
    linux.exchange(directory, "one", directory, "two")
    _expect(_exists(directory, "two/mark") and not _exists(directory, "one/mark"), "nothing was exchanged")
    return "two directories change places in one step"


def no_replace(directory: int) -> str:
    _make(directory, "one", b"1")
    _make(directory, "two", b"2")
    with contextlib.suppress(FileExistsError):
        linux.renameat2(directory, "one", directory, "two", linux.RENAME_NOREPLACE)
    _expect(_read(directory, "two") == b"2", "a file was replaced that was not to be")
    linux.renameat2(directory, "one", directory, "three", linux.RENAME_NOREPLACE)
    _expect(_read(directory, "three") == b"1", "the new name does not lead to the file")
    return "tried"


def links(directory: int) -> str:
    _make(directory, "one", b"1")
    os.link("one", "two", src_dir_fd=directory, dst_dir_fd=directory)
    one, two = (os.stat(name, dir_fd=directory) for name in ("one", "two"))
    _expect(os.path.samestat(one, two) and two.st_nlink == 2, "the link is a file of its own")
    os.unlink("one", dir_fd=directory)
    _expect(_read(directory, "two") == b"1", "the file went with its first name")
    return "tried"


def symlinks(directory: int) -> str:
    target = "no/such/" + "target" * 100
    os.symlink(target, "link", dir_fd=directory)
    _expect(os.readlink("link", dir_fd=directory) == target, "a symlink came back changed")
    _make(directory, "file", b"1")
    os.symlink("file", "way", dir_fd=directory)
    _expect(_read(directory, "way") == b"1", "a symlink does not lead to its target")
    return "tried"


def long_names(directory: int) -> str:
    name = "n" * 255
    _make(directory, name, b"")
    _expect(os.listdir(directory) == [name], "the name came back changed")
    return "names of 255 bytes"


def byte_names(directory: int) -> str:
    names = [b"\xff\xfe", b"new\nline", b"\\ : * ?", "é".encode(), "e\u0301".encode(), b"trailing. "]
    for name in names:
        _make(directory, os.fsdecode(name), b"")
    _expect(sorted(os.fsencode(name) for name in os.listdir(directory)) == sorted(names), "names came back changed")
    return "any bytes but `/` and NUL"


def case(directory: int) -> str:
    _make(directory, "Name", b"1")
    _expect(not _exists(directory, "name"), "`Name` and `name` are one file")
    _make(directory, "name", b"2")
    _expect(_read(directory, "Name") == b"1", "`Name` and `name` are one file")
    return "`Name` and `name` are two files"


def removed_while_open(directory: int) -> str:
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


def durable(directory: int) -> str:
    descriptor = _make(directory, "file", b"x" * _PAGE_BYTES, keep=True)
    try:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    os.fsync(directory)
    linux.sync_filesystem(directory)
    return "files, directories and the whole file system"


def sparse(directory: int) -> str:
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


def allocation(directory: int) -> str:
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        linux.fallocate(descriptor, 1 << 20)
        info = os.fstat(descriptor)
        _expect(info.st_size == 1 << 20 and info.st_blocks * 512 >= 1 << 20, "nothing was allocated")
    finally:
        os.close(descriptor)
    return "space can be had in advance"


def direct(directory: int) -> str:
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


def reflinks(directory: int) -> str:
    if not copy.can_clone(directory):
        raise Missing("copies do not share blocks")
    return "copies share blocks: snapshots cost nothing"


# --- attributes -----------------------------------------------------------------------------------------------------


def modes(directory: int) -> str:
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


def times(directory: int) -> str:
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        os.utime(descriptor, ns=(_MOMENT_NS, _MOMENT_NS))
        found = os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)
    _expect(found == _MOMENT_NS, f"a modification time is off by {abs(found - _MOMENT_NS) / 1e9:.9f} s")
    return "in nanoseconds"


def attributes(directory: int) -> str:
    descriptor = _make(directory, "file", b"", keep=True)
    try:
        os.setxattr(descriptor, "user.atoll", b"value")
        _expect(os.getxattr(descriptor, "user.atoll") == b"value", "an attribute came back changed")
        _expect("user.atoll" in os.listxattr(descriptor), "an attribute is not listed")
    finally:
        os.close(descriptor)
    return "`user.` attributes"


# --- between processes ----------------------------------------------------------------------------------------------


def flock(directory: int) -> str:
    return _locks(directory, "flock", lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))


def record_locks(directory: int) -> str:
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


def maps(directory: int) -> str:
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


def appends(directory: int) -> str:
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


# --- what the checks are made of ------------------------------------------------------------------------------------


def _make(directory: int, name: str, content: bytes, *, keep: bool = False) -> int:
    descriptor = os.open(name, _NEW, 0o600, dir_fd=directory)
    try:
        linux.write_all(descriptor, content)
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
