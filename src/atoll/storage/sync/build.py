"""Build the tree of a directory in staging, out of what was received there and of what stands at the target.

No inode is shared between two states of a file: only what stays as it is is linked, and what has another mode is a
copy (a clone where the file system has them). What a function does to a linked file while the tree is built it does
to both trees.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container, Mapping

from atoll.errors import SyncError
from atoll.storage.content.copy import clone
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Entry, Tree, parent_of, printable
from atoll.storage.volume.locate import OPEN_DIRECTORY

_COPY_BYTES = 64 << 20
Stamps = dict[str, tuple[int, int]]
"""Change time (nanoseconds) and inode of files."""


class Builder:
    """Complete one directory.

    Args:
        root: the directory, open for reading; it holds the received files, and may hold directories.
        old: the directory that stands, open, or None.
        tree: what it is to hold, relative to it, with itself as the empty path.
        put: those paths that come or change.
        copy: those of them whose content stands at `old`, with the modification time that it has there.
        known: returns the change time that a file at `old` had when it was scanned, -1 where that says nothing.

    Attributes:
        stamps: of the files that were linked or copied; with a change time of -1 where a function may have changed the
            content since it was scanned.
        copied: the paths of those that were copied.
    """

    def __init__(
        self,
        root: int,
        old: int | None,
        tree: Tree,
        put: Container[str],
        copy: Mapping[str, int],
        known: Callable[[str], int],
    ) -> None:
        self._known = known
        self._root = root
        self._old = old
        self._tree = tree
        self._put = put
        self._copy = copy
        self.stamps: Stamps = {}
        self.copied: list[str] = []

    def link(self) -> None:
        """Make the directories and symlinks, link what stays and copy what has another mode.

        Raises:
            SyncError: the old directory is not what was scanned any more (`retry` in its details).
            OSError: the volume cannot be written.
        """
        directories, below = [], dict[str, list[str]]()
        for path, entry in self._tree.items():
            if entry.kind == DIRECTORY:
                directories.append(path)
            elif path not in self._put or entry.kind != FILE or path in self._copy:
                below.setdefault(parent_of(path), []).append(path)
        with (
            DirectoryCursor(self._root, OPEN_DIRECTORY) as new,
            DirectoryCursor(self._old if self._old is not None else -1) as old,
        ):
            for directory in sorted(directories):
                if directory:
                    self._make(new.open(parent_of(directory)), directory)
            for directory in sorted(below):
                try:
                    self._fill(directory, below[directory], new.open(directory), old)
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise changed(f"`{printable(directory)}` changed") from error

    def _make(self, parent: int, path: str) -> None:
        try:
            os.mkdir(path.rpartition("/")[2], 0o700, dir_fd=parent)
        except FileExistsError:
            return

    def _fill(self, directory: str, paths: list[str], here: int, old: DirectoryCursor) -> None:
        start = len(directory) + 1 if directory else 0
        standing = -1
        for path in paths:
            entry, name = self._tree[path], path[start:]
            if path in self._put and entry.kind == SYMLINK:
                make_symlink(here, name, entry)
                continue
            if standing < 0:
                standing = old.open(directory)
            if entry.kind == FILE:
                before_ns = os.stat(name, dir_fd=standing, follow_symlinks=False).st_ctime_ns
            if path in self._copy:
                copy_file(standing, here, name, entry, self._copy[path])
                self.copied.append(path)
            elif not _link(standing, here, name, entry):
                self.copied.append(path)
            if entry.kind == FILE:
                made = os.stat(name, dir_fd=here, follow_symlinks=False)
                as_scanned = before_ns == self._known(path)
                self.stamps[path] = (made.st_ctime_ns if as_scanned else -1, made.st_ino)

    def finish(self, extra_mode: int) -> None:
        """Give the directories their modes and times; the root's mode has `extra_mode` in addition.

        Raises:
            OSError: it cannot be done.
        """
        with DirectoryCursor(self._root, OPEN_DIRECTORY) as new:
            # Deepest first: a directory may lose the permission by which one gets to those in it.
            for path in sorted((path for path, entry in self._tree.items() if entry.kind == DIRECTORY), reverse=True):
                entry = self._tree[path]
                descriptor = new.open(path)
                mode = entry.mode if path else entry.mode | extra_mode
                if mode != 0o700:
                    os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))


def make_symlink(parent: int, name: str, entry: Entry) -> None:
    """Make a symlink with its time."""
    os.symlink(entry.target, name, dir_fd=parent)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)


def changed(what: str) -> SyncError:
    """Return the error that has the client start again."""
    return SyncError(f"{what} at the target while it was synced", hint="sync again", retry=True)


def _link(old: int, new: int, name: str, entry: Entry) -> bool:
    """Link a file; where that cannot be, copy it and return False."""
    try:
        os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
    except OSError as error:
        # Too many links to one file, or a file system (or an owner) without hard links.
        if error.errno not in (errno.EMLINK, errno.EPERM) or entry.kind != FILE:
            raise
        copy_file(old, new, name, entry, entry.mtime_ns)
        return False
    return True


def copy_file(old: int, new: int, name: str, entry: Entry, mtime_ns: int, new_name: str | None = None) -> None:
    """Make a file with the content that stands at the target with this modification time.

    Raises:
        SyncError: it is not what was scanned any more (`retry` in its details).
    """
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=old)
    try:
        copied = os.open(new_name or name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=new)
        try:
            before = os.fstat(source)
            if not clone(source, copied):
                while os.copy_file_range(source, copied, _COPY_BYTES):
                    pass
            info = os.fstat(source)
            found = (info.st_size, info.st_mtime_ns, os.fstat(copied).st_size)
            if found != (entry.size, mtime_ns, entry.size) or info.st_ctime_ns != before.st_ctime_ns:
                raise changed(f"`{printable(name)}` changed")
            os.fchmod(copied, entry.mode)
            os.utime(copied, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(copied)
    finally:
        os.close(source)
