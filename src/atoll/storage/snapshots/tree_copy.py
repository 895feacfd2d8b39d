"""Copy a tree of the volume to another place of the volume, while functions may be changing it.

Theory of operation. The walk holds one descriptor for each level and opens each component relative to the one above,
never following a symlink, so that a directory that becomes something else leads nowhere. What vanishes is left out.

A file is cloned where the file system can. Else it is linked to the file of the same path in an earlier copy, if that
one holds the same; else it is copied. Links are made between copies only, never with live data, which functions
change in place. That a file holds the same is believed of its stamp alone (inode, size, modification and change time)
only when the stamp is older than the moment at which the earlier copy had begun and all memory that was mapped for
writing had been written back (`trust_ns`): what is written later moves the change time. Otherwise bytes are compared.

A file whose stamp moves while it is copied is copied again; after a few attempts the last one counts, as `moving`.
A clone is the state of one moment whatever its stamp does, and is never that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from atoll import linux
from atoll.errors import SyncError
from atoll.file_stamp import Stamp, stamp_of
from atoll.storage.content import copy
from atoll.storage.content.copy import copy_content
from atoll.storage.files.tree import MODE_BITS, printable
from atoll.storage.snapshots.values import COPY, JUICEFS, REFLINK
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE

MAX_DEPTH = 300
"""How deep directories may be nested: each level takes three descriptors, and a process may have 1,024."""

_ATTEMPTS = 3
_COMPARE_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass
class Copied:
    """What a copy holds, and what it took."""

    bytes: int = 0
    files: int = 0
    copied_bytes: int = 0
    moving: int = 0
    left_out: int = 0


@dataclass
class Previous:
    """An earlier copy, to whose files the new one's may be linked.

    Args:
        tree: it, open; kept by who made this.
        stamps: returns for a directory's path the stamps that its files had when they were copied and which can be
            trusted, by name.
    """

    tree: int
    stamps: Callable[[str], dict[str, Stamp]]


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


class TreeCopy:
    """Make one copy.

    Args:
        way: `REFLINK`, `JUICEFS` or `COPY`.
        previous: with whose files to share; only with live data as the source.
        leave_out: a name at the top that is left out.
        trust_ns: change times from here on are too young to be trusted later; 0 trusts none.
        keep: takes the path of each directory with the stamps of the files in it: of the source's, or of the copy's.
        keep_of_copy: which of the two.
    """

    def __init__(
        self,
        way: str,
        *,
        previous: Previous | None = None,
        leave_out: str = "",
        trust_ns: int = 0,
        keep: Callable[[str, dict[str, Stamp]], None] | None = None,
        keep_of_copy: bool = False,
    ) -> None:
        self._way = way
        self._previous = previous
        self._leave_out = leave_out
        self._trust_ns = trust_ns
        self._keep = keep
        self._keep_of_copy = keep_of_copy
        self._linked: dict[int, tuple[str, Stamp]] = {}
        """For sources with several names: where the first of them was copied to."""
        self._shared: set[int] = set()
        """Inodes of the earlier copy that this one has already."""
        self._root = -1
        self.copied = Copied()

    def run(self, source: int, target: int) -> Copied:
        """Copy what is below the open directory `source` into the open, empty directory `target`.

        Mode and times of the directory itself are copied as well.

        Raises:
            SyncError: directories are nested too deeply.
            OSError: the target cannot be written, or the source cannot be read.
        """
        self._root = target
        previous = os.dup(self._previous.tree) if self._previous is not None else -1
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
        try:
            source, locked_mode = open_directory(above.source, name)
        except OSError as error:
            if error.errno in _GONE:
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
        path = f"{above.path}/{name}" if above.path else name
        return _Level(path, source, target, previous, mode, info.st_mtime_ns, locked_mode is not None)

    def _list(self, level: _Level) -> list[str]:
        """Copy the files of a directory; return the directories in it."""
        with os.scandir(level.source) as found:
            items = sorted(found, key=lambda item: item.name)
        known: dict[str, Stamp] = {}
        if self._previous is not None and level.previous >= 0:
            known = self._previous.stamps(level.path)
        stamps: dict[str, Stamp] = {}
        below: list[str] = []
        for item in items:
            name = item.name
            if not level.path and name == self._leave_out:
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
                else:
                    self.copied.left_out += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EINVAL or not stat.S_ISLNK(info.st_mode):  # it was a symlink a moment ago
                    raise
        if self._keep is not None and stamps:
            self._keep(level.path, stamps)
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
        """Bring one file into the copy; return the stamp to remember it by, None for one not to be trusted."""
        copied = self.copied
        if info.st_nlink > 1 and self._link_again(level, name, info):
            return self._trusted(info)
        if level.previous >= 0 and known == stamp_of(info) and self._share(level, name, info, None):
            return self._trusted(info)
        source = open_file(level.source, name)
        if source < 0:
            return None
        try:
            attributes = attributes_of(source)  # before its state is looked at
            info = os.fstat(source)
            if level.previous >= 0 and self._share(level, name, info, source, attributes):
                return self._trusted(info) if stamp_of(os.fstat(source)) == stamp_of(info) else None
            stable = False
            for attempt in range(_ATTEMPTS):
                if attempt:
                    os.unlink(name, dir_fd=level.target)
                    info = os.fstat(source)
                kept, cloned = self._copy(source, info, level.target, name, attributes)
                stable = stamp_of(os.fstat(source)) == stamp_of(info)
                if stable:
                    break
            copied.files += 1
            copied.bytes += kept.st_size
            if not cloned:
                copied.copied_bytes += min(kept.st_size, 512 * kept.st_blocks) if self._way != JUICEFS else 0
                copied.moving += not stable
            if not stable:
                return None
            if info.st_nlink > 1:
                self._linked[info.st_ino] = (f"{level.path}/{name}" if level.path else name, stamp_of(info))
            return stamp_of(kept) if self._keep_of_copy else self._trusted(info)
        finally:
            os.close(source)

    def _trusted(self, info: os.stat_result) -> Stamp | None:
        if self._keep_of_copy or info.st_ctime_ns >= self._trust_ns:
            return None
        return stamp_of(info)

    def _count(self, info: os.stat_result) -> None:
        self.copied.files += 1
        self.copied.bytes += info.st_size

    def _link_again(self, level: _Level, name: str, info: os.stat_result) -> bool:
        """Give a file that has been copied under another of its names this name too."""
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
        """Link the file to that of the earlier copy; `source` is compared with it, None when it is known to be so."""
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
            self._linked[info.st_ino] = (f"{level.path}/{name}" if level.path else name, stamp_of(info))
        self._count(info)
        return True

    def _copy(
        self, source: int, info: os.stat_result, directory: int, name: str, attributes: dict[str, bytes]
    ) -> tuple[os.stat_result, bool]:
        """Make the file `name`; return what it is, and whether it was cloned."""
        target = os.open(name, _NEW, 0o600, dir_fd=directory)
        try:
            cloned = self._way == REFLINK and copy.clone(source, target)
            if not cloned:
                copy_content(source, target, info.st_size)
                os.ftruncate(target, info.st_size)
            for key, value in attributes.items():
                os.setxattr(target, key, value)
            os.fchmod(target, info.st_mode & MODE_BITS)
            os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))
            return os.fstat(target), cloned
        finally:
            os.close(target)


def open_directory(parent: int, name: str) -> tuple[int, int | None]:
    """Open a directory for listing; one that its owner may not list is given that right first.

    Returns:
        the descriptor, and the mode to put back by who has listed it; None where it was not changed.
    """
    try:
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        if os.access(".", os.X_OK, dir_fd=descriptor, effective_ids=True):
            return descriptor, None
        os.close(descriptor)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    except PermissionError:
        place = os.open(name, OPEN_PLACE, dir_fd=parent)
        try:
            mode = os.fstat(place).st_mode & MODE_BITS
            os.chmod(f"/proc/self/fd/{place}", mode | 0o500)
            try:
                return os.open(".", OPEN_DIRECTORY, dir_fd=place), mode
            except OSError:
                os.chmod(f"/proc/self/fd/{place}", mode)
                raise
        finally:
            os.close(place)


def open_file(parent: int, name: str) -> int:
    """Open an ordinary file for reading, also one that its owner may not read; -1 when there is none any more."""
    try:
        descriptor = os.open(name, _READ, dir_fd=parent)
    except PermissionError:
        descriptor = _open_locked(parent, name)
    except OSError as error:
        if error.errno in _GONE or error.errno == errno.ENXIO:
            return -1
        raise
    if descriptor >= 0 and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return -1
    return descriptor


def _open_locked(parent: int, name: str) -> int:
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(place).st_mode
        if not stat.S_ISREG(mode):
            return -1
        os.chmod(f"/proc/self/fd/{place}", (mode & MODE_BITS) | 0o400)
        try:
            return os.open(f"/proc/self/fd/{place}", _READ & ~os.O_NOFOLLOW)
        finally:
            os.chmod(f"/proc/self/fd/{place}", mode & MODE_BITS)
    finally:
        os.close(place)


def same_content(one: int, other: int) -> bool:
    """Compare two open files of one size, byte by byte; where both have holes there is nothing to compare."""
    offset = 0
    while True:
        offset = min(_next_data(one, offset), _next_data(other, offset))
        ours, theirs = os.pread(one, _COMPARE_BYTES, offset), os.pread(other, _COMPARE_BYTES, offset)
        if ours != theirs:
            return False
        if not ours:
            return True
        offset += len(ours)


def _next_data(descriptor: int, offset: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # a file system that does not tell
            return offset
        return max(offset, os.fstat(descriptor).st_size)


def attributes_of(descriptor: int) -> dict[str, bytes]:
    """Return the user's extended attributes of an open file; none where the file system has none.

    A file that its owner may not read is made readable for that moment, which moves its change time.
    """
    try:
        return _attributes(descriptor)
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o400:
            return {}
    try:
        os.fchmod(descriptor, mode | 0o400)
        try:
            return _attributes(descriptor)
        finally:
            os.fchmod(descriptor, mode)
    except PermissionError:
        return {}


def _attributes(descriptor: int) -> dict[str, bytes]:
    try:
        names = [name for name in os.listxattr(descriptor) if name.startswith("user.")]
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSYS):
            return {}
        raise


def copy_attributes(source: int, target: int) -> None:
    """Give an open file the user's extended attributes of another."""
    for name, value in attributes_of(source).items():
        os.setxattr(target, name, value)


def usual_way(directory: int) -> str:
    """Say how files of the volume are best copied within it: what its file system can is tried, not looked up.

    Args:
        directory: an open directory of the volume that is private to peers.
    """
    if copy.can_clone(directory):
        return REFLINK
    return JUICEFS if linux.kind_of(directory) == "fuse.juicefs" else COPY
