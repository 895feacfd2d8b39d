"""Copies within a volume: no content travels. Linux only.

A copy is made in staging, and gets its path in one step when it is whole and durable; on a file system that shares
blocks between files (XFS, btrfs), a copy costs no space. Functions may write into the source meanwhile: each file then
has its state of one of the moments of its own copy, and symlinks that appear lead nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from atoll import linux
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import check_path
from atoll.storage.peer.names import opened
from atoll.storage.snapshots.copy_rules import CopyRules, fill
from atoll.storage.snapshots.file_access import READ, attributes_of
from atoll.storage.snapshots.tree_copy import TreeCopy
from atoll.storage.snapshots.values import REFLINK
from atoll.storage.volume.arrival import arrive
from atoll.storage.volume.locate import OPEN_DIRECTORY, Place, locate
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.removal import remove_tree
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import has_name, hold, new_file, new_name
from atoll.wire.channel import Channel

REPORT_SECONDS = 0.1


class Copies:
    """Answer one client's `copy` requests.

    Args:
        volume: the volume's directories.
        channel: the client.
        lock: excludes restores while the volume changes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, lock: RestoreLock) -> None:
        self._volume = volume
        self._channel = channel
        self._lock = lock
        self._rules = CopyRules(REFLINK, plain=True, progress=self._report)
        self._files = self._bytes = 0
        self._reported = 0.0

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return the handlers of requests, by the type of their message."""
        return {"copy": self._copy}

    def _copy(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Copy a file, which may replace one, or with `recursive` a directory to a free path."""
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
        """Find the source; snapshots can be copied from."""
        volume, follow = self._volume, bool(header.get("follow", True))
        return locate(volume.data, check_path(header["path"]), follow=follow, snapshots=volume.snapshots)

    def _target(self, header: dict[str, Any]) -> Place:
        return locate(self._volume.data, check_path(header["target"]), follow=True)

    def _arrive(self, name: str, header: dict[str, Any]) -> None:
        reached("copied")
        with self._lock.shared():
            arrive(self._volume.staging, name, lambda: self._target(header))

    def _copy_file(self, place: Place, target: Place, header: dict[str, Any]) -> None:
        if target.path == place.path:
            raise OSError(errno.EINVAL, "source and target are the same file")
        with new_file(self._volume.staging) as (name, descriptor):
            source = os.open(place.name, READ, dir_fd=place.parent)
            try:
                info = os.fstat(source)
                if not stat.S_ISREG(info.st_mode):
                    raise OSError(errno.EINVAL, f"`{place.name}` is not an ordinary file")
                fill(source, descriptor, info, self._rules, attributes_of(source))
            finally:
                os.close(source)
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
            hold(top)
            if not has_name(staging, name, top):
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # a peer has, just now
            with opened(place) as source:
                TreeCopy(self._rules).run(source, top)
            linux.sync_filesystem(staging)
            self._arrive(name, header)
        finally:
            with contextlib.suppress(OSError):
                remove_tree(staging, name)
            os.close(top)

    def _report(self, count: int) -> None:
        """Count bytes, or with 0 a file, and tell the client now and then."""
        self._bytes += count
        self._files += not count
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._channel.send({"type": "progress", "files": self._files, "bytes": self._bytes})
