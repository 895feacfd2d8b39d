"""Copies within a volume: nothing of their content travels. Linux only.

A copy is made in staging, and takes its place in one step when it is whole and durable; where the file system shares
blocks between files (XFS, btrfs), a copy costs no space. Functions may write into what is copied meanwhile: each file
is then as it was at one of the moments of its own copy, and symlinks that appear lead nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from atoll import linux
from atoll.storage.content.copy import clone, copy_content
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import MODE_BITS, check_path
from atoll.storage.peer.names import opened
from atoll.storage.volume.arrival import arrive
from atoll.storage.volume.locate import OPEN_DIRECTORY, Place, locate
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.removal import remove_tree
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import new_file, new_name
from atoll.wire.channel import Channel

MAX_DEPTH = 250
"""Levels of directories that a copy takes: each one is open, twice, while what is below it is copied."""
REPORT_SECONDS = 0.1
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Copying:
    """Answer one client's `copy` requests.

    Args:
        volume: the volume's directories.
        channel: the client.
        gate: is passed by what changes the volume.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, gate: RestoreLock) -> None:
        self._volume = volume
        self._channel = channel
        self._gate = gate
        self._files = self._bytes = 0
        self._reported = 0.0

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return what is answered, by the type of its message."""
        return {"copy": self._copy}

    def _copy(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Copy a file over what is at the target, or with `recursive` a directory to where nothing is."""
        self._files = self._bytes = 0
        with self._source(header) as place, self._target(header) as target:
            info = place.existing()
            if not target.name:
                raise PermissionError(errno.EPERM, "`/data` itself cannot be replaced")
            if stat.S_ISDIR(info.st_mode):
                if not header.get("recursive"):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                self._copy_directory(place, target, header)
            elif target.is_directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            elif stat.S_ISLNK(info.st_mode):
                self._copy_symlink(place, header)
            else:
                self._copy_file(place, target, header)
        self._channel.send({"type": "done", "files": self._files, "bytes": self._bytes})

    def _source(self, header: dict[str, Any]) -> Place:
        """Find what is copied; snapshots can be copied from."""
        volume, follow = self._volume, bool(header.get("follow", True))
        return locate(volume.data, check_path(header["path"]), follow=follow, snapshots=volume.snapshots)

    def _target(self, header: dict[str, Any]) -> Place:
        return locate(self._volume.data, check_path(header["target"]), follow=True)

    def _arrive(self, name: str, header: dict[str, Any]) -> None:
        reached("copied")
        with self._gate.shared():
            arrive(self._volume.staging, name, lambda: self._target(header))

    def _copy_file(self, place: Place, target: Place, header: dict[str, Any]) -> None:
        if target.path == place.path:
            raise OSError(errno.EINVAL, "source and target are the same file")
        with new_file(self._volume.staging) as (name, descriptor):
            self._fill(place.parent, place.name, descriptor)
            os.fsync(descriptor)
            self._arrive(name, header)

    def _copy_symlink(self, place: Place, header: dict[str, Any]) -> None:
        name = new_name("new")
        os.symlink(os.readlink(place.name, dir_fd=place.parent), name, dir_fd=self._volume.staging)
        try:
            self._arrive(name, header)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._volume.staging)
            raise

    def _copy_directory(self, place: Place, target: Place, header: dict[str, Any]) -> None:
        if target.found is not None and not target.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target.path)
        if not place.name or f"{target.path}/".startswith(f"{place.path}/"):
            raise OSError(errno.EINVAL, "a directory cannot be copied into itself")
        staging, name = self._volume.staging, new_name("tree")
        os.mkdir(name, 0o700, dir_fd=staging)
        top = os.open(name, OPEN_DIRECTORY, dir_fd=staging)
        try:
            fcntl.flock(top, fcntl.LOCK_EX)  # while it is held, nobody takes the tree for a leftover
            if not os.fstat(top).st_nlink:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # somebody has, just now
            with opened(place) as source:
                self._copy_below(source, top, 0)
            linux.sync_filesystem(staging)
            self._arrive(name, header)
        finally:
            with contextlib.suppress(OSError):
                remove_tree(staging, name)
            os.close(top)

    def _copy_below(self, source: int, target: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, "directories are nested too deeply to be copied")
        for name in os.listdir(source):
            try:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(name, 0o700, dir_fd=target)
                below = os.open(name, OPEN_DIRECTORY, dir_fd=target)
                try:
                    inner = os.open(name, OPEN_DIRECTORY, dir_fd=source)
                    try:
                        self._copy_below(inner, below, depth + 1)
                    finally:
                        os.close(inner)
                finally:
                    os.close(below)
            elif stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
                os.utime(name, ns=(info.st_mtime_ns,) * 2, dir_fd=target, follow_symlinks=False)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o600, dir_fd=target)
                try:
                    self._fill(source, name, descriptor)
                finally:
                    os.close(descriptor)
        found = os.fstat(source)
        os.fchmod(target, found.st_mode & MODE_BITS)
        os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))

    def _fill(self, parent: int, name: str, target: int) -> None:
        """Give the empty file `target` content, mode and modification time of another."""
        source = os.open(name, _READ, dir_fd=parent)
        try:
            info = os.fstat(source)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, f"`{name}` is not an ordinary file")
            if not clone(source, target):
                os.ftruncate(target, copy_content(source, target, info.st_size, self._report))
            os.fchmod(target, info.st_mode & MODE_BITS)
            os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))
            self._files += 1
            self._report(0)
        finally:
            os.close(source)

    def _report(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._channel.send({"type": "progress", "files": self._files, "bytes": self._bytes})
