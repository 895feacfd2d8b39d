"""The storage peer's requests about names: look at paths, walk directories, make, rename and remove. Linux only."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.files.scan import Scan, scan_target
from atoll.storage.files.tree import MODE_BITS, Status, check_path, pack, status_of
from atoll.storage.files.tree_wire import pack_entries
from atoll.storage.protocol.replies import Unreadable
from atoll.storage.volume.arrival import arrive, make
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, VISIBLE, Place, locate
from atoll.storage.volume.locks import RestoreLock
from atoll.storage.volume.removal import remove_tree
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.walk import Walk
from atoll.wire.channel import Channel


class Names:
    """Answer one client's requests about names.

    Args:
        volume: the volume's directories.
        channel: the client.
        lock: excludes restores while the volume changes.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, lock: RestoreLock) -> None:
        self._volume = volume
        self._channel = channel
        self._lock = lock

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return the handlers of requests, by the type of their message."""
        return {
            "stat": self._stat,
            "list": self._list,
            "scan": self._scan,
            "find": self._find,
            "usage": self._usage,
            "mkdir": self._mkdir,
            "attributes": self._attributes,
            "rename": self._rename,
            "remove": self._remove,
        }

    def _locate(self, path: Any, *, follow: bool = True) -> Place:
        return locate(self._volume.data, check_path(path), follow=follow)

    def _look(self, path: Any, *, follow: bool = True) -> Place:
        """Find a path for reading; snapshots can be read too."""
        return locate(self._volume.data, check_path(path), follow=follow, snapshots=self._volume.snapshots)

    # --- looking ------------------------------------------------------------------------------------------------

    def _stat(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send the status of a path."""
        with self._look(header["path"], follow=bool(header.get("follow", True))) as place:
            status = self._status(place.existing(), place.parent, place.name, place.path)
        self._channel.send({"type": "done", "status": ["", *status]})

    def _status(self, info: os.stat_result, directory: int, name: str, path: str) -> Status:
        if not stat.S_ISLNK(info.st_mode):
            return status_of(info)
        leads = None
        with contextlib.suppress(OSError), self._look(path) as end:
            leads = end.found
        return status_of(info, os.readlink(name, dir_fd=directory), leads)

    def _list(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send the status of each name in a directory, or of a page: at most `most`, those that sort behind `after`."""
        after, most = str(header.get("after", "")), header.get("most")
        with self._look(header["path"]) as place, opened(place) as descriptor:
            above = place.path + "/" if place.path else ""
            with os.scandir(descriptor) as found:
                names = (item.name for item in found if item.name > after and (above or item.name != VISIBLE))
                wanted = sorted(names) if most is None else heapq.nsmallest(int(most), names)
            items = []
            for name in wanted:
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    items.append((name, *self._status(info, descriptor, name, above + name)))
        self._send_entries(iter(items))

    def _send_entries(self, items: Iterator[Any]) -> None:
        for buffer in pack(items):
            self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    def _scan(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send a whole directory as the tree that a sync would see."""
        with self._look(header["path"]) as place, opened(place) as descriptor:
            tree = _scanned(descriptor).tree
            if not place.path:
                tree.pop(VISIBLE, None)
            for buffer in pack_entries(tree):
                self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    def _find(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send the status of each path below a directory, down to a depth; symlinks are not followed."""
        most = header.get("depth")
        with self._look(header["path"]) as place, opened(place) as descriptor:
            self._send_entries(self._found(descriptor, place.path, 1 << 62 if most is None else int(most)))

    def _found(self, top: int, top_path: str, most: int) -> Iterator[Any]:
        real = top_path + "/" if top_path else ""
        with Walk(top) as walk:
            for step in walk.steps():
                prefix = step.path + "/" if step.path else ""
                for name in step.names:
                    if name == VISIBLE and not real + prefix:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        info = os.stat(name, dir_fd=step.descriptor, follow_symlinks=False)
                        yield (prefix + name, *self._status(info, step.descriptor, name, real + prefix + name))
                        if stat.S_ISDIR(info.st_mode) and step.depth + 1 < most:
                            walk.below.append(name)

    def _usage(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Add up a path, and each directory below it down to a depth; an inode with several names counts once."""
        most = int(header.get("depth", 0))
        with self._look(header["path"], follow=bool(header.get("follow", True))) as place:
            info = place.existing()
            if stat.S_ISDIR(info.st_mode):
                with opened(place) as descriptor:
                    sums = self._added(descriptor, info, most, whole=not place.path)
            else:
                sums = {"": _Sum(info)}
        disk = os.fstatvfs(self._volume.data)
        self._channel.send({"type": "sums"}, list(pack((path, *found.values()) for path, found in sums.items())))
        self._channel.send(
            {
                "type": "done",
                "disk_bytes": disk.f_blocks * disk.f_frsize,
                "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            }
        )

    def _added(self, top: int, info: os.stat_result, most: int, *, whole: bool) -> dict[str, _Sum]:
        sums = {"": _Sum(info)}
        counted: set[int] = set()
        with Walk(top) as walk:
            for step in walk.steps():
                parts = step.path.split("/") if step.path else []
                above = ["/".join(parts[:depth]) for depth in range(min(len(parts), most) + 1)]
                for name in step.names:
                    if name == VISIBLE and whole and not step.path:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        info = os.stat(name, dir_fd=step.descriptor, follow_symlinks=False)
                        if stat.S_ISDIR(info.st_mode):
                            walk.below.append(name)
                            if step.depth < most:
                                sums[f"{step.path}/{name}" if step.path else name] = _Sum(info)
                        elif info.st_nlink > 1:
                            if info.st_ino in counted:
                                continue
                            counted.add(info.st_ino)
                        for path in above:
                            sums[path].add(info)
        return sums

    # --- changing -----------------------------------------------------------------------------------------------

    def _mkdir(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Make a directory; with `parents` those above it too, with `exist_ok` unless it is there."""

        def create(place: Place, again: bool) -> None:
            if place.found is not None:
                if not ((again or header.get("exist_ok")) and place.is_directory):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                return
            if place.missing and not header.get("parents"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            place.make_parents()
            try:
                os.mkdir(place.name, int(header.get("mode", 0o755)) & MODE_BITS, dir_fd=place.parent)
            except FileExistsError:
                if not (again or header.get("exist_ok")):
                    raise
            linux.sync_directory(place.parent)

        make(lambda: self._locate(header["path"]), create)
        self._channel.send({"type": "done"})

    def _attributes(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Set mode and times of a path; with `create`, make an empty file if it is missing."""
        mode, mtime, atime = (header.get(name) for name in ("mode", "mtime_ns", "atime_ns"))

        def change(place: Place, _: bool) -> None:
            if place.found is None and header.get("create"):
                place.make_parents()
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                os.close(os.open(place.name, flags, 0o644, dir_fd=place.parent))
                linux.sync_directory(place.parent)
            else:
                place.existing()
            descriptor = os.open(place.name or ".", OPEN_PLACE & ~os.O_DIRECTORY, dir_fd=place.parent)
            try:
                # Through the descriptor's own name, since a symlink that appears at the place must not be followed.
                same = f"/proc/self/fd/{descriptor}"
                if mode is not None:
                    os.chmod(same, int(mode) & MODE_BITS)
                if mtime is not None or header.get("create"):
                    now = None if mtime is None else (int(mtime if atime is None else atime), int(mtime))
                    os.utime(same, ns=now) if now is not None else os.utime(same)
            finally:
                os.close(descriptor)

        make(lambda: self._locate(header["path"]), change)
        self._channel.send({"type": "done"})

    def _rename(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Rename a path in one step, replacing a file or an empty directory."""
        with (
            self._locate(header["path"], follow=False) as place,
            self._locate(header["target"], follow=False) as target,
        ):
            place.existing()
            if not place.name or not target.name:
                raise PermissionError(errno.EPERM, "`/data` itself cannot be renamed or replaced")
            exclusive = bool(header.get("exclusive"))
            arrive(place.parent, place.name, lambda: self._locate(header["target"], follow=False), exclusive=exclusive)
            linux.sync_directory(place.parent)
        self._channel.send({"type": "done"})

    def _remove(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Remove a path; with `recursive`, a directory and its contents in one step."""
        trash = None
        with self._lock.shared(), self._locate(header["path"], follow=False) as place:
            info = place.existing()
            if not place.name:
                raise PermissionError(errno.EPERM, "`/data` itself cannot be removed")
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(place.name, dir_fd=place.parent)
            elif header.get("recursive"):
                trash = self._volume.take(place.parent, place.name)
            else:
                os.rmdir(place.name, dir_fd=place.parent)
        if trash is not None:
            remove_tree(self._volume.staging, trash)
        self._channel.send({"type": "done"})


def _scanned(descriptor: int) -> Scan:
    """Scan an open directory; raise `Unreadable` for a path below it."""
    try:
        return scan_target(descriptor)
    except SyncError as error:
        cause, path = error.__cause__, error.details.get("path")
        if not isinstance(cause, OSError) or not path:
            raise
        raise Unreadable(cause.errno, cause.strerror, path) from error


class _Sum:
    """Sum of a directory and all below it: bytes on disk, bytes of content, files, directories below it."""

    def __init__(self, info: os.stat_result) -> None:
        self.allocated = self.apparent = self.files = self.directories = 0
        self.add(info)
        self.directories = 0

    def add(self, info: os.stat_result) -> None:
        self.allocated += info.st_blocks * 512
        if stat.S_ISDIR(info.st_mode):
            self.directories += 1
        else:
            self.files += 1
            self.apparent += info.st_size

    def values(self) -> tuple[int, int, int, int]:
        return self.allocated, self.apparent, self.files, self.directories


@contextlib.contextmanager
def opened(place: Place) -> Iterator[int]:
    """Open the directory that a place is."""
    place.existing()
    descriptor = os.open(place.name or ".", OPEN_DIRECTORY, dir_fd=place.parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
