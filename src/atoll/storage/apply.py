"""Build the new tree beside the old one and switch over: the last step of a sync, in the storage peer.

Below `staging`, for the target whose resolved path has the digest KEY, with KEY's lock held throughout:

    stage-KEY      the directories and files that have been received, nothing else; kept when a sync is interrupted
    partial-KEY    what an interrupted sync received, while the next one looks what it can use of it
    switch-KEY     the whole new tree, with links to the files that stay; after the exchange the old tree
    old-TIME-RAND  a tree that was replaced at TIME (nanoseconds since the epoch); functions may still have it open

A leftover `switch-KEY` may be an old tree that functions have open, so it is never removed but becomes an `old-`.
The new tree is durable before the exchange, and the exchange before it is reported. No inode is shared between
two states of a file: only what stays as it is is linked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time

from atoll.errors import SyncError
from atoll.storage import filesystem
from atoll.storage.filesystem import OPEN_DIRECTORY, OPEN_PLACE, Place, VolumeRoot
from atoll.storage.plan import Plan, apply, check_whole
from atoll.storage.receive import Reception
from atoll.storage.scan import scan_target
from atoll.storage.steps import reached
from atoll.storage.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Entry, Tree, parent_of, printable

_COPY_BYTES = 8 << 20


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

    Raises:
        SyncError: the plan does not fit, or the file system cannot exchange.
        OSError: the volume cannot be written.
    """

    def __init__(
        self, volume: VolumeRoot, key: str, place: Place, old: int | None, standing: Tree, plan: Plan, atomic: bool
    ) -> None:
        self._volume = volume
        self._place = place
        self._old = old
        self._standing = standing
        self._plan = plan
        self._atomic = atomic
        self._key = key
        self._switch = f"switch-{key}"
        self._switched = False
        self._tree = apply(plan, standing)
        check_whole(self._tree)
        if any(entry.kind == SPECIAL for entry in plan.put.values()) or self._tree[""].kind != DIRECTORY:
            raise SyncError("the plan is not one for a directory")
        if old is not None and atomic:
            self._check_exchange()
        self.reception = Reception(volume, key, plan)

    @property
    def _root(self) -> int:
        return self.reception.root

    def _check_exchange(self) -> None:
        names = [f"{kind}-{self._key}" for kind in ("probe", "probe2")]
        staging = self._volume.staging
        try:
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=staging)
            filesystem.exchange(staging, names[0], staging, names[1])
        except OSError as error:
            if error.errno in filesystem.NO_EXCHANGE:
                raise _no_exchange() from error
            raise
        finally:
            for name in names:
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=staging)

    # --- building -----------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Complete the new tree, make it durable and put it where the old one is.

        Raises:
            SyncError: content is missing, or the target is not the one that was scanned any more (`retry` in its
                details).
            OSError: the volume cannot be written.
        """
        reception = self.reception
        reception.pause()
        if reception.missing:
            raise SyncError(f"the content of `{printable(min(reception.missing))}` did not arrive")
        self._tree.update(reception.arrived)
        staging = self._volume.staging
        retire(self._volume, self._switch)
        os.rename(reception.name, self._switch, src_dir_fd=staging, dst_dir_fd=staging)
        try:
            reached("staged")
            self._link()
            reached("linked")
            self._finish_directories(root_mode_extra=0o200)
            reached("built")
            filesystem.sync_filesystem(staging)
            reached("synced")
            self._exchange()
        except BaseException:
            with contextlib.suppress(OSError):
                if self._switched:
                    retire(self._volume, self._switch)
                else:
                    self._volume.discard(staging, self._switch)
            raise

    def _link(self) -> None:
        below: dict[str, list[str]] = {}
        for path, entry in self._tree.items():
            if entry.kind == DIRECTORY:
                self.reception.make(path)
            elif path not in self._plan.put or entry.kind != FILE or path in self._plan.copy:
                below.setdefault(parent_of(path), []).append(path)
        for directory, paths in below.items():
            new = os.open(directory or ".", OPEN_DIRECTORY, dir_fd=self._root)
            old = -1
            try:
                for path in paths:
                    entry, name = self._tree[path], path.rpartition("/")[2]
                    if path in self._plan.put and entry.kind == SYMLINK:
                        os.symlink(entry.target, name, dir_fd=new)
                        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=new, follow_symlinks=False)
                        continue
                    if old < 0:
                        assert self._old is not None
                        old = os.open(directory or ".", OPEN_PLACE, dir_fd=self._old)
                    if path in self._plan.copy:
                        _copy(old, new, name, entry)
                    else:
                        _link_or_copy(old, new, name, entry)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise _changed(f"`{printable(directory)}` changed") from error
            finally:
                os.close(new)
                if old >= 0:
                    os.close(old)

    def _finish_directories(self, root_mode_extra: int) -> None:
        for path in sorted((path for path, entry in self._tree.items() if entry.kind == DIRECTORY), reverse=True):
            entry = self._tree[path]
            mode = entry.mode if path else entry.mode | root_mode_extra
            descriptor = os.open(path or ".", OPEN_DIRECTORY, dir_fd=self._root)
            try:
                if mode != 0o700:
                    os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(descriptor)

    # --- switching ----------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        place, staging = self._place, self._volume.staging
        place.make_parents()
        if self._old is None:
            try:
                filesystem.rename_new(staging, self._switch, place.parent, place.name)
            except FileExistsError as error:
                raise _changed("the target appeared") from error
            self._switched = True
            reached("exchanged")
        else:
            self._check_standing(self._old)
            try:
                filesystem.exchange(staging, self._switch, place.parent, place.name)
            except OSError as error:
                if error.errno not in filesystem.NO_EXCHANGE:
                    raise
                if self._atomic:
                    raise _no_exchange() from error
                retired = _old_name()
                filesystem.move(place.parent, place.name, staging, retired)
                reached("taken")
                os.rename(self._switch, place.name, src_dir_fd=staging, dst_dir_fd=place.parent)
            self._switched = True
            reached("exchanged")
            if self._plan.keeps:
                self._carry_over(self._old)
        if not self._tree[""].mode & 0o200:
            os.fchmod(self._root, self._tree[""].mode)
        filesystem.sync_directory(place.parent)
        os.fsync(staging)
        reached("durable")
        retire(self._volume, self._switch)
        reached("retired")

    def _check_standing(self, old: int) -> None:
        found, expected = None, os.fstat(old)
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._place.name, dir_fd=self._place.parent, follow_symlinks=False)
        if found is None or (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
            raise _changed("the target was replaced")
        # Moving a directory to another parent writes its `..`.
        filesystem.make_writable(self._place.parent, self._place.name)

    def _carry_over(self, old: int) -> None:
        """Bring along what appeared in the old tree after it was scanned; it could be something to keep."""
        late = scan_target(old)
        changed = False
        for path, entry in late.tree.items():
            if path in self._standing or path in self._tree or parent_of(path) not in self._tree:
                continue
            with contextlib.suppress(OSError):
                if entry.kind == DIRECTORY:
                    os.mkdir(path, entry.mode, dir_fd=self._root)
                else:
                    os.link(path, path, src_dir_fd=old, dst_dir_fd=self._root, follow_symlinks=False)
                self._tree[path] = entry
                changed = True
        if changed:
            with contextlib.suppress(OSError):
                self._finish_directories(root_mode_extra=0)


def retire(volume: VolumeRoot, name: str) -> None:
    """Turn a leftover of `staging` that may be an old tree into one; what is not there is left alone."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, _old_name(), src_dir_fd=volume.staging, dst_dir_fd=volume.staging)


