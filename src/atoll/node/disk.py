"""What the file system of a directory can do, each tried for real on files that are removed again."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atoll import linux

_HERE = -100  # AT_FDCWD: absolute paths need no directory


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
        try:
            linux.exchange(_HERE, str(one), _HERE, str(two))
        except OSError as error:
            return error.strerror or str(error)
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
    with _scratch(directory) as scratch:
        (scratch / "one").write_bytes(bytes(4096))
        with open(scratch / "one", "rb") as one, open(scratch / "two", "wb") as two:
            try:
                linux.clone(one.fileno(), two.fileno())
            except OSError as error:
                return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory, prefix=".doctor-") as name:
        yield Path(name)
