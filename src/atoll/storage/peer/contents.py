"""The storage peer's requests about the contents of files. Linux only.

Small requests name a path: `read`, `fetch`, `write`. A file object of a client works on a *handle* instead, a file
that the peer holds open. So it reads one state of the file, despite renames, and many file objects share one channel:

    open(path, mode)   "read", "update" and "append" open the file that is there (append makes it);
                       "create" and "exclusive" open a new file in staging that nobody sees
    pread, pwrite, truncate, flush
    close              with `commit`, a new file takes the path's place in one step; without, it is gone

A handle ends with its channel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from atoll import linux
from atoll.storage.content.transfer import CHUNK_BYTES, FileReader, FileRequest, send_files
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import check_path, parent_of, status_of, unpack
from atoll.storage.peer.names import opened
from atoll.storage.peer.replacing import Replacing
from atoll.storage.protocol.replies import Conversation
from atoll.storage.volume.arrival import make
from atoll.storage.volume.locate import Place, locate
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import create_file, new_file
from atoll.wire.channel import Channel

MAX_HANDLES = 512
MAX_RANGES = 10_000

_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_READ = os.O_RDONLY | _SAFE
_IN_PLACE = {
    "read": os.O_RDONLY,
    "update": os.O_RDWR,
    "append": os.O_RDWR | os.O_APPEND | os.O_CREAT,
}
_MOST_BYTES = 1 << 62


@dataclass
class _Handle:
    path: str
    descriptor: int
    mode: str
    staged: str = ""


class Contents:
    """Answer one client's requests about contents.

    Args:
        volume: the volume's directories.
        channel: the client.
        lock: excludes restores while the volume changes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, lock: RestoreLock) -> None:
        self._volume = volume
        self._channel = channel
        self._replacing = Replacing(volume, channel, lock)
        self._handles: dict[int, _Handle] = {}
        self._last = 0
        lock.on_restored.append(self._forget_changing)

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return the handlers of requests, by the type of their message."""
        return {
            "read": self._read,
            "fetch": self._fetch,
            "write": self._write,
            "open": self._open,
            "pread": self._pread,
            "pwrite": self._pwrite,
            "truncate": self._truncate,
            "flush": self._flush,
            "close": self._close,
        }

    def end(self) -> None:
        """Close all handles; new files without a commit are gone."""
        for number in list(self._handles):
            self._drop(number)

    def _forget_changing(self) -> None:
        """Close the handles that change files in place: a restore has made these a part of a snapshot."""
        for number, handle in list(self._handles.items()):
            if handle.mode in ("update", "append"):
                self._drop(number)

    def _locate(self, path: Any) -> Place:
        return locate(self._volume.data, check_path(path), follow=True)

    def _look(self, path: Any) -> Place:
        """Find a path that is only read: the snapshots are there too."""
        return locate(self._volume.data, check_path(path), follow=True, snapshots=self._volume.snapshots)

    # --- by path ------------------------------------------------------------------------------------------------

    def _read(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send pieces of a file, all of one state of its name: `ranges`, or from `offset` on."""
        descriptor = self._opened(header["path"], _READ)
        try:
            self._send_ranges(descriptor, _ranges(header))
        finally:
            os.close(descriptor)

    def _opened(self, path: Any, flags: int) -> int:
        if flags & os.O_CREAT:
            return self._made(path, flags)
        with self._look(path) if flags & os.O_ACCMODE == os.O_RDONLY else self._locate(path) as place:
            return _open_file(place, flags)

    def _made(self, path: Any, flags: int) -> int:
        """Open a file for writing, and make it if it is missing."""
        opened = -1

        def create(place: Place, _: bool) -> int:
            nonlocal opened
            if opened >= 0:
                os.close(opened)
                opened = -1
            place.make_parents()
            opened = _open_file(place, flags)
            if place.found is None:
                linux.sync_directory(place.parent)
            return opened

        try:
            return make(lambda: self._locate(path), create)
        except BaseException:
            if opened >= 0:
                os.close(opened)
            raise

    def _send_ranges(self, descriptor: int, ranges: Iterable[tuple[int, int | None]]) -> None:
        for number, (offset, length) in enumerate(ranges):
            position = offset if offset >= 0 else max(0, os.fstat(descriptor).st_size + offset)
            left = length if length is not None else _MOST_BYTES
            while left > 0 and (content := os.pread(descriptor, min(left, CHUNK_BYTES), position)):
                self._channel.send({"type": "data", "range": number}, [content])
                left -= len(content)
                position += len(content)
        self._channel.send({"type": "done"})

    def _fetch(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        """Send the contents of many files below one directory; the buffers list their paths and sizes.

        With `follow`, symlinks are followed as functions do; in a tree that was scanned, none is where a file was.
        """
        items = [item for buffer in buffers for item in unpack(buffer)]
        wanted = [FileRequest(number, check_path(path), int(size)) for number, path, size in items]
        with self._look(header["path"]) as place, opened(place) as descriptor, DirectoryCursor(descriptor) as cursor:

            def open_file(path: str, flags: int) -> int:
                if header.get("follow"):
                    return self._opened(f"{header['path']}/{path}".lstrip("/"), flags)
                return os.open(path.rpartition("/")[2], flags | _SAFE, dir_fd=cursor.open(parent_of(path)))

            send_files(wanted, FileReader(open_file), self._channel.send)
        self._channel.send({"type": "done"})

    def _write(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Replace a file in one step by the content of the following `data` messages, up to `commit`."""
        with Conversation(self._channel, "write") as conversation, new_file(self._volume.staging) as (name, descriptor):
            while (message := self._channel.receive()).type == "data":
                for content in message.buffers:
                    linux.write_all(descriptor, content)
            conversation.finished()
            if message.type == "commit":
                status = self._replacing.replace(header["path"], name, descriptor, header)
                conversation.facts["status"] = ["", *status]

    # --- by handle ----------------------------------------------------------------------------------------------

    def _open(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Open a file; answer the handle's number and the file's status."""
        path, mode = check_path(header["path"]), header["mode"]
        if len(self._handles) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, "too many files of the volume are open")
        if mode in _IN_PLACE:
            handle = _Handle(path, self._opened(path, _IN_PLACE[mode]), mode)
        elif mode in ("create", "exclusive"):
            with self._locate(path) as place:
                _check_replaceable(place)
                if mode == "exclusive" and place.found is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            name, descriptor = create_file(self._volume.staging)
            handle = _Handle(path, descriptor, mode, name)
        else:
            raise ValueError(f"unknown mode `{mode}`")
        self._last += 1
        self._handles[self._last] = handle
        status = status_of(os.fstat(handle.descriptor))
        self._channel.send({"type": "done", "handle": self._last, "status": ["", *status]})

    def _handle(self, header: dict[str, Any]) -> _Handle:
        handle = self._handles.get(header["handle"])
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def _pread(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send pieces of an open file."""
        self._send_ranges(self._handle(header).descriptor, _ranges(header))

    def _pwrite(self, header: dict[str, Any], buffers: list[bytearray]) -> None:
        """Write at an offset, or in mode `append` at the end; answer the position behind the content."""
        handle = self._handle(header)
        os.lseek(handle.descriptor, int(header["offset"]), os.SEEK_SET)
        for content in buffers:
            linux.write_all(handle.descriptor, content)
        self._channel.send({"type": "done", "position": os.lseek(handle.descriptor, 0, os.SEEK_CUR)})

    def _truncate(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Give an open file another size."""
        os.ftruncate(self._handle(header).descriptor, int(header["size"]))
        self._channel.send({"type": "done"})

    def _flush(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Make the content durable, if asked to; answer the file's status."""
        descriptor = self._handle(header).descriptor
        if header.get("durable"):
            os.fsync(descriptor)
        self._channel.send({"type": "done", "status": ["", *status_of(os.fstat(descriptor))]})

    def _close(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Close a handle: a new file takes its place with `commit`, and is gone without."""
        handle = self._handle(header)
        status: list[Any] = []
        try:
            if header.get("commit"):
                if handle.staged:
                    new = handle.mode == "exclusive"
                    found = self._replacing.replace(handle.path, handle.staged, handle.descriptor, header, new=new)
                    status = ["", *found]
                elif handle.mode != "read":
                    os.fsync(handle.descriptor)
        finally:
            self._drop(header["handle"])
        self._channel.send({"type": "done", **({"status": status} if status else {})})

    def _drop(self, number: int) -> None:
        handle = self._handles.pop(number)
        if handle.staged:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(handle.staged, dir_fd=self._volume.staging)
        os.close(handle.descriptor)


def _open_file(place: Place, flags: int) -> int:
    if (not flags & os.O_CREAT or place.found is not None) and not stat.S_ISREG(place.existing().st_mode):
        raise _not_ordinary(place.existing())
    descriptor = os.open(place.name, flags | _SAFE, 0o644, dir_fd=place.parent)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise _not_ordinary(info)
    return descriptor


def _not_ordinary(info: os.stat_result) -> OSError:
    if stat.S_ISDIR(info.st_mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return OSError(errno.EINVAL, "not an ordinary file")


def _check_replaceable(place: Place) -> None:
    if place.is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _ranges(header: dict[str, Any]) -> list[tuple[int, int | None]]:
    """Return offsets and lengths; a negative offset counts from the end, no length means up to it."""
    wanted = header.get("ranges")
    if wanted is None:
        wanted = [[header.get("offset", 0), header.get("length")]]
    if len(wanted) > MAX_RANGES:
        raise ValueError(f"at most {MAX_RANGES} ranges at a time")
    return [(_bounded(offset), None if length is None else _bounded(length)) for offset, length in wanted]


def _bounded(number: Any) -> int:
    """Return a number of bytes that the kernel takes: no file is so large."""
    return max(-_MOST_BYTES, min(int(number), _MOST_BYTES))
