"""The storage peer: serves one client's requests on one volume, as the volume's owner, in a sandbox of its own.

    python -m atoll.storage.peer FD [ROOT]

FD is an inherited socket that carries frames; ROOT is the volume (default `/volume`). The peer ends when the client
closes the socket. Several peers may work on one volume: syncs of the same target, or of one target inside another,
take turns.

A request is answered by messages of its own and ends with `done`, or with `error`. A sync is a conversation:

    client: sync(path)                 peer: [waiting] tree... (entries of the target)
    client: plan | end                 peer: ready (what an interrupted sync left)
    client: files... chunk... commit | abort        peer: done

After an error the rest of a conversation is read and thrown away, up to its `commit` or `abort`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from atoll.errors import SyncError
from atoll.storage import filesystem, tree
from atoll.storage.apply import retire
from atoll.storage.conversation import REPORTED, Conversation, fail
from atoll.storage.filesystem import OPEN_DIRECTORY, Place, VolumeRoot, locate
from atoll.storage.locks import holding
from atoll.storage.mirror import Mirror
from atoll.storage.scan import scan_target
from atoll.storage.transfer import CHUNK_BYTES, FileReader, Wanted, send_files
from atoll.storage.tree import check_path, pack, pack_tree, unpack
from atoll.wire.channel import Channel, ChannelClosed

MAX_MESSAGE_BYTES = 1 << 30
ABANDONED_SECONDS = 24 * 3600.0
"""How long what an interrupted sync has received is kept for the next one to its target."""

_OLD = re.compile(r"old-(\d+)-[0-9a-f]+")


class Peer:
    """Serve requests on one volume until the client goes.

    Args:
        volume: the volume's directories.
        channel: the client.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel) -> None:
        self._volume = volume
        self._channel = channel
        self._mirror = Mirror(volume, channel)
        self._buffers: list[bytearray] = []
        self._requests: dict[str, Callable[[dict[str, Any]], None]] = {
            "stat": self._stat,
            "list": self._list,
            "scan": self._scan,
            "read": self._read,
            "fetch": self._fetch,
            "write": self._write,
            "remove": self._remove,
            "collect": self._collect,
            "sync": self._sync,
        }

    def serve(self) -> None:
        """Answer requests until the channel ends."""
        with contextlib.suppress(ChannelClosed):
            while True:
                message = self._channel.receive()
                self._buffers = message.buffers
                request = self._requests.get(message.type)
                try:
                    if request is None:
                        raise SyncError(f"unknown request `{message.type}`")
                    request(message.header)
                except ChannelClosed:
                    raise
                except REPORTED as error:
                    fail(self._channel, error, message.type)

    def _locate(self, header: dict[str, Any], *, follow: bool = True) -> Place:
        return locate(self._volume.data, check_path(header["path"]), follow=follow)

    # --- looking ------------------------------------------------------------------------------------------------

    def _stat(self, header: dict[str, Any]) -> None:
        with self._locate(header, follow=bool(header.get("follow", True))) as place:
            info = place.existing()
            target = os.readlink(place.name, dir_fd=place.parent) if stat.S_ISLNK(info.st_mode) else ""
            self._channel.send({"type": "done", "entry": list(tree.entry_of(info, target))})

    def _list(self, header: dict[str, Any]) -> None:
        with self._locate(header) as place, _opened(place) as descriptor, os.scandir(descriptor) as found:
            items = []
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    info = item.stat(follow_symlinks=False)
                    target = os.readlink(item.name, dir_fd=descriptor) if item.is_symlink() else ""
                    items.append((item.name, *tree.entry_of(info, target)))
        for buffer in pack(sorted(items)):
            self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    def _scan(self, header: dict[str, Any]) -> None:
        with self._locate(header) as place, _opened(place) as descriptor:
            for buffer in pack_tree(scan_target(descriptor).tree):
                self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    # --- files --------------------------------------------------------------------------------------------------

    def _read(self, header: dict[str, Any]) -> None:
        offset, length = int(header.get("offset", 0)), header.get("length")
        with self._locate(header) as place:
            info = place.existing()
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            descriptor = os.open(place.name, _READ, dir_fd=place.parent)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not an ordinary file")
            os.lseek(descriptor, offset, os.SEEK_SET)
            left = int(length) if length is not None else 1 << 62
            while left > 0 and (content := os.read(descriptor, min(left, CHUNK_BYTES))):
                self._channel.send({"type": "data"}, [content])
                left -= len(content)
        finally:
            os.close(descriptor)
        self._channel.send({"type": "done"})

    def _fetch(self, header: dict[str, Any]) -> None:
        """Send the contents of many files below one directory; the buffers list their paths and sizes."""
        wanted = [Wanted(number, check_path(path), int(size)) for number, path, size in _joined(self._buffers)]
        with self._locate(header) as place, _opened(place) as descriptor:
            reader = FileReader(lambda path, flags: os.open(path, flags, dir_fd=descriptor))
            send_files(wanted, reader, self._channel.send)
        self._channel.send({"type": "done"})

    def _write(self, header: dict[str, Any]) -> None:
        """Replace a file in one step by what follows in `data` messages, up to `commit`."""
        with Conversation(self._channel, "write") as conversation, self._new_file() as (name, descriptor):
            while (message := self._channel.receive()).type == "data":
                for content in message.buffers:
                    filesystem.write_all(descriptor, content)
            conversation.finished()
            if message.type == "commit":
                with self._locate(header) as place:
                    self._replace(place, name, descriptor, header.get("mode"), header.get("mtime_ns"))

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[tuple[str, int]]:
        """Create a file in staging that is gone at the end; it is locked, so that nobody takes it for a leftover."""
        name = self._volume.temporary_name("file")
        while True:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=self._volume.staging)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)
        try:
            yield name, descriptor
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._volume.staging)
            os.close(descriptor)

    def _replace(self, place: Place, name: str, descriptor: int, mode: Any, mtime_ns: Any) -> None:
        if place.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is None:
            mode = stat.S_IMODE(place.found.st_mode) if place.found is not None else 0o644
        os.fchmod(descriptor, int(mode) & tree.MODE_BITS)
        if mtime_ns is not None:
            os.utime(descriptor, ns=(int(mtime_ns), int(mtime_ns)))
        os.fsync(descriptor)
        place.make_parents()
        os.rename(name, place.name, src_dir_fd=self._volume.staging, dst_dir_fd=place.parent)
        filesystem.sync_directory(place.parent)

    def _remove(self, header: dict[str, Any]) -> None:
        """Remove a path; a directory with what it holds goes in one step where `recursive` is set."""
        with self._locate(header, follow=False) as place:
            info = place.existing()
            if not place.name:
                raise PermissionError(errno.EPERM, "`/data` itself cannot be removed")
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(place.name, dir_fd=place.parent)
            elif header.get("recursive"):
                self._volume.discard(place.parent, place.name)
            else:
                os.rmdir(place.name, dir_fd=place.parent)
        self._channel.send({"type": "done"})

    def _collect(self, header: dict[str, Any]) -> None:
        """Remove trees that were replaced (before a moment, where one is given) and what dead peers left."""
        before = header.get("before_ns")
        clean(self._volume)
        removed = 0
        for name in os.listdir(self._volume.staging):
            found = _OLD.fullmatch(name)
            if found and (before is None or int(found[1]) < before):
                self._volume.discard(self._volume.staging, name)
                removed += 1
            elif name.startswith(("stage-", "partial-")):
                self._drop_abandoned(name)
        self._channel.send({"type": "done", "removed": removed})

    def _sync(self, header: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # what keeps it from being cleaned will keep the sync from its work too
            clean(self._volume)
        self._mirror.serve(header)

    def _drop_abandoned(self, name: str) -> None:
        staging = self._volume.staging
        with holding(self._volume.locks, name.partition("-")[2], exclusive=True, wait=None) as held:
            if held and time.time() - os.stat(name, dir_fd=staging).st_mtime > ABANDONED_SECONDS:
                self._volume.discard(staging, name)


_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def clean(volume: VolumeRoot) -> None:
    """Remove what dead peers left in staging: half-written files, and trees that were about to be switched become
    old ones. What an interrupted sync has received stays for the next one to its target."""
    for name in os.listdir(volume.staging):
        kind, _, key = name.partition("-")
        if kind == "trash":
            with contextlib.suppress(OSError):  # another peer may be at it
                filesystem.remove_tree(volume.staging, name)
        elif kind == "file":
            with contextlib.suppress(OSError):
                descriptor = os.open(name, _READ, dir_fd=volume.staging)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=volume.staging)
                finally:
                    os.close(descriptor)
        elif kind == "switch":
            with holding(volume.locks, key, exclusive=True, wait=None) as held:
                if held:
                    retire(volume, name)


def _joined(buffers: list[bytearray]) -> list[Any]:
    return [item for buffer in buffers for item in unpack(buffer)]


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[int]:
    """Open the directory that a place is."""
    place.existing()
    descriptor = os.open(place.name or ".", OPEN_DIRECTORY, dir_fd=place.parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def main(arguments: list[str] | None = None) -> int:
    """Serve the channel on the inherited descriptor that the arguments (default: the process's) name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    descriptor = int(arguments[0])
    if sys.getfilesystemencoding().lower() != "utf-8":  # names must be bytes that survive, whatever the locale
        os.set_inheritable(descriptor, True)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    os.umask(0)
    channel = Channel(socket.socket(fileno=descriptor), MAX_MESSAGE_BYTES)
    with contextlib.suppress(ChannelClosed):
        try:
            volume = VolumeRoot(arguments[1] if len(arguments) > 1 else "/volume")
        except OSError as error:
            channel.receive()
            channel.send({"type": "error", "error": filesystem.translated(error, "cannot open").to_data()})
            return 1
        Peer(volume, channel).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
