"""Build what is new beside the old and switch over in one step: the end of a sync, in the storage peer.

Below `staging`, for the target whose resolved path has the digest KEY, with KEY's lock held throughout:

    stage-KEY      the directories and files that have been received, nothing else; kept when a sync is interrupted
    partial-KEY    what an interrupted sync received, while the next one looks what it can use of it
    switch-KEY     what comes at the scope (`storage.sync.scope`), complete; after the exchange what was there
    record-KEY     which is which (`storage.sync.switch_record`), durable before the exchange
    old-TIME-RAND  a tree that was replaced at TIME (nanoseconds since the epoch); functions may still have it open
    old-….json     where that tree was, for what is written into it yet (`storage.sync.late_writes`)
    trash-RAND     what no function ever saw, and nobody needs

The order is: take the scope out of `stage-KEY`, link what stays, write the record, make all of it durable, exchange,
set modes and times in place, make that durable, retire the old. No inode is shared between two states of a file.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Entry, Tree, parent_of, printable
from atoll.storage.sync.build import Builder, Stamps, changed, copy_file, make_symlink
from atoll.storage.sync.inodes import pack_inodes
from atoll.storage.sync.plan import Plan, check_fits
from atoll.storage.sync.receiver import Reception
from atoll.storage.sync.scope import is_within, scope_of
from atoll.storage.sync.switch_record import Record, forget, read_record, settle
from atoll.storage.volume import locate
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, Place
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import name_of, new_name

MAX_SEPARATE = 8
"""Up to how many files and directories are made durable one by one; beyond, the whole file system is (`syncfs`).

