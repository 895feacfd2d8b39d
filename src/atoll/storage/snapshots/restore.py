"""The storage peer's restore of a snapshot: prepare the new tree, exchange it, and keep the replaced one.

A restore is a conversation, since the asking daemon must make sure that no function runs at its end:

    client: restore(name)              peer: [waiting] ready (the new tree is complete, and durable, in staging)
    client: commit | abort             peer: restored, done | busy
    client: again | abort              peer: [waiting] ready

`ready` means that no sync or snapshot is in the way. If one has begun since, `commit` is answered by `busy` soon, and
nothing has changed: no function has to wait for a slow sync. Between `restored` and `done` the replaced files are
counted; functions may run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from atoll import linux
from atoll.errors import StateUnusable, SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import MODE_BITS
from atoll.storage.protocol.connection import ROOT, absolute, volume_path
from atoll.storage.protocol.replies import Conversation
from atoll.storage.snapshots.archive import Archive
from atoll.storage.snapshots.copy_rules import CopyRules
from atoll.storage.snapshots.file_access import closed_by, measure
from atoll.storage.snapshots.stamps_file import StampWriter
from atoll.storage.snapshots.tree_copy import TreeCopy
from atoll.storage.snapshots.values import Snapshot, time_name
from atoll.storage.sync import cleanup
from atoll.storage.volume.locate import OPEN_DIRECTORY, VISIBLE, Place, locate, make_writable
from atoll.storage.volume.locks import RestoreLock, Waiting
from atoll.storage.volume.root import VolumeRoot
from atoll.terminal_text import printable
from atoll.wire.channel import Channel

EXCHANGE_SECONDS = 2.0
"""The longest wait of a restore for its locks while no function may begin."""


class Restore:
    """One restore.

    Args:
        volume: the volume's directories.
        channel: the client.
        archive: the volume's snapshots.
        clone: clones a directory of the volume to a name in staging; False if the file system cannot.
    """

    def __init__(
        self, volume: VolumeRoot, channel: Channel, archive: Archive, clone: Callable[[str, str], bool]
    ) -> None:
        self._volume = volume
        self._channel = channel
        self._archive = archive
        self._clone = clone
        self._wait = Waiting(channel)

    def serve(self, name: str) -> None:
        """Replace a snapshot's directory by its tree; the replaced state becomes a snapshot of its own."""
        archive = self._archive
        with Conversation(self._channel, "restore") as conversation, contextlib.ExitStack() as stack:
            stack.enter_context(archive.busy_with(name, alone=False))
            snapshot = archive.find(name)
            path = volume_path(snapshot.path)
            stage = stack.enter_context(archive.staged("restore"))
            self._prepare(snapshot, stage)
            while True:
                self._send_when_ready(path)
                last = self._channel.receive().type
                conversation.finished()
                if last != "commit":
                    return
                cleanup.copy_all_late_writes(self._volume)  # no function runs: they belong to the replaced state
                with RestoreLock.alone(self._volume, path, self._until(time.monotonic() + EXCHANGE_SECONDS)) as alone:
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

    def _until(self, end: float) -> Callable[[], bool]:
        return lambda: self._wait.connected() and time.monotonic() < end

    def _send_when_ready(self, path: str) -> None:
        """Wait until nothing is in the way of an exchange, or the client sends something."""

        def wait() -> bool:
            return not self._channel.readable() and self._wait()

        with RestoreLock.alone(self._volume, path, wait) as alone:
            pass  # the lock is released again: running functions, for which the daemon waits, may sync
        if alone:
            self._channel.send({"type": "ready"})

    # --- before the exchange ----------------------------------------------------------------------------------------

    def _prepare(self, snapshot: Snapshot, stage: str) -> None:
        """Copy a snapshot's tree, durably, and note the stamps of the copies, which are live from then on."""
        archive = self._archive
        if self._clone(f"snapshots/trees/{snapshot.name}", stage):
            if snapshot.path == ROOT:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{stage}/{VISIBLE}", 0o755, dir_fd=archive.staging)
            make_writable(archive.staging, stage)
            return
        writer = StampWriter(archive.staging, f"{stage}.stamps")
        with contextlib.ExitStack() as stack:
            stack.callback(writer.close)
            source = closed_by(stack, archive.open_tree(snapshot.name))
            target = closed_by(stack, os.open(stage, OPEN_DIRECTORY, dir_fd=archive.staging))
            reached("restore_began", snapshot=snapshot.name)
            TreeCopy(CopyRules(archive.way, keep=writer.add, keep_of_copy=True)).run(source, target)
            if snapshot.path == ROOT:
                os.mkdir(VISIBLE, 0o755, dir_fd=target)
            make_writable(archive.staging, stage)  # the exchange writes its `..`
            linux.sync_filesystem(target)
        reached("restore_staged", snapshot=snapshot.name)

    @contextlib.contextmanager
    def _target(self, path: str) -> Iterator[Place]:
        """Find the directory to replace: `data` itself, which is beside staging in the volume, or one below."""
        if path:
            with locate(self._volume.data, path, follow=True) as place:
                if place.path != path:
                    raise SyncError(
                        f"`{printable(absolute(path))}` is a symlink now, or below one",
                        hint="remove the symlink first",
                    )
                yield place
            return
        parent = os.open("..", OPEN_DIRECTORY, dir_fd=self._archive.staging)
        try:
            yield Place(parent, "data", "", (), os.stat("data", dir_fd=parent, follow_symlinks=False))
        finally:
            os.close(parent)

    # --- the exchange and after -------------------------------------------------------------------------------------

    def _exchange(self, snapshot: Snapshot, path: str, stage: str) -> Snapshot | None:
        archive, now = self._archive, time.time()
        kept = Snapshot(archive.unused_name(f"before-restore-{time_name()}"), snapshot.path, now, archive.way, 0, 0, 0)
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
                # Every step that needs space comes before the exchange: afterwards the disk may be full.
                stack.enter_context(archive.busy_with(kept.name, alone=True))
                kept = archive.write_record(kept)
                self._volume.mark_restored()
                make_writable(place.parent, place.name)
                linux.exchange(archive.staging, stage, place.parent, place.name)
            try:
                return self._after_exchange(place, stage, kept, mode)
            except OSError as error:
                text = (error.strerror or str(error)).lower()
                raise StateUnusable(
                    f"`{snapshot.name}` is restored, but the replaced state may be no snapshot yet: {text}",
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

    def _count(self, kept: Snapshot) -> None:
        """Complete the record of a snapshot that was moved, not copied."""
        archive = self._archive
        with contextlib.suppress(OSError):
            tree = archive.open_tree(kept.name)
            try:
                size, files = measure(tree)
            finally:
                os.close(tree)
            archive.amend(replace(kept, bytes=size, files=files))
