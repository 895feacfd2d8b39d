"""What is done in staging besides the work: recover what a crash has cut, and remove what nobody needs any more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from atoll.storage.sync import switch_record
from atoll.storage.sync.index import KEPT_SECONDS
from atoll.storage.sync.late_writes import Origin, note_name, rescue
from atoll.storage.volume.locate import VolumeRoot, exists, move, names, remove_tree
from atoll.storage.volume.locks import alone, holding, target_key
from atoll.storage.volume.removal import OLD, Pace, Slowly

ABANDONED_SECONDS = 24 * 3600.0
"""How long what an interrupted sync has received is kept for the next one to its target."""

QUIET_SECONDS = 30.0
"""A file or tree that has been written to lately most likely has a writer that lives: `collect` need not look."""

_AFTER_SECONDS = {
    "stage-": ABANDONED_SECONDS,
    "partial-": ABANDONED_SECONDS,
    "file-": QUIET_SECONDS,
    "tree-": QUIET_SECONDS,
    "new-": QUIET_SECONDS,
    "index-": KEPT_SECONDS,
}

_AT_ONCE = 500
"""How many inodes a sync frees before its own work: what dead peers left must not hold it up."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def clean(volume: VolumeRoot) -> None:
    """Finish or undo what dead peers have left; of much that is to be removed, only a part, unless the disk is full.

    What an interrupted sync has received stays for the next one to its target.
    """
    switch_record.clean(volume)
    for name in names(volume.staging):
        if name.startswith(("file-", "tree-")):
            _throw_away_unlocked(volume, name)
    with contextlib.suppress(_Enough):
        for name in names(volume.staging):
            if name.startswith("trash-"):
                _remove(volume, name, Pace(portion=_AT_ONCE, wait=_enough))


class _Enough(Exception):
    """The next `collect` does the rest."""


def _enough(_: float) -> None:
    raise _Enough


def collect(volume: VolumeRoot, before_ns: int | None = None, pace: Pace | None = None) -> int:
    """Remove the trees that were replaced (before a moment, where one is given), and what dead peers left.

    Args:
        before_ns: when the oldest sandbox that lives was started, nanoseconds since the epoch; it may have older ones
            open.
        pace: how slowly; None takes no pauses.

    Returns:
        how many replaced trees were removed.
    """
    clean(volume)
    pace = pace or Pace(portion=0)
    removed = 0
    for name in names(volume.staging):
        old = OLD.fullmatch(name)
        if old and (before_ns is None or int(old[1]) < before_ns):
            removed += _remove_replaced(volume, name, pace)
        elif name.startswith("trash-"):
            _remove(volume, name, pace)
        elif name.startswith(("stage-", "partial-")):
            _drop_abandoned(volume, name)
        elif name.startswith("index-"):
            _drop_unused(volume, name)
        elif name.startswith("new-"):
            _drop_unfinished(volume, name)
    _drop_notes(volume)
    return removed


def worth_collecting(staging: Path, before_ns: int) -> bool:
    """Whether `collect` would find something to do; for who must not touch what is there.

    Raises:
        OSError: the directory cannot be listed.
    """
    now = time.time()
    for name in os.listdir(staging):
        old = OLD.fullmatch(name)
        if name.startswith(("trash-", "switch-", "record-", "snapshot-", "restore-")) or (
            old and int(old[1]) < before_ns
        ):
            return True
        seconds = next((seconds for kind, seconds in _AFTER_SECONDS.items() if name.startswith(kind)), None)
        if seconds is not None:
            with contextlib.suppress(FileNotFoundError):
                if now - os.lstat(staging / name).st_mtime > seconds:
                    return True
    return False


def _remove_replaced(volume: VolumeRoot, name: str, pace: Pace) -> bool:
    """Remove a replaced tree, when what was written into it since is where its mirror is now."""
    with contextlib.suppress(OSError):  # what cannot be brought along now is tried again the next time
        if rescue(volume, name):
            _remove(volume, name, pace)
            if not exists(volume.staging, name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(note_name(name), dir_fd=volume.staging)
            return True
    return False


def _drop_notes(volume: VolumeRoot) -> None:
    """Remove the notes of trees that are gone, or that never came."""
    found = set(names(volume.staging))
    for name in found:
        old = OLD.fullmatch(name.removesuffix(".json"))
        if old and name != old[0] and old[0] not in found:
            with contextlib.suppress(OSError):
                if _is_abandoned(volume, old[0]):
                    os.unlink(name, dir_fd=volume.staging)


def _is_abandoned(volume: VolumeRoot, old: str) -> bool:
    """Whether nobody is just about to give a note its tree."""
    try:
        target = Origin.read(volume, old).target
    except ValueError:  # who writes it now will be done soon
        return time.time() - os.stat(note_name(old), dir_fd=volume.staging).st_ctime > QUIET_SECONDS
    with alone(volume.locks, target, target_key(target)) as held:
        return held and not exists(volume.staging, old)


def _remove(volume: VolumeRoot, name: str, pace: Pace) -> None:
    with contextlib.suppress(OSError):  # another peer may be at it; the rest is for the next time
        remove_tree(volume.staging, name, Slowly(pace))


def _drop_abandoned(volume: VolumeRoot, name: str) -> None:
    with holding(volume.locks, name.partition("-")[2], exclusive=True, wait=None) as held:
        if held:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.stat(name, dir_fd=volume.staging).st_mtime > ABANDONED_SECONDS:
                    volume.discard(volume.staging, name)


def _drop_unfinished(volume: VolumeRoot, name: str) -> None:
    """Remove what was made to get another name at once, and did not: its maker was killed."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(name, dir_fd=volume.staging, follow_symlinks=False).st_ctime > QUIET_SECONDS:
            volume.discard(volume.staging, name)


def bring_all(volume: VolumeRoot) -> None:
    """Bring to their mirrors what was written into all replaced trees, once and for all; no sandbox lives."""
    for name in names(volume.staging):
        if OLD.fullmatch(name):
            with contextlib.suppress(OSError):
                if rescue(volume, name):
                    os.unlink(note_name(name), dir_fd=volume.staging)


def _drop_unused(volume: VolumeRoot, name: str) -> None:
    with contextlib.suppress(OSError):
        if time.time() - os.stat(name, dir_fd=volume.staging).st_mtime > KEPT_SECONDS:
            os.unlink(name, dir_fd=volume.staging)


def _throw_away_unlocked(volume: VolumeRoot, name: str) -> None:
    """Make a file or tree that was being written a thing to be removed, unless its writer lives and holds its lock."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, _READ, dir_fd=volume.staging)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            trash = volume.temporary_name("trash")
            move(volume.staging, name, volume.staging, trash)
            if name.startswith("file-"):
                os.unlink(trash, dir_fd=volume.staging)
            else:  # one that has just been made, and is not locked yet, must not live on
                os.rmdir(trash, dir_fd=volume.staging)
        finally:
            os.close(descriptor)
