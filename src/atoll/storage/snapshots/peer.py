"""The storage peer's requests about snapshots: make, list, compare, restore, remove.

A snapshot waits for its turn as a sync to the same directory would, so that a sync is in it whole or not at all.
Programs that write meanwhile are not held up: each file has its state of some moment, the whole tree has not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from atoll import linux
from atoll.errors import SnapshotError, SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import check_path, pack
from atoll.storage.protocol.connection import absolute, volume_path
from atoll.storage.snapshots.archive import Archive
from atoll.storage.snapshots.copy_rules import CopyRules
from atoll.storage.snapshots.difference import Side, differences
from atoll.storage.snapshots.file_access import closed_by, measure, open_directory
from atoll.storage.snapshots.restore import Restore
from atoll.storage.snapshots.stamps_file import StampWriter
from atoll.storage.snapshots.tree_copy import TreeCopy
from atoll.storage.snapshots.values import COPY, Snapshot, check_name, time_name
from atoll.storage.sync import switch_record
from atoll.storage.volume import locate as filesystem
from atoll.storage.volume.locate import OPEN_DIRECTORY, VISIBLE, locate
from atoll.storage.volume.locks import Waiting, holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.terminal_text import printable
from atoll.wire.channel import Channel, ChannelClosed

_MARGIN_NS = 1_000_000_000
"""The possible lag and step of the file system's clock."""


