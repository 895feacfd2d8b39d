"""A user's volume as a client uses it: every request as a method.

`atoll.sdk.data.volume.Volume` inherits the requests and lends connections to them; `VolumeClient` has one connection.
Paths are absolute (`/data/a/b`), relative to `/data`, or addresses; symlinks inside `/data` are followed as in a
function. Bytes of names that are not UTF-8 are surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

from atoll.errors import SyncError
from atoll.model.findings import Finding, check_finding
from atoll.storage.client.contents import ContentRequests
from atoll.storage.client.get import Download
from atoll.storage.client.local_target import check_target
from atoll.storage.client.names import NameRequests
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.files.scan import clamp
from atoll.storage.files.tree import DIRECTORY, FILE, Entry, pack, special_name, unpack
from atoll.storage.protocol.connection import ADDRESS, ROOT, AnyPath, Connection, absolute, volume_path
from atoll.storage.protocol.progress import ProgressLine
from atoll.storage.snapshots.values import Difference, Snapshot, check_name, read_difference, read_snapshot
from atoll.storage.sync.client import Synced, SyncOptions, sync_tree
from atoll.terminal_text import printable
from atoll.wire.channel import Channel

__all__ = ["ROOT", "SYNC_ROOT", "VolumeClient", "VolumeRequests", "absolute", "sync_target", "volume_path"]

SYNC_ROOT = "sync"
_FETCH_FILES = 5000


def sync_target(remote_dir: AnyPath) -> str:
    """Return the target of `sync_dir` relative to the volume's root; relative paths are below `sync`.

    Raises:
        ValueError: the target is not below `/data`, or has `..` or NUL.
    """
    path = volume_path(remote_dir)
    if not path:
        raise ValueError(f"`{printable(os.fspath(remote_dir))}` must name something below `{ROOT}`")
    return path if os.fspath(remote_dir).startswith(("/", ADDRESS)) else f"{SYNC_ROOT}/{path}"


class VolumeRequests(NameRequests, ContentRequests):
    """All requests that programs of the volume's owner make."""

    # --- trees --------------------------------------------------------------------------------------------------

    def put(self, local: AnyPath, path: AnyPath, progress: ProgressLine | None = None) -> None:
        """Copy a local file or directory to exactly `path`; a directory is merged into an existing one.

        A file is replaced in one step, a directory as by `sync_dir(delete=False)`: all of it appears at once. Only
        symlinks are replaced by something of another kind.

        Raises:
            SyncError: something local is a special file, cannot be read, or changes all the time while it is.
        """
        local = os.fspath(local)
        if os.path.isdir(local):
            if not volume_path(path):
                raise ValueError(f"name a directory below `{ROOT}`")
            with self._connected() as connection:
                _sync(connection, local, path, SyncOptions(ignore_files=False, delete=False), progress)
            return
        if not _from_descriptor(local) and not stat.S_ISREG(mode := os.stat(local).st_mode):
            raise SyncError(
                f"`{printable(local)}` is a {special_name(mode)}, which cannot be uploaded",
                hint="write its output into a file, or pipe it to `atoll data put - TARGET`",
            )
        shown = contextlib.closing(progress) if progress is not None else contextlib.nullcontext()
        with open(local, "rb") as file, shown:
            info = os.fstat(file.fileno())
            if progress is not None:
                progress.start(1, info.st_size)
            self.write(path, _pieces(file, progress), mode=info.st_mode & 0o777, mtime_ns=clamp(info.st_mtime_ns))

    def get(self, path: AnyPath, local: AnyPath, progress: ProgressLine | None = None) -> list[str]:
        """Copy a file or directory of the volume to exactly `local`; a directory is merged into an existing one.

        A symlink at the end of `path` is followed, those in a directory are copied. Each file is written beside its
        name and renamed. `local` and everything below it is written without following symlinks: one in the place of
        a directory or a file is replaced, since a function may have planted it in an earlier copy, and its target is
        unchanged. To merge into the directory that a symlink of your own points to, end `local` with a separator.

        Returns:
            the special files (fifos, sockets, devices), which are left out, relative to `path`.

        Raises:
            SyncError: `local` is a device, fifo or socket, which stays; or the platform cannot hold a name.
            FileExistsError: a device, fifo or socket below `local` is in the way, and stays.
        """
        local = os.fspath(local)
        entry = Entry(*self.status(path)[:5])
        if entry.kind not in (DIRECTORY, FILE):
            raise OSError(errno.EINVAL, "not an ordinary file", absolute(volume_path(path)))
        check_target(local)
        tree = self.scan(path) if entry.kind == DIRECTORY else {"": entry}
        if entry.kind == DIRECTORY and not os.path.isdir(local):
            local = local.rstrip(os.sep + (os.altsep or "")) or local
        files = [name for name, found in tree.items() if found.kind == FILE]
        # A single file is fetched from its directory, with `follow`, since its path may end in a symlink.
        base, prefix = (path, "") if entry.kind == DIRECTORY else _split(volume_path(path))
        arguments = {"follow": entry.kind == FILE}
        with contextlib.closing(Download(local, tree, progress)) as download:
            download.make_directories()
            for start in range(0, len(files), _FETCH_FILES):
                batch = files[start : start + _FETCH_FILES]
                items = [[number, prefix or name, tree[name].size] for number, name in enumerate(batch)]
                for message in self._messages("fetch", base, arguments, list(pack(items))):
                    download.receive(batch, message)
            download.finish()
        return download.skipped

    # --- snapshots ----------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None, path: AnyPath = ROOT) -> Snapshot:
        """Keep the state of a directory; functions see it, read-only, at `/data/.snapshots/NAME`.

        Later writes do not change a snapshot. On XFS, btrfs and JuiceFS it shares blocks with the live files, else
        unchanged files with an earlier snapshot; `way` and `copied_bytes` of the result tell. A sync is in it whole
        or not at all. A file that a program writes meanwhile has its state of some moment, which may differ between
        files; for one moment of several files, let nothing write.

        Args:
            name: letters, digits, `.`, `_` and `-`, without a dot in front, at most 200; the time in UTC by default.
            path: the directory.

        Raises:
            ValueError: no snapshot can have that name.
            SnapshotError: a snapshot of that name exists.
            NotADirectoryError, FileNotFoundError: `path` is no directory.
            DiskFull, QuotaExceeded: there is not enough space; no snapshot is left.
        """
        if name is not None:
            check_name(name)
        *_, done = self._messages("snapshot", path, {"name": name})
        return read_snapshot(done.header["snapshot"])

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, the oldest first."""
        found: list[Snapshot] = []
        for message in self._messages("snapshots", "", {}):
            found += [read_snapshot(item) for buffer in message.buffers for item in unpack(buffer)]
        return found

    def diff(self, old: str, new: str | None = None) -> list[Difference]:
        """Return how a snapshot differs from a later one, or from the live directory, a directory at a time.

        Files are compared by content, unless no program can have written them since. For snapshots of different
        directories, the deeper one is compared.

        Raises:
            SnapshotError: a snapshot, or the live directory, does not exist.
            SyncError: neither snapshot's directory is inside the other's.
        """
        arguments = {"old": check_name(old), "new": check_name(new) if new is not None else None}
        return [
            read_difference(item)
            for message in self._messages("diff", "", arguments)
            for buffer in message.buffers
            for item in unpack(buffer)
        ]

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; its space is free some time later, and content that others share with it stays.

        Raises:
            SnapshotError: no snapshot of that name exists, or one is in use.
        """
        self._ask("remove_snapshot", "", {"name": check_name(name)})


