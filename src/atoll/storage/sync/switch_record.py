"""Which side of a switch won, and what is left to do on that side: after each switch, and after a crash.

Before a switch its record is made durable in staging (`record-KEY`): the inodes of the old and the new side, a
generation, and what follows on either side. While a record exists both sides do, at the target or in staging, so
no inode number can mean another file. Hence where the new inode is tells what happened:

    at the target             the new side won: set modes and times in place, carry over what came late, retire the old
    at `switch-KEY`           the old side won: put modes back that were lent, throw the new tree away
    neither                   a function has moved or removed what was switched: nothing is left to do but to tidy

`settle` does this in the course of a sync, and recovery after a crash calls the same: each step may be repeated, so a
crash during recovery is recovered from like any other. A torn record means that nothing was switched.
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
from atoll.errors import SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import TOO_DEEP, scan_target
from atoll.storage.files.tree import DIRECTORY, Tree, parent_of
from atoll.storage.sync.inodes import pack_inodes, unpack_inodes
from atoll.storage.sync.late_writes import make_missing
from atoll.storage.volume import locate as filesystem
from atoll.storage.volume.locate import OPEN_PLACE, locate
from atoll.storage.volume.locks import holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import ReplacedTree, leftovers, name_of, new_name, read_json, retire, write_json


@dataclass
class Record:
    """What is about to be switched. Paths are relative to the target unless it says otherwise.

    Args:
        target: the target's resolved path, relative to the volume's root.
        scope: what is switched; None where there are only changes in place.
        root: inode of the target's directory; None where there is none yet.
        old: inode of what stands at the scope; None where nothing does.
        new: inode of what comes, at `switch-KEY`; None where nothing does.
        before: directories whose mode is lent for the switch, with the one that they have.
        after: directories with the mode and time that they get in place.
        drop: what goes, relative to the scope, where what appears late is to be carried over; else None.
        aside: name in staging of the old side, where the file system cannot exchange.
        since_ns: since when what is written to the old tree counts as late, where names are kept: when it was scanned;
            else 0.
        inodes: what is known of the old tree, where the scope is a directory that was rebuilt (`storage.sync.inodes`).
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
    """Finish or undo what a crash has interrupted; the target's lock is held.

    Raises:
        OSError: the volume cannot be written; it can be tried again.
    """
    record = read_record(volume, key)
    if record is not None:
        settle(volume, key, record)
        return
    if filesystem.exists(volume.staging, name_of("switch", key)):
        # It came to no switch, and so no function saw it. (But for what another version left here: it may be old.)
        retire(volume.staging, name_of("switch", key))
    forget(volume, key)


def clean(volume: VolumeRoot) -> None:
    """Recover all targets at which nobody works."""
    for _, key, _ in leftovers(volume.staging, "record", "switch"):
        with contextlib.suppress(OSError, ValueError):
            record = read_record(volume, key)
            with holding_target(volume.locks, record.target if record is not None else "", key=key) as held:
                if held:
                    volume.refresh()
                    recover(volume, key)


def settle(volume: VolumeRoot, key: str, record: Record, inodes: dict[str, int] | None = None) -> bool:
    """Find out which side has won, do what is left to do, and forget the record; the target's lock is held.

    Args:
        inodes: those of the record, in the course of the sync itself; updated.

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
        elif record.aside and target.found is None and record.new == _inode(volume.staging, switch):
            won = _complete(volume, record, switch, target)
        else:
            gone = record.new is None  # something goes, and nothing comes
            won = target.found != record.old if gone else record.new != _inode(volume.staging, switch)
        reached("won" if won else "lost")
        if won:
            _carry_over(volume, switch, record, target, inodes)
            target.set_in_place(record.after)
        else:
            target.put_back(record.before)
        target.sync()
        if won:  # who was just about to make a file in the old tree has made it by now
            _carry_over(volume, switch, record, target, inodes)
        reached("settled")
    if won:
        origin = ReplacedTree(record.target, record.scope or "", record.since_ns or moment_ns, pack_inodes(inodes))
        _retire(volume, key, record, origin)
        volume.discard(volume.staging, name_of("stage", key))  # the directories above what was received
    else:
        volume.discard(volume.staging, switch)  # no function ever saw it
    forget(volume, key)
    return won


def _complete(volume: VolumeRoot, record: Record, switch: str, target: _Target) -> bool:
    """Finish the exchange in two steps that a crash has cut in half: the old tree is aside, the new not yet there."""
    if target.holder is None or _inode(volume.staging, record.aside) != record.old:
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
        os.unlink(switch, dir_fd=volume.staging)  # who has a file open keeps it anyway
    elif found.st_ino == record.new:
        volume.discard(volume.staging, switch)
    else:
        retire(volume.staging, switch, origin, name_of("record", key))


def _inode(parent: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


class _Target:
    """A record's target as it is now.

    Attributes:
        root: its directory, open; None where it is not the recorded one.
        holder: the directory that holds the scope, open; None where there is none.
        name: the scope's name in it.
        found: the inode of what is there.
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
            self.found = _inode(self.holder, self.name)
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

    def put_back(self, before: list[tuple[str, int]]) -> None:
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
        """Make the switch and what was set in place durable."""
        if self.holder is None:
            return
        try:
            linux.sync_directory(self.holder)
        except PermissionError:  # a directory that its owner may not read
            linux.sync_filesystem(self._staging)


