"""Files of detached calls below `ATOLL_HOME/detached`: written under another name, synced, renamed.

calls.db          rows (`store`)
keeper.lock       held by the one keeper that makes calls
spools/NAME       functions and arguments (`model.spool`); NAME is the node's, never a client's
bundles/DIGEST    the project's modules, once for all calls that have the same
outputs/CALL      the output of a call, as it came
results/CALL      the answer of a call, as frames
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from atoll import linux, ownership
from atoll.model.spool import is_id

KINDS = ("spools", "bundles", "outputs", "results")
STRAY_SECONDS = 3600.0
"""Age of a file without a row before it is removed: its row may be about to come."""


def new_name() -> str:
    """Return a name for a file that nobody can know before: files of all users lie beside each other."""
    return secrets.token_hex(16)


class Files:
    """The files below a directory, which is made private to this user where it is not there.

    Raises:
        StateUntrusted: another user can change the directory.
        OSError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with ownership.directory(directory, make=True) as found:
            for kind in KINDS:
                found.enter(kind, make=True).__exit__()

    def path(self, kind: str, name: str) -> Path:
        """Return the path of a file; its name may come from a damaged row, which must lead nowhere else.

        Raises:
            FileNotFoundError: no file has such a name.
        """
        if not is_id(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(name))
        return self.directory / kind / name

    def write(self, kind: str, name: str, fill: Callable[[BinaryIO], None]) -> int:
        """Make a file that is there as a whole or not at all, also after a power cut; return its size.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        path = self.path(kind, name)
        if kind == "spools" and os.path.lexists(path):  # each has a name of its own, and calls are made from it
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary = path.with_name(f".{name}.{os.getpid()}.new")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            os.rename(temporary, path)
            linux.sync_directory(str(path.parent))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return size

    def open(self, kind: str, name: str) -> int | None:
        """Return a descriptor to read a file with; None where it is not there."""
        try:
            return os.open(self.path(kind, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def remove(self, kind: str, *names: str) -> None:
        """Remove files; one that is not there is in order."""
        for name in names:
            with contextlib.suppress(OSError):
                self.path(kind, name).unlink()

    def remove_strays(self, kind: str, known: Iterable[str]) -> None:
        """Remove the files of a kind that are old and that nobody knows."""
        names = set(known)
        before = time.time() - STRAY_SECONDS
        with contextlib.suppress(OSError), os.scandir(self.directory / kind) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.name not in names and entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; no symlink is followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        yield file