def _old_name() -> str:
    return f"old-{time.time_ns()}-{secrets.token_hex(4)}"


def _changed(what: str) -> SyncError:
    return SyncError(f"{what} at the target while it was synced", hint="sync again", retry=True)


def _no_exchange() -> SyncError:
    return SyncError(
        "the volume's file system cannot exchange two directories in one step",
        hint="pass `atomic=False` to accept a moment without the directory, or move the volume to ext4, XFS or btrfs",
        reason="no_exchange",
    )


def _link_or_copy(old: int, new: int, name: str, entry: Entry) -> None:
    try:
        os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
    except OSError as error:
        # Too many links to one file, or a file system (or an owner) without hard links.
        if error.errno not in (errno.EMLINK, errno.EPERM) or entry.kind != FILE:
            raise
        _copy(old, new, name, entry)


def _copy(old: int, new: int, name: str, entry: Entry) -> None:
    """Make a file with the content that stands at the target.

    Raises:
        SyncError: it is not what was scanned any more (`retry` in its details).
    """
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=old)
    try:
        copied = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=new)
        try:
            while os.copy_file_range(source, copied, _COPY_BYTES):
                pass
            info = os.fstat(source)
            if (info.st_size, info.st_mtime_ns) != (entry.size, entry.mtime_ns):
                raise _changed(f"`{printable(name)}` changed")
            os.fchmod(copied, entry.mode)
            os.utime(copied, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(copied)
    finally:
        os.close(source)