def _carry_over(volume: VolumeRoot, switch: str, record: Record, target: _Target, inodes: dict[str, int]) -> None:
    """Bring along what appeared in the old tree after it was scanned, and what was replaced there: where names are
    kept it could be one of those. What the new tree has had and has no more, a function has removed: it stays so."""
    side = record.aside or switch
    if record.drop is None or _inode(volume.staging, side) != record.old:
        return
    new = target.scope()
    if new is None:
        return
    try:
        old = os.open(side, OPEN_PLACE, dir_fd=volume.staging)
        try:
            _bring(volume, old, new, frozenset(record.drop), inodes)
        except SyncError as error:
            if error.details.get("reason") != TOO_DEEP:  # a function has just made that: it stays where it is
                raise
        finally:
            os.close(old)
    finally:
        os.close(new)


def _bring(volume: VolumeRoot, old: int, new: int, dropped: frozenset[str], inodes: dict[str, int]) -> None:
    scan = scan_target(old)
    late: Tree = scan.tree
    with DirectoryCursor(old) as ours, DirectoryCursor(new) as theirs:
        for path, entry in late.items():
            inode, had = scan.stamps.get(path, (0, 0))[1], inodes.get(path)
            if not path or path in dropped or had == 0 or (had is not None and had == inode):
                continue
            name = path.rpartition("/")[2]
            with contextlib.suppress(OSError):  # `rescue` tries again what cannot be brought along now
                if parent_of(path) in dropped:  # it stays for what appeared in it
                    make_missing(theirs, parent_of(path))
                parent = theirs.open(parent_of(path))
                there = None
                with contextlib.suppress(FileNotFoundError):
                    there = os.stat(name, dir_fd=parent, follow_symlinks=False)
                replaced = there is not None and there.st_ino == had
                if replaced or (had is None and there is None):
                    holder = os.fstat(parent)
                    if entry.kind == DIRECTORY:
                        os.mkdir(name, entry.mode, dir_fd=parent)
                    else:
                        _link(volume, ours.open(parent_of(path)), parent, name, had)
                    os.utime(f"/proc/self/fd/{parent}", ns=(holder.st_atime_ns, holder.st_mtime_ns))
                    reached("carried over", path=path)
                if replaced or had is not None or there is None:
                    inodes[path] = inode


def _link(volume: VolumeRoot, old: int, new: int, name: str, had: int | None) -> None:
    """Link a file of the old tree into the new one, in one step where it replaces the one that has this inode."""
    if had is None:
        os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        return
    staging, link = volume.staging, new_name("new")
    os.link(name, link, src_dir_fd=old, dst_dir_fd=staging, follow_symlinks=False)
    try:
        linux.exchange(staging, link, new, name)
        if _inode(staging, link) != had:  # a function has put another one there, just now: that one counts
            linux.exchange(staging, link, new, name)
    except OSError as error:
        if error.errno not in linux.NO_EXCHANGE:
            raise
        os.rename(link, name, src_dir_fd=staging, dst_dir_fd=new)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link, dir_fd=staging)
