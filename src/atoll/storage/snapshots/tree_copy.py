"""Copier of trees within a volume, for snapshots, restores and `cp`, while functions may be changing the source.

Theory of operation. The walk holds one descriptor for each level and opens each component relative to the one above,
never following a symlink, so that a directory that becomes something else leads nowhere. Vanished files are left out.

A file is cloned if the file system can. Else it is linked to the file of the same path in an earlier copy, if both
are equal; else it is copied. Links are made between copies only, never with live data, which functions change in
place. An equal stamp (size, modification and change time, inode) proves equal content only if it is older than the
start of the earlier copy, before which all memory that was mapped for writing had been written back (`trust_ns`):
later writes move the change time. Otherwise bytes are compared.

A file whose stamp moves while it is copied is copied again; after a few attempts the last one counts, as `moving`.
A clone is the state of one moment, and never counts as moving.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from atoll.errors import SyncError
from atoll.file_stamp import Stamp, stamp_of
from atoll.storage.files.tree import MODE_BITS
from atoll.storage.snapshots.copy_rules import Copied, CopyRules, fill
from atoll.storage.snapshots.file_access import (
    GONE,
    READ,
    attributes_of,
    copy_attributes,
    open_directory,
    open_file,
    same_content,
)
from atoll.storage.snapshots.values import JUICEFS
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.terminal_text import printable

MAX_DEPTH = 300
"""The deepest nesting of directories: each level takes three descriptors, and a process may have 1,024."""

_ATTEMPTS = 3
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class _Level:
    path: str
    source: int
    target: int
    previous: int
    mode: int
    mtime_ns: int
    unlocked: bool
    below: Iterator[str] = field(default_factory=lambda: iter(()))

    def path_of(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class TreeCopy:
    """One copy of a tree.

    Args:
        rules: how it is made.
    """

    def __init__(self, rules: CopyRules) -> None:
        self._rules = rules
        self._linked: dict[int, tuple[str, Stamp]] = {}
        """The first copied name of each source file that has several."""
        self._shared: set[int] = set()
        """Inodes of the earlier copy that this one has already."""
        self._root = -1
        self.copied = Copied()

    def run(self, source: int, target: int) -> Copied:
        """Copy the contents of the open directory `source` into the open, empty directory `target`.

        Mode and times of the directory itself are copied as well.

        Raises:
            SyncError: directories are nested too deeply.
            OSError: the target cannot be written, or the source cannot be read.
        """
        self._root = target
        previous = os.dup(self._rules.previous.tree) if self._rules.previous is not None else -1
        info = os.fstat(source)
        mode = info.st_mode & MODE_BITS
        levels = [_Level("", os.dup(source), os.dup(target), previous, mode, info.st_mtime_ns, unlocked=False)]
        try:
            levels[0].below = iter(self._list(levels[0]))
            while levels:
                level = levels[-1]
                name = next(level.below, None)
                if name is None:
                    self._leave(levels.pop())
                    continue
                if len(levels) >= MAX_DEPTH:
                    raise SyncError(
                        f"`{printable(level.path[:100])}…` is nested more than {MAX_DEPTH} directories deep",
                        hint="move it up",
                    )
                entered = self._enter(level, name)
                if entered is not None:
                    levels.append(entered)
                    entered.below = iter(self._list(entered))
        except BaseException:
            for level in reversed(levels):
                with contextlib.suppress(OSError):
                    self._close(level)
            raise
        return self.copied

    # --- directories ------------------------------------------------------------------------------------------------

    def _enter(self, above: _Level, name: str) -> _Level | None:
        locked_mode = None
        try:
            if self._rules.plain:
                source = os.open(name, OPEN_DIRECTORY, dir_fd=above.source)
            else:
                source, locked_mode = open_directory(above.source, name)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        target = previous = -1
        try:
            info = os.fstat(source)
            mode = info.st_mode & MODE_BITS if locked_mode is None else locked_mode
            os.mkdir(name, 0o700, dir_fd=above.target)
            target = os.open(name, OPEN_DIRECTORY, dir_fd=above.target)
            if above.previous >= 0:
                with contextlib.suppress(OSError):
                    previous = os.open(name, OPEN_DIRECTORY, dir_fd=above.previous)
        except BaseException:
            for descriptor in (source, target):
                if descriptor >= 0:
                    os.close(descriptor)
            raise
        return _Level(above.path_of(name), source, target, previous, mode, info.st_mtime_ns, locked_mode is not None)

    def _list(self, level: _Level) -> list[str]:
        """Copy the files of a directory; return the directories in it."""
        with os.scandir(level.source) as found:
            items = sorted(found, key=lambda item: item.name)
        known: dict[str, Stamp] = {}
        if self._rules.previous is not None and level.previous >= 0:
            known = self._rules.previous.stamps(level.path)
        stamps: dict[str, Stamp] = {}
        below: list[str] = []
        for item in items:
            name = item.name
            if not level.path and name == self._rules.leave_out:
                continue
            try:
                info = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    below.append(name)
                elif stat.S_ISREG(info.st_mode):
                    stamp = self._file(level, name, info, known.get(name))
                    if stamp is not None:
                        stamps[name] = stamp
                elif stat.S_ISLNK(info.st_mode):
                    os.symlink(os.readlink(name, dir_fd=level.source), name, dir_fd=level.target)
                    os.utime(name, ns=(info.st_mtime_ns, info.st_mtime_ns), dir_fd=level.target, follow_symlinks=False)
                elif self._rules.plain:
                    raise OSError(errno.EINVAL, f"`{printable(name)}` is not an ordinary file")
                else:
                    self.copied.left_out += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EINVAL or not stat.S_ISLNK(info.st_mode):  # it was a symlink a moment ago
                    raise
        if self._rules.keep is not None and stamps:
            self._rules.keep(level.path, stamps)
        return below

    def _leave(self, level: _Level) -> None:
        try:
            copy_attributes(level.source, level.target)
            os.fchmod(level.target, level.mode)
            os.utime(level.target, ns=(level.mtime_ns, level.mtime_ns))
        finally:
            self._close(level)

    def _close(self, level: _Level) -> None:
        if level.unlocked:
            with contextlib.suppress(OSError):
                os.fchmod(level.source, level.mode)
        for descriptor in (level.source, level.target, level.previous):
            if descriptor >= 0:
                os.close(descriptor)

    # --- files ------------------------------------------------------------------------------------------------------

    def _file(self, level: _Level, name: str, info: os.stat_result, known: Stamp | None) -> Stamp | None:
        """Copy one file; return the stamp by which a later copy can recognise it, None if that proves nothing."""
        if self._rules.plain:
            self._file_once(level, name)
            return None
        copied = self.copied
        if info.st_nlink > 1 and self._link_again(level, name, info):
            return self._trusted(info)
        if level.previous >= 0 and known == stamp_of(info) and self._share(level, name, info, None):
            return self._trusted(info)
        source = open_file(level.source, name)
        if source < 0:
            return None
        try:
            attributes = attributes_of(source)  # may move the change time, so before `fstat`
            info = os.fstat(source)
            if level.previous >= 0 and self._share(level, name, info, source, attributes):
                return self._trusted(info) if stamp_of(os.fstat(source)) == stamp_of(info) else None
            stable = False
            for attempt in range(_ATTEMPTS):
                if attempt:
                    os.unlink(name, dir_fd=level.target)
                    info = os.fstat(source)
                kept, cloned = self._make(source, info, level.target, name, attributes)
                stable = stamp_of(os.fstat(source)) == stamp_of(info)
                if stable:
                    break
            copied.files += 1
            copied.bytes += kept.st_size
            if not cloned:
                copied.copied_bytes += min(kept.st_size, 512 * kept.st_blocks) if self._rules.way != JUICEFS else 0
                copied.moving += not stable
            if not stable:
                return None
            if info.st_nlink > 1:
                self._linked[info.st_ino] = (level.path_of(name), stamp_of(info))
            return stamp_of(kept) if self._rules.keep_of_copy else self._trusted(info)
        finally:
            os.close(source)

    def _trusted(self, info: os.stat_result) -> Stamp | None:
        if self._rules.keep_of_copy or info.st_ctime_ns >= self._rules.trust_ns:
            return None
        return stamp_of(info)

    def _count(self, info: os.stat_result) -> None:
        self.copied.files += 1
        self.copied.bytes += info.st_size

    def _link_again(self, level: _Level, name: str, info: os.stat_result) -> bool:
        """Link a file whose other name has been copied already."""
        first = self._linked.get(info.st_ino)
        if first is None or first[1] != stamp_of(info):
            return False
        try:
            os.link(first[0], name, src_dir_fd=self._root, dst_dir_fd=level.target, follow_symlinks=False)
        except OSError:
            return False
        self._count(info)
        return True

    def _share(
        self,
        level: _Level,
        name: str,
        info: os.stat_result,
        source: int | None,
        attributes: dict[str, bytes] | None = None,
    ) -> bool:
        """Link the earlier copy's file if it is equal; `source` is compared with it, None if the stamps prove that."""
        try:
            old = os.stat(name, dir_fd=level.previous, follow_symlinks=False)
            alike = (old.st_mode, old.st_size, old.st_mtime_ns) == (info.st_mode, info.st_size, info.st_mtime_ns)
            if not alike or old.st_ino in self._shared:
                return False
            if source is not None:
                other = open_file(level.previous, name)
                if other < 0:
                    return False
                try:
                    if not same_content(source, other) or attributes != attributes_of(other):
                        return False
                finally:
                    os.close(other)
            os.link(name, name, src_dir_fd=level.previous, dst_dir_fd=level.target, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return False
        self._shared.add(old.st_ino)
        if info.st_nlink > 1:
            self._linked[info.st_ino] = (level.path_of(name), stamp_of(info))
        self._count(info)
        return True

    def _make(
        self, source: int, info: os.stat_result, directory: int, name: str, attributes: dict[str, bytes]
    ) -> tuple[os.stat_result, bool]:
        """Make the file `name`; return its status, and whether it was cloned."""
        target = os.open(name, _NEW, 0o600, dir_fd=directory)
        try:
            cloned = fill(source, target, info, self._rules, attributes)
            return os.fstat(target), cloned
        finally:
            os.close(target)

    def _file_once(self, level: _Level, name: str) -> None:
        source = os.open(name, READ, dir_fd=level.source)
        try:
            info = os.fstat(source)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, f"`{printable(name)}` is not an ordinary file")
            self._make(source, info, level.target, name, attributes_of(source))
        finally:
            os.close(source)
