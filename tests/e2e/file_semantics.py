"""What a directory's file system answers, as plain data: a program that runs inside a function and outside alike.

It knows only the standard library. `observe` tries single calls, as pjdfstest does, a seeded sequence on one file, as
fsx does, databases, and test modules of CPython itself.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import random
import socket
import sqlite3
import stat
import sys
import unittest
from collections.abc import Callable
from typing import Any


def answer(act: Callable[[], Any]) -> Any:
    """Return what a call gives: its value, or the name of its error."""
    try:
        return act()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


CLOSED = "the user may not read the interpreter"
"""The outcome of a failed test where root's Python is closed to others: it may have wanted a module or its source."""


def touch(name: str, content: bytes = b"abc") -> str:
    with open(name, "wb") as file:
        file.write(content)
    return name


def mode_of(name: str) -> str:
    return oct(os.lstat(name).st_mode)


def _opened(name: str, flags: int, act: Callable[[int], Any] = lambda descriptor: "opened") -> Any:
    descriptor = os.open(name, flags, 0o640)
    try:
        return act(descriptor)
    finally:
        os.close(descriptor)


def _changed_mode(name: str, mode: int) -> str:
    os.chmod(name, mode)
    return mode_of(name)


def _times() -> tuple[int, int]:
    os.utime("file", ns=(1_000_000_007, 1_700_000_000_123_456_789))
    found = os.stat("file")
    return found.st_atime_ns, found.st_mtime_ns


def _append(descriptor: int) -> bytes:
    os.pwrite(descriptor, b"X", 0)  # Linux appends in spite of the offset
    os.write(descriptor, b"Y")
    return os.pread(descriptor, 10, 0)


def _unlinked() -> tuple[int, bytes]:
    with open(touch("gone"), "rb") as file:
        os.unlink("gone")
        return os.fstat(file.fileno()).st_nlink, file.read()


def _holes(descriptor: int) -> tuple[int, int]:
    os.ftruncate(descriptor, 1 << 20)
    os.pwrite(descriptor, b"x" * 4096, 1 << 19)
    return os.lseek(descriptor, 0, os.SEEK_DATA), os.lseek(descriptor, 1 << 19, os.SEEK_HOLE)


def _locked(lock: Callable[[int, int], Any]) -> Any:
    """Return what another process hears that asks for a lock which this one holds."""
    with open(touch("lock"), "r+b") as file:
        lock(file.fileno(), fcntl.LOCK_EX)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with open("lock", "r+b") as other:
                os.write(write, str(answer(lambda: lock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB))).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        heard = os.read(read, 100).decode()
        os.close(read)
        return heard