class Snapshots:
    """Serve the requests of one client.

    Args:
        volume: the volume's directories.
        channel: the client.
        cloner: clones trees, for a volume on JuiceFS.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, cloner: Channel | None = None) -> None:
        self._cloner = cloner
        self._volume = volume
        self._channel = channel
        self._opened: Archive | None = None

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return the handlers of requests, by the type of their message."""
        return {
            "snapshot": self._snapshot,
            "snapshots": self._list,
            "diff": self._diff,
            "restore": self._restore,
            "remove_snapshot": self._remove,
        }

    def end(self) -> None:
        """Close the archive."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _archive(self) -> Archive:
        if self._opened is None:
            self._opened = Archive(self._volume)
        return self._opened

    def recover(self) -> None:
        """Finish the work of dead peers; leftovers that cannot be finished stay."""
        with contextlib.suppress(OSError):
            switch_record.clean(self._volume)
        self._archive.recover()

    # --- making -----------------------------------------------------------------------------------------------------

    def _snapshot(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Make a snapshot of a directory of the volume."""
        archive, asked = self._archive, header.get("name")
        self.recover()
        name = check_name(asked) if asked is not None else archive.unused_name(time_name())
        with archive.busy_with(name, alone=True):
            archive.check_unused(name)
            path = self._real(check_path(header["path"]))
            wait = Waiting(self._channel)
            with holding_target(self._volume.locks, path, wait=wait), archive.staged("snapshot") as stage:
                made = archive.complete(stage, self._copy(path, name, stage))
        self._channel.send({"type": "done", "snapshot": asdict(made)})

    def _real(self, path: str) -> str:
        with locate(self._volume.data, path, follow=True) as place:
            place.existing()
            if not place.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return place.path

    def _copy(self, path: str, name: str, stage: str) -> Snapshot:
        archive, created = self._archive, time.time_ns()
        if not path and self._clone("data", stage):
            size, files = self._cloned(stage)
            reached("snapshot_staged", snapshot=name)
            return Snapshot(name, absolute(path), created / 1e9, archive.way, 0, size, files)
        writer = StampWriter(archive.staging, f"{stage}.stamps")
        with contextlib.ExitStack() as stack:
            stack.callback(writer.close)
            source = closed_by(stack, self._open(path))
            target = closed_by(stack, os.open(stage, OPEN_DIRECTORY, dir_fd=archive.staging))
            reached("snapshot_began", snapshot=name)
            if archive.way == COPY:
                linux.sync_filesystem(target)  # later writes to mapped memory move the change time
            previous = stack.enter_context(archive.previous(path)) if archive.way == COPY else None
            rules = CopyRules(
                archive.way,
                previous=previous,
                leave_out="" if path else VISIBLE,
                trust_ns=created - _MARGIN_NS,
                keep=writer.add,
            )
            copied = TreeCopy(rules).run(source, target)
            writer.close(durable=True)
            linux.sync_filesystem(target)
        reached("snapshot_staged", snapshot=name)
        return Snapshot(name, absolute(path), created / 1e9, archive.way, 0, **asdict(copied))

    def _clone(self, source: str, stage: str) -> bool:
        """Let JuiceFS clone a directory of the volume over an empty one in staging; return False if it cannot."""
        if self._cloner is None:
            return False
        staging = self._archive.staging
        os.rmdir(stage, dir_fd=staging)  # the clone makes it
        with contextlib.suppress(ChannelClosed, OSError):
            self._cloner.send({"type": "clone", "source": source, "stage": stage})
            if self._cloner.receive().type == "done" and filesystem.exists(staging, stage):
                return True
        self._volume.discard(staging, stage)
        os.mkdir(stage, 0o700, dir_fd=staging)
        return False

    def _cloned(self, stage: str) -> tuple[int, int]:
        """Remove the mount point of the snapshots from a clone of all data; return bytes and number of its files."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{stage}/{VISIBLE}", dir_fd=self._archive.staging)
        tree = os.open(stage, OPEN_DIRECTORY, dir_fd=self._archive.staging)
        try:
            return measure(tree)
        finally:
            os.close(tree)

    def _open(self, path: str) -> int:
        """Open a directory of the live data."""
        with locate(self._volume.data, path, follow=True) as place:
            place.existing()
            if place.path != path:
                raise SyncError(f"`{printable(absolute(path))}` has just been moved", hint="try again", retry=True)
            if not place.name:
                return os.open(".", OPEN_DIRECTORY, dir_fd=place.parent)
            descriptor, mode = open_directory(place.parent, place.name)
            if mode is not None:
                os.fchmod(descriptor, mode)
            return descriptor

    # --- looking ----------------------------------------------------------------------------------------------------

    def _list(self, _: dict[str, Any], __: list[bytearray]) -> None:
        """Send the records of all snapshots, and the way of the next one."""
        for buffer in pack(asdict(one) for one in self._archive.all()):
            self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done", "way": self._archive.way})

    def _diff(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send how a snapshot differs from another, or from the live directory."""
        archive = self._archive
        names = [check_name(header["old"]), *([check_name(header["new"])] if header.get("new") is not None else [])]
        with contextlib.ExitStack() as stack:
            for name in dict.fromkeys(names):
                stack.enter_context(archive.busy_with(name, alone=False))
            known = [archive.find(name) for name in names]
            paths = [volume_path(one.path) for one in known]
            path = max(paths, key=len)
            if any(one and path != one and not path.startswith(f"{one}/") for one in paths):
                raise ValueError(f"`{known[0].path}` and `{known[-1].path}` are apart")
            sides = [self._side(stack, one, path) for one in known]
            if len(sides) == 1:
                sides.append(self._live(stack, path))
            found = differences(sides[0], sides[1], absolute(path))
            for buffer in pack(list(asdict(one).values()) for one in found):
                self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    def _side(self, stack: contextlib.ExitStack, snapshot: Snapshot, path: str) -> Side:
        below = path[len(volume_path(snapshot.path)) :].strip("/")
        stamps = self._archive.stamps(snapshot.name, below)
        stack.callback(stamps.close)
        try:
            return Side(closed_by(stack, self._archive.open_tree(snapshot.name, below)), stamps.of)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SnapshotError(
                f"`{absolute(path)}` is no directory in snapshot `{snapshot.name}`", reason="missing"
            ) from error

    def _live(self, stack: contextlib.ExitStack, path: str) -> Side:
        try:
            return Side(closed_by(stack, self._open(path)), None, "" if path else VISIBLE)
        except FileNotFoundError as error:
            raise SnapshotError(
                f"there is no `{absolute(path)}` now to compare with", hint="restore it", reason="missing"
            ) from error

    # --- removing ---------------------------------------------------------------------------------------------------

    def _remove(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Remove a snapshot; its tree is removed later."""
        name = check_name(header["name"])
        self.recover()
        with self._archive.busy_with(name, alone=True):
            self._archive.find(name)
            self._archive.remove(name)
        self._channel.send({"type": "done"})

    # --- restoring --------------------------------------------------------------------------------------------------

    def _restore(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Replace a snapshot's directory by its tree; the replaced state becomes a snapshot of its own."""
        name = check_name(header["name"])
        self.recover()
        Restore(self._volume, self._channel, self._archive, self._clone).serve(name)