class VolumeClient(VolumeRequests):
    """A volume through one storage peer, at the other end of a channel; one thread uses it at a time.

    Errors of the file system are the builtin `OSError` classes (`FileNotFoundError`, `NotADirectoryError`, …); a full
    disk is `DiskFull`, an unusable volume `StateUnusable`, a peer that ends early `HostUnreachable`.

    Args:
        channel: to the peer; the client's own.
        keep: takes the channel when an idle client is closed, for the next one.
    """

    def __init__(self, channel: Channel, keep: Callable[[Channel], None] | None = None) -> None:
        self.connection = Connection(channel, keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hand an idle channel back for the next client, or close it, upon which the peer ends."""
        self.connection.close()

    def _connected(self) -> AbstractContextManager[Connection]:
        return contextlib.nullcontext(self.connection)

    def sync(self, local: str, path: str, options: SyncOptions, progress: ProgressLine | None = None) -> Synced:
        """Make `path` a mirror of a local directory; see `sync.client.sync_tree`."""
        return _sync(self.connection, local, path, options, progress)

    def collect(self, before_ns: int | None = None) -> int:
        """Remove trees that syncs have replaced; return their number.

        A sandbox with such a tree open would find it torn. So the caller makes sure that no sandbox of the user
        lives, or passes the start of the oldest one.

        Args:
            before_ns: only trees replaced before this moment, nanoseconds since the epoch.
        """
        return int(self._ask("collect", "", {"before_ns": before_ns}).header["removed"])

    def selftest(self) -> list[Finding]:
        """Try the file system's abilities in a directory that is removed again; takes about a second.

        Raises:
            DiskFull, QuotaExceeded, StateUnusable: nothing can be tried there.
            HostUnreachable: the peer ended early.
        """
        *found, _ = self._messages("selftest", "", {})
        return [check_finding(message.header.get("finding")) for message in found]


def _sync(
    connection: Connection, local: str, path: AnyPath, options: SyncOptions, progress: ProgressLine | None
) -> Synced:
    with connection.conversation() as channel:
        return sync_tree(channel, local, volume_path(path), options, progress)


def _from_descriptor(path: str) -> bool:
    """Return True for an open descriptor of this process, as a shell's `<(...)` is."""
    return path == "/dev/stdin" or path.startswith(("/dev/fd/", "/proc/self/fd/"))


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _pieces(file: Any, progress: ProgressLine | None) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
        if progress is not None:
            progress.advance(0, len(piece))
