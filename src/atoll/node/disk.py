"""What the file system of a directory can do, each tried for real on files that are removed again."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_RENAME_EXCHANGE = 2  # <linux/fs.h>
_FICLONE = 0x40049409  # <linux/fs.h>: _IOW(0x94, 9, int)
_AT_FDCWD = -100


def free_bytes(directory: Path) -> int:
    """Return what this user can still write there."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def writable(directory: Path) -> str:
    """Make the directory if it is missing and write a file there; return what went wrong, empty for nothing."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"atoll")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def exchanges(directory: Path) -> str:
    """Exchange two directories atomically; return what went wrong, empty for nothing."""
    with _scratch(directory) as scratch:
        one, two = scratch / "one", scratch / "two"
        one.mkdir()
        two.mkdir()
        (one / "mark").touch()
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "renameat2"):
            return "the C library has no `renameat2`"
        if libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(two), _RENAME_EXCHANGE) != 0:
            return os.strerror(ctypes.get_errno())
        return "" if (two / "mark").exists() else os.strerror(errno.EIO)


def links(directory: Path) -> str:
    """Make a hard link; return what went wrong, empty for nothing."""
    with _scratch(directory) as scratch:
        (scratch / "one").touch()
        try:
            os.link(scratch / "one", scratch / "two")
        except OSError as error:
            return error.strerror or str(error)
    return ""


def reflinks(directory: Path) -> str:
    """Clone a file without copying its blocks; return what went wrong, empty for nothing."""
    import fcntl

    with _scratch(directory) as scratch:
        (scratch / "one").write_bytes(bytes(4096))
        with open(scratch / "one", "rb") as one, open(scratch / "two", "wb") as two:
            try:
                fcntl.ioctl(two.fileno(), _FICLONE, one.fileno())
            except OSError as error:
                return error.strerror or str(error)
    return ""


def kind(directory: Path) -> str:
    """Return the type of the file system, as mounts have it (`ext4`, `fuse.juicefs`); empty where it is not known."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                return after.split()[0]
    return ""


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as name:
        yield Path(name)
