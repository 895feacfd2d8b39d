"""Write what a storage peer sends below a local directory, which may be on any platform.

Each file is written beside its place and renamed; symlinks are made last, so that no content is ever written
through one that came from the volume.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import IO

from atoll.errors import SyncError
from atoll.storage.progress import ProgressLine
from atoll.storage.scan import to_native
from atoll.storage.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Tree, check_path, printable
from atoll.wire.frames import Message


class Download:
    """One tree on its way to `root`.

    Args:
        root: where the tree's root goes.
        tree: what comes; only its files' contents are received.
        progress: is told of each file; it is closed at the end.
    """

    def __init__(self, root: str, tree: Tree, progress: ProgressLine | None = None) -> None:
        self._root = root
        self._tree = tree
        self._progress = progress
        self._made: list[str] = []
        self._open: tuple[int, str, IO[bytes]] | None = None
        self.skipped = [path for path, entry in tree.items() if entry.kind == SPECIAL]
        if progress is not None:
            sizes = [entry.size for entry in tree.values() if entry.kind == FILE]
            progress.start(len(sizes), sum(sizes))

    def _local(self, path: str) -> str:
        check_path(path)
        if os.sep != "/" and any(char in path for char in '\\:*?"<>|'):
            raise SyncError(f"`{printable(path)}` is not a name that this platform can hold")
        return os.path.join(self._root, *to_native(path).split("/")) if path else self._root

    def make_directories(self) -> None:
        """Make the directories that are not there.

        Raises:
            OSError: one cannot be made.
        """
        for path, entry in self._tree.items():
            if entry.kind == DIRECTORY and not os.path.isdir(self._local(path)):
                os.mkdir(self._local(path), 0o700)
                self._made.append(path)

    def receive(self, paths: list[str], message: Message) -> None:
        """Write what one message brings; numbers in it are positions in `paths`.

        Raises:
            OSError: it cannot be written.
        """
        header = message.header
        if message.type == "files":
            for (number, mode, mtime_ns), content in zip(header["items"], message.buffers, strict=True):
                self._begin(number, paths[number])
                self._write(content)
                self._end(paths[number], mode, mtime_ns)
        elif message.type == "chunk":
            number, last = header["number"], header["last"]
            if self._open is None or self._open[0] != number:
                self._begin(number, paths[number])
            assert self._open is not None
            self._open[2].seek(header["offset"])
            self._open[2].truncate()
            self._write(message.buffers[0])
            if last is not None:
                self._end(paths[number], *last)

    def _begin(self, number: int, path: str) -> None:
        self.close()
        name = os.path.join(os.path.dirname(os.path.abspath(self._local(path))), f".atoll-{secrets.token_hex(8)}")
        self._open = (number, name, open(name, "xb"))

    def _write(self, content: bytearray) -> None:
        assert self._open is not None
        self._open[2].write(content)
        if self._progress is not None:
            self._progress.advance(0, len(content))

    def _end(self, path: str, mode: int, mtime_ns: int) -> None:
        assert self._open is not None
        _, name, file = self._open
        file.close()
        os.chmod(name, mode & 0o777)
        os.utime(name, ns=(mtime_ns, mtime_ns))
        os.replace(name, self._local(path))
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
                local = self._local(path)
                temporary = f"{local}.{secrets.token_hex(4)}"
                os.symlink(to_native(entry.target), temporary)
                if os.utime in os.supports_follow_symlinks:
                    os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
                os.replace(temporary, local)
        for path in reversed(self._made):
            entry = self._tree[path]
            os.utime(self._local(path), ns=(entry.mtime_ns, entry.mtime_ns))
            os.chmod(self._local(path), entry.mode & 0o777)

    def close(self) -> None:
        """Drop a file that is not complete."""
        if self._open is not None:
            _, name, file = self._open
            self._open = None
            file.close()
            with contextlib.suppress(OSError):
                os.unlink(name)
        if self._progress is not None:
            self._progress.close()
