"""Write what a storage peer sends to a local place, which may be on any platform.

The volume's content is hostile here: functions wrote it. So `destination` keeps every change below the place, each
file is written beside its own name and renamed, and symlinks are made last.
"""

from __future__ import annotations

import os
from typing import Any

from atoll.errors import SyncError
from atoll.storage.client.local_target import Destination, NewFile
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Tree, parent_of, printable
from atoll.storage.protocol.progress import ProgressLine
from atoll.wire.frames import Message


class Download:
    """One tree, or one file, on its way to `root`.

    Nothing below `root` is reached through a symlink; one that stands where a directory or file comes is replaced.

    Args:
        root: where the tree's root goes; see `Destination` for when it is followed.
        tree: what comes; only its files' contents are received.
        progress: is told of each file; it is closed at the end.

    Raises:
        OSError: the directory that holds `root` cannot be opened.
        SyncError: what comes is not a tree.
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
        """Make the directories that are not there.

        Raises:
            OSError: one cannot be made.
        """
        for path, entry in self._tree.items():
            if entry.kind == DIRECTORY and self._destination.make_directory(path):
                self._made.append(path)

    def receive(self, paths: list[str], message: Message) -> None:
        """Write what one message brings; numbers in it are positions in `paths`.

        Raises:
            OSError: it cannot be written.
            SyncError: it is not what was asked for.
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
        """Make the symlinks, and give the directories that were made their modes and times.

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
        """Drop a file that is not complete."""
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
    """Check that everything is in a directory of the tree itself, and not behind a symlink of it."""
    if "" not in tree or tree[""].kind not in (DIRECTORY, FILE):
        raise SyncError("what the volume sent is not a tree")
    for path in tree:
        above = tree.get(parent_of(path))
        if path and (above is None or above.kind != DIRECTORY):
            raise SyncError(f"`{printable(path)}` is in no directory of its tree")


def _path(paths: list[str], number: Any) -> str:
    if type(number) is not int or not 0 <= number < len(paths):
        raise SyncError("a file arrived that was not asked for")
    return paths[number]
