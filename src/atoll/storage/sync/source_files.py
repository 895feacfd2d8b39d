"""The files of a sync's source, and the fate of those that cannot be read: vanished, replaced, or there all the same.

Only a name that does not exist counts as removed, in a directory that is still the source. Everything else is an error:
a name that became of another kind has the sync start again, and one that cannot be read ends the sync.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from atoll.errors import SyncError
from atoll.file_stamp import stamp_of
from atoll.storage.content.digest import Hasher, Make
from atoll.storage.content.transfer import FileReader
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import BY_DESCRIPTOR, replaced, to_native
from atoll.storage.files.tree import parent_of
from atoll.storage.files.unreadable import Unreadable
from atoll.terminal_text import printable

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_PROBE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class FileFailed(Exception):
    """A file of the source could not be read.

    Args:
        cause: the error; None where its content changed all the time.
    """

    def __init__(self, cause: OSError | None) -> None:
        super().__init__(cause)
        self.cause = cause


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Turn the errors of a `FileReader` into `FileFailed`."""
    try:
        yield
    except SyncError as error:
        cause = error.__cause__
        raise FileFailed(cause if isinstance(cause, OSError) else None) from error


class SourceFiles:
    """The files below the local directory of a sync.

    Args:
        root: the directory; a symlink to one is followed.

    Attributes:
        unreadable: the files that exist and cannot be read.
        identity: device and inode of the directory, from its scan.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._descriptor = -1
        self._cursor: DirectoryCursor | None = None
        self.reader = FileReader(self.open, lambda path: printable(self._local(path)))
        self.unreadable = Unreadable(root)
        self.identity = (0, 0)

    def _local(self, path: str) -> str:
        return os.path.join(self._root, to_native(path)) if path else self._root

    def open(self, path: str, flags: int) -> int:
        """Open a file by its path in the tree.

        Raises:
            OSError: it cannot be opened, or a component of its path is not a directory any more.
        """
        if not BY_DESCRIPTOR:
            return os.open(self._local(path), flags)
        directory, _, name = to_native(path).rpartition("/")
        return os.open(name, flags, dir_fd=self._above(directory))

    def _above(self, directory: str) -> int:
        if self._cursor is None:
            self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._cursor = DirectoryCursor(self._descriptor)
        return self._cursor.open(directory)

    def hash(self, path: str, make: Make) -> bytes | None:
        """Return the digest of a file; None where it changes meanwhile, or cannot be read: the sender will see."""
        try:
            descriptor, before = self.reader.opened(path)
        except SyncError:
            return None
        hasher = Hasher(make)
        try:
            left = before.st_size + 1
            while left > 0 and (piece := os.read(descriptor, min(left, 1 << 20))):
                hasher.update(piece)
                left -= len(piece)
            return hasher.digest() if stamp_of(os.fstat(descriptor)) == stamp_of(before) else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def probe(self, path: str) -> None:
        """Look whether a file can be read.

        Raises:
            FileFailed: it cannot.
        """
        try:
            descriptor = self.open(path, _PROBE)
            try:
                os.read(descriptor, 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FileFailed(error) from error

    def exists(self, path: str, failed: FileFailed) -> bool:
        """Return whether a file that could not be read is there again; note one that is there and cannot be read.

        Raises:
            SyncError: it, or a directory above it, became something else (`retry` in the details); or the source itself
                has vanished.
        """
        try:
            found = self._status(path)
        except OSError as error:
            if isinstance(error, SyncError):
                raise
            self.unreadable.add(path, error)
            return False
        if found is None:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise replaced(self._local(path))
        if failed.cause is not None and failed.cause.errno in _ABSENT:
            return True
        self.unreadable.add(path, failed.cause or "changes all the time while it is read")
        return False

    def topmost_gone(self, path: str) -> str:
        """Return the highest path, at or above one that has vanished, that does not exist."""
        while (above := parent_of(path)) and self._status(above) is None:
            path = above
        return path

    def _status(self, path: str) -> os.stat_result | None:
        """Return the status of a path now, without following symlinks; None where nothing exists.

        Raises:
            SyncError: the source is gone, or another directory; or something above the path is no directory any more.
            OSError: it cannot be told.
        """
        self.close()
        try:
            root = os.stat(self._root)
        except FileNotFoundError:
            root = None
        if root is None or (self.identity[1] and (root.st_dev, root.st_ino) != self.identity):
            raise SyncError(
                f"`{printable(self._root)}` was moved or removed while it was synced",
                hint="sync again when it is there",
            )
        directory, _, name = to_native(path).rpartition("/")
        try:
            if not BY_DESCRIPTOR:
                return os.lstat(self._local(path))
            return os.stat(name, dir_fd=self._above(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise replaced(self._local(parent_of(path))) from error

    def close(self) -> None:
        """Close the open directories; more may be opened afterwards."""
        if self._cursor is not None:
            self._cursor.close()
            os.close(self._descriptor)
            self._cursor = None
