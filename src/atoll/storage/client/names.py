"""Requests about the names of a volume: look, list, add up, make, rename, copy and remove."""

from __future__ import annotations

import contextlib
import operator
import os
import stat as stat_module
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from atoll.errors import AtollError
from atoll.storage.files.tree import Listing, Status, Tree, check_path, check_status, unpack
from atoll.storage.files.tree_wire import unpack_entries
from atoll.storage.protocol.connection import ROOT, AnyPath, Requests, absolute, volume_path
from atoll.wire.frames import Message

_MOST_NS = 1 << 93  # a 63-bit number of seconds, in nanoseconds


class Sum(NamedTuple):
    """The space that a path takes, with everything below it.

    Args:
        allocated_bytes: on disk; a file with several names counts once.
        apparent_bytes: of content.
        files: their number, symlinks and special files included.
        directories: their number below the path.
    """

    allocated_bytes: int
    apparent_bytes: int
    files: int
    directories: int


class Usage(NamedTuple):
    """The space that a path of a volume takes, and the size of its file system.

    Args:
        allocated_bytes: on disk; a file with several names counts once.
        apparent_bytes: of content.
        files: their number, symlinks and special files included.
        directories: their number below the path.
        disk_bytes: the volume's file system in all, which other volumes may share.
        disk_free_bytes: the free space of that.
    """

    allocated_bytes: int
    apparent_bytes: int
    files: int
    directories: int
    disk_bytes: int
    disk_free_bytes: int


