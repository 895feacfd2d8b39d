"""Receive contents into staging: the transfer's other end, in the storage peer.

A received file counts when its digest is the one that the source's file has; then it gets its modification time. A
file received by an interrupted sync is used again only where its digest is that of the source's file now.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterable
from typing import Any

from atoll import linux
from atoll.errors import SyncError
from atoll.file_stamp import FINE_CLOCK_NS, settled
from atoll.storage.content.delta import DELTA_BYTES, blocks_of, chunks_of
from atoll.storage.content.digest import DIGEST_BYTES, Hasher, digest_of, maker
from atoll.storage.content.direct_write import LargeFile, ReadBack
from atoll.storage.crash_points import reached
from atoll.storage.files.scan import ROW
from atoll.storage.files.tree import FILE, Entry, Tree, parent_of
from atoll.storage.sync.plan import Plan
from atoll.storage.sync.target_state import TargetSync
from atoll.storage.volume.locate import OPEN_DIRECTORY, open_below
from atoll.storage.volume.staging import name_of
from atoll.terminal_text import printable

_WORTH_WAITING_BYTES = 16 << 20


class Reception:
    """The files of one plan on their way.

    Args:
        target: the sync's target.
        plan: names the files that come.

    Attributes:
        root: the staged directory, open.
        arrived: the files that are complete, as they came.
        missing: the paths that are not.
        digests: of the files that are complete.
        stamps: change time and inode of these files.
        blocks_of: the digests of the blocks of those that are large.
    """

    def __init__(self, target: TargetSync, plan: Plan) -> None:
        self._volume = volume = target.volume
        self._old, self._scan = target.directory, target.scan
        self._known_blocks = target.state.blocks
        self._make = maker(target.algorithm)
        self.name, self._partial = name_of("stage", target.key), name_of("partial", target.key)
        self._send, self._put = plan.send, plan.put
        self.arrived: Tree = {}
        self.missing = set(self._send)
        self._made = {""}
        self._here = ("", -1)
        self.digests: dict[str, bytes] = {}
        self.stamps: dict[str, tuple[int, int]] = {}
        self.blocks_of: dict[str, bytes] = {}
        self._large: tuple[int, LargeFile | None] = (-1, None)
        self.read_back = ReadBack()
        self._resumed: dict[int, tuple[int, Hasher]] = {}
        self._source: tuple[str, int] = ("", -1)
        staging = volume.staging
        volume.discard(staging, self._partial)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.name, self._partial, src_dir_fd=staging, dst_dir_fd=staging)
            reached("parted")
        volume.make_stage(self.name)
        self.root = os.open(self.name, OPEN_DIRECTORY, dir_fd=staging)

    def close(self) -> None:
        """Close all files; received ones are kept for the next sync."""
        self.pause()
        self.read_back.close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1
            with contextlib.suppress(OSError):  # it is not empty, or has become the tree itself
                os.rmdir(self.name, dir_fd=self._volume.staging)

    def drop(self) -> None:
        """Close all files, and remove the received ones."""
        self.close()
        self._volume.discard(self._volume.staging, self.name)

    def forget(self, paths: Collection[str]) -> None:
        """Remove what has been received of paths that do not come after all."""
        self.pause()
        for path in sorted(paths, reverse=True):  # entries before their directory
            self.missing.discard(path)
            for known in (self.arrived, self.digests, self.stamps, self.blocks_of):
                known.pop(path, None)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = os.stat(path, dir_fd=self.root, follow_symlinks=False)
                (os.rmdir if stat.S_ISDIR(found.st_mode) else os.unlink)(path, dir_fd=self.root)
                self._made.discard(path)

    def resume(self) -> list[tuple[int, int, str]]:
        """Take over the files that an interrupted sync has received.

        Returns:
            for each file of which there is something: its number in `plan.send`, how many bytes, their digest.
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
                    hasher = Hasher(self._make)
                    with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb") as file:
                        while piece := file.read(1 << 20):
                            hasher.update(piece)
                    self._resumed[number] = (info.st_size, hasher)
                    found.append((number, info.st_size, hasher.digest().hex()))
        finally:
            os.close(partial)
        self._volume.discard(staging, self._partial)
        return found

    def batch(self, items: Iterable[Any], digests: Any, contents: Any) -> None:
        """Write whole files; an item is the file's number, mode, modification time and size.

        Raises:
            SyncError: a file differs from the sent one (`retry` in its details).
        """
        view, expected, start = memoryview(contents), bytes(digests), 0
        for count, (number, mode, mtime_ns, size) in enumerate(items):
            path = self._path(number)
            content = view[start : start + size]
            start += size
            digest = digest_of(self._make, content)
            if len(content) != size or digest != expected[count * DIGEST_BYTES : (count + 1) * DIGEST_BYTES]:
                raise _damaged(path)
            directory, name = self._enter(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, mode & 0o777, dir_fd=directory)
            except FileExistsError:  # of an interrupted sync, and another content than the source has now
                os.unlink(name, dir_fd=directory)
                descriptor = os.open(name, flags, mode & 0o777, dir_fd=directory)
            try:
                if os.write(descriptor, content) != size:
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    linux.write_all(descriptor, content)
                self._complete(descriptor, path, Entry(FILE, mode, size, mtime_ns), digest)
            finally:
                os.close(descriptor)

    def piece(self, number: int, offset: int, content: Any) -> None:
        """Append to a large file; with offset 0 it begins, or begins again."""
        self._large_at(number, offset).write(content)

    def copy(self, number: int, offset: int, start: int, length: int) -> None:
        """Append to a large file a part of the file at the target, from `start` on."""
        path = self._path(number)
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise SyncError(f"the part of `{printable(path)}` to copy is malformed")
        self._large_at(number, offset).copy(self._opened(path), start, length)

    def whole(self, number: int, size: int, mode: int, mtime_ns: int, digest: Any) -> None:
        """End a large file, or one that an interrupted sync has received whole.

        Raises:
            SyncError: the file differs from the sent one (`retry` in its details).
        """
        path = self._path(number)
        large = self._large_at(number, size)
        if large.finish() != bytes(digest) or large.position != size:
            self._leave_large()
            directory, name = self._enter(path)
            os.unlink(name, dir_fd=directory)
            raise _damaged(path)
        self._complete(large.descriptor, path, Entry(FILE, mode, size, mtime_ns), bytes(digest))
        if size >= DELTA_BYTES:
            self.blocks_of[path] = large.blocks
        if large.past_cache:
            self.read_back.add(large.descriptor, size)
        self._leave_large()

    def blocks(self, number: int) -> bytes:
        """Return the digests of the blocks of the file at the target that a new one replaces."""
        path = self._path(number)
        if kept := self._known_blocks(path):
            return kept
        descriptor = self._opened(path)
        return blocks_of(descriptor, os.fstat(descriptor).st_size, self._make)

    def chunks(self, number: int, start: int, end: int) -> bytes:
        """Return the chunks of a part of the file at the target that a new one replaces."""
        return chunks_of(self._opened(self._path(number)), start, end, self._make)

    def _opened(self, path: str) -> int:
        """Return the file at the target, open, as it was scanned.

        Raises:
            OSError: it cannot be opened.
            SyncError: it is another one.
        """
        if self._source[0] != path:
            self._leave_source()
            if self._old < 0:
                raise SyncError(f"the target has no `{printable(path)}` to compare with")
            parent = open_below(self._old, parent_of(path))
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(path.rpartition("/")[2], flags, dir_fd=parent)
            finally:
                os.close(parent)
            self._source = (path, descriptor)
            with contextlib.suppress(OSError):  # contents written past the page cache are read from the disk, in order
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            row = self._scan.row(self._scan.positions.get(path, len(self._scan.paths)))
            info = os.fstat(descriptor)
            if list(row)[1:] != [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino] or len(row) != ROW:
                raise SyncError(f"`{printable(path)}` changed at the target while it was synced", retry=True)
        return self._source[1]

    def flush(self) -> None:
        """Write all received contents, at least into the page cache."""
        self.pause()

    def settle(self) -> None:
        """Wait, where it pays, until a change by a function is certain to get another time stamp than the received files:
        the next sync hashes every file that may have changed since."""
        now_ns, size, newest_ns = time.time_ns(), 0, 0
        for path, (ctime_ns, _) in self.stamps.items():
            if not settled(ctime_ns, now_ns):
                size += self.arrived[path].size
                newest_ns = max(newest_ns, ctime_ns)
        if size >= _WORTH_WAITING_BYTES:
            time.sleep(min(max(newest_ns + 2 * FINE_CLOCK_NS - now_ns, 0), 2 * FINE_CLOCK_NS) / 1e9)

    def _large_at(self, number: int, offset: int) -> LargeFile:
        """Return the large file with this number, ready to go on at `offset`."""
        path = self._path(number)
        if self._large[0] != number or self._large[1] is None:
            self._leave_large()
            directory, name = self._enter(path)
            position, hasher = self._resumed.pop(number, (0, None))
            if offset == 0:
                position, hasher = 0, None
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if position else os.O_TRUNC)
            descriptor = os.open(name, flags, 0o600, dir_fd=directory)
            large = LargeFile(descriptor, self._make, self._put[path].size, position, hasher)
            self._large = (number, large)
        found = self._large[1]
        assert found is not None
        if offset == 0 and found.position:
            found.restart()
        if offset != found.position:
            raise SyncError(f"a piece of `{printable(path)}` is missing")
        return found

    def _path(self, number: Any) -> str:
        if type(number) is not int or not 0 <= number < len(self._send):
            raise SyncError("a file arrived that was not announced")
        return self._send[number]

    def _complete(self, descriptor: int, path: str, entry: Entry, digest: bytes) -> None:
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(descriptor, ns=times)
        info = os.fstat(descriptor)
        if entry.mode & 0o7777 != stat.S_IMODE(info.st_mode):
            os.fchmod(descriptor, entry.mode & 0o7777)
            info = os.fstat(descriptor)
        self.arrived[path] = entry
        self.digests[path] = digest
        self.stamps[path] = (info.st_ctime_ns, info.st_ino)
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
        large, self._large = self._large[1], (-1, None)
        self._leave_source()
        if large is not None:
            large.close()

    def _leave_source(self) -> None:
        if self._source[1] >= 0:
            os.close(self._source[1])
        self._source = ("", -1)


def _damaged(path: str) -> SyncError:
    return SyncError(
        f"the content of `{printable(path)}` arrived damaged",
        hint="sync again; if it happens again, check the memory and the network of both machines",
        retry=True,
        damaged=path,
    )