On ext4 each `fsync` costs 2 to 5 ms, one `syncfs` 4 to 20 ms and what others have written to the disk besides: seconds
where that is gigabytes.
"""


class Stage:
    """One tree in the making.

    Args:
        volume: the volume.
        key: names the target; its lock is held by the caller.
        place: the target, `place.path` is where it really is.
        old: the target's directory, open, or None when there is none.
        standing: what the target holds.
        plan: what is to change.
        atomic: whether to refuse where the file system cannot exchange.
        known: returns the change time that a file of the target had when it was scanned, -1 where that says nothing.
        scanned_ns: when it began to be looked at, nanoseconds since the epoch.

    Raises:
        SyncError: the plan does not fit, or the file system cannot exchange.
        OSError: the volume cannot be written.
    """

    def __init__(
        self,
        volume: VolumeRoot,
        key: str,
        place: Place,
        old: int | None,
        standing: Tree,
        plan: Plan,
        atomic: bool,
        known: Callable[[str], int],
        scanned_ns: int,
    ) -> None:
        self._known = known
        self._scanned_ns = scanned_ns
        self._volume = volume
        self._place = place
        self._old = old
        self._standing = standing
        self._plan = plan
        self._atomic = atomic
        self._key = key
        self._switch = name_of("switch", key)
        self.complete_ns = 0
        """When what is new was complete, before functions could see it."""
        check_fits(plan, standing)
        if any(entry.kind == SPECIAL for entry in plan.put.values()) or self._new_entry("", plan.put).kind != DIRECTORY:
            raise SyncError("the plan is not one for a directory")
        if any(path not in plan.put or path not in standing or standing[path].kind != FILE for path in plan.copy):
            raise SyncError("the plan copies what is not there")
        self._scope = scope_of(plan, standing)
        if atomic and self._exchanges_directories():
            self._check_exchange()
        self.reception = Reception(volume, key, plan)

    def covers(self, path: str) -> bool:
        """Whether the mode of a directory of the target is what this stage has made it, once it is committed."""
        return self._scope.contains(path) or path in self._scope.in_place

    def _new_entry(self, path: str, put: Tree) -> Entry:
        return put.get(path) or self._standing[path]

    def _exchanges_directories(self) -> bool:
        path = self._scope.path
        if path is None or path not in self._standing or path in self._plan.drop:
            return False
        return DIRECTORY in (self._standing[path].kind, self._new_entry(path, self._plan.put).kind)

    def _check_exchange(self) -> None:
        names = [new_name("new") for _ in range(2)]
        staging = self._volume.staging
        try:
            for name in names:
                os.mkdir(name, dir_fd=staging)
            linux.exchange(staging, names[0], staging, names[1])
        except OSError as error:
            if error.errno in linux.NO_EXCHANGE:
                raise _no_exchange() from error
            raise
        finally:
            for name in names:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=staging)

    def commit(self) -> Stamps:
        """Complete what is new, make it durable and put it where the old is.

        Returns:
            the stamps of the files that this has linked, copied or moved by themselves, by their path in the target.

        Raises:
            SyncError: content is missing, or the target is not the one that was scanned any more (`retry` in its
                details).
            OSError: the volume cannot be written.
        """
        reception = self.reception
        reception.pause()
        if reception.missing:
            raise SyncError(f"the content of `{printable(min(reception.missing))}` did not arrive")
        try:
            stamps = self._commit({**self._plan.put, **reception.arrived})
        except BaseException:
            with contextlib.suppress(OSError):
                self._recover()
            raise
        return stamps

    def _recover(self) -> None:
        record = read_record(self._volume, self._key)
        if record is not None:
            settle(self._volume, self._key, record)
            return
        self._volume.discard(self._volume.staging, self._switch)
        forget(self._volume, self._key)

    def _commit(self, put: Tree) -> Stamps:
        scope, volume = self._scope, self._volume
        with contextlib.ExitStack() as stack:
            record = Record(self._place.path, scope.path, self._inode(), None, None)
            record.after = [
                (path, (put.get(path) or entry).mode, (put.get(path) or entry).mtime_ns)
                for path, entry in scope.in_place.items()
            ]
            record.since_ns = self._scanned_ns if self._plan.keeps else 0
            built = _Built(volume.staging, self._switch)
            stack.callback(built.close)
            holder, name = -1, ""
            if scope.path is not None:
                self._place.make_parents()
                holder, name = self._holder(stack, scope.path)
                found = self._check_standing(holder, name, scope.path)
                record.old = found.st_ino if found is not None else None
                if scope.path not in self._plan.drop:
                    self._build(scope.path, put, holder, name, built)
                    record.new = os.stat(self._switch, dir_fd=volume.staging, follow_symlinks=False).st_ino
                    entry = self._new_entry(scope.path, put)
                    if entry.kind == DIRECTORY and not entry.mode & 0o200:
                        record.after.append((scope.path, entry.mode, entry.mtime_ns))
                if scope.rebuilt and self._plan.keeps:
                    record.drop = self._dropped(scope.path)
                if scope.rebuilt:
                    record.inodes = pack_inodes(built.inodes)
                record.before = self._to_lend(holder, scope.path, found)
            reached("built")
            descriptor = record.write(volume, self._key)
            stack.callback(os.close, descriptor)
            reached("recorded")
            built.make_durable(descriptor)
            self.complete_ns = time.time_ns()
            reached("synced")
            if scope.path is not None:
                self._switch_over(record, holder, name)
            if not settle(volume, self._key, record, built.inodes):
                raise changed("something")
            return self._stamps(built.stamps, put, holder, name)

    def _inode(self) -> int | None:
        return os.fstat(self._old).st_ino if self._old is not None else None

    # --- building -----------------------------------------------------------------------------------------------

    def _build(self, path: str, put: Tree, holder: int, name: str, built: _Built) -> None:
        """Make what comes at the scope, as `switch-KEY`."""
        entry = self._new_entry(path, put)
        if entry.kind != DIRECTORY:
            if entry.kind == SYMLINK:
                make_symlink(self._volume.staging, self._switch, entry)
                built.whole = True
            elif path in self._plan.copy:
                built.copy(holder, name, entry, self._standing[path].mtime_ns)
            else:
                self._take(path)
            reached("staged")
            return
        self._take(path)
        root = os.open(self._switch, OPEN_DIRECTORY, dir_fd=self._volume.staging)
        built.root = root
        reached("staged")
        old = os.open(name, OPEN_PLACE, dir_fd=holder) if self._scope.rebuilt else None
        try:
            tree = self._below(path, put)
            start = len(path) + 1 if path else 0
            changes = {item[start:] for item in put if is_within(item, path)}
            copies = {item[start:]: self._standing[item].mtime_ns for item in self._plan.copy if is_within(item, path)}
            above = f"{path}/" if path else ""
            builder = Builder(root, old, tree, changes, copies, lambda item: self._known(above + item))
            builder.link()
            reached("linked")
            builder.finish(0o700 if not entry.mode & 0o200 else 0)
        finally:
            if old is not None:
                os.close(old)
        built.take(builder, tree, changes, copies, self._dropped(path) if self._scope.rebuilt else ())

    def _below(self, path: str, put: Tree) -> Tree:
        """Return the new tree of the scope, relative to it."""
        start = len(path) + 1 if path else 0
        drop = self._plan.drop
        tree: Tree = {}
        if self._scope.rebuilt:
            tree = {
                item[start:]: entry
                for item, entry in self._standing.items()
                if item not in drop and is_within(item, path)
            }
        tree.update((item[start:], entry) for item, entry in put.items() if is_within(item, path))
        return tree

    def _dropped(self, path: str) -> list[str]:
        """Return what goes below the scope, relative to it."""
        start = len(path) + 1 if path else 0
        return [item[start:] for item in self._plan.drop if is_within(item, path)]

    def _take(self, path: str) -> None:
        """Move what was received for the scope to `switch-KEY`."""
        staging = self._volume.staging
        if not path:
            os.rename(self.reception.name, self._switch, src_dir_fd=staging, dst_dir_fd=staging)
            return
        try:
            with DirectoryCursor(self.reception.root, OPEN_DIRECTORY) as walk:
                parent = walk.open(parent_of(path))
                os.rename(path.rpartition("/")[2], self._switch, src_dir_fd=parent, dst_dir_fd=staging)
        except FileNotFoundError:  # a directory of which nothing had to be received
            os.mkdir(self._switch, 0o700, dir_fd=staging)

    # --- switching ----------------------------------------------------------------------------------------------

    def _holder(self, stack: contextlib.ExitStack, path: str) -> tuple[int, str]:
        """Open the directory in which the scope is, and return it with the scope's name there."""
        if not path:
            return self._place.parent, self._place.name
        assert self._old is not None
        walk = stack.enter_context(DirectoryCursor(self._old))
        try:
            return walk.open(parent_of(path)), path.rpartition("/")[2]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise changed(f"`{printable(parent_of(path))}` changed") from error

    def _check_standing(self, holder: int, name: str, path: str) -> os.stat_result | None:
        """Check that the target is the directory that was scanned and that what stands at the scope is of the kind
        that was found there, and return it."""
        if self._old is not None:
            there = _look(self._place.parent, self._place.name)
            if there is None or not os.path.samestat(there, os.fstat(self._old)):
                raise changed("the target was replaced")
        found, entry = _look(holder, name), self._standing.get(path)
        kinds = {FILE: stat.S_ISREG, DIRECTORY: stat.S_ISDIR, SYMLINK: stat.S_ISLNK}
        if entry is None:
            if found is not None:
                raise changed(f"`{printable(path)}` appeared" if path else "the target appeared")
        elif found is None or (entry.kind in kinds and not kinds[entry.kind](found.st_mode)):
            raise changed(f"`{printable(path)}` was replaced")
        return found

    def _to_lend(self, holder: int, path: str, found: os.stat_result | None) -> list[tuple[str, int]]:
        """List the directories that must be made writable for the switch: the one that holds the scope, and the one
        that is moved away, since a move writes its `..`."""
        lend = []
        if path and (mode := stat.S_IMODE(os.fstat(holder).st_mode)) & 0o300 != 0o300:
            lend.append((parent_of(path), mode))
        if found is not None and stat.S_ISDIR(found.st_mode) and (mode := stat.S_IMODE(found.st_mode)) & 0o700 != 0o700:
            lend.append((path, mode))
        return lend

    def _switch_over(self, record: Record, holder: int, name: str) -> None:
        staging = self._volume.staging
        found = self._check_standing(holder, name, record.scope or "")
        if (found.st_ino if found is not None else None) != record.old:
            raise changed("something was replaced")
        for path, mode in record.before:
            target = holder if path != record.scope else None
            if target is None:
                locate.make_writable(holder, name)
            else:
                os.chmod(f"/proc/self/fd/{target}", mode | 0o300)
            reached("lent")
        if record.old is None:
            try:
                linux.rename_new(staging, self._switch, holder, name)
            except FileExistsError as error:
                raise changed("the target appeared") from error
        elif record.new is None:
            os.rename(name, self._switch, src_dir_fd=holder, dst_dir_fd=staging)
        else:
            self._exchange(record, holder, name)
        reached("exchanged")

    def _exchange(self, record: Record, holder: int, name: str) -> None:
        staging = self._volume.staging
        try:
            linux.exchange(staging, self._switch, holder, name)
        except OSError as error:
            if error.errno not in linux.NO_EXCHANGE:
                raise
            if not self._exchanges_directories():
                os.rename(self._switch, name, src_dir_fd=staging, dst_dir_fd=holder)
                return
            if self._atomic:
                raise _no_exchange() from error
            record.aside = new_name("old")
            again = record.write(self._volume, self._key)
            try:
                os.fsync(again)
            finally:
                os.close(again)
            locate.move(holder, name, staging, record.aside)
            reached("taken aside")
            linux.rename_new(staging, self._switch, holder, name)

    def _stamps(self, made: Stamps, put: Tree, holder: int, name: str) -> Stamps:
        path = self._scope.path
        if path is None or path in self._plan.drop:
            return {}
        if self._new_entry(path, put).kind == FILE:
            try:
                found = _look(holder, name)
            except PermissionError:  # its directory has the source's mode now, with which its owner may not enter it
                return {}
            return {path: (found.st_ctime_ns, found.st_ino)} if found is not None else {}
        return {f"{path}/{below}": stamp for below, stamp in made.items()} if path else made


