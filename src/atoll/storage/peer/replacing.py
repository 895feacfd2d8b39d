"""Placement of a finished file at its path, under the conditions of its client. Linux only.

The conditions are those of HTTP: the file that is there now has one of the versions that the client knows, or any, or
there is none. Files that come with conditions, `null` included, take turns for each path, so that of two that expect
the same version one is refused. A function that writes in that instant is overtaken, as by any replacement.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from atoll.storage.crash_points import reached
from atoll.storage.files import tree
from atoll.storage.files.tree import Status, check_path, status_of, version_of
from atoll.storage.volume.arrival import arrive
from atoll.storage.volume.locate import Place, locate
from atoll.storage.volume.locks import RestoreLock, Waiting, holding, target_key
from atoll.storage.volume.root import VolumeRoot
from atoll.wire.channel import Channel


class Replacing:
    """Give finished files of staging their paths.

    Args:
        volume: the volume's directories.
        channel: the client, whose going ends a wait.
        lock: excludes restores while the volume changes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, lock: RestoreLock) -> None:
        self._volume = volume
        self._wait = Waiting(channel).connected
        self._lock = lock

    def replace(self, path: Any, name: str, descriptor: int, header: dict[str, Any], *, new: bool = False) -> Status:
        """Move the file `name` of staging to its path, durably; return its status there.

        Args:
            path: of the request, unchecked.
            header: `mode`, `mtime_ns`, `match` and `absent` of the request, unchecked.
            new: nothing may be there.

        Raises:
            OSError: `ESTALE` where a condition does not hold, or the file cannot be moved there.
        """
        path, mode, mtime_ns = check_path(path), header.get("mode"), header.get("mtime_ns")
        new = new or bool(header.get("absent"))
        with self._find(path) as place:
            if mode is None:
                mode = stat.S_IMODE(place.found.st_mode) if place.found is not None else 0o644
            where = place.path
        os.fchmod(descriptor, int(mode) & tree.MODE_BITS)
        if mtime_ns is not None:
            os.utime(descriptor, ns=(int(mtime_ns), int(mtime_ns)))
        os.fsync(descriptor)
        reached("written")
        with self._turn(where, taken="match" in header), self._lock.shared():
            self._check(path, header.get("match"))
            arrive(self._volume.staging, name, lambda: self._find(path), exclusive=new)
            return status_of(os.fstat(descriptor))

    @contextlib.contextmanager
    def _turn(self, path: str, *, taken: bool) -> Iterator[None]:
        if not taken:
            yield
            return
        key = f"file-{target_key(path)}"
        with holding(self._volume.locks, key, exclusive=True, wait=self._wait):
            yield

    def _check(self, path: str, match: Any) -> None:
        if match is None:
            return
        with self._find(path) as place:
            version = version_of(status_of(place.found)) if place.found is not None else None
        if version is None or not (match == "*" or (isinstance(match, list) and version in match)):
            raise OSError(errno.ESTALE, "another file is there by now")

    def _find(self, path: str) -> Place:
        place = locate(self._volume.data, path, follow=True)
        if place.is_directory:
            os.close(place.parent)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return place
