"""The storage peer's requests about snapshots: make, list, compare, restore, remove.

A snapshot takes its turn with syncs as a sync to the same directory would, so that a sync is in it whole or not at
all. Programs that write meanwhile are not held up: each file is as it was at some moment, the whole is not one.

A restore is a conversation, since who asks (the daemon) must see to it that no function runs at its end:

    client: restore(name)              peer: [waiting] ready (the new tree is complete, and durable, beside the old)
    client: commit | abort             peer: restored, done | busy
    client: again | abort              peer: [waiting] ready

It is `ready` when nothing is under way that it would have to wait for. Where a sync has begun all the same, `commit`
is answered by `busy` soon, and nothing has changed: no function is kept from beginning until a slow sync is done.
Between `restored` and `done` what was replaced is counted; functions may run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from atoll import linux
from atoll.errors import SnapshotError, StateUnusable, SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import MODE_BITS, check_path, pack, printable
from atoll.storage.protocol.replies import Conversation
from atoll.storage.snapshots.archive import Archive
from atoll.storage.snapshots.difference import Side, differences
from atoll.storage.snapshots.stamps_file import StampWriter
from atoll.storage.snapshots.tree_copy import TreeCopy, open_directory
from atoll.storage.snapshots.values import COPY, Snapshot, check_name
from atoll.storage.sync import cleanup, switch_record
from atoll.storage.volume import locate as filesystem
from atoll.storage.volume.locate import OPEN_DIRECTORY, VISIBLE, Place, locate
from atoll.storage.volume.locks import RestoreLock, Waiting, holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.walk import Walk
from atoll.wire.channel import Channel, ChannelClosed

EXCHANGE_SECONDS = 2.0
"""How long a restore waits for its turn while no function may begin."""

_MARGIN_NS = 1_000_000_000
"""How far the clock of the file system may be behind ours, and how coarse its times may be."""


class Snapshots:
    """Serve the requests of one client.

    Args:
        volume: the volume's directories.
        channel: the client.
        cloner: clones trees, where the volume is on JuiceFS.
    """

    def __init__(self, volume: VolumeRoot, channel: Channel, cloner: Channel | None = None) -> None:
        self._cloner = cloner
        self._volume = volume
        self._channel = channel
        self._opened: Archive | None = None
        self._wait = Waiting(channel)

    def requests(self) -> dict[str, Callable[[dict[str, Any], list[bytearray]], None]]:
        """Return what is answered, by the type of its message."""
        return {
            "snapshot": self._snapshot,
            "snapshots": self._list,
            "diff": self._diff,
            "restore": self._restore,
            "remove_snapshot": self._remove,
        }

    def end(self) -> None:
        """Close what is open."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _archive(self) -> Archive:
        if self._opened is None:
            self._opened = Archive(self._volume)
        return self._opened

    def recover(self) -> None:
        """Finish what dead peers have left; what cannot be finished keeps its place."""
        with contextlib.suppress(OSError):
            switch_record.clean(self._volume)
        self._archive.recover()

    def _until(self, end: float) -> Callable[[], bool]:
        return lambda: self._wait.connected() and time.monotonic() < end

    # --- making -----------------------------------------------------------------------------------------------------

    def _snapshot(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Make one of a directory of the volume."""
        archive, asked = self._archive, header.get("name")
        self.recover()
        name = check_name(asked) if asked is not None else archive.unused_name(_now_name())
        with archive.busy_with(name, alone=True):
            archive.check_unused(name)
            path = self._real(check_path(header["path"]))
            self._wait = Waiting(self._channel)
            with holding_target(self._volume.locks, path, wait=self._wait), archive.staged("snapshot") as stage:
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
            return Snapshot(name, _absolute(path), created / 1e9, archive.way, 0, size, files)
        writer = StampWriter(archive.staging, f"{stage}.stamps")
        with contextlib.ExitStack() as stack:
            stack.callback(writer.close)
            source = _opened(stack, self._open(path))
            target = _opened(stack, os.open(stage, OPEN_DIRECTORY, dir_fd=archive.staging))
            reached("snapshot_began", snapshot=name)
            if archive.way == COPY:
                linux.sync_filesystem(target)  # what is written to mapped memory later moves the change time
            previous = stack.enter_context(archive.previous(path)) if archive.way == COPY else None
            copy = TreeCopy(
                archive.way,
                previous=previous,
                leave_out="" if path else VISIBLE,
                trust_ns=created - _MARGIN_NS,
                keep=writer.add,
            )
            copied = copy.run(source, target)
            writer.close(durable=True)
            linux.sync_filesystem(target)
        reached("snapshot_staged", snapshot=name)
        return Snapshot(name, _absolute(path), created / 1e9, archive.way, 0, **asdict(copied))

    def _clone(self, source: str, stage: str) -> bool:
        """Have JuiceFS clone a directory of the volume to the empty one that is staged; False where it cannot."""
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
        """Take out of a clone of all live data what is no part of a snapshot; return bytes and number of its files."""
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"{stage}/{VISIBLE}", dir_fd=self._archive.staging)
        tree = os.open(stage, OPEN_DIRECTORY, dir_fd=self._archive.staging)
        try:
            return _measured(tree)
        finally:
            os.close(tree)

    def _open(self, path: str) -> int:
        """Open a directory of the live data, as it is now."""
        with locate(self._volume.data, path, follow=True) as place:
            place.existing()
            if place.path != path:
                raise SyncError(f"`{printable(_absolute(path))}` has just been moved", hint="try again", retry=True)
            if not place.name:
                return os.open(".", OPEN_DIRECTORY, dir_fd=place.parent)
            descriptor, mode = open_directory(place.parent, place.name)
            if mode is not None:
                os.fchmod(descriptor, mode)
            return descriptor

    # --- looking ----------------------------------------------------------------------------------------------------

    def _list(self, _: dict[str, Any], __: list[bytearray]) -> None:
        """Send what is known of all, and by which way the next would be made."""
        for buffer in pack(asdict(one) for one in self._archive.all()):
            self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done", "way": self._archive.way})

    def _diff(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Send how a snapshot differs from another, or from what is there now."""
        archive = self._archive
        names = [check_name(header["old"]), *([check_name(header["new"])] if header.get("new") is not None else [])]
        with contextlib.ExitStack() as stack:
            for name in dict.fromkeys(names):
                stack.enter_context(archive.busy_with(name, alone=False))
            known = [archive.find(name) for name in names]
            paths = [_relative(one.path) for one in known]
            path = max(paths, key=len)
            if any(one and path != one and not path.startswith(f"{one}/") for one in paths):
                raise ValueError(f"`{known[0].path}` and `{known[-1].path}` are apart")
            sides = [self._side(stack, one, path) for one in known]
            if len(sides) == 1:
                sides.append(self._live(stack, path))
            found = differences(sides[0], sides[1], _absolute(path))
            for buffer in pack(list(asdict(one).values()) for one in found):
                self._channel.send({"type": "entries"}, [buffer])
        self._channel.send({"type": "done"})

    def _side(self, stack: contextlib.ExitStack, snapshot: Snapshot, path: str) -> Side:
        below = path[len(_relative(snapshot.path)) :].strip("/")
        stamps = self._archive.stamps(snapshot.name, below)
        stack.callback(stamps.close)
        try:
            return Side(_opened(stack, self._archive.open_tree(snapshot.name, below)), stamps.of)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SnapshotError(
                f"`{_absolute(path)}` is no directory in snapshot `{snapshot.name}`", reason="missing"
            ) from error

    def _live(self, stack: contextlib.ExitStack, path: str) -> Side:
        try:
            return Side(_opened(stack, self._open(path)), None, "" if path else VISIBLE)
        except FileNotFoundError as error:
            raise SnapshotError(
                f"there is no `{_absolute(path)}` now to compare with", hint="restore it", reason="missing"
            ) from error

    # --- removing ---------------------------------------------------------------------------------------------------

    def _remove(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Take one out of sight; its tree is removed later."""
        name = check_name(header["name"])
        self.recover()
        with self._archive.busy_with(name, alone=True):
            self._archive.find(name)
            self._archive.remove(name)
        self._channel.send({"type": "done"})

    # --- restoring --------------------------------------------------------------------------------------------------

    def _restore(self, header: dict[str, Any], _: list[bytearray]) -> None:
        """Put a snapshot's tree where its directory is; what was there becomes a snapshot of its own."""
        name, archive = check_name(header["name"]), self._archive
        self.recover()
        with Conversation(self._channel, "restore") as conversation, contextlib.ExitStack() as stack:
            stack.enter_context(archive.busy_with(name, alone=False))
            snapshot = archive.find(name)
            path = _relative(snapshot.path)
            stage = stack.enter_context(archive.staged("restore"))
            self._stage_restore(snapshot, stage)
            self._wait = Waiting(self._channel)
            while True:
                self._say_when_ready(path)
                last = self._channel.receive().type
                conversation.finished()
                if last != "commit":
                    return
                cleanup.copy_all_late_writes(
                    self._volume
                )  # no function runs: what they left in replaced trees is of before
                until = self._until(time.monotonic() + EXCHANGE_SECONDS)
                with RestoreLock.alone(self._volume, path, until) as alone:
                    if alone:
                        kept = self._exchange(snapshot, path, stage)
                        break
                self._channel.send({"type": "busy"})
                if self._channel.receive().type != "again":
                    return
            with contextlib.suppress(OSError):
                os.rename(f"{stage}.stamps", f"{name}.stamps", src_dir_fd=archive.staging, dst_dir_fd=archive.records)
            self._channel.send({"type": "restored", "kept": kept.name if kept is not None else None})
            if kept is not None:
                self._count(kept)

    def _say_when_ready(self, path: str) -> None:
        """Wait until nothing is in the way of an exchange, or the client says something."""

        def wait() -> bool:
            return not self._channel.readable() and self._wait()

        with RestoreLock.alone(self._volume, path, wait) as alone:
            pass  # it is let go of again: functions that still run, and are waited for, may sync
        if alone:
            self._channel.send({"type": "ready"})

    def _stage_restore(self, snapshot: Snapshot, stage: str) -> None:
        """Copy a snapshot's tree, durably; note the stamps of the copies, which are live from then on."""
        archive = self._archive
        if self._clone(f"snapshots/trees/{snapshot.name}", stage):
            if snapshot.path == "/data":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{stage}/{VISIBLE}", 0o755, dir_fd=archive.staging)
            filesystem.make_writable(archive.staging, stage)
            return
        writer = StampWriter(archive.staging, f"{stage}.stamps")
        with contextlib.ExitStack() as stack:
            stack.callback(writer.close)
            source = _opened(stack, archive.open_tree(snapshot.name))
            target = _opened(stack, os.open(stage, OPEN_DIRECTORY, dir_fd=archive.staging))
            reached("restore_began", snapshot=snapshot.name)
            TreeCopy(archive.way, keep=writer.add, keep_of_copy=True).run(source, target)
            if snapshot.path == "/data":
                os.mkdir(VISIBLE, 0o755, dir_fd=target)
            filesystem.make_writable(archive.staging, stage)
            linux.sync_filesystem(target)
        reached("restore_staged", snapshot=snapshot.name)

    def _exchange(self, snapshot: Snapshot, path: str, stage: str) -> Snapshot | None:
        archive, now = self._archive, time.time()
        kept = Snapshot(archive.unused_name(f"before-restore-{_now_name()}"), snapshot.path, now, archive.way, 0, 0, 0)
        with self._target(path) as place, contextlib.ExitStack() as stack:
            if place.found is not None and not place.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            mode = os.stat(snapshot.name, dir_fd=archive.trees).st_mode
            archive.write_journal(stage, kept)
            reached("restore_noted", snapshot=snapshot.name)
            if place.found is None:
                place.make_parents()
                linux.rename_new(archive.staging, stage, place.parent, place.name)
            else:
                # What needs space is done before: afterwards the disk may be full.
                stack.enter_context(archive.busy_with(kept.name, alone=True))
                kept = archive.write_record(kept)
                self._volume.mark_restored()
                filesystem.make_writable(place.parent, place.name)
                linux.exchange(archive.staging, stage, place.parent, place.name)
            try:
                return self._after_exchange(place, stage, kept, mode)
            except OSError as error:
                text = (error.strerror or str(error)).lower()
                raise StateUnusable(
                    f"`{snapshot.name}` is restored, but what it has replaced may be no snapshot yet: {text}",
                    hint=f"make room, and see that the disk is sound: the next snapshot makes it one, `{kept.name}`",
                ) from error

    def _after_exchange(self, place: Place, stage: str, kept: Snapshot, mode: int) -> Snapshot | None:
        archive = self._archive
        reached("restore_exchanged")
        linux.sync_directory(place.parent)
        os.fsync(archive.staging)
        with contextlib.suppress(OSError):
            os.chmod(place.name, mode & MODE_BITS, dir_fd=place.parent)
        reached("restore_durable")
        self._volume.refresh()
        if place.found is None:
            archive.forget(stage)
            return None
        return archive.keep_replaced(stage, kept)

    @contextlib.contextmanager
    def _target(self, path: str) -> Iterator[Place]:
        """Find the directory to replace: `data` itself, which stands in the volume beside staging, or one below."""
        if path:
            with locate(self._volume.data, path, follow=True) as place:
                if place.path != path:
                    raise SyncError(
                        f"`{printable(_absolute(path))}` is a symlink now, or below one",
                        hint="remove the symlink first",
                    )
                yield place
            return
        parent = os.open("..", OPEN_DIRECTORY, dir_fd=self._archive.staging)
        try:
            yield Place(parent, "data", "", (), os.stat("data", dir_fd=parent, follow_symlinks=False))
        finally:
            os.close(parent)

    def _count(self, kept: Snapshot) -> None:
        """Find out what a snapshot holds that was moved and not copied."""
        archive = self._archive
        with contextlib.suppress(OSError):
            tree = archive.open_tree(kept.name)
            try:
                size, files = _measured(tree)
            finally:
                os.close(tree)
            archive.amend(replace(kept, bytes=size, files=files))


def _opened(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _absolute(path: str) -> str:
    return f"/data/{path}" if path else "/data"


def _relative(path: str) -> str:
    return path[len("/data") :].strip("/")


def _measured(tree: int) -> tuple[int, int]:
    """Return bytes and number of the files below a directory."""
    size = count = 0
    with Walk(tree) as walk:
        for step in walk.steps():
            for name in step.names:
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(name, dir_fd=step.descriptor, follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        walk.below.append(name)
                    elif stat.S_ISREG(info.st_mode):
                        size, count = size + info.st_size, count + 1
    return size, count


def _now_name() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
