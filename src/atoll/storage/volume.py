"""A user's volume, as a client sees it over a channel to its storage peer.

Paths are absolute (`/data/a/b`) or relative to `/data`; with symlinks that stay inside `/data` followed as a
function would. Everything is text; bytes that are not UTF-8 are surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from atoll.errors import AtollError, HostUnreachable
from atoll.storage.download import Download
from atoll.storage.progress import ProgressLine
from atoll.storage.requests import ROOT, absolute, volume_path
from atoll.storage.snapshot_requests import SnapshotRequests
from atoll.storage.status import Listing, Status, check_status
from atoll.storage.sync import Synced, SyncOptions, sync_tree
from atoll.storage.transfer import CHUNK_BYTES
from atoll.storage.tree import DIRECTORY, FILE, Entry, Tree, check_entry, check_path, pack, printable, unpack
from atoll.wire.frames import Message

__all__ = ["ROOT", "SYNC_ROOT", "Usage", "VolumeClient", "absolute", "sync_target", "volume_path"]

SYNC_ROOT = "sync"
_FETCH_FILES = 5000
_WRITE_BYTES = 4 << 20
"""How much one request writes to an open file."""


def sync_target(remote_dir: str | os.PathLike[str]) -> str:
    """Return where `sync_dir` mirrors to, relative to the volume's root: relative paths are below `sync`.

    Raises:
        ValueError: it names nothing below `/data`, or has `..` or NUL.
    """
    path = volume_path(remote_dir)
    if not path:
        raise ValueError(f"`{printable(os.fspath(remote_dir))}` must name something below `{ROOT}`")
    return path if os.fspath(remote_dir).startswith("/") else f"{SYNC_ROOT}/{path}"


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


class VolumeClient(SnapshotRequests):
    """Work on a volume through the storage peer at the other end of a channel, which the client owns.

    One thread uses it at a time. What the file system refuses is the builtin `OSError` for it
    (`FileNotFoundError`, `NotADirectoryError`, …); a full disk is `DiskFull`, a volume that cannot be used
    `StateUnusable`, a peer that goes away `HostUnreachable`.
    """

    # --- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: str, *, follow: bool = True) -> Status:
        """Return what stands at `path`; a symlink at its end is followed only where `follow` is set."""
        return _status(self._ask("stat", path, {"follow": follow}))

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

    # --- contents -----------------------------------------------------------------------------------------------

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytearray]:
        """Yield the content of a file from `offset` on; who stops early closes the client."""
        for message in self._messages("read", path, {"offset": offset, "length": length}):
            yield from message.buffers

    def read_ranges(self, path: str, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Return pieces of one state of a file, in one request.

        Args:
            ranges: offset and length in bytes of each piece; a negative offset counts from the end, no length means
                up to it. What is behind the end is left out.
        """
        pieces = _Pieces(len(ranges))
        for message in self._messages("read", path, {"ranges": list(ranges)}):
            pieces.add(message)
        return pieces.joined()

    def write(self, path: str, content: Iterable[Any], *, mode: int | None = None, mtime_ns: int | None = None) -> None:
        """Replace a file in one step; it has the old content or the new one whole, whatever happens.

        Args:
            mode: permission bits; by default those of the file that is replaced, or 0644.
            mtime_ns: modification time; by default now.
        """
        where = volume_path(path)
        finished = False
        try:
            self._request({"type": "write", "path": where, "mode": mode, "mtime_ns": mtime_ns}, [])
            for piece in content:
                view = memoryview(piece).cast("B")
                for start in range(0, view.nbytes, CHUNK_BYTES):
                    self._send({"type": "data"}, [view[start : start + CHUNK_BYTES]])
                    self._raise_early(where)
            finished = True
            self._send({"type": "commit"}, [])
            self._answer(where)
        except Exception as error:
            if not finished and not isinstance(error, HostUnreachable):
                self._abort(answered=isinstance(error, _Refused))
            if isinstance(error, _Refused):
                raise error.reason from None
            raise
        except BaseException:
            self.abandon()  # interrupted, perhaps in the middle of a message: nothing can follow it
            raise

    def open(self, path: str, mode: str) -> tuple[int, Status]:
        """Have the peer hold a file open; return the handle's number, and what it found.

        Args:
            mode: `read`, `update` (both, in place), `append` (in place, made where it is not there), `create` (a new
                file that takes the path's place when it is closed) or `exclusive` (the same, unless something is
                there).
        """
        done = self._ask("open", path, {"mode": mode})
        self.handles += 1
        return int(done.header["handle"]), _status(done)

    def pread(self, path: str, handle: int, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Return pieces of an open file, as `read_ranges`; `path` is for errors."""
        pieces = _Pieces(len(ranges))
        for message in self._messages("pread", path, {"handle": handle, "ranges": list(ranges)}):
            pieces.add(message)
        return pieces.joined()

    def pwrite(self, path: str, handle: int, offset: int, content: memoryview) -> int:
        """Write to an open file; return the position behind what was written."""
        position = offset
        for begin in range(0, content.nbytes, _WRITE_BYTES):
            end = min(begin + _WRITE_BYTES, content.nbytes)
            pieces = [content[start : min(start + CHUNK_BYTES, end)] for start in range(begin, end, CHUNK_BYTES)]
            done = self._ask("pwrite", path, {"handle": handle, "offset": position}, pieces)
            position = int(done.header["position"])
        return position

    def truncate(self, path: str, handle: int, size: int) -> None:
        """Give an open file another size."""
        self._ask("truncate", path, {"handle": handle, "size": size})

    def flush(self, path: str, handle: int, *, durable: bool = False) -> Status:
        """Return the status of an open file, made durable where that is asked for."""
        return _status(self._ask("flush", path, {"handle": handle, "durable": durable}))

    def close_file(self, path: str, handle: int, *, commit: bool) -> None:
        """Close an open file: what was written is durable then, and a new file takes its place, or is gone."""
        self.handles -= 1
        self._ask("close", path, {"handle": handle, "commit": commit})

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
        """Set permission bits and times; with `create`, as `touch` does."""
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
        with open(local, "rb") as file:
            info = os.fstat(file.fileno())
            if progress is not None:
                progress.start(1, info.st_size)
            self.write(path, _pieces(file, progress), mode=info.st_mode & 0o777, mtime_ns=info.st_mtime_ns)
        if progress is not None:
            progress.close()

    def get(self, path: str, local: str, progress: ProgressLine | None = None) -> list[str]:
        """Copy a file or directory of the volume to exactly `local`; a directory is merged into one that is there.

        `local` and all below it are written without following symlinks: one that stands where a directory or a file
        comes is replaced, since a function may have planted it in an earlier copy. What it points to stays as it is.
        To merge into the directory that a symlink of your own points to, end `local` with a separator.

        Returns:
            the paths that were left out, since they are special files.
        """
        entry = Entry(*self.stat(path)[:5])
        tree = self.scan(path) if entry.kind == DIRECTORY else {"": entry}
        if entry.kind not in (DIRECTORY, FILE):
            raise OSError(errno.EINVAL, "not an ordinary file", absolute(volume_path(path)))
        if entry.kind == DIRECTORY and not os.path.isdir(local):
            local = local.rstrip(os.sep + (os.altsep or "")) or local
        files = [name for name, found in tree.items() if found.kind == FILE]
        # A file alone is fetched from the directory that holds it.
        base, prefix = (path, "") if entry.kind == DIRECTORY else _split(volume_path(path))
        with contextlib.closing(Download(local, tree, progress)) as download:
            download.make_directories()
            for start in range(0, len(files), _FETCH_FILES):
                batch = files[start : start + _FETCH_FILES]
                items = [[number, prefix or name, tree[name].size] for number, name in enumerate(batch)]
                for message in self._messages("fetch", base, {}, list(pack(items))):
                    download.receive(batch, message)
            download.finish()
        return download.skipped

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

    def _raise_early(self, where: str) -> None:
        """Learn of an error while the content is still being sent."""
        if self._channel.readable():
            try:
                self._receive(where)
            except HostUnreachable:
                raise
            except (AtollError, OSError) as error:
                raise _Refused(error) from error

    def _abort(self, *, answered: bool) -> None:
        with contextlib.suppress(AtollError, OSError):
            self._send({"type": "abort"}, [])
            while not answered and self._channel.receive().type not in ("done", "error"):
                pass
            self._at_rest = True


class _Refused(Exception):
    """The peer has said already that the content being sent is of no use."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class _Pieces:
    def __init__(self, count: int) -> None:
        self._pieces: list[list[bytearray]] = [[] for _ in range(count)]

    def add(self, message: Message) -> None:
        if message.type == "data":
            self._pieces[int(message.header["range"])].extend(message.buffers)

    def joined(self) -> list[bytes]:
        return [b"".join(pieces) for pieces in self._pieces]


@contextlib.contextmanager
def _naming(target: str) -> Iterator[None]:
    """Give errors of the file system the second path, too."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, AtollError):
            raise
        raise OSError(error.errno, error.strerror, error.filename, None, absolute(target)) from error


def _status(message: Message) -> Status:
    return check_status(message.header["status"])[1]


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _pieces(file: Any, progress: ProgressLine | None) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
        if progress is not None:
            progress.advance(0, len(piece))
