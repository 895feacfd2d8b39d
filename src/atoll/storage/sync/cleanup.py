"""Upkeep of `staging`: recover the work that a crash has cut, and remove leftovers and replaced trees.

`clean` comes before each sync and does little; `collect` is a request of the daemon, from time to time. The table
`volume.staging.KINDS` has the way to reclaim each kind of name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from atoll.storage.sync import switch_record
from atoll.storage.sync.late_writes import rescue
from atoll.storage.volume.locate import exists, move
from atoll.storage.volume.locks import holding, holding_target
from atoll.storage.volume.removal import Pace, Slowly, remove_tree
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import (
    ABANDONED_SECONDS,
    KINDS,
    NO_LOCKS,
    NOTE,
    QUIET_SECONDS,
    Reclaim,
    ReplacedTree,
    leftovers,
    new_name,
    parse,
    replaced_ns,
)

_AT_ONCE = 500
"""Inodes that a sync frees before its own work: leftovers of dead peers must not hold it up."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def clean(volume: VolumeRoot) -> None:
    """Finish or undo the work of dead peers, and remove a part of their leftovers; all, where the disk is full.

    The contents of an interrupted sync stay for the next one to its target.
    """
    switch_record.clean(volume)
    unlocked = [kind for kind, row in KINDS.items() if row.reclaim is Reclaim.UNLOCKED]
    for kind, _, name in leftovers(volume.staging, *unlocked):
        _throw_away_unlocked(volume, kind, name)
    with contextlib.suppress(_Enough):
        for _, _, name in leftovers(volume.staging, "trash"):
            _remove(volume, name, Pace(portion=_AT_ONCE, wait=_enough))


class _Enough(Exception):
    """The next `collect` does the rest."""


def _enough(_: float) -> None:
    raise _Enough


def collect(volume: VolumeRoot, before_ns: int | None = None, pace: Pace | None = None) -> int:
    """Remove the trees that were replaced (before a moment, where one is given), and the leftovers of dead peers.

    Args:
        before_ns: when the oldest living sandbox was started, nanoseconds since the epoch; it may have newer ones open.
        pace: how slowly; None takes no pauses.

    Returns:
        how many replaced trees were removed.
    """
    clean(volume)
    pace = pace or Pace(portion=0)
    removed = 0
    for kind, key, name in leftovers(volume.staging):
        row, moment_ns = KINDS[kind], replaced_ns(name)
        match row.reclaim:
            case Reclaim.UNSEEN if moment_ns is not None and (before_ns is None or moment_ns < before_ns):
                removed += _remove_replaced(volume, name, pace)
            case Reclaim.REMOVED:
                _remove(volume, name, pace)
            case Reclaim.ABANDONED:
                with holding(volume.locks, key, exclusive=True, wait=None) as held:
                    if held:
                        _discard_old(volume, name, row.seconds)
            case Reclaim.OLD:
                _discard_old(volume, name, row.seconds)
    _drop_notes(volume)
    return removed


def worth_collecting(staging: Path, before_ns: int) -> bool:
    """Return whether `collect` would find something to do; it touches nothing.

    Raises:
        OSError: the directory cannot be listed.
    """
    now = time.time()
    for name in os.listdir(staging):
        kind, _ = parse(name)
        if not kind:
            continue
        row, moment_ns = KINDS[kind], replaced_ns(name)
        if row.reclaim is Reclaim.UNSEEN:
            if moment_ns is not None and moment_ns < before_ns:
                return True
        elif not row.seconds:
            return True
        else:
            with contextlib.suppress(FileNotFoundError):
                if now - os.lstat(staging / name).st_mtime > row.seconds:
                    return True
    return False


def copy_all_late_writes(volume: VolumeRoot) -> None:
    """Copy the late writes of all replaced trees to their mirrors, for the last time; no sandbox lives."""
    for _, _, name in leftovers(volume.staging, "old"):
        if replaced_ns(name) is not None:
            with contextlib.suppress(OSError):
                if rescue(volume, name):
                    os.unlink(name + NOTE, dir_fd=volume.staging)


def _remove_replaced(volume: VolumeRoot, name: str, pace: Pace) -> bool:
    """Remove a replaced tree, after its late writes were copied to its mirror."""
    with contextlib.suppress(OSError):  # the next `collect` tries again
        if rescue(volume, name):
            _remove(volume, name, pace)
            if not exists(volume.staging, name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + NOTE, dir_fd=volume.staging)
            return True
    return False


def _drop_notes(volume: VolumeRoot) -> None:
    """Remove the notes of trees that are gone, or that never came."""
    found = {name for _, _, name in leftovers(volume.staging, "old")}
    for name in found:
        old = name.removesuffix(NOTE)
        if name != old and replaced_ns(old) is not None and old not in found:
            with contextlib.suppress(OSError):
                if _is_abandoned(volume, old):
                    os.unlink(name, dir_fd=volume.staging)


def _is_abandoned(volume: VolumeRoot, old: str) -> bool:
    """Return whether no peer is about to give a note its tree."""
    try:
        target = ReplacedTree.read(volume.staging, old).target
    except ValueError:  # a peer that writes it now is done soon
        return time.time() - os.stat(old + NOTE, dir_fd=volume.staging).st_ctime > QUIET_SECONDS
    with holding_target(volume.locks, target) as held:
        return held and not exists(volume.staging, old)


def _remove(volume: VolumeRoot, name: str, pace: Pace) -> None:
    with contextlib.suppress(OSError):  # another peer may be removing it too; the next `collect` goes on
        remove_tree(volume.staging, name, Slowly(pace))


def _discard_old(volume: VolumeRoot, name: str, seconds: float) -> None:
    with contextlib.suppress(OSError):
        found = os.stat(name, dir_fd=volume.staging, follow_symlinks=False)
        # A rename moves the change time: a tree that was made long ago may just have got this name.
        changed = found.st_mtime if seconds > QUIET_SECONDS else found.st_ctime
        if time.time() - changed > seconds:
            volume.discard(volume.staging, name)


def _throw_away_unlocked(volume: VolumeRoot, kind: str, name: str) -> None:
    """Rename an unfinished file or tree to a `trash` name, unless its writer lives and holds its lock."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, _READ, dir_fd=volume.staging)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    _discard_old(volume, name, ABANDONED_SECONDS)
                raise
            trash = new_name("trash")
            move(volume.staging, name, volume.staging, trash)
            if kind == "file":
                os.unlink(trash, dir_fd=volume.staging)
            else:  # a tree without its lock was made just now, and must not live on
                os.rmdir(trash, dir_fd=volume.staging)
        finally:
            os.close(descriptor)
