"""`atoll://` outside of functions, on `Volume`.

Nothing is cached: each request sees the current state. Connections belong to a process and are shared by its threads, so
that file systems may be pickled, and used after `fork`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import trailing_sep

from atoll.fsspec import servers
from atoll.fsspec.names import PROTOCOL, Names
from atoll.sdk.data.file import open_file
from atoll.sdk.data.glob import has_magic
from atoll.sdk.data.volume import Volume
from atoll.storage.content.transfer import CHUNK_BYTES
from atoll.storage.files.tree import seconds
from atoll.storage.protocol.connection import ROOT

if TYPE_CHECKING:
    from atoll.host.contract import Host
    from atoll.storage.files.tree import Status

_KINDS = {"f": "file", "d": "directory"}
_volumes: dict[Any, Volume] = {}
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _volume(host: Host | None) -> Volume:
    """Return the volume that all file systems of this process share for a host."""
    with _lock:
        if host not in _volumes:
            _volumes[host] = Volume(host)
        return _volumes[host]


class VolumeFileSystem(Names):
    """The caller's volume on a host, as a file system for fsspec.

    Writes are durable and in one step, as those of `Volume`; missing directories are made. Copies and moves within the
    volume do not travel. Errors are those of `Volume`.

    Args:
        host: whose volume: a host, the address of a server, or `local`; the default host's without it.
        user, server: those of an address `atoll://USER@HOST/…`.

    Raises:
        ValueError: `host` and the address name different servers.
        NotAuthorized: with the first use: no key for the server is known, or the user is called otherwise there.
    """

    def __init__(self, host: Host | str | None = None, user: str = "", server: str = "", **options: Any) -> None:
        super().__init__(host=host, user=user, server=server, **options)
        self.host = servers.host_for(host, server, user)
        self._user = user
        self._place = f"{user}@{server}/" if server else ""

    @property
    def volume(self) -> Volume:
        """The volume of this process for the host."""
        if self._user:
            servers.check_user(self.host, self._user)
        return _volume(self.host)

    @property
    def fsid(self) -> str:
        return f"{PROTOCOL}-{self.host or 'local'}"

    def invalidate_cache(self, path: Any = None) -> None:
        """Do nothing: there is none."""

    # --- looking ------------------------------------------------------------------------------------------------

    @staticmethod
    def _described(path: str, status: Status, *, link: Status | None = None) -> dict[str, Any]:
        """Return an info of fsspec; `link` is the status of the symlink that led to `status`."""
        own = link or status
        kind, size = (status.leads, status.leads_size) if status.kind == "l" else (status.kind, status.size)
        info: dict[str, Any] = {
            "name": path,
            "size": size,
            "type": _KINDS.get(kind, "other"),
            "created": seconds(status.ctime_ns),
            "islink": own.kind == "l",
            "mode": status.st_mode,
            "uid": status.uid,
            "gid": status.gid,
            "mtime": seconds(status.mtime_ns),
            "ino": status.inode,
            "nlink": status.links,
        }
        if own.kind == "l":
            info["destination"] = own.target
        return info

    def info(self, path: Any, **_: Any) -> dict[str, Any]:
        where = self._strip_protocol(path)
        own = self.volume.status(where, follow=False)
        return self._described(where, self.volume.status(where), link=own) if own.leads else self._described(where, own)

    def ls(self, path: Any, detail: bool = True, **_: Any) -> list[Any]:
        where = self._strip_protocol(path)
        try:
            found = self.volume.statuses(where)
        except NotADirectoryError:
            return [self.info(where)] if detail else [where]
        if not detail:
            return [f"{where}/{name}" for name in found]
        return [self._described(f"{where}/{name}", status) for name, status in found.items()]

    def find(
        self, path: Any, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        where = self._strip_protocol(path)
        found: dict[str, Any] = {}
        try:
            info = self.info(where)
            if info["type"] != "directory":
                found[where] = info
            else:
                if withdirs and where != ROOT:
                    found[where] = info
                for name, status in self.volume.find(where, maxdepth):
                    below = self._described(f"{where}/{name}", status)
                    if withdirs or below["type"] != "directory":
                        found[below["name"]] = below
        except (FileNotFoundError, NotADirectoryError):
            pass
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    def exists(self, path: Any, **_: Any) -> bool:
        try:
            return self.volume.exists(self._strip_protocol(path))
        except ValueError:  # not below `/data`
            return False

    def lexists(self, path: Any, **_: Any) -> bool:
        try:
            self.volume.stat(self._strip_protocol(path), follow=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: Any) -> bool:
        return self.volume.isdir(self._strip_protocol(path))

    def isfile(self, path: Any) -> bool:
        return self.volume.isfile(self._strip_protocol(path))

    def created(self, path: Any) -> dt.datetime:
        """Return when the file's inode changed last: when it was made, for files that are replaced as a whole."""
        return dt.datetime.fromtimestamp(self.info(path)["created"], tz=dt.UTC)

    def modified(self, path: Any) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["mtime"], tz=dt.UTC)

    def ukey(self, path: Any) -> str:
        """Return a text that changes when the file is replaced or written."""
        status = self.volume.stat(self._strip_protocol(path))
        state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return hashlib.sha256(repr(state).encode()).hexdigest()

    def checksum(self, path: Any) -> int:
        return int(self.ukey(path), 16)

    # --- contents -----------------------------------------------------------------------------------------------

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `AbstractFileSystem.open`, in all modes of the builtin `open`; see `Volume.open`."""
        if compression is not None or self._intrans or not kwargs.get("autocommit", True):
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        return self.volume.open(self._strip_protocol(path), mode, -1 if block_size is None else block_size, **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,  # noqa: ARG002 - the file objects read ahead by themselves
        **_: Any,
    ) -> Any:
        return open_file(self.volume.connections, path, mode, block_size or -1, held=not autocommit)

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        (content,) = self.cat_ranges([path], [start], [end], on_error="raise")
        return bytes(content)

    def cat_ranges(
        self,
        paths: list[Any],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,  # noqa: ARG002 - all ranges of a file are one request
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Return ranges of files; all those of one file are of one state of it, and one request."""
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("there must be as many starts and ends as paths")
        wanted: dict[str, list[int]] = {}
        for number, path in enumerate(paths):
            wanted.setdefault(self._strip_protocol(path), []).append(number)
        found: list[Any] = [b""] * len(paths)
        for path, numbers in wanted.items():
            try:
                pieces = self._ranges(path, [(starts[number], ends[number]) for number in numbers])
            except Exception as error:
                if on_error == "raise":
                    raise
                pieces = [error] * len(numbers)
            for number, piece in zip(numbers, pieces, strict=True):
                found[number] = piece
        return found

    def _ranges(self, path: str, bounds: list[tuple[int | None, int | None]]) -> list[Any]:
        size = 0
        if any(end is not None and ((start or 0) < 0 or end < 0) for start, end in bounds):
            size = self.volume.stat(path).st_size
        ranges: list[tuple[int, int | None]] = []
        for start, end in bounds:
            begin = start or 0
            if end is None:
                ranges.append((begin, None))
                continue
            begin = max(0, begin + size) if begin < 0 else begin
            ranges.append((begin, max(0, (end + size if end < 0 else end) - begin)))
        return self.volume.read_ranges(path, ranges)

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **_: Any) -> None:
        where = self._strip_protocol(path)
        if mode == "create" or self._intrans:
            with self.open(where, "xb" if mode == "create" else "wb") as file:
                file.write(value)
        else:
            self.volume.write_bytes(where, value)

    def put_file(
        self, lpath: Any, rpath: Any, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        where = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            self.makedirs(where, exist_ok=True)
            return
        with open(lpath, "rb") as local:
            callback.set_size(os.fstat(local.fileno()).st_size)
            if mode == "create" or self._intrans:
                with self.open(where, "xb" if mode == "create" else "wb") as file:
                    for piece in _pieces(local, callback):
                        file.write(piece)
            else:
                self.volume.write_bytes(where, _pieces(local, callback))

    def get_file(self, rpath: Any, lpath: Any, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any) -> None:
        where = self._strip_protocol(rpath)
        if outfile is None and not hasattr(lpath, "write") and self.isdir(where):
            os.makedirs(lpath, exist_ok=True)
            return
        opened: Any = self.volume.open(where, "rb", buffering=0)
        with opened as file, contextlib.ExitStack() as stack:
            callback.set_size(file.stat().st_size)
            out = outfile if outfile is not None else lpath
            if not hasattr(out, "write"):
                os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
                out = stack.enter_context(open(lpath, "wb"))
            for piece in _pieces(file, callback):
                out.write(piece)

    def touch(self, path: Any, truncate: bool = True, **_: Any) -> None:
        where = self._strip_protocol(path)
        if truncate and self.exists(where):
            self.volume.write_bytes(where, b"")
        else:
            self.volume.touch(where)

    # --- names --------------------------------------------------------------------------------------------------

    def mkdir(self, path: Any, create_parents: bool = True, **_: Any) -> None:
        self.volume.mkdir(self._strip_protocol(path), parents=create_parents)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        self.volume.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def rmdir(self, path: Any) -> None:
        where = self._strip_protocol(path)
        if not self.info(where)["type"] == "directory":
            raise NotADirectoryError(f"`{where}` is not a directory")
        self.volume.remove(where)

    def rm_file(self, path: Any) -> None:
        self.volume.remove(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` directories, each of which is gone in one step."""
        if maxdepth is not None:
            super().rm(path, recursive, maxdepth)
            return
        paths = path if isinstance(path, list) else [path]
        for one in self.expand_path(paths) if any(has_magic(str(each)) for each in paths) else paths:
            where = self._strip_protocol(one)
            if not recursive and self.isdir(where):
                raise IsADirectoryError(f"`{where}` is a directory, and `recursive` is not set")
            self.volume.remove(where, recursive=recursive)

    def cp_file(self, path1: Any, path2: Any, **_: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(source):
            self.makedirs(target, exist_ok=True)
        else:
            self.volume.copy(source, target)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Move; one file or one directory in one step, into a directory that is there or named with a `/` at its
        end."""
        if maxdepth is not None or not isinstance(path1, str) or has_magic(path1):
            super().mv(path1, path2, recursive, maxdepth, **kwargs)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if trailing_sep(path2) or self.isdir(target):
            target = f"{target}/{source.rpartition('/')[2]}"
        if source != target:
            self.volume.rename(source, target)


def _pieces(file: Any, callback: Any) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
        callback.relative_update(len(piece))
