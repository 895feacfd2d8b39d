"""Records of switches: finish or undo a switch, in each sync and after a crash.

Before a switch its record is made durable in staging (`record-KEY`): the inodes of the old and the new side, and the
steps that follow for either. While a record exists, both sides exist, at the target or in staging: so no inode number
can mean another file. The place of the new inode tells the result of the switch:

    at the target             the new side won: set modes and times in place, copy late writes, retire the old tree
    at `switch-KEY`           the old side won: restore modes, throw the new tree away
    neither                   a function has moved or removed the new side: only leftovers are removed

`settle` does this in the course of a sync, and recovery after a crash calls the same function. Each step may be
repeated, so a crash during recovery is recovered from like any other. A torn record means that nothing was switched.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Self

from atoll import linux
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import parent_of
from atoll.storage.sync.last_look import LastLook
from atoll.storage.sync.late_writes import copy_during_switch, inode_of, pack_inodes, unpack_inodes
from atoll.storage.volume import locate as filesystem
from atoll.storage.volume.locate import OPEN_PLACE, locate
from atoll.storage.volume.locks import holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import ReplacedTree, leftovers, name_of, read_json, retire, write_json


@dataclass
class Record:
    """One switch that is about to happen. Paths are relative to the target unless noted.

    Args:
        target: the target's resolved path, relative to the volume's root.
        scope: the path that is switched; None where there are only changes in place.
        root: inode of the target's directory; None where it does not exist yet.
        old: inode of the old side at the scope; None where it does not exist.
        new: inode of the new side, at `switch-KEY`; None where nothing comes.
        before: directories that are made writable for the switch, with their modes.
        after: directories that change in place, with their new modes and times.
        drop: paths that go, relative to the scope, where late writes are copied at once; else None.
        aside: name in staging of the old side, where the file system cannot exchange.
        since_ns: when the old tree was scanned, where names are kept: writes after it are late; else 0.
        inodes: those of the old tree, where the scope is a directory that was rebuilt (`late_writes.pack_inodes`).
        generation: nanoseconds since the epoch.
    """

    target: str
    scope: str | None
    root: int | None
    old: int | None
    new: int | None
    before: list[tuple[str, int]] = field(default_factory=list)
    after: list[tuple[str, int, int]] = field(default_factory=list)
    drop: list[str] | None = None
    aside: str = ""
    since_ns: int = 0
    inodes: str = ""
    generation: int = field(default_factory=time.time_ns)

    def write(self, volume: VolumeRoot, key: str) -> int:
        """Write the record; returns it, open: it is not durable yet."""
        return write_json(volume.staging, name_of("record", key), asdict(self))


def read_record(volume: VolumeRoot, key: str) -> Record | None:
    """Return the record of a target; None where there is none that is whole."""
    try:
        record = Record(**read_json(volume.staging, name_of("record", key)))
        unpack_inodes(record.inodes)
        return record
    except (OSError, ValueError, TypeError):
        return None


def forget(volume: VolumeRoot, key: str) -> None:
    """Remove the record of a target."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name_of("record", key), dir_fd=volume.staging)
        reached("forgotten")


def recover(volume: VolumeRoot, key: str) -> None:
    """Finish or undo a switch that a crash has interrupted; the target's lock is held.

    Raises:
        OSError: the volume cannot be written; it can be tried again.
    """
    record = read_record(volume, key)
    if record is not None:
        settle(volume, key, record)
        return
    if filesystem.exists(volume.staging, name_of("switch", key)):
        # Without a record there was no switch, and no function saw the tree; one that an earlier version left may be old.
        retire(volume.staging, name_of("switch", key))
    forget(volume, key)


def clean(volume: VolumeRoot) -> None:
    """Recover all targets that no peer works at."""
    for _, key, _ in leftovers(volume.staging, "record", "switch"):
        with contextlib.suppress(OSError, ValueError):
            record = read_record(volume, key)
            with holding_target(volume.locks, record.target if record is not None else "", key=key) as held:
                if held:
                    volume.refresh()
                    recover(volume, key)


def settle(
    volume: VolumeRoot,
    key: str,
    record: Record,
    inodes: dict[str, int] | None = None,
    look: LastLook | None = None,
) -> bool:
    """Find out which side has won, finish its steps, and forget the record; the target's lock is held.

    Args:
        inodes: those of the record, in the course of the sync itself; updated.
        look: that of the sync itself, which has looked at the old tree right before the exchange.

    Returns:
        whether the new side has won.

    Raises:
        OSError: something cannot be done; `recover` will try again.
    """
    switch, began_ns = name_of("switch", key), time.time_ns()
    # After a crash the moment of the exchange is not known, only one before it.
    moment_ns = began_ns if inodes is not None else record.generation
    inodes = unpack_inodes(record.inodes) if inodes is None else inodes
    with _Target(volume, record) as target:
        if record.scope is None:
            won = target.root is not None
        elif record.aside and target.found is None and record.new == inode_of(volume.staging, switch):
            won = _complete(volume, record, switch, target)
        else:
            gone = record.new is None  # something goes, and nothing comes
            won = target.found != record.old if gone else record.new != inode_of(volume.staging, switch)
        reached("won" if won else "lost")
        if won:
            _copy_late_writes(volume, switch, record, target, inodes, look)
            target.set_in_place(record.after)
        else:
            target.restore_modes(record.before)
        target.sync()
        if won:  # a function that was about to create a file in the old tree has done so by now
            _copy_late_writes(volume, switch, record, target, inodes, look)
        reached("settled")
    if won:
        origin = ReplacedTree(record.target, record.scope or "", record.since_ns or moment_ns, pack_inodes(inodes))
        _retire(volume, key, record, origin)
        volume.discard(volume.staging, name_of("stage", key))  # the directories above the received files
    else:
        volume.discard(volume.staging, switch)  # no function ever saw it
    forget(volume, key)
    return won


