"""Receive contents into staging: the transfer's other end, in the storage peer.

A received file is complete when it has its modification time. What an interrupted sync has received is used again
only where its digest is that of what the source has now.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from typing import Any

from atoll.errors import SyncError
from atoll.storage import filesystem
from atoll.storage.filesystem import OPEN_DIRECTORY, VolumeRoot
from atoll.storage.plan import Plan
from atoll.storage.steps import reached
from atoll.storage.tree import FILE, Entry, Tree, parent_of, printable


class Reception:
    """The files of one plan on their way.

    Args:
        volume: where they are staged.
        key: names the target; its lock is held by the caller.
        plan: says which files come.

    Attributes:
        root: the staged directory, open.
        arrived: the files that are complete, as they came.
        missing: the paths that are not.
    """

    def __init__(self, volume: VolumeRoot, key: str, plan: Plan) -> None:
        self._volume = volume
        self.name, self._partial = f"stage-{key}", f"partial-{key}"
        self._send, self._put = plan.send, plan.put
        self.arrived: Tree = {}
        self.missing = set(self._send)
        self._made = {""}
        self._here = ("", -1)
        self._large: tuple[int, int] = (-1, -1)
        staging = volume.staging
        volume.discard(staging, self._partial)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.name, self._partial, src_dir_fd=staging, dst_dir_fd=staging)
            reached("parted")
        os.mkdir(self.name, 0o700, dir_fd=staging)
        self.root = os.open(self.name, OPEN_DIRECTORY, dir_fd=staging)

    def close(self) -> None:
        """Close what is open; what was received stays for the next sync."""
        self.pause()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
            with contextlib.suppress(OSError):  # it is not empty, or has become the tree itself
                os.rmdir(self.name, dir_fd=self._volume.staging)

    def drop(self) -> None:
        """Close, and remove what was received."""
        self.close()
        self._volume.discard(self._volume.staging, self.name)

    def resume(self) -> list[tuple[int, int, str]]:
        """Take over what an interrupted sync has received.

        Returns:
            for each file of which there is something: its number in `plan.send`, how many bytes, their SHA-256.
        """
        staging, found = self._volume.staging, list[tuple[int, int, str]]()
        try:
            partial = os.open(self._partial, OPEN_DIRECTORY, dir_fd=staging)
        except FileNotFoundError:
            return found
        try:
            for number, path in enumerate(self._send):
                with contextlib.suppress(OSError):
                    info = os.stat(path, dir_fd=partial, follow_symlinks=False)
                    if not stat.S_ISREG(info.st_mode) or not 0 < info.st_size <= self._put[path].size:
                        continue
                    directory, name = self._enter(path)
                    os.rename(path, name, src_dir_fd=partial, dst_dir_fd=directory)
                    os.chmod(name, 0o600, dir_fd=directory)
                    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as file:
                        digest = hashlib.file_digest(file, "sha256")
                    found.append((number, info.st_size, digest.hexdigest()))
        finally:
            os.close(partial)
        self._volume.discard(staging, self._partial)
        return found

    def files(self, items: Iterable[Any], contents: Iterable[bytearray]) -> None:
        """Write whole files; an item is the file's number, mode and modification time."""
        for (number, mode, mtime_ns), content in zip(items, contents, strict=True):
            path = self._path(number)
            directory, name = self._enter(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, mode & 0o777, dir_fd=directory)
            except FileExistsError:  # from an interrupted sync, and not what the source has now
                os.unlink(name, dir_fd=directory)
                descriptor = os.open(name, flags, mode & 0o777, dir_fd=directory)
            try:
                filesystem.write_all(descriptor, content)
                self._complete(descriptor, path, Entry(FILE, mode, len(content), mtime_ns))
            finally:
                os.close(descriptor)

    def chunk(self, number: int, offset: int, content: bytes | bytearray, last: Any) -> None:
        """Write a piece of a large file; what is there from `offset` on is replaced.

        Args:
            last: mode and modification time when the file ends here, else None.
        """
        path = self._path(number)
        if self._large[0] != number:
            self._leave_large()
            directory, name = self._enter(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._large = (number, os.open(name, flags, 0o600, dir_fd=directory))
        descriptor = self._large[1]
        size = os.fstat(descriptor).st_size
        if offset > size:
            raise SyncError(f"a piece of `{printable(path)}` is missing")
        if offset < size:
            os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        filesystem.write_all(descriptor, content)
        if last is not None:
            mode, mtime_ns = last
            self._complete(descriptor, path, Entry(FILE, mode, offset + len(content), mtime_ns))
            self._leave_large()

    def _path(self, number: Any) -> str:
        if type(number) is not int or not 0 <= number < len(self._send):
            raise SyncError("a file arrived that was not announced")
        return self._send[number]

    def _complete(self, descriptor: int, path: str, entry: Entry) -> None:
        if entry.mode & 0o7777 != stat.S_IMODE(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, entry.mode & 0o7777)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        self.arrived[path] = entry
        self.missing.discard(path)
        reached("arrived", path=path)

    def _enter(self, path: str) -> tuple[int, str]:
        """Return the staged directory of `path`, open and made where it was missing, and the last component."""
        directory, _, name = path.rpartition("/")
        if not directory:
            return self.root, name
        if self._here[0] != directory:
            self._leave_directory()
            self.make(directory)
            self._here = (directory, os.open(directory, OPEN_DIRECTORY, dir_fd=self.root))
        return self._here[1], name

    def make(self, directory: str) -> None:
        """Make a directory of the tree, and those above it."""
        missing = []
        while directory not in self._made:
            missing.append(directory)
            directory = parent_of(directory)
        for path in reversed(missing):
            os.mkdir(path, 0o700, dir_fd=self.root)
            self._made.add(path)

    def pause(self) -> None:
        """Close files and directories, but for the root."""
        self._leave_large()
        self._leave_directory()

    def _leave_directory(self) -> None:
        if self._here[1] >= 0:
            os.close(self._here[1])
        self._here = ("", -1)

    def _leave_large(self) -> None:
        if self._large[1] >= 0:
            os.close(self._large[1])
        self._large = (-1, -1)