class _Built:
    """What has been built as `switch-KEY`, and how it is made durable.

    Attributes:
        root: the directory, open; -1 where it is none.
        whole: whether the whole file system is to be made durable rather than single files.
        stamps: of what was linked or copied into it.
        inodes: what will be known of the old tree (`storage.sync.inodes`).
    """

    def __init__(self, staging: int, name: str) -> None:
        self._staging = staging
        self._name = name
        self.root = -1
        self.whole = False
        self.stamps: Stamps = {}
        self.inodes: dict[str, int] = {}
        self._files: list[str] = []
        self._directories: list[str] = []

    def close(self) -> None:
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    def copy(self, holder: int, name: str, entry: Entry, mtime_ns: int) -> None:
        """Make it a copy of the file that stands at the scope, which has this modification time."""
        copy_file(holder, self._staging, name, entry, mtime_ns, self._name)

    def take(
        self, builder: Builder, tree: Tree, changes: set[str], copies: Mapping[str, int], dropped: Iterable[str]
    ) -> None:
        """Remember what must be made durable of a directory, and which inodes it shares with the one that stands."""
        self.stamps = builder.stamps
        copied = set(builder.copied)
        self.inodes = dict.fromkeys([*dropped, *tree], 0)
        self.inodes.update((path, inode) for path, (_, inode) in self.stamps.items() if path not in copied)
        self._directories = [path for path, entry in tree.items() if entry.kind == DIRECTORY]
        received = (path for path in changes if tree[path].kind == FILE and path not in copies)
        self._files = [*received, *builder.copied]
        symlinks = any(tree[path].kind == SYMLINK for path in changes)
        self.whole = symlinks or len(self._directories) + len(self._files) > MAX_SEPARATE

    def make_durable(self, record: int) -> None:
        """Make it durable, with the record of it.

        Raises:
            OSError: something could not be written.
        """
        if not self.whole:
            with contextlib.suppress(PermissionError):  # a file that its owner may not open
                self._sync_each()
                os.fsync(record)
                os.fsync(self._staging)
                return
        linux.sync_filesystem(self._staging)

    def _sync_each(self) -> None:
        if self.root < 0:
            with contextlib.suppress(FileNotFoundError):
                _sync(self._name, self._staging)
            return
        with DirectoryCursor(self.root, OPEN_DIRECTORY) as walk:
            for path in sorted(self._files):
                _sync(path.rpartition("/")[2], walk.open(parent_of(path)))
            for path in sorted(self._directories, reverse=True):
                os.fsync(walk.open(path))


def _sync(name: str, parent: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _no_exchange() -> SyncError:
    return SyncError(
        "the volume's file system cannot exchange two directories in one step",
        hint="pass `atomic=False` to accept a moment without the directory, or move the volume to ext4, XFS or btrfs",
        reason="no_exchange",
    )