def _complete(volume: VolumeRoot, record: Record, switch: str, target: _Target) -> bool:
    """Finish the exchange in two steps that a crash has cut in half: the old tree is aside, the new not yet there."""
    if target.holder is None or inode_of(volume.staging, record.aside) != record.old:
        return False
    try:
        linux.rename_new(volume.staging, switch, target.holder, target.name)
    except FileExistsError:
        return False
    reached("completed")
    return True


def _retire(volume: VolumeRoot, key: str, record: Record, origin: ReplacedTree) -> None:
    switch = name_of("switch", key)
    try:
        found = os.stat(switch, dir_fd=volume.staging, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(switch, dir_fd=volume.staging)  # a function that has the file open keeps it
    elif found.st_ino == record.new:
        volume.discard(volume.staging, switch)
    else:
        retire(volume.staging, switch, origin, name_of("record", key))


class _Target:
    """A record's target as it is now.

    Attributes:
        root: its directory, open; None where it is not the recorded one.
        holder: the directory that holds the scope, open; None where there is none.
        name: the scope's name in it.
        found: the inode at the scope; None where nothing exists.
    """

    def __init__(self, volume: VolumeRoot, record: Record) -> None:
        self._stack = contextlib.ExitStack()
        self._record = record
        self.root: int | None = None
        self.holder: int | None = None
        self.name, self.found = "", None
        self._staging = volume.staging
        place = self._stack.enter_context(locate(volume.data, record.target, follow=False))
        if place.missing or place.path != record.target:
            return
        if record.scope == "":
            self.holder, self.name = place.parent, place.name
        if place.is_directory:
            self.root = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
            self._stack.callback(os.close, self.root)
        if record.scope and self.root is not None:
            walk = self._stack.enter_context(DirectoryCursor(self.root))
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.holder, self.name = walk.open(parent_of(record.scope)), record.scope.rpartition("/")[2]
        if self.holder is not None:
            self.found = inode_of(self.holder, self.name)
        # The target's directory is another one where it is switched itself, or where a function has replaced it.
        mine = (record.root, record.new) if record.scope == "" else (record.root,)
        if self.root is not None and os.fstat(self.root).st_ino not in mine:
            self.root = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scope(self) -> int | None:
        """Open the new directory at the scope; None where it is not there, or no directory."""
        if self.holder is None or self.found is None or self.found != self._record.new:
            return None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.open(self.name, OPEN_PLACE, dir_fd=self.holder)
        return None

    def set_in_place(self, after: list[tuple[str, int, int]]) -> None:
        """Set modes and times of directories, deepest first."""
        for descriptor, _, mode, mtime_ns in self._each(sorted(after, reverse=True)):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
            os.utime(f"/proc/self/fd/{descriptor}", ns=(mtime_ns, mtime_ns))
            reached("set in place")

    def restore_modes(self, before: list[tuple[str, int]]) -> None:
        """Give directories the modes back that they had."""
        for descriptor, _, mode, _ in self._each([(path, mode, 0) for path, mode in sorted(before, reverse=True)]):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)

    def _each(self, items: list[tuple[str, int, int]]) -> Iterator[tuple[int, str, int, int]]:
        if self.root is None:
            return
        with DirectoryCursor(self.root) as walk:
            for path, mode, mtime_ns in items:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    yield walk.open(path), path, mode, mtime_ns

    def sync(self) -> None:
        """Make the switch and the changes in place durable."""
        if self.holder is None:
            return
        try:
            linux.sync_directory(self.holder)
        except PermissionError:  # a directory that its owner may not read
            linux.sync_filesystem(self._staging)


def _copy_late_writes(
    volume: VolumeRoot,
    switch: str,
    record: Record,
    target: _Target,
    inodes: dict[str, int],
    look: LastLook | None,
) -> None:
    """Copy late writes of the old tree to the new one, where the sync keeps names that the source does not have."""
    side = record.aside or switch
    if record.drop is None or inode_of(volume.staging, side) != record.old:
        return
    if look is not None:
        look.look(removals=False)
        return
    new = target.scope()
    if new is None:
        return
    try:
        copy_during_switch(volume, side, new, frozenset(record.drop), inodes)
    finally:
        os.close(new)
