"""Read a tree from disk: the first step of a sync, on both sides.

Where the platform can, each directory is opened once, without following a symlink, and its entries are looked up
relative to that descriptor, so that a directory that is swapped for a symlink meanwhile leads nowhere. What vanishes
while it is scanned is left out: the tree is then as it is a moment later.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import SourceNotFound, SyncError
from atoll.storage.ignore import IGNORE_FILE, IgnoreRules
from atoll.storage.tree import DIRECTORY, FILE, SPECIAL, Entry, Tree, entry_of, printable, special_name

_BY_DESCRIPTOR = os.scandir in os.supports_fd and os.open in os.supports_dir_fd and os.readlink in os.supports_dir_fd
_OPEN_DIRECTORY = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)
_UTF8 = sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


def to_name(native: str) -> str:
    """Return a name of this machine as trees spell it, whatever the locale."""
    return native if _UTF8 else os.fsencode(native).decode("utf-8", "surrogateescape")


def to_native(name: str) -> str:
    """Return a tree's name or path as this machine's calls take it; the inverse of `to_name`."""
    return name if _UTF8 else os.fsdecode(name.encode("utf-8", "surrogateescape"))


@dataclass
class Scan:
    """What a scan found.

    Args:
        tree: the entries, parents before what they hold.
        stamps: change time (nanoseconds) and inode of each file, which a change of content cannot put back.
        skipped: excluded paths, the topmost of each.
    """

    tree: Tree = field(default_factory=dict)
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def scan_source(root: str, rules: IgnoreRules | None = None) -> Scan:
    """Scan a local directory that is to be mirrored.

    Args:
        root: the directory; a symlink to one is followed.
        rules: what to leave out; `.atollignore` files are added to them as they are found. None leaves out nothing
            and reads no such file.

    Raises:
        SourceNotFound: `root` does not exist.
        SyncError: it is not a directory, something in it cannot be read, or is a special file.
    """
    check_source(root)
    descriptor = None
    try:
        if _BY_DESCRIPTOR:
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
        raise SourceNotFound(f"there is no directory `{printable(root)}`", hint="check the path to upload") from error
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
        self._rules = rules
        self._special = special
        self._unlock = unlock
        self.scan = Scan()

    def run(self) -> Scan:
        found = os.stat(self._root) if self._descriptor is None else os.fstat(self._descriptor)
        self.scan.tree[""] = entry_of(found)
        pending = [""]
        while pending:
            directory = pending.pop()
            if self._unlock is not None and self.scan.tree[directory].mode & 0o500 != 0o500:
                self._unlock(directory, self.scan.tree[directory].mode)
            try:
                pending.extend(self._list(directory))
            except (FileNotFoundError, NotADirectoryError):
                if not directory:
                    raise
                del self.scan.tree[directory]  # gone, or replaced by something else, since its parent was read
            except OSError as error:
                if isinstance(error, SyncError):
                    raise
                raise SyncError(f"cannot read `{printable(self._path(directory))}`: {reason(error)}") from error
        return self.scan

    def _path(self, path: str) -> str:
        return os.path.join(self._root, to_native(path)) if self._root else path

    def _list(self, directory: str) -> list[str]:
        if self._descriptor is None:
            return self._read(directory, self._path(directory), None)
        if directory:
            descriptor = os.open(to_native(directory), _OPEN_DIRECTORY, dir_fd=self._descriptor)
        else:
            descriptor = os.open(".", _OPEN_DIRECTORY, dir_fd=self._descriptor)
        try:
            return self._read(directory, descriptor, descriptor)
        finally:
            os.close(descriptor)

    def _read(self, directory: str, where: str | int, descriptor: int | None) -> list[str]:
        """Add what a directory holds; return the directories in it."""
        with os.scandir(where) as found:
            entries: list[os.DirEntry[Any]] = list(found)
        prefix = directory + "/" if directory else ""
        rules, tree, stamps = self._rules, self.scan.tree, self.scan.stamps
        if rules is not None and rules.reads_files and any(item.name == IGNORE_FILE for item in entries):
            self._add_rules(rules, directory)
        below: list[str] = []
        for item in entries:
            name = item.name if _UTF8 else to_name(item.name)
            path = prefix + name
            if rules is not None and rules.excludes(path, item.is_dir(follow_symlinks=False)):
                self.scan.skipped.append(path)
                continue
            try:
                # The stat of a directory entry lacks inode numbers on Windows, where no stamp uses them.
                info = item.stat(follow_symlinks=False)
                kind_mode = info.st_mode
                if stat.S_ISREG(kind_mode):
                    tree[path] = Entry(FILE, kind_mode & 0o7777, info.st_size, info.st_mtime_ns)
                    stamps[path] = (info.st_ctime_ns, info.st_ino)
                    continue
                target = ""
                if stat.S_ISLNK(kind_mode):
                    target = (
                        os.readlink(item.name, dir_fd=descriptor)
                        if descriptor is not None
                        else (os.readlink(item.path))
                    )
                    target = to_name(target)
            except FileNotFoundError:
                continue
            entry = entry_of(info, target)
            if entry.kind == SPECIAL and not self._special:
                raise SyncError(
                    f"`{printable(self._path(path))}` is a {special_name(kind_mode)}, which cannot be uploaded",
                    hint=f"remove it, or exclude it in `{IGNORE_FILE}`",
                )
            tree[path] = entry
            if entry.kind == DIRECTORY:
                below.append(path)
        return below

    def _add_rules(self, rules: IgnoreRules, directory: str) -> None:
        path = self._path(f"{directory}/{IGNORE_FILE}" if directory else IGNORE_FILE)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                rules.add(directory, file.read())
        except (OSError, ValueError) as error:
            raise SyncError(f"cannot read `{printable(path)}`: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Say in a few words why a call failed, without the path that its caller knows."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
