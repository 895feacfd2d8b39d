"""A user's volume, as a client sees it over a channel to its storage peer.

Paths are absolute (`/data/a/b`) or relative to `/data`; with symlinks that stay inside `/data` followed as a
function would. Everything is text; bytes that are not UTF-8 are surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from atoll.errors import AtollError, SyncError
from atoll.storage.client.content_requests import ContentRequests, status_in
from atoll.storage.client.get import Download
from atoll.storage.client.outlet import Outlet, open_outlet
from atoll.storage.client.snapshot_requests import SnapshotRequests
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.files.status import Listing, Status, check_status
from atoll.storage.files.tree import (
    DIRECTORY,
    FILE,
    Entry,
    Tree,
    check_entry,
    check_path,
    pack,
    printable,
    special_name,
    unpack,
)
from atoll.storage.protocol.connection import ADDRESS, ROOT, absolute, volume_path
from atoll.storage.protocol.progress import ProgressLine
from atoll.storage.sync.client import Synced, SyncOptions, sync_tree

__all__ = ["ROOT", "SYNC_ROOT", "Usage", "VolumeClient", "absolute", "sync_target", "volume_path"]

SYNC_ROOT = "sync"
_FETCH_FILES = 5000
_MOST_NS = 1 << 93
"""Nanoseconds; seconds are of 63 bits."""


def sync_target(remote_dir: str | os.PathLike[str]) -> str:
    """Return where `sync_dir` mirrors to, relative to the volume's root: relative paths are below `sync`, addresses not.

    Raises:
        ValueError: it names nothing below `/data`, or has `..` or NUL.
    """
    path = volume_path(remote_dir)
    if not path:
        raise ValueError(f"`{printable(os.fspath(remote_dir))}` must name something below `{ROOT}`")
    return path if os.fspath(remote_dir).startswith(("/", ADDRESS)) else f"{SYNC_ROOT}/{path}"


class Sum(NamedTuple):
    """What a path takes, with all below it.

    Args:
        allocated_bytes: on disk; what has several names counts once.
        apparent_bytes: of content.
        files: how many, symlinks and special files included.
        directories: how many are below it.
    """

    allocated_bytes: int
    apparent_bytes: int
    files: int
    directories: int


class Usage(NamedTuple):
    """What a path of a volume takes, and what its file system has.

    Args:
        allocated_bytes: on disk; what has several names counts once.
        apparent_bytes: of content.
        files: how many, symlinks and special files included.
        directories: how many are below it.
        disk_bytes: the volume's file system in all, which other volumes may share.
        disk_free_bytes: what is free there.
    """

    allocated_bytes: int
    apparent_bytes: int
    files: int
    directories: int
    disk_bytes: int
    disk_free_bytes: int


class VolumeClient(ContentRequests, SnapshotRequests):
    """Work on a volume through the storage peer at the other end of a channel, which the client owns.

    One thread uses it at a time. What the file system refuses is the builtin `OSError` for it
    (`FileNotFoundError`, `NotADirectoryError`, …); a full disk is `DiskFull`, a volume that cannot be used
    `StateUnusable`, a peer that goes away `HostUnreachable`.
    """

    # --- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: str, *, follow: bool = True) -> Status:
        """Return what stands at `path`; a symlink at its end is followed only where `follow` is set."""
        return status_in(self._ask("stat", path, {"follow": follow}))

    def listdir(self, path: str = "") -> Listing:
        """Return what a directory holds, by name, sorted."""
        return dict(self._statuses("list", path, {}))

    def find(self, path: str = "", depth: int | None = None) -> Iterator[tuple[str, Status]]:
        """Yield what a directory holds, at any depth or down to one (1: itself alone), by path relative to it.

        What a directory holds comes sorted, and before what the directories in it hold. Symlinks are not followed.
        Who stops early closes the client.
        """
        return self._statuses("find", path, {"depth": depth})

    def scan(self, path: str = "") -> Tree:
        """Return a whole directory tree."""
        found: Tree = {}
        for message in self._messages("scan", path, {}):
            for buffer in message.buffers:
                found.update(check_entry(item) for item in unpack(buffer))
        return found

    def usage(self, path: str = "", depth: int = 0, *, follow: bool = True) -> tuple[dict[str, Sum], int, int]:
        """Return what a path takes, and each directory down to a depth below it; the empty path is itself.

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

    # --- names --------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory; with `parents` those above it too, with `exist_ok` unless it is there."""
        self._ask("mkdir", path, {"mode": mode, "parents": parents, "exist_ok": exist_ok})

    def set_attributes(
        self,
        path: str,
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

    def rename(self, path: str, target: str, *, exclusive: bool = False) -> None:
        """Give a path another name in one step, as `os.replace`; missing directories on the way are made."""
        where = volume_path(target)
        with _naming(where):
            self._ask("rename", path, {"target": where, "exclusive": exclusive})

    def copy(
        self,
        path: str,
        target: str,
        *,
        recursive: bool = False,
        follow: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[int, int]:
        """Copy a file or a directory to exactly `target`, which appears whole; nothing of it travels.

        Args:
            recursive: whether a directory may be copied; nothing, or an empty directory, is to be at the target then.
            follow: whether a symlink at the path's end is followed.
            progress: takes the number of files and of bytes that have been copied so far.

        Returns:
            how many files and bytes were copied.
        """
        where = volume_path(target)
        done: dict[str, Any] = {}
        with _naming(where):
            for message in self._messages("copy", path, {"target": where, "recursive": recursive, "follow": follow}):
                done = message.header
                if progress is not None:
                    progress(int(done["files"]), int(done["bytes"]))
        return int(done["files"]), int(done["bytes"])

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a symlink, an empty directory, or with `recursive` a directory with all that it holds."""
        if not volume_path(path):
            raise ValueError(f"`{ROOT}` itself cannot be removed")
        self._ask("remove", path, {"recursive": recursive})

    # --- trees --------------------------------------------------------------------------------------------------

    def put(self, local: str, path: str, progress: ProgressLine | None = None) -> None:
        """Copy a local file or directory to exactly `path`; a directory is merged into one that is there.

        Raises:
            SyncError: something local cannot be read.
        """
        if os.path.isdir(local):
            if not volume_path(path):
                raise ValueError(f"name a directory below `{ROOT}`")
            self.sync(local, path, SyncOptions(ignore_files=False, delete=False), progress)
            return
        if not _from_descriptor(local) and not stat.S_ISREG(mode := os.stat(local).st_mode):
            raise SyncError(
                f"`{printable(local)}` is a {special_name(mode)}, which cannot be uploaded",
                hint="write what it gives into a file, or pipe it to `atoll data put - TARGET`",
            )
        shown = contextlib.closing(progress) if progress is not None else contextlib.nullcontext()
        with open(local, "rb") as file, shown:
            info = os.fstat(file.fileno())
            if progress is not None:
                progress.start(1, info.st_size)
            self.write(path, _pieces(file, progress), mode=info.st_mode & 0o777, mtime_ns=info.st_mtime_ns)

    def get(self, path: str, local: str, progress: ProgressLine | None = None) -> list[str]:
        """Copy a file or directory of the volume to exactly `local`; a directory is merged into one that is there.

        A symlink that `path` ends in is followed, those in a directory are copied. `local` and all below it are written
        without following symlinks: one that stands where a directory or a file comes is replaced, since a function may
        have planted it in an earlier copy. What it points to stays as it is. To merge into the directory that a symlink
        of your own points to, end `local` with a separator.

        A file is written into a device or fifo that `local` is, and into what is open as `/dev/stdout` or `/dev/fd/N`.
        Elsewhere devices, fifos and sockets are an error, and stay.

        Returns:
            the paths that were left out, since they are special files.
        """
        entry = Entry(*self.stat(path)[:5])
        if entry.kind == FILE and (outlet := open_outlet(local)) is not None:
            self._pour(path, entry.size, outlet, progress)
            return []
        tree = self.scan(path) if entry.kind == DIRECTORY else {"": entry}
        if entry.kind not in (DIRECTORY, FILE):
            raise OSError(errno.EINVAL, "not an ordinary file", absolute(volume_path(path)))
        if entry.kind == DIRECTORY and not os.path.isdir(local):
            local = local.rstrip(os.sep + (os.altsep or "")) or local
        files = [name for name, found in tree.items() if found.kind == FILE]
        # A file alone is fetched from the directory that holds it, or from where a symlink there leads.
        base, prefix = (path, "") if entry.kind == DIRECTORY else _split(volume_path(path))
        how = {"follow": entry.kind == FILE}
        with contextlib.closing(Download(local, tree, progress)) as download:
            download.make_directories()
            for start in range(0, len(files), _FETCH_FILES):
                batch = files[start : start + _FETCH_FILES]
                items = [[number, prefix or name, tree[name].size] for number, name in enumerate(batch)]
                for message in self._messages("fetch", base, how, list(pack(items))):
                    download.receive(batch, message)
            download.finish()
        return download.skipped

    def _pour(self, path: str, size: int, outlet: Outlet, progress: ProgressLine | None) -> None:
        shown = contextlib.closing(progress) if progress is not None else contextlib.nullcontext()
        with contextlib.closing(outlet), shown:
            if progress is not None:
                progress.start(1, size)
            for piece in self.read(path):
                outlet.write(piece)
                if progress is not None:
                    progress.advance(0, len(piece))

    def sync(self, local: str, path: str, options: SyncOptions, progress: ProgressLine | None = None) -> Synced:
        """Make `path` a mirror of a local directory; see `sync.sync_tree`."""
        self._at_rest = False
        synced = sync_tree(self._channel, local, volume_path(path), options, progress)
        self._at_rest = True
        return synced

    def collect(self, before_ns: int | None = None) -> int:
        """Remove trees that syncs have replaced; return how many.

        Who has one open would see it torn: call it when no sandbox of the user lives, or say since when the oldest
        one does.

        Args:
            before_ns: only trees replaced before this moment, nanoseconds since the epoch.
        """
        return int(self._ask("collect", "", {"before_ns": before_ns}).header["removed"])

    # --- messages -----------------------------------------------------------------------------------------------

    def _statuses(self, kind: str, path: str, arguments: dict[str, Any]) -> Iterator[tuple[str, Status]]:
        for message in self._messages(kind, path, arguments):
            for buffer in message.buffers:
                yield from map(check_status, unpack(buffer))


@contextlib.contextmanager
def _naming(target: str) -> Iterator[None]:
    """Give errors of the file system the second path, too."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, AtollError):
            raise
        raise OSError(error.errno, error.strerror, error.filename, None, absolute(target)) from error


def _from_descriptor(path: str) -> bool:
    """Whether a path stands for what this process has open already, as a shell's `<(...)` does."""
    return path == "/dev/stdin" or path.startswith(("/dev/fd/", "/proc/self/fd/"))


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _pieces(file: Any, progress: ProgressLine | None) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
        if progress is not None:
            progress.advance(0, len(piece))
