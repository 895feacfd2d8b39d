"""Open the files of a local directory that is mirrored; others than its owner may be changing it.

Where the platform can, each component of a path is opened by itself and no symlink is followed, so that a directory
that becomes a symlink after it was scanned does not lead to files that were never meant to be sent.
"""

from __future__ import annotations

import os

from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import BY_DESCRIPTOR, to_native


class Source:
    """The files below a local directory.

    Args:
        root: the directory; a symlink to one is followed.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._descriptor = -1
        self._cursor: DirectoryCursor | None = None

    def open(self, path: str, flags: int) -> int:
        """Open a file by its path in the tree.

        Raises:
            OSError: it cannot be opened; or something on the way is not a directory any more.
        """
        native = to_native(path)
        if not BY_DESCRIPTOR:
            return os.open(os.path.join(self._root, native), flags)
        if self._cursor is None:
            self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._cursor = DirectoryCursor(self._descriptor)
        directory, _, name = native.rpartition("/")
        return os.open(name, flags, dir_fd=self._cursor.open(directory))

    def close(self) -> None:
        """Close what is open; more may be opened afterwards."""
        if self._cursor is not None:
            self._cursor.close()
            os.close(self._descriptor)
            self._cursor = None
