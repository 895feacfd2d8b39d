"""Build the new tree beside the old and switch to it in one step: the end of a sync, in the storage peer.

In staging, for the target with this key, whose lock is held throughout (`volume.staging` has the table of names):

    stage-KEY      received directories and files, nothing else; kept when a sync is interrupted
    switch-KEY     the new content of the scope (`scope`), complete; after the exchange the old one
    record-KEY     the inodes of both (`switch_record`), durable before the exchange

The order is: move the scope out of `stage-KEY`, link unchanged files, write the record, make all of it durable, exchange,
set modes and times in place, make that durable, retire the old tree. Where names are kept that the source does not have,
the daemon holds the user's sandboxes from the last look at the old tree to the exchange (`last_look`, `pause`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Entry, Tree, parent_of
from atoll.storage.sync.build import Builder, Built, Contents, Stamps, changed, make_symlink
from atoll.storage.sync.last_look import LastLook
from atoll.storage.sync.late_writes import pack_inodes
from atoll.storage.sync.pause import Pause
from atoll.storage.sync.plan import Plan, check_fits
from atoll.storage.sync.receiver import Reception
from atoll.storage.sync.scope import Scope, is_within, scope_of
from atoll.storage.sync.switch_record import Record, forget, read_record, settle
from atoll.storage.sync.target_state import TargetSync
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, make_writable, move
from atoll.storage.volume.staging import name_of, new_name
from atoll.terminal_text import printable


class Stage:
    """The new tree of one sync.

    Args:
        target: the sync's target.
        plan: its changes.
        scope: the part of the target that is switched.
        atomic: whether to refuse a file system that cannot exchange directories.
        pause: holds the user's sandboxes.

    Attributes:
        plan: the changes, without those of files that have vanished from the source.
        complete_ns: when the new tree was complete, before functions could see it.

    Raises:
        SyncError: the plan does not fit, or the file system cannot exchange.
        OSError: the volume cannot be written.
    """

    def __init__(
        self, target: TargetSync, plan: Plan, scope: Scope, *, atomic: bool, pause: Pause | None = None
    ) -> None:
        self._target = target
        self._pause = pause or Pause()
        self._staging = target.volume.staging
        self._old = tree = target.tree
        self.plan = plan
        self._atomic = atomic
        self._switch = name_of("switch", target.key)
        self.complete_ns = 0
        check_fits(plan, tree)
        if any(entry.kind == SPECIAL for entry in plan.put.values()) or self._new_entry("", plan.put).kind != DIRECTORY:
            raise SyncError("the plan is not one for a directory")
        if any(path not in plan.put or path not in tree or tree[path].kind != FILE for path in plan.copy):
            raise SyncError("the plan copies a file that does not exist")
        self.scope = scope
        if atomic and self._exchanges_directories():
            self._check_exchange()
        self.reception = Reception(target, plan)

    def leave_out(self, unput: list[str], dropped: list[str]) -> None:
        """Change the plan: some of its paths do not come, and more of the target's go, since the source lost them.

        Raises:
            SyncError, ValueError: it is no plan for the target any more.
        """
        was, gone = self.plan, frozenset(unput)
        put = {path: entry for path, entry in was.put.items() if path not in gone}
        plan = Plan(was.drop.union(dropped), put, was.copy - gone, was.keeps)
        check_fits(plan, self._old)
        if not plan or self._new_entry("", put).kind != DIRECTORY:
            raise SyncError("nothing is left of the plan")
        self.plan, self.scope = plan, scope_of(plan, self._old)
        self.reception.forget(gone.union(dropped))  # a received part may be in a directory that goes

    def covers(self, path: str) -> bool:
        """Return whether a commit sets the mode of this directory of the target."""
        return self.scope.contains(path) or path in self.scope.in_place

    def _new_entry(self, path: str, put: Tree) -> Entry:
        return put.get(path) or self._old[path]

    def _exchanges_directories(self) -> bool:
        path = self.scope.path
        if path is None or path not in self._old or path in self.plan.drop:
            return False
        return DIRECTORY in (self._old[path].kind, self._new_entry(path, self.plan.put).kind)

    def _check_exchange(self) -> None:
        """Try an exchange before contents travel in vain."""
        names = [new_name("new") for _ in range(2)]
        try:
            for name in names:
                os.mkdir(name, dir_fd=self._staging)
            linux.exchange(self._staging, names[0], self._staging, names[1])
        except OSError as error:
            if error.errno in linux.NO_EXCHANGE:
                raise _no_exchange() from error
            raise
        finally:
            for name in names:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=self._staging)

    def commit(self) -> Stamps:
        """Complete the new tree, make it durable and switch to it.

        Returns:
            the stamps of the files that this has linked, copied or moved by themselves, by their path in the target.

        Raises:
            SyncError: content is missing, or the target is not the scanned one any more (`retry` in its details).
            OSError: the volume cannot be written.
        """
        reception = self.reception
        reception.pause()
        if reception.missing:
            raise SyncError(f"the content of `{printable(min(reception.missing))}` did not arrive")
        try:
            return self._commit({**self.plan.put, **reception.arrived})
        except BaseException:
            with contextlib.suppress(OSError):
                self._recover()
            raise

    def _recover(self) -> None:
        volume, key = self._target.volume, self._target.key
        record = read_record(volume, key)
        if record is not None:
            settle(volume, key, record)
            return
        volume.discard(self._staging, self._switch)
        forget(volume, key)

    def _commit(self, put: Tree) -> Stamps:
        target = self._target
        with contextlib.ExitStack() as stack:
            built = Built(self._staging, self._switch)
            stack.callback(built.close)
            record, holder, name = self._prepare(stack, put, built)
            reached("built")
            descriptor = record.write(target.volume, target.key)
            stack.callback(os.close, descriptor)
            reached("recorded")
            built.make_durable(descriptor)
            self.complete_ns = time.time_ns()
            reached("synced")
            look: LastLook | None = None
            if record.drop is not None:
                look = self._last_look(stack, record, holder, name, built)
                look.look()
                with self._pause.held():
                    look.look()
                    self._switch_over(record, holder, name)
            elif self.scope.path is not None:
                self._switch_over(record, holder, name)
            if not settle(target.volume, target.key, record, built.inodes, look):
                raise changed("something")
            return self._stamps(built.stamps, put, holder, name)

    def _prepare(self, stack: contextlib.ExitStack, put: Tree, built: Built) -> tuple[Record, int, str]:
        """Build the scope; returns the record of its switch, the directory that holds the scope, its name there."""
        scope, target = self.scope, self._target
        root = os.fstat(target.directory).st_ino if target.directory >= 0 else None
        record = Record(target.place.path, scope.path, root, None, None)
        record.after = [
            (path, (put.get(path) or entry).mode, (put.get(path) or entry).mtime_ns)
            for path, entry in scope.in_place.items()
        ]
        record.since_ns = target.began_ns if self.plan.keeps else 0
        if scope.path is None:
            return record, -1, ""
        target.place.make_parents()
        holder, name = self._holder(stack, scope.path)
        found = self._check_unchanged(holder, name, scope.path)
        record.old = found.st_ino if found is not None else None
        if scope.path not in self.plan.drop:
            self._build(scope.path, put, holder, name, built)
            record.new = os.stat(self._switch, dir_fd=self._staging, follow_symlinks=False).st_ino
            entry = self._new_entry(scope.path, put)
            if entry.kind == DIRECTORY and not entry.mode & 0o200:
                record.after.append((scope.path, entry.mode, entry.mtime_ns))
        if scope.rebuilt and self.plan.keeps:
            record.drop = self._dropped(scope.path)
        if scope.rebuilt:
            record.inodes = pack_inodes(built.inodes)
        record.before = self._to_make_writable(holder, scope.path, found)
        return record, holder, name

    # --- building -----------------------------------------------------------------------------------------------

    def _build(self, path: str, put: Tree, holder: int, name: str, built: Built) -> None:
        """Build the new content of the scope, as `switch-KEY`."""
        entry = self._new_entry(path, put)
        if entry.kind != DIRECTORY:
            if entry.kind == SYMLINK:
                make_symlink(self._staging, self._switch, entry)
                built.whole = True
            elif path in self.plan.copy:
                built.copy(holder, name, entry, self._old[path].mtime_ns)
            else:
                self._take(path)
            reached("staged")
            return
        self._take(path)
        built.root = os.open(self._switch, OPEN_DIRECTORY, dir_fd=self._staging)
        reached("staged")
        old = os.open(name, OPEN_PLACE, dir_fd=holder) if self.scope.rebuilt else -1
        try:
            contents, known = self._contents(path, put), self._target.state.changed_at
            above = f"{path}/"
            builder = Builder(built.root, old, contents, (lambda item: known(above + item)) if path else known)
            builder.link()
            reached("linked")
            builder.finish(0o700 if not entry.mode & 0o200 else 0)
        finally:
            if old >= 0:
                os.close(old)
        built.take(builder, contents)

    def _contents(self, path: str, put: Tree) -> Contents:
        """Return the new content of the scope."""
        start = len(path) + 1 if path else 0
        drop, old = self.plan.drop, self._old
        tree: Tree = {}
        if self.scope.rebuilt:
            stays = old.items() if not drop else [(item, entry) for item, entry in old.items() if item not in drop]
            tree = {item[start:]: entry for item, entry in stays if is_within(item, path)} if path else dict(stays)
        tree.update((item[start:], entry) for item, entry in put.items() if is_within(item, path))
        return Contents(
            tree,
            {item[start:] for item in put if is_within(item, path)},
            {item[start:]: old[item].mtime_ns for item in self.plan.copy if is_within(item, path)},
            self._dropped(path) if self.scope.rebuilt else (),
        )

    def _dropped(self, path: str) -> list[str]:
        """Return the paths below the scope that go, relative to it."""
        start = len(path) + 1 if path else 0
        return [item[start:] for item in self.plan.drop if is_within(item, path)]

    def _take(self, path: str) -> None:
        """Move the received part of the scope to `switch-KEY`."""
        if not path:
            os.rename(self.reception.name, self._switch, src_dir_fd=self._staging, dst_dir_fd=self._staging)
            return
        try:
            with DirectoryCursor(self.reception.root, OPEN_DIRECTORY) as walk:
                parent = walk.open(parent_of(path))
                os.rename(path.rpartition("/")[2], self._switch, src_dir_fd=parent, dst_dir_fd=self._staging)
        except FileNotFoundError:  # a directory of which nothing had to be received
            os.mkdir(self._switch, 0o700, dir_fd=self._staging)

    # --- switching ----------------------------------------------------------------------------------------------

    def _holder(self, stack: contextlib.ExitStack, path: str) -> tuple[int, str]:
        """Open the directory that holds the scope, and return it with the scope's name there."""
        if not path:
            return self._target.place.parent, self._target.place.name
        walk = stack.enter_context(DirectoryCursor(self._target.directory))
        try:
            return walk.open(parent_of(path)), path.rpartition("/")[2]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise changed(f"`{printable(parent_of(path))}` changed") from error

    def _check_unchanged(self, holder: int, name: str, path: str) -> os.stat_result | None:
        """Check that the target is the scanned directory, and the scope of the kind that the scan found; returns the
        status of the scope, None where it does not exist."""
        place = self._target.place
        if self._target.directory >= 0:
            there = _status(place.parent, place.name)
            if there is None or not os.path.samestat(there, os.fstat(self._target.directory)):
                raise changed("the target was replaced")
        found, entry = _status(holder, name), self._old.get(path)
        kinds = {FILE: stat.S_ISREG, DIRECTORY: stat.S_ISDIR, SYMLINK: stat.S_ISLNK}
        if entry is None:
            if found is not None:
                raise changed(f"`{printable(path)}` appeared" if path else "the target appeared")
        elif found is None or (entry.kind in kinds and not kinds[entry.kind](found.st_mode)):
            raise changed(f"`{printable(path)}` was replaced")
        return found

    def _to_make_writable(self, holder: int, path: str, found: os.stat_result | None) -> list[tuple[str, int]]:
        """List the directories that must be writable for the switch, with their modes: the one that holds the scope,
        and the scope, since a move writes its `..`."""
        listed = []
        if path and (mode := stat.S_IMODE(os.fstat(holder).st_mode)) & 0o300 != 0o300:
            listed.append((parent_of(path), mode))
        if found is not None and stat.S_ISDIR(found.st_mode) and (mode := stat.S_IMODE(found.st_mode)) & 0o700 != 0o700:
            listed.append((path, mode))
        return listed

    def _last_look(self, stack: contextlib.ExitStack, record: Record, holder: int, name: str, built: Built) -> LastLook:
        self._check_unchanged(holder, name, record.scope or "")
        old = os.open(name, OPEN_PLACE, dir_fd=holder)
        stack.callback(os.close, old)
        return LastLook(
            self._target.volume, old, built.root, frozenset(record.drop or ()), built.untouched, built.inodes
        )

    def _switch_over(self, record: Record, holder: int, name: str) -> None:
        found = self._check_unchanged(holder, name, record.scope or "")
        if (found.st_ino if found is not None else None) != record.old:
            raise changed("something was replaced")
        for path, mode in record.before:
            if path == record.scope:
                make_writable(holder, name)
            else:
                os.chmod(f"/proc/self/fd/{holder}", mode | 0o300)
            reached("lent")
        if record.old is None:
            try:
                linux.rename_new(self._staging, self._switch, holder, name)
            except FileExistsError as error:
                raise changed("the target appeared") from error
        elif record.new is None:
            os.rename(name, self._switch, src_dir_fd=holder, dst_dir_fd=self._staging)
        else:
            self._exchange(record, holder, name)
        reached("exchanged")

    def _exchange(self, record: Record, holder: int, name: str) -> None:
        try:
            linux.exchange(self._staging, self._switch, holder, name)
        except OSError as error:
            if error.errno not in linux.NO_EXCHANGE:
                raise
            if not self._exchanges_directories():
                os.rename(self._switch, name, src_dir_fd=self._staging, dst_dir_fd=holder)
                return
            if self._atomic:
                raise _no_exchange() from error
            record.aside = new_name("old")
            again = record.write(self._target.volume, self._target.key)
            try:
                os.fsync(again)
            finally:
                os.close(again)
            move(holder, name, self._staging, record.aside)
            reached("taken aside")
            linux.rename_new(self._staging, self._switch, holder, name)

    def _stamps(self, made: Stamps, put: Tree, holder: int, name: str) -> Stamps:
        path = self.scope.path
        if path is None or path in self.plan.drop:
            return {}
        if self._new_entry(path, put).kind == FILE:
            try:
                found = _status(holder, name)
            except PermissionError:  # its directory has the source's mode now, which may shut its owner out
                return {}
            return {path: (found.st_ctime_ns, found.st_ino)} if found is not None else {}
        return {f"{path}/{below}": stamp for below, stamp in made.items()} if path else made


def _status(parent: int, name: str) -> os.stat_result | None:
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
