"""Self-test of the file system under a volume, run by its storage peer for `atoll doctor --data`.

Every check is tried for real in one directory below `staging`, on the volume's own file system; the directory is
removed at the end. A trial without room on the disk proves nothing and is reported as such.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from atoll import linux
from atoll.model.findings import Finding
from atoll.storage.selftest.checks import CHECKS, Check, Missing
from atoll.storage.selftest.network_disks import promises
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import new_name

_LEAST_FREE_BYTES = 1 << 30
_LEAST_FREE_INODES = 10_000
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
_LARGER = "remove something from `/data`, or set `ATOLL_HOME` to a larger disk"


def examine(volume: VolumeRoot) -> Iterator[Finding]:
    """Try every check on a volume's file system; a lack of room comes before the other findings.

    Raises:
        OSError: no check can be tried, because the disk is full or cannot be written.
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
    """A check could not be tried: the disk is full or the quota used up."""


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
    """Run one check in an open, empty directory.

    Raises:
        NoRoom: the check could not be tried.
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
    """Make a directory below staging for the trials, locked so that no peer removes it as a leftover."""
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
