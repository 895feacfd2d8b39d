"""A user's volume, as a client sees it over a channel to its storage peer.

Paths are absolute (`/data/a/b`) or relative to `/data`; with symlinks that stay inside `/data` followed as a
function would. Everything is text; bytes that are not UTF-8 are surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Any, Self

from atoll.errors import AtollError, HostUnreachable
from atoll.storage.download import Download
from atoll.storage.progress import ProgressLine
from atoll.storage.sync import Synced, SyncOptions, error_of, sync_tree
from atoll.storage.transfer import CHUNK_BYTES
from atoll.storage.tree import DIRECTORY, FILE, Entry, Tree, check_entry, pack, printable, unpack
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import Message

ROOT = "/data"
SYNC_ROOT = "sync"
_FETCH_FILES = 5000


def _parts(path: str) -> list[str]:
    if "\0" in path:
        raise ValueError("a path holds no NUL")
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"`{printable(path)}` is not a name that a file system can hold") from error
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"`{printable(path)}` has `..`, which a path on a volume cannot")
    return parts


def volume_path(path: str | os.PathLike[str]) -> str:
    """Return a path of the volume relative to its root; the root itself is the empty text.

    Raises:
        ValueError: it is not below `/data`, or has `..` or NUL.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError("a path on a volume is text")
    parts = _parts(text)
    if text.startswith("/"):
        if parts[:1] != ["data"]:
            raise ValueError(f"`{printable(text)}` is not below `{ROOT}`")
        parts = parts[1:]
    return "/".join(parts)


def sync_target(remote_dir: str | os.PathLike[str]) -> str:
    """Return where `sync_dir` mirrors to, relative to the volume's root: relative paths are below `sync`.

    Raises:
        ValueError: it names nothing below `/data`, or has `..` or NUL.
    """
    path = volume_path(remote_dir)
    if not path:
        raise ValueError(f"`{printable(os.fspath(remote_dir))}` must name something below `{ROOT}`")
    return path if os.fspath(remote_dir).startswith("/") else f"{SYNC_ROOT}/{path}"


def absolute(path: str) -> str:
    """Return the path that functions use for one relative to the volume's root."""
    return f"{ROOT}/{path}" if path else ROOT


class VolumeClient:
    """Work on a volume through the storage peer at the other end of `channel`, which the client owns.

    One thread uses it at a time. What the file system refuses is the builtin `OSError` for it
    (`FileNotFoundError`, `NotADirectoryError`, …); a full disk is `DiskFull`, a volume that cannot be used
    `StateUnusable`, a peer that goes away `HostUnreachable`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; the peer ends."""
        self._channel.close()

    # --- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: str, *, follow: bool = True) -> Entry:
        """Return what stands at `path`; a symlink at its end is followed only where `follow` is set."""
        done = self._ask("stat", path, {"follow": follow})
        return check_entry(["", *done.header["entry"]])[1]

    def listdir(self, path: str = "") -> dict[str, Entry]:
        """Return what a directory holds, by name, sorted."""
        return self._entries("list", path)

    def scan(self, path: str = "") -> Tree:
        """Return a whole directory tree."""
        return self._entries("scan", path)

    # --- files --------------------------------------------------------------------------------------------------

    def read(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytearray]:
        """Yield the content of a file from `offset` on; who stops early closes the client."""
        whole = False
        try:
            for message in self._messages("read", path, {"offset": offset, "length": length}):
                yield from message.buffers
            whole = True
        except (AtollError, OSError):
            whole = True
            raise
        finally:
            if not whole:
                self.close()

    def write(self, path: str, content: Iterable[Any], *, mode: int | None = None, mtime_ns: int | None = None) -> None:
        """Replace a file in one step; it has the old content or the new one whole, whatever happens.

        Args:
            mode: permission bits; by default those of the file that is replaced, or 0644.
            mtime_ns: modification time; by default now.
        """
        where = volume_path(path)
        finished = False
        try:
            self._send({"type": "write", "path": where, "mode": mode, "mtime_ns": mtime_ns}, [])
            for piece in content:
                view = memoryview(piece).cast("B")
                for start in range(0, view.nbytes, CHUNK_BYTES):
                    self._send({"type": "data"}, [view[start : start + CHUNK_BYTES]])
                    self._raise_early(where)
            finished = True
            self._send({"type": "commit"}, [])
            self._receive(where)
        except Exception as error:
            if not finished and not isinstance(error, HostUnreachable):
                self._abort(answered=isinstance(error, _Refused))
            if isinstance(error, _Refused):
                raise error.reason from None
            raise
        except BaseException:
            self.close()  # interrupted, perhaps in the middle of a message: nothing can follow it
            raise

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
            sync_tree(self._channel, local, volume_path(path), SyncOptions(ignore_files=False, delete=False), progress)
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
        entry = self.stat(path)
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
        return sync_tree(self._channel, local, volume_path(path), options, progress)

    def collect(self, before_ns: int | None = None) -> int:
        """Remove trees that syncs have replaced; return how many.

        Who has one open would see it torn: call it when no sandbox of the user lives, or say since when the oldest
        one does.

        Args:
            before_ns: only trees replaced before this moment, nanoseconds since the epoch.
        """
        return int(self._ask("collect", "", {"before_ns": before_ns}).header["removed"])

    # --- messages -----------------------------------------------------------------------------------------------

    def _ask(self, kind: str, path: str, arguments: dict[str, Any]) -> Message:
        where = volume_path(path)
        self._send({"type": kind, "path": where, **arguments}, [])
        return self._receive(where)

    def _entries(self, kind: str, path: str) -> Tree:
        found: Tree = {}
        for message in self._messages(kind, path, {}):
            for buffer in message.buffers:
                found.update(check_entry(item) for item in unpack(buffer))
        return found

    def _messages(
        self, kind: str, path: str, arguments: dict[str, Any], buffers: list[Any] | None = None
    ) -> Iterator[Message]:
        where = volume_path(path)
        self._send({"type": kind, "path": where, **arguments}, buffers or [])
        while (message := self._receive(where)).type != "done":
            yield message

    def _send(self, header: dict[str, Any], buffers: list[Any]) -> None:
        try:
            self._channel.send(header, buffers)
        except (ChannelClosed, OSError) as error:
            raise HostUnreachable("the storage peer has gone", hint="try again; see `atoll logs`") from error

    def _receive(self, where: str) -> Message:
        try:
            message = self._channel.receive()
        except (ChannelClosed, OSError) as error:
            raise HostUnreachable("the storage peer ended before it answered", hint="see `atoll logs`") from error
        if message.type == "error":
            raise _named(error_of(message), where)
        return message

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


class _Refused(Exception):
    """The peer has said already that the content being sent is of no use."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _named(error: Exception, where: str) -> Exception:
    if isinstance(error, OSError) and not isinstance(error, AtollError):
        return OSError(error.errno, error.strerror, absolute(where))
    return error


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _pieces(file: Any, progress: ProgressLine | None) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
        if progress is not None:
            progress.advance(0, len(piece))
