"""Does the file system under a volume do what programs rely on? Each thing is tried for real.

What concerns two processes is tried with a second one, a Python of its own that is started for it (see `Partner`).
What is tried stays in one directory below `staging`, on the volume's own file system, and is removed. A switch that
says that something works is not believed, and an answer that pretends is found out: what was written is read back.

What is tried is in `trials`; here is what each thing is for, and what to do without it. A trial that finds no room
says nothing about its thing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atoll import linux
from atoll.model.findings import Finding
from atoll.storage.selftest import trials
from atoll.storage.selftest.network_disks import promises
from atoll.storage.selftest.trials import Missing
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import new_name

_LEAST_FREE_BYTES = 1 << 30
_LEAST_FREE_INODES = 10_000
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
_LARGER = "remove something from `/data`, or set `ATOLL_HOME` to a larger disk"
_MOVE = "set `ATOLL_HOME` to a directory on ext4, XFS or btrfs"


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
    """Try everything on a volume's file system, one after the other. That there was no room for a trial comes before
    what the others found.

    Raises:
        OSError: nothing can be tried: the disk is full, or cannot be written.
    """
    with _scratch(volume) as scratch:
        kind = linux.kind_of(scratch)
        yield Finding("file system", True, True, kind or "of a kind that `/proc` does not tell")
        found: list[Finding] = []
        untried: list[Check] = []
        reason = ""
        for number, check in enumerate(CHECKS):
            try:
                found.append(_tried_below(scratch, f"{number}", check))
            except NoRoom as error:
                untried.append(check)
                reason = reason or str(error)
        if untried:
            yield _no_room(untried, reason)
        yield from found
        yield from _room(scratch)
        yield from promises(kind)


class NoRoom(Exception):
    """A thing could not be tried, since the disk is full or the quota used up."""


def _tried_below(scratch: int, name: str, check: Check) -> Finding:
    try:
        os.mkdir(name, 0o700, dir_fd=scratch)
    except OSError as error:
        if error.errno in _FULL:
            raise NoRoom(_FULL[error.errno]) from error
        raise
    directory = os.open(name, OPEN_DIRECTORY, dir_fd=scratch)
    try:
        return tried(check, directory)
    finally:
        os.close(directory)


def _no_room(untried: list[Check], reason: str) -> Finding:
    names = ", ".join(check.name for check in untried)
    loses = f"functions can write little or nothing, and these could not be tried: {names}"
    return Finding("room for trials", any(check.needed for check in untried), False, reason, loses, _LARGER)


def tried(check: Check, directory: int) -> Finding:
    """Try one thing in an open, empty directory; what goes wrong is what is found.

    Raises:
        NoRoom: it could not be tried.
    """
    try:
        detail = check.attempt(directory)
    except Missing as error:
        return Finding(check.name, check.needed, False, str(error), check.loses, check.fix)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise NoRoom(_FULL[error.errno]) from error
        text = (getattr(error, "strerror", None) or str(error)).lower()
        return Finding(check.name, check.needed, False, text, check.loses, check.fix)
    return Finding(check.name, check.needed, True, detail)


@contextlib.contextmanager
def _scratch(volume: VolumeRoot) -> Iterator[int]:
    """Make a directory below staging that is removed at the end; it is locked, so that nobody takes it for a leftover."""
    name = new_name("tree")
    os.mkdir(name, 0o700, dir_fd=volume.staging)
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=volume.staging)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
        volume.discard(volume.staging, name)


# --- what there is --------------------------------------------------------------------------------------------------


def _room(directory: int) -> Iterator[Finding]:
    status = os.fstatvfs(directory)
    free = status.f_bavail * status.f_frsize
    enough = free >= _LEAST_FREE_BYTES
    lost = "" if enough else "functions cannot write much more"
    fix = "" if enough else _LARGER
    yield Finding("free space", False, enough, f"{free / (1 << 30):.1f} GiB", lost, fix)
    enough = not status.f_files or status.f_favail >= _LEAST_FREE_INODES
    detail = f"{status.f_favail:,} files" if status.f_files else "no limit"
    lost = "" if enough else "no more files can be made, though there may be space"
    yield Finding("free inodes", False, enough, detail, lost, "" if enough else "remove files that are not needed")


CHECKS = (
    Check("atomic rename", True, trials.rename, "a file that is replaced may be missing, or torn, for a moment"),
    Check("atomic exchange", True, trials.exchange, "`sync_dir` refuses to replace a directory, unless `atomic=False`"),
    Check(
        "rename without replacing", False, trials.no_replace, "two programs that make the same name may both succeed"
    ),
    Check("durable writes", True, trials.durable, "what was written may be gone after a loss of power"),
    Check("`flock` locks", True, trials.flock, "syncs and downloads of one target run into each other"),
    Check("`fcntl` locks", True, trials.record_locks, "SQLite databases are damaged by two writers"),
    Check(
        "shared memory maps",
        True,
        trials.maps,
        "SQLite in WAL mode, LMDB and NumPy's `memmap` of two processes go wrong",
    ),
    Check("appends", True, trials.appends, "logs that several functions write lose lines"),
    Check(
        "removed while open", True, trials.removed_while_open, "a function that reads a file which is replaced fails"
    ),
    Check("hard links", True, trials.links, "each sync and each snapshot copies all files"),
    Check(
        "symlinks",
        True,
        trials.symlinks,
        "directories with symlinks cannot be mirrored; Hugging Face's cache is copies",
    ),
    Check("permission bits", True, trials.modes, "mirrors are not exact, and programs are not executable"),
    Check("modification times", True, trials.times, "files count as changed at each sync, and travel again"),
    Check("names of 255 bytes", True, trials.long_names, "files with long names cannot be mirrored"),
    Check("case in names", True, trials.case, "of two names that differ in case only one is kept"),
    Check("names of any bytes", False, trials.byte_names, "files whose names are not text in UTF-8 cannot be mirrored"),
    Check("sparse files", False, trials.sparse, "disk images and databases take all the space that they announce"),
    Check("preallocation", False, trials.allocation, "programs that want space in advance write zeros instead"),
    Check("extended attributes", False, trials.attributes, "programs that keep `user.` attributes fail"),
    Check("direct input and output", False, trials.direct, "databases that want `O_DIRECT` fail or fall back"),
    Check(
        "reflinks",
        False,
        trials.reflinks,
        "snapshots copy what has changed, and copies take space and time",
        "use btrfs, or XFS with `reflink=1`",
    ),
)
"""In the order in which they are told."""