def _mapped() -> bytes:
    with open(touch("map", b"a" * 8192), "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[4096:4100] = b"mmap"
        view.flush()
        return os.pread(file.fileno(), 5, 4095)


def _temporary(descriptor: int) -> bytes:
    os.write(descriptor, b"linked")
    os.link(f"/proc/self/fd/{descriptor}", "linked", follow_symlinks=True)
    with open("linked", "rb") as file:
        return file.read()


def _attribute() -> tuple[bytes, list[str]]:
    os.setxattr("file", "user.one", b"value")
    return os.getxattr("file", "user.one"), os.listxattr("file")


def _bound() -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    return mode_of("socket")


def _copied() -> bytes:
    touch("from", b"0123456789")
    with open("from", "rb") as source, open("to", "w+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 4, 2, 1)
        os.sendfile(target.fileno(), source.fileno(), 0, 3)
        target.seek(0)
        return target.read()


def _tree() -> None:
    touch("file")
    os.makedirs("directory/inner")
    os.mkdir("empty")
    os.symlink("file", "link")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    touch("closed")
    os.chmod("closed", 0)


system: Any = os  # whose calls return nothing, or an error

CALLS: dict[str, Callable[[], Any]] = {
    "open a directory for writing": lambda: _opened("directory", os.O_RDWR),
    "open a file as a directory": lambda: _opened("file", os.O_DIRECTORY),
    "open a link itself": lambda: _opened("link", os.O_NOFOLLOW),
    "open a loop": lambda: _opened("loop", os.O_RDONLY),
    "create what is there": lambda: _opened("file", os.O_CREAT | os.O_EXCL),
    "create through a dangling link": lambda: _opened("dangling", os.O_CREAT | os.O_EXCL),
    "open a closed file": lambda: _opened("closed", os.O_RDONLY),
    "open below a file": lambda: _opened("file/x", os.O_CREAT),
    "a name of 255 bytes": lambda: touch("n" * 255),
    "a name of 256 bytes": lambda: touch("n" * 256),
    "a name that is no text": lambda: os.path.exists(touch(os.fsdecode(b"\xff\xfe"))),
    "names differ by case": lambda: touch("UPPER") != touch("upper") and len({"UPPER", "upper"} & set(os.listdir("."))),
    "rename a file over a directory": lambda: system.rename("file", "empty"),
    "rename a directory over a file": lambda: system.rename("empty", "file"),
    "rename over a full directory": lambda: system.rename("empty", "directory"),
    "rename into itself": lambda: system.rename("directory", "directory/inner/x"),
    "rename onto a hard link of it": lambda: (
        system.link("file", "same"),
        system.rename("file", "same"),
        os.path.exists("file"),
    ),
    "link a directory": lambda: system.link("directory", "hard"),
    "count links": lambda: (system.link("file", "second"), os.stat("file").st_nlink)[1],
    "link a link": lambda: (
        system.link("link", "linked-link", follow_symlinks=False),
        stat.S_ISLNK(os.lstat("link").st_mode),
    ),
    "unlink a directory": lambda: system.unlink("empty"),
    "remove a full directory": lambda: system.rmdir("directory"),
    "remove the current directory": lambda: system.rmdir("."),
    "make what is there": lambda: system.mkdir("empty"),
    "links of a directory": lambda: os.stat("directory").st_nlink in (1, 3),
    "mode 4755": lambda: _changed_mode("file", 0o4755),
    "mode 2770 of a directory": lambda: _changed_mode("empty", 0o2770),
    "mode 1777 of a directory": lambda: _changed_mode("empty", 0o1777),
    "a write clears the setuid bit": lambda: (_changed_mode("file", 0o4755), touch("file"), mode_of("file"))[2],
    "give a file away": lambda: system.chown("file", 0, 0),
    "keep a file": lambda: system.chown("file", os.getuid(), os.getgid()),
    "times to the nanosecond": _times,
    "truncate below zero": lambda: system.truncate("file", -1),
    "grow": lambda: (system.truncate("file", 10), open("file", "rb").read())[1],
    "append": lambda: _opened("file", os.O_RDWR | os.O_APPEND, _append),
    "read what is unlinked": _unlinked,
    "holes": lambda: _opened("sparse", os.O_RDWR | os.O_CREAT, _holes),
    "allocate": lambda: (system.posix_fallocate(os.open("file", os.O_RDWR), 0, 1 << 16), os.stat("file").st_size)[1],
    "flock": lambda: _locked(fcntl.flock),
    "lockf": lambda: _locked(fcntl.lockf),
    "map": _mapped,
    "a file without a name": lambda: _opened(".", os.O_RDWR | os.O_TMPFILE, _temporary),
    "attributes": _attribute,
    "attributes of the system": lambda: system.setxattr("file", "trusted.one", b"x"),
    "a pipe": lambda: (system.mkfifo("pipe"), mode_of("pipe"))[1],
    "a socket": _bound,
    "a device": lambda: system.mknod("device", 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    "copies in the kernel": _copied,
    "sync a directory": lambda: _opened(".", os.O_RDONLY | os.O_DIRECTORY, os.fsync),
    "the umask": lambda: (touch("made"), system.mkdir("made-directory"), mode_of("made"), mode_of("made-directory"))[
        2:
    ],
}


def sequence(seed: int, steps: int) -> str:
    """Change one file at random beside a model of it in memory; return the digest of all that was read."""
    draw, model, seen = random.Random(seed), bytearray(), hashlib.sha256()
    with open("sequence", "w+b", buffering=0) as file:
        for _ in range(steps):
            start, length = draw.randrange(1 << 16), draw.randrange(1, 1 << 13)
            kind = draw.randrange(5)
            if kind == 0:
                data = draw.randbytes(length)
                os.pwrite(file.fileno(), data, start)
                model.extend(bytes(max(0, start + length - len(model))))
                model[start : start + length] = data
            elif kind == 1:
                os.ftruncate(file.fileno(), start)
                model[start:] = b""
                model.extend(bytes(start - len(model)))
            elif kind == 2 and len(model) > start:
                with mmap.mmap(file.fileno(), 0) as view:
                    view[start : start + 1] = b"m"
                model[start : start + 1] = b"m"
            else:
                found = os.pread(file.fileno(), length, start)
                assert found == model[start : start + length], "the file differs from its model"
                seen.update(found)
    return seen.hexdigest()


def database() -> list[Any]:
    """Return what SQLite says in its two kinds of journal."""
    found: list[Any] = []
    for journal in ("wal", "delete"):
        base = sqlite3.connect(f"{journal}.db")
        found += base.execute(f"pragma journal_mode={journal}").fetchone()
        with base:
            base.execute("create table t (a integer primary key, b)")
            base.executemany("insert into t (b) values (?)", [(str(number),) for number in range(500)])
        other = sqlite3.connect(f"{journal}.db", timeout=0)
        base.execute("begin immediate")
        try:
            other.execute("begin immediate")
        except sqlite3.OperationalError as error:
            found.append(str(error))
        base.rollback()
        found += [
            other.execute("select count(*), max(b) from t").fetchone(),
            base.execute("pragma integrity_check").fetchone(),
        ]
        other.close()
        base.close()
    return found


def modules(names: list[str]) -> dict[str, Any]:
    """Return the outcomes of CPython's own test modules, by test; empty where the interpreter has none."""
    try:
        import test.support  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        return {}
    outcomes: dict[str, Any] = {}
    for name in names:
        result = unittest.TextTestRunner(io.StringIO(), verbosity=0).run(
            unittest.defaultTestLoader.loadTestsFromName(name)
        )
        outcomes[name] = result.testsRun
        failed = "failed" if os.access(os.__file__, os.R_OK) else CLOSED
        outcomes |= {case.id(): failed for case, _ in (*result.failures, *result.errors)}
        outcomes |= {case.id(): f"skipped: {reason}" for case, reason in result.skipped}
    return outcomes


def observe(directory: str, names: list[str], steps: int) -> dict[str, Any]:
    """Return all that the file system of a new directory answers."""
    os.umask(0o022)
    os.makedirs(directory)
    os.environ["TMPDIR"] = directory
    found: dict[str, Any] = {}
    for number, (what, act) in enumerate(CALLS.items()):
        os.mkdir(f"{directory}/{number}")
        os.chdir(f"{directory}/{number}")
        _tree()
        found[what] = answer(act)
    os.chdir(directory)
    found["sequence"] = sequence(1, steps)
    found["database"] = database()
    found["modules"] = modules(names)
    os.chdir("/")
    return json.loads(json.dumps(found, default=repr))  # type: ignore[no-any-return]


if __name__ == "__main__":
    uid, gid, own_directory, own_names, own_steps = json.loads(sys.argv[1])
    unittest.defaultTestLoader.loadTestsFromNames(own_names)  # from where the user may not be able to read
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    print(json.dumps(observe(own_directory, own_names, own_steps)))
