"""Build the new tree of a directory in staging, out of received files and unchanged ones of the target.

No inode is shared between two states of a file: only an unchanged file is linked, and one with a new mode is a copy (a
clone where the file system has them). A function that writes to a linked file meanwhile writes to both trees.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.content.copy import clone
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Entry, Tree, parent_of
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.terminal_text import printable

_COPY_BYTES = 64 << 20
MAX_SEPARATE = 8
"""Up to how many files and directories are made durable one by one; beyond, the whole file system is (`syncfs`).

On ext4 each `fsync` costs 2 to 5 ms, one `syncfs` 4 to 20 ms and as long as the writes of others take: seconds, if those
are gigabytes.
"""
Stamps = dict[str, tuple[int, int]]
"""Change time (nanoseconds) and inode of files."""


@dataclass(frozen=True)
class Contents:
    """The content of a directory that is built. Paths are relative to it.

    Args:
        tree: its new tree, with itself as the empty path.
        put: the paths that come or change.
        copy: those of them whose content is at the old directory, with the modification time there.
        drop: the paths of the old tree that go.
    """

    tree: Tree
    put: set[str]
    copy: Mapping[str, int]
    drop: Iterable[str] = ()


class Builder:
    """Complete one directory.

    Args:
        root: the directory, open for reading; it holds the received files, and may hold directories.
        old: the directory that it replaces, open; -1 for none.
        contents: its new content.
        known: returns the change time of a file of `old` at the scan, -1 where that proves nothing.

    Attributes:
        stamps: of the files that were linked or copied; with a change time of -1 where a function may have changed the
            content since the scan.
        copied: the paths of those that were copied.
        linked: inodes of the symlinks and special files that were linked.
    """

    def __init__(self, root: int, old: int, contents: Contents, known: Callable[[str], int]) -> None:
        self._known = known
        self._root = root
        self._old = old
        self._contents = contents
        self.stamps: Stamps = {}
        self.copied: list[str] = []
        self.linked: dict[str, int] = {}

    def link(self) -> None:
        """Make the directories and symlinks, link unchanged files and copy those with a new mode.

        Raises:
            SyncError: the old directory is not the scanned one any more (`retry` in its details).
            OSError: the volume cannot be written.
        """
        put, copy = self._contents.put, self._contents.copy
        directories, below = [], dict[str, list[str]]()
        for path, entry in self._contents.tree.items():
            if entry.kind == DIRECTORY:
                directories.append(path)
            elif path not in put or entry.kind != FILE or path in copy:
                below.setdefault(parent_of(path), []).append(path)
        with DirectoryCursor(self._root, OPEN_DIRECTORY) as new, DirectoryCursor(self._old) as old:
            for directory in sorted(directories):
                if directory:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(directory.rpartition("/")[2], 0o700, dir_fd=new.open(parent_of(directory)))
            for directory in sorted(below):
                try:
                    self._fill(directory, below[directory], new.open(directory), old)
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise changed(f"`{printable(directory)}` changed") from error

    def _fill(self, directory: str, paths: list[str], here: int, old: DirectoryCursor) -> None:
        tree, put, copy = self._contents.tree, self._contents.put, self._contents.copy
        known, stamps, look = self._known, self.stamps, os.stat
        start = len(directory) + 1 if directory else 0
        there = -1
        for path in paths:
            entry, name = tree[path], path[start:]
            if entry.kind == SYMLINK and path in put:
                make_symlink(here, name, entry)
                continue
            if there < 0:
                there = old.open(directory)
            if entry.kind != FILE:
                _link(there, here, name, entry)
                self.linked[path] = look(name, dir_fd=here, follow_symlinks=False).st_ino
                continue
            before_ns = look(name, dir_fd=there, follow_symlinks=False).st_ctime_ns
            if path in copy:
                copy_file(there, here, name, entry, copy[path])
                self.copied.append(path)
            elif not _link(there, here, name, entry):
                self.copied.append(path)
            made = look(name, dir_fd=here, follow_symlinks=False)
            stamps[path] = (made.st_ctime_ns if before_ns == known(path) else -1, made.st_ino)

    def finish(self, extra_mode: int) -> None:
        """Give the directories their modes and times; the root's mode has `extra_mode` in addition.

        Raises:
            OSError: it cannot be done.
        """
        with DirectoryCursor(self._root, OPEN_DIRECTORY) as new:
            # Deepest first: a directory may lose the permission by which one gets to those in it.
            for path in sorted(
                (path for path, entry in self._contents.tree.items() if entry.kind == DIRECTORY), reverse=True
            ):
                entry = self._contents.tree[path]
                descriptor = new.open(path)
                mode = entry.mode if path else entry.mode | extra_mode
                if mode != 0o700:
                    os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))


class Built:
    """The new content of a scope, as `switch-KEY` in staging, and how it gets durable.

    Attributes:
        root: the directory, open; -1 where it is a file or a symlink.
        whole: whether the whole file system is made durable rather than single files.
        stamps: of the files that were linked or copied into it.
        inodes: those of the old tree, by path: for the note of a replaced tree (`late_writes.pack_inodes`).
        untouched: the directories of the old tree that the sync leaves as they are.
    """

    def __init__(self, staging: int, name: str) -> None:
        self._staging = staging
        self._name = name
        self.root = -1
        self.whole = False
        self.stamps: Stamps = {}
        self.inodes: dict[str, int] = {}
        self.untouched: list[str] = []
        self._files: list[str] = []
        self._directories: list[str] = []

    def close(self) -> None:
        """Close all descriptors; may be called twice."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    def copy(self, holder: int, name: str, entry: Entry, mtime_ns: int) -> None:
        """Make it a copy of the file `name` of `holder`, which has this modification time."""
        copy_file(holder, self._staging, name, entry, mtime_ns, self._name)

    def take(self, builder: Builder, contents: Contents) -> None:
        """Note the parts of a directory to make durable, and the inodes that it shares with the old one."""
        tree, put = contents.tree, contents.put
        self.stamps = builder.stamps
        copied = set(builder.copied)
        self.inodes = dict.fromkeys([*contents.drop, *tree], 0)
        self.inodes.update((path, inode) for path, (_, inode) in self.stamps.items() if path not in copied)
        self.inodes.update(builder.linked)
        self._directories = [path for path, entry in tree.items() if entry.kind == DIRECTORY]
        self.untouched = [path for path in self._directories if path not in put]
        received = (path for path in put if tree[path].kind == FILE and path not in contents.copy)
        self._files = [*received, *builder.copied]
        symlinks = any(tree[path].kind == SYMLINK for path in put)  # a symlink cannot be opened for its own fsync
        self.whole = symlinks or len(self._directories) + len(self._files) > MAX_SEPARATE

    def make_durable(self, record: int) -> None:
        """Make it durable, with the open record of its switch.

        Raises:
            OSError: something could not be written.
        """
        if not self.whole:
            with contextlib.suppress(PermissionError):  # its owner may not open a file
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


def make_symlink(parent: int, name: str, entry: Entry) -> None:
    """Make a symlink with its time."""
    os.symlink(entry.target, name, dir_fd=parent)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)


def changed(subject: str) -> SyncError:
    """Return the error that has the client start again."""
    return SyncError(f"{subject} at the target while it was synced", hint="sync again", retry=True)


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
    """Make a file with the content of the target's file that has this modification time.

    Raises:
        SyncError: the file has changed since the scan (`retry` in its details).
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
