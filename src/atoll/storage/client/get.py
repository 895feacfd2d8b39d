"""The local end of `get`: writes a received tree or file to a local path, on any platform.

The volume's content is hostile here: functions wrote it. So `local_target` keeps every change below the path, each
file is written beside its own name and renamed, and symlinks are made last.
"""

from __future__ import annotations

import os
from typing import Any

from atoll.errors import SyncError
from atoll.storage.client.local_target import Destination, NewFile
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Tree, parent_of
from atoll.storage.protocol.progress import ProgressLine
from atoll.terminal_text import printable
from atoll.wire.frames import Message


class Download:
    """One tree, or one file, on its way to `root`.

    Nothing below `root` is reached through a symlink; one in the place of a directory or file is replaced.

    Args:
        root: the path of the tree's root; see `Destination` for symlinks there.
        tree: the expected tree; `receive` takes the contents of its files.
        progress: counts each file; it is closed at the end.

    Raises:
        OSError: the directory that holds `root` cannot be opened.
        SyncError: `tree` is malformed.
    """

    def __init__(self, root: str, tree: Tree, progress: ProgressLine | None = None) -> None:
        _check_shape(tree)
        self._tree = tree
        self._progress = progress
        self._made: list[str] = []
        self._open: tuple[int, NewFile, int] | None = None
        self.skipped = [path for path, entry in tree.items() if entry.kind == SPECIAL]
        self._destination = Destination(root)
        if progress is not None:
            sizes = [entry.size for entry in tree.values() if entry.kind == FILE]
            progress.start(len(sizes), sum(sizes))

    def make_directories(self) -> None:
        """Make the missing directories.

        Raises:
            OSError: one cannot be made.
        """
        for path, entry in self._tree.items():
            if entry.kind == DIRECTORY and self._destination.make_directory(path):
                self._made.append(path)

    def receive(self, paths: list[str], message: Message) -> None:
        """Write the contents in one message; numbers in it are positions in `paths`.

        Raises:
            OSError: it cannot be written.
            SyncError: the message is malformed, or of a file that was not requested.
        """
        header = message.header
        if message.type == "files":
            for (number, *last), content in zip(header["items"], message.buffers, strict=True):
                path = _path(paths, number)
                self._begin(number, path)
                self._write(path, 0, content)
                self._end(path, last)
        elif message.type == "chunk":
            number, last = header["number"], header["last"]
            path = _path(paths, number)
            if self._open is None or self._open[0] != number:
                self._begin(number, path)
            self._write(path, header["offset"], message.buffers[0])
            if last is not None:
                self._end(path, last)

    def _begin(self, number: int, path: str) -> None:
        self._drop()
        self._open = (number, self._destination.create(path), 0)

    def _write(self, path: str, offset: Any, content: bytearray) -> None:
        assert self._open is not None
        number, file, size = self._open
        if type(offset) is not int or not 0 <= offset <= size:
            raise SyncError("a piece of a file is missing")
        with self._destination.errors_name(path):
            if offset < size:  # the file changed while it was read, and comes again
                os.ftruncate(file.descriptor, offset)
                os.lseek(file.descriptor, offset, os.SEEK_SET)
            view = memoryview(content)
            while view.nbytes:
                view = view[os.write(file.descriptor, view) :]
        self._open = (number, file, offset + len(content))
        if self._progress is not None:
            self._progress.advance(0, len(content))

    def _end(self, path: str, last: Any) -> None:
        assert self._open is not None
        if not isinstance(last, list) or [type(value) for value in last] != [int, int]:
            raise SyncError(f"mode and time of `{printable(path)}` are malformed")
        self._destination.complete(path, self._open[1], *last)
        self._open = None
        if self._progress is not None:
            self._progress.advance(1, 0)

    def finish(self) -> None:
        """Make the symlinks, and set modes and times of the new directories.

        Raises:
            OSError: something cannot be made.
        """
        for path, entry in self._tree.items():
            if entry.kind == SYMLINK:
                self._destination.make_symlink(path, entry.target, entry.mtime_ns)
        for path in reversed(self._made):
            entry = self._tree[path]
            self._destination.finish_directory(path, entry.mode, entry.mtime_ns)

    def close(self) -> None:
        """Drop an incomplete file."""
        self._drop()
        self._destination.close()
        if self._progress is not None:
            self._progress.close()

    def _drop(self) -> None:
        if self._open is not None:
            file = self._open[1]
            self._open = None
            file.discard()


def _check_shape(tree: Tree) -> None:
    """Check that every path is in a directory of the tree itself, not behind a symlink of it."""
    if "" not in tree or tree[""].kind not in (DIRECTORY, FILE):
        raise SyncError("the volume sent a malformed tree")
    for path in tree:
        above = tree.get(parent_of(path))
        if path and (above is None or above.kind != DIRECTORY):
            raise SyncError(f"`{printable(path)}` is in no directory of its tree")


def _path(paths: list[str], number: Any) -> str:
    if type(number) is not int or not 0 <= number < len(paths):
        raise SyncError("a file arrived that was not asked for")
    return paths[number]
