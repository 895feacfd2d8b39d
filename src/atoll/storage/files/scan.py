"""The scan of a tree on disk: the first step of a sync, on both sides.

On platforms that allow it each directory is opened by a directory cursor, and its entries are looked up relative to
that descriptor: a directory that is swapped for a symlink meanwhile leads nowhere. An entry that vanishes during the
scan is left out, so the tree is as it is a moment later. What exists in a source and cannot be read is collected, and
ends the scan with one error.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from array import array
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

from atoll.errors import SourceNotFound, SyncError
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.ignore import IGNORE_FILE, IgnoreRules
from atoll.storage.files.tree import DIRECTORY, KINDS, MODE_BITS, SPECIAL, SYMLINK, Entry, Tree, special_name
from atoll.storage.files.unreadable import DENIED, Unreadable
from atoll.terminal_text import printable

BY_DESCRIPTOR = os.scandir in os.supports_fd and os.open in os.supports_dir_fd and os.readlink in os.supports_dir_fd
_OPEN_DIRECTORY = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)
_PROBE = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"):
    _PROBE |= getattr(os, _flag, 0)
_BY_NAME = attrgetter("name")
_TYPE_BITS = 0o170000
_REGULAR = stat.S_IFREG
_MOST = (1 << 63) - 1
TOO_DEEP = "nested too deeply"
MAX_PATH = 1 << 13
"""Bytes of the longest path that is scanned, twice the limit of system calls. Each entry keeps its whole path, so
deeper nesting by a hostile function would cost the scanner gigabytes of memory."""
ROW = 5
"""Numbers in the row that a scan keeps of each path."""
Row = tuple[int, int, int, int, int]
"""Mode with its type, size, modification time, change time, inode."""
_UTF8 = sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


def to_name(native: str) -> str:
    """Return a name of this machine as trees spell it, whatever the locale."""
    return native if _UTF8 else os.fsencode(native).decode("utf-8", "surrogateescape")


def to_native(name: str) -> str:
    """Return a tree's name or path as this machine's calls take it; the inverse of `to_name`."""
    return name if _UTF8 else os.fsdecode(name.encode("utf-8", "surrogateescape"))


@dataclass
class Scan:
    """Result of a scan in a slim form: 40 bytes and the name for each entry.

    Args:
        paths: sorted in each directory, parents before their entries.
        rows: `ROW` numbers for each path: mode with its type, size, modification time, change time, inode; the last
            two, which a change of content cannot put back, are 0 for directories, whose own do not matter.
        targets: targets of symlinks.
        skipped: excluded paths, the topmost of each.
        root: device and inode of the directory that was scanned.
        clamped: paths whose modification time was moved into the range of 64-bit nanoseconds.
    """

    paths: list[str] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))
    targets: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    root: tuple[int, int] = (0, 0)
    clamped: list[str] = field(default_factory=list)

    @cached_property
    def tree(self) -> Tree:
        """The entries, in the order of the paths."""
        made: Tree = {}
        rows, targets = self.rows, self.targets
        for path, mode, size, mtime_ns in zip(self.paths, rows[::ROW], rows[1::ROW], rows[2::ROW], strict=True):
            kind = KINDS.get(mode & _TYPE_BITS, SPECIAL)
            if kind == SYMLINK:
                made[path] = Entry(kind, 0, 0, mtime_ns, targets[path])
            else:
                made[path] = Entry(kind, mode & MODE_BITS, size, mtime_ns)
        return made

    @cached_property
    def positions(self) -> dict[str, int]:
        """Index in `paths` of each path."""
        return {path: number for number, path in enumerate(self.paths)}

    @cached_property
    def stamps(self) -> dict[str, tuple[int, int]]:
        """Change time (nanoseconds) and inode of each file."""
        rows = self.rows
        columns = zip(self.paths, rows[::ROW], rows[3::ROW], rows[4::ROW], strict=True)
        return {path: (ctime_ns, inode) for path, mode, ctime_ns, inode in columns if mode & _TYPE_BITS == _REGULAR}

    def row(self, number: int) -> array[int]:
        """Return the numbers of one path."""
        return self.rows[ROW * number : ROW * number + ROW]

    def without(self, gone: Container[str]) -> Scan:
        """Return the scan without some paths."""
        kept = Scan(skipped=self.skipped, root=self.root, clamped=self.clamped)
        for number, path in enumerate(self.paths):
            if path not in gone:
                kept.paths.append(path)
                kept.rows.extend(self.row(number))
        kept.targets = {path: target for path, target in self.targets.items() if path not in gone}
        return kept


def row_of(info: os.stat_result) -> Row:
    """Return the row that a scan has for a file in this state."""
    return (info.st_mode, info.st_size, clamp(info.st_mtime_ns), clamp(info.st_ctime_ns), clamp(info.st_ino))


def clamp(number: int) -> int:
    """Return the nearest number of 64 bits: of nanoseconds, a time from 1677 to 2262."""
    return min(max(number, -_MOST - 1), _MOST)


def scan_source(root: str, rules: IgnoreRules | None = None) -> Scan:
    """Scan a local directory that is to be mirrored.

    Args:
        root: the directory; a symlink to one is followed.
        rules: rules for entries to leave out; `.atollignore` files are added to them as they are found. None leaves out nothing
            and reads no such file.

    Raises:
        SourceNotFound: `root` does not exist.
        SyncError: it is not a directory; or names in it that cannot be read or are special files, all of them.
    """
    check_source(root)
    descriptor = None
    try:
        if BY_DESCRIPTOR:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return _Scanner(root, descriptor, rules, special=False).run()
    except OSError as error:
        if isinstance(error, SyncError):
            raise
        raise SyncError(f"cannot read `{printable(root)}`: {reason(error)}") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_source(root: str) -> None:
    """Check that a directory to be mirrored is one.

    Raises:
        SourceNotFound: it does not exist.
        SyncError: it is something else, or cannot be looked at.
    """
    try:
        found = os.stat(root)
    except FileNotFoundError as error:
        raise SourceNotFound(
            f"there is no directory `{printable(root)}`", hint="check the path to upload", path=to_name(root)
        ) from error
    except (OSError, ValueError) as error:
        raise SyncError(f"cannot read `{printable(root)}`: {reason(error)}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SyncError(f"not a directory: `{printable(root)}`", hint="sync_dir uploads directories")


def scan_target(descriptor: int, unlock: Callable[[str, int], None] | None = None) -> Scan:
    """Scan the directory that is open as `descriptor`; special files are entries like others.

    Args:
        unlock: is called with path and mode of each directory that its owner may not list, before it is listed.

    Raises:
        OSError: something cannot be read.
    """
    return _Scanner("", descriptor, None, special=True, unlock=unlock).run()


class _Scanner:
    def __init__(
        self,
        root: str,
        descriptor: int | None,
        rules: IgnoreRules | None,
        *,
        special: bool,
        unlock: Callable[[str, int], None] | None = None,
    ) -> None:
        self._root = root
        self._descriptor = descriptor
        self._cursor = DirectoryCursor(descriptor if descriptor is not None else -1, _OPEN_DIRECTORY)
        self._rules = rules
        self._special = special
        self._unlock = unlock
        self._unreadable = Unreadable(root)
        self.scan = Scan()
        self._gone: set[str] = set()

    def run(self) -> Scan:
        with self._cursor:
            return self._run()

    def _run(self) -> Scan:
        scan = self.scan
        found = os.stat(self._root) if self._descriptor is None else os.fstat(self._descriptor)
        scan.root = (found.st_dev, found.st_ino)
        scan.paths.append("")
        scan.rows.extend((found.st_mode, 0, clamp(found.st_mtime_ns), 0, 0))
        if clamp(found.st_mtime_ns) != found.st_mtime_ns:
            scan.clamped.append("")
        pending = [("", found.st_mode)]
        while pending:
            directory, mode = pending.pop()
            if len(directory) > MAX_PATH:
                raise too_deep(directory)
            if self._unlock is not None and mode & 0o500 != 0o500:
                self._unlock(directory, mode & MODE_BITS)
            try:
                pending.extend(self._list(directory))
            except (FileNotFoundError, NotADirectoryError) as error:
                if not directory:
                    raise
                if isinstance(error, NotADirectoryError) and not self._special:
                    raise replaced(self._path(directory)) from error
                self._gone.add(directory)  # gone, or replaced by something else, since its parent was read
            except OSError as error:
                if isinstance(error, SyncError):
                    raise
                if self._special:
                    raise SyncError(f"cannot read `{printable(directory)}`: {reason(error)}", path=directory) from error
                self._unreadable.add(directory, error, DIRECTORY)
        if self._unreadable:
            self._probe_files()
            raise self._unreadable.error()
        if self._gone:
            self.scan = scan.without(self._gone)
        return self.scan

    def _probe_files(self) -> None:
        """Look which files cannot be opened either, so that one error names all."""
        for path, mode in zip(self.scan.paths, self.scan.rows[::ROW], strict=True):
            if mode & _TYPE_BITS == _REGULAR:
                try:
                    os.close(os.open(self._path(path), _PROBE))
                except (FileNotFoundError, NotADirectoryError):
                    pass  # gone meanwhile
                except OSError as error:
                    if error.errno in DENIED:
                        self._unreadable.add(path, error)

    def _path(self, path: str) -> str:
        return os.path.join(self._root, to_native(path)) if self._root else path

    def _list(self, directory: str) -> list[tuple[str, int]]:
        if self._descriptor is None:
            return self._read(directory, self._path(directory), None)
        if directory:
            descriptor = self._cursor.open(to_native(directory))
            return self._read(directory, descriptor, descriptor)
        descriptor = os.open(".", _OPEN_DIRECTORY, dir_fd=self._descriptor)
        try:
            return self._read(directory, descriptor, descriptor)
        finally:
            os.close(descriptor)

    def _read(self, directory: str, where: str | int, descriptor: int | None) -> list[tuple[str, int]]:
        """Add a directory's entries; return the directories in it, with their modes."""
        with os.scandir(where) as found:
            entries: list[os.DirEntry[Any]] = sorted(found, key=_BY_NAME)
        prefix = directory + "/" if directory else ""
        rules, scan = self._rules, self.scan
        if rules is not None:
            if rules.reads_files and any(item.name == IGNORE_FILE for item in entries):
                self._add_rules(rules, directory)
            if rules:
                entries = [item for item in entries if self._wanted(rules, prefix, item)]
        below: list[tuple[str, int]] = []
        paths, rows = list[str](), list[int]()
        add_path, add_row = paths.append, rows.extend
        for item in entries:
            path = prefix + (item.name if _UTF8 else to_name(item.name))
            try:
                info = item.stat(follow_symlinks=False)
                mode = info.st_mode
                kind = mode & _TYPE_BITS
                if kind == _REGULAR:
                    add_row((mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
                elif kind == stat.S_IFDIR:
                    add_row((mode, 0, info.st_mtime_ns, 0, 0))
                    below.append((path, mode))
                elif kind == stat.S_IFLNK:
                    scan.targets[path] = to_name(
                        os.readlink(item.name, dir_fd=descriptor) if descriptor is not None else os.readlink(item.path)
                    )
                    add_row((kind, 0, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
                elif self._special:
                    add_row((mode, 0, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
                else:
                    self._unreadable.add(path, f"is a {special_name(mode)}, which cannot be uploaded")
                    continue
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EINVAL or self._special:
                    raise
                raise replaced(self._path(path)) from error  # a symlink that became something else
            add_path(path)
        try:
            scan.rows.fromlist(rows)
        except OverflowError:  # inodes of more than 63 bits, times beyond the year 2262
            scan.rows.extend(map(clamp, rows))
            scan.clamped += [path for path, time in zip(paths, rows[2::ROW], strict=True) if clamp(time) != time]
        scan.paths += paths
        return below

    def _wanted(self, rules: IgnoreRules, prefix: str, item: os.DirEntry[Any]) -> bool:
        path = prefix + to_name(item.name)
        if rules.excludes(path, item.is_dir(follow_symlinks=False)):
            self.scan.skipped.append(path)
            return False
        return True

    def _add_rules(self, rules: IgnoreRules, directory: str) -> None:
        path = self._path(f"{directory}/{IGNORE_FILE}" if directory else IGNORE_FILE)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                rules.add(directory, file.read())
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not os.path.lexists(path):  # it has vanished since
                return
            raise SyncError(
                f"cannot read `{printable(path)}`: {reason(error)}", hint="mend it, or remove it"
            ) from error


def too_deep(path: str) -> SyncError:
    """Return the error for directories below each other whose path is longer than `MAX_PATH`."""
    return SyncError(
        f"directories are nested too deeply: `{printable(path[:60])}…` goes on for {path.count('/') + 1} levels",
        hint="remove the topmost, or move what is needed out of it",
        reason=TOO_DEEP,
    )


def replaced(path: str) -> SyncError:
    """Return the error that has the client start again, for a local name that became something else."""
    return SyncError(f"`{printable(path)}` became something else while it was synced", hint="sync again", retry=True)


def reason(error: Exception) -> str:
    """Say in a few words why a call failed, without the path that its caller knows."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
