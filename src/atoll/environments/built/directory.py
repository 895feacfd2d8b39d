"""The directory of environments: listing, current generations, removal.

A directory without a readable `record.json` is left by a killed build or removal; it counts as absent. Whoever
changes a name's state here holds its lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from atoll.blake2 import blake2b
from atoll.environments.built import locks, records
from atoll.environments.built.pins import Pins
from atoll.environments.built.records import EnvironmentRecord
from atoll.environments.built.removal import remove_tree
from atoll.errors import AtollError, DiskFull, EnvironmentBuildError, InternalError, StateUnusable

_TOUCH_SECONDS = 60.0
_SECRET_BYTES = 32


class Shelf:
    """The environments below one directory.

    Args:
        directory: holds one directory per environment, and `.locks`, `.pins`, `.cache`.
        work: where environments are built, one directory per name.
        shared_pins: versions that all machines are held to; None where this one shares nothing.
    """

    def __init__(self, directory: Path, work: Path, shared_pins: Path | None = None) -> None:
        self.directory = directory
        self.pins = Pins(directory / ".pins", shared_pins)
        self._work = work
        self._secret = b""

    def path(self, name: str) -> Path:
        """Return where the environment `name` is."""
        return self.directory / name

    def lock_path(self, name: str) -> Path:
        """Return the lock file of the environment `name`."""
        return self.directory / ".locks" / name

    def keyed(self, text: str) -> str:
        """Return a digest of a text that nobody can guess from it: it is keyed with a secret of this directory."""
        if not self._secret:
            self._secret = _read_secret(self.directory / ".secret")
        return blake2b(text.encode(), key=self._secret, digest_size=16).hexdigest()

    def prepare(self) -> None:
        """Make the directories."""
        for directory in (self.directory, self.directory / ".locks", self.directory / ".pins"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Private, wherever `ATOLL_HOME` is: packages may be private, and a build may leave a program with a setuid bit.
        # Sandboxes are shown what is below it, which any user may read there.
        self.directory.chmod(0o700)

    def clean(self) -> None:
        """Remove leftovers of killed builds and removals; locked ones stay."""
        work = [path.name for path in self._work.iterdir()]
        for name in {*work, *(name for name in self.names() if records.read(self.path(name)) is None)}:
            lock = locks.try_lock(self.lock_path(name), exclusive=True)
            if lock is not None:
                with lock:
                    self.drop_leftovers(name)

    def names(self) -> Iterator[str]:
        """Give the names of all environments, complete or not."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            yield from [entry.name for entry in entries if records.split(entry.name) is not None]

    def current(self, found: str) -> str | None:
        """Return the name of the newest complete generation."""
        generations = sorted(
            (pair[1] for name in self.names() if (pair := records.split(name)) is not None and pair[0] == found),
            reverse=True,
        )
        for generation in generations:
            name = records.name_of(found, generation)
            if records.complete(self.path(name)):
                return name
        return None

    def touch(self, name: str) -> None:
        """Note a use; at most one write a minute."""
        path = self.path(name) / "record.json"
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
                os.utime(path)

    def list(self) -> list[EnvironmentRecord]:
        """Return the complete environments, the most recently used first."""
        found = []
        for name in self.names():
            record = records.read(self.path(name))
            if record is not None:
                lock = locks.try_lock(self.lock_path(name), exclusive=True)
                if lock is not None:
                    lock.release()
                newest = self.current((records.split(name) or (name, 1))[0])
                found.append(replace(record, in_use=lock is None, superseded=newest != name))
        return sorted(found, key=lambda record: -record.last_used)

    def find(self, prefix: str) -> EnvironmentRecord:
        """Return the one environment whose key starts with `prefix`.

        Raises:
            EnvironmentBuildError: there is none, or more than one.
        """
        found = [record for record in self.list() if record.key.startswith(prefix)] if prefix else []
        exact = [record for record in found if record.key == prefix]
        if len(exact or found) == 1:
            return (exact or found)[0]
        raise EnvironmentBuildError(
            f"`{prefix}` names {'more than one environment' if found else 'no environment'}",
            hint="`atoll env list` shows their keys",
        )

    def text(self, name: str, file: str) -> str:
        """Return `build.log` or `requirements.lock` of an environment, empty where it has none."""
        try:
            return (self.path(name) / file).read_text("utf-8", "replace")
        except OSError:
            return ""

    def remove(self, name: str) -> bool:
        """Remove an environment; return False when somebody holds its lock."""
        lock = locks.try_lock(self.lock_path(name), exclusive=True)
        if lock is None:
            return False
        with lock:
            self.discard(name)
        return True

    def remove_superseded(self, found: str) -> None:
        """Remove the older generations of a key that nobody holds."""
        current = self.current(found)
        for name in self.names():
            if name != current and (records.split(name) or ("", 0))[0] == found:
                self.remove(name)

    def discard(self, name: str) -> None:
        """Remove the directory of this name, complete or not; the caller holds its lock."""
        with contextlib.suppress(FileNotFoundError):
            (self.path(name) / "record.json").unlink()
        self.drop_leftovers(name)

    def drop_leftovers(self, name: str) -> None:
        """Remove the directory of this name unless it is complete; the caller holds its lock."""
        remove_tree(self._work / name)
        directory = self.path(name)
        if records.read(directory) is None:
            remove_tree(directory)


def _read_secret(path: Path) -> bytes:
    """Return the secret at `path`, private to the owner; made once, by whoever is first.

    Raises:
        StateUnusable: something has damaged it.
    """
    with contextlib.suppress(FileNotFoundError):
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise StateUnusable(
                f"`{path}` is damaged", hint="remove the file; environments with credentials are built anew"
            )
        return secret
    temporary = path.with_name(f"{path.name}-{os.getpid()}")
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_TRUNC, 0o600)) as file:
        file.write(os.urandom(_SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return path.read_bytes()


def size_bytes(directory: Path) -> int:
    """Return the size of the files below a directory, each inode once."""
    seen: set[int] = set()
    total = 0
    pending = [str(directory)]  # `os.walk` calls itself for each level, of which a package can make very many
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_size
    return total


def shared_sizes(directories: Sequence[Path]) -> tuple[int, int]:
    """Return the size of the files below some directories, and the part of it that their removal frees.

    A file that has a name elsewhere, such as in an environment, keeps its space.
    """
    names: dict[tuple[int, int], int] = {}
    total = freed = 0
    pending = [str(directory) for directory in directories]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    inode = (status.st_dev, status.st_ino)
                    names[inode] = names.get(inode, 0) + 1
                    total += status.st_size if names[inode] == 1 else 0
                    freed += status.st_size if names[inode] == status.st_nlink else 0
    return total, freed


@contextlib.contextmanager
def translated(directory: Path) -> Iterator[None]:
    """Turn errors of the state's own files into named ones."""
    try:
        yield
    except AtollError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space is left below `{directory}`", hint="make space, for example with `atoll env prune --cache`"
            ) from error
        raise StateUnusable(
            f"cannot use `{error.filename or directory}`: {error.strerror or error}",
            hint="check the permissions below `ATOLL_HOME`",
        ) from error
    except (UnicodeDecodeError, shutil.Error) as error:
        raise InternalError(f"building an environment failed: {error}") from error