class NameRequests(Requests):
    """Requests about paths and directories."""

    # --- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: AnyPath = ROOT, *, follow: bool = True) -> os.stat_result:
        """Return the status of a path; for a symlink at its end its own if `follow` is False.

        Raises:
            FileNotFoundError: the path does not exist.
            PermissionError: a symlink leads out of `/data`.
        """
        return self.status(path, follow=follow).as_stat()

    def status(self, path: AnyPath, *, follow: bool = True) -> Status:
        """Return everything that a peer tells about a path: `stat`, and a symlink's target and its kind."""
        return status_in(self._ask("stat", path, {"follow": follow}))

    def listdir(self, path: AnyPath = ROOT) -> list[str]:
        """Return the names in a directory, sorted."""
        return list(self.statuses(path))

    def statuses(self, path: AnyPath = ROOT) -> Listing:
        """Return the status of each name in a directory, sorted by name."""
        return dict(self._listed("list", path, {}))

    def page(self, path: AnyPath, after: str, most: int) -> Listing:
        """Return the status of the first names in a directory that sort behind `after`, at most so many."""
        return dict(self._listed("list", path, {"after": after, "most": most}))

    def find(self, path: AnyPath = ROOT, depth: int | None = None) -> Iterator[tuple[str, Status]]:
        """Yield the contents of a directory, at any depth or down to one (1: itself alone), by relative path.

        The contents of a directory come sorted, before those of the directories in it. Symlinks are not followed. A
        consumer that stops early closes the connection.
        """
        return self._listed("find", path, {"depth": depth})

    def _listed(self, kind: str, path: AnyPath, arguments: dict[str, Any]) -> Iterator[tuple[str, Status]]:
        for message in self._messages(kind, path, arguments):
            for buffer in message.buffers:
                yield from map(check_status, unpack(buffer))

    def scan(self, path: AnyPath = ROOT) -> Tree:
        """Return a whole directory tree."""
        found: Tree = {}
        for message in self._messages("scan", path, {}):
            for buffer in message.buffers:
                found.update(unpack_entries(buffer))
        return found

    def usage(self, path: AnyPath = ROOT) -> Usage:
        """Return the space that a path takes with all below it, and the size and free space of its file system.

        A file with several names counts once. Snapshots are no part of `/data`.
        """
        sums, disk_bytes, disk_free_bytes = self.sums(path)
        return Usage(*sums[""], disk_bytes, disk_free_bytes)

    def sums(self, path: AnyPath, depth: int = 0, *, follow: bool = True) -> tuple[dict[str, Sum], int, int]:
        """Return the sums of a path (the empty name) and of each directory down to a depth below it.

        Returns:
            the sums, and the bytes of the volume's file system, in all and free.
        """
        sums: dict[str, Sum] = {}
        header: dict[str, Any] = {}
        for message in self._messages("usage", path, {"depth": depth, "follow": follow}):
            header = message.header
            for buffer in message.buffers:
                sums.update((check_path(where), Sum(*map(int, numbers))) for where, *numbers in unpack(buffer))
        return sums, int(header["disk_bytes"]), int(header["disk_free_bytes"])

    # --- changing -----------------------------------------------------------------------------------------------

    def mkdir(self, path: AnyPath, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory, with `parents` those above it too.

        Raises:
            FileExistsError: the path exists, unless as a directory and `exist_ok` is set.
            FileNotFoundError: the directory above is missing, and `parents` not set.
        """
        self._ask("mkdir", path, {"mode": mode, "parents": parents, "exist_ok": exist_ok})

    def makedirs(self, path: AnyPath, mode: int = 0o755, *, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        self.mkdir(path, mode, parents=True, exist_ok=exist_ok)

    def touch(self, path: AnyPath, mtime_ns: int | None = None) -> None:
        """Make an empty file if nothing exists, and set the modification time (nanoseconds; by default now)."""
        self.set_attributes(path, mtime_ns=mtime_ns, create=True)

    def chmod(self, path: AnyPath, mode: int) -> None:
        """Set permission bits."""
        self.set_attributes(path, mode=stat_module.S_IMODE(mode))

    def set_attributes(
        self,
        path: AnyPath,
        *,
        mode: int | None = None,
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
        create: bool = False,
    ) -> None:
        """Set permission bits and times; with `create`, as `touch` does.

        Raises:
            TypeError, OverflowError: a time is no whole number, or not one that a file system could keep.
        """
        for time_ns in (mtime_ns, atime_ns):
            if time_ns is not None and abs(operator.index(time_ns)) >= _MOST_NS:
                raise OverflowError(f"no file can have the time {time_ns}")
        self._ask("attributes", path, {"mode": mode, "mtime_ns": mtime_ns, "atime_ns": atime_ns, "create": create})

    def rename(self, source: AnyPath, target: AnyPath, *, replace: bool = True) -> None:
        """Rename in one step, replacing a file or an empty directory at the target, as `os.replace`.

        A symlink is renamed itself. Missing directories above `target` are made.

        Args:
            replace: False refuses to replace anything.

        Raises:
            FileExistsError: `target` exists, and `replace` is False.
            OSError: `target` is a directory that is not empty (`ENOTEMPTY`), or below `source`.
            IsADirectoryError, NotADirectoryError: one of the two is a directory and the other is not.
        """
        where = volume_path(target)
        with _naming(where):
            self._ask("rename", source, {"target": where, "exclusive": not replace})

    def copy(
        self,
        source: AnyPath,
        target: AnyPath,
        progress: Callable[[int, int], None] | None = None,
        *,
        recursive: bool = True,
        follow: bool = True,
    ) -> None:
        """Copy a file, or a directory with everything below it, to exactly `target`, which appears whole and durable.

        No content travels; on a file system that shares blocks (XFS, btrfs) a copy takes no space either. Modes,
        modification times and symlinks are kept, holes stay holes, and hard links become files of their own. A file
        replaces a file, a directory nothing but an empty one. Missing directories above `target` are made.

        Args:
            progress: is called now and then with the number of files and of bytes that have been copied so far.
            recursive: False refuses to copy a directory.
            follow: False copies a symlink at the end of `source` itself.

        Raises:
            IsADirectoryError, NotADirectoryError: one of the two is a directory and the other is not.
            OSError: `target` is a directory that is not empty (`ENOTEMPTY`), or below `source`; or something is a
                fifo, socket or device (`EINVAL`).
        """
        where = volume_path(target)
        arguments = {"target": where, "recursive": recursive, "follow": follow}
        with _naming(where):
            for message in self._messages("copy", source, arguments):
                if progress is not None:
                    progress(int(message.header["files"]), int(message.header["bytes"]))

    def remove(self, path: AnyPath, *, recursive: bool = False) -> None:
        """Remove a file, a symlink or an empty directory; with `recursive` any directory, in one step."""
        if not volume_path(path):
            raise ValueError(f"`{ROOT}` itself cannot be removed")
        self._ask("remove", path, {"recursive": recursive})


def status_in(message: Message) -> Status:
    """Return the status that an answer carries."""
    return check_status(message.header["status"])[1]


@contextlib.contextmanager
def _naming(target: str) -> Iterator[None]:
    """Add the second path of a request to errors of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, AtollError):
            raise
        raise OSError(error.errno, error.strerror, error.filename, None, absolute(target)) from error
