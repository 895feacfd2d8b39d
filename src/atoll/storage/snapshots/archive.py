"""The snapshots of a volume on disk, each complete or absent; for the storage peer.

    snapshots/trees/NAME            the directory's state; functions see `trees` at `/data/.snapshots`, read-only
    snapshots/records/NAME.json     its record
    snapshots/records/NAME.stamps   the stamps of the live files that it was copied from (`stamps`); may be missing
    staging/snapshot-ID             a tree that is being made
    staging/restore-ID              a tree that will replace a directory, and that directory afterwards
    staging/restore-ID.json         tells these two apart
    staging/locks/…                 the lock of each tree in staging, held by its peer

A snapshot is there when its tree has its name, which is the last step of making it and the first of removing it: a
record without a tree is a leftover. A restore is one exchange. Before it, `restore-ID.json` names the inode of the
new tree: after a crash, the tree in staging is dropped if it has that inode, and else becomes the snapshot of the
replaced state.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from atoll import linux
from atoll.errors import SnapshotError
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import MODE_BITS
from atoll.storage.snapshots.copy_rules import Previous, usual_way
from atoll.storage.snapshots.stamps_file import StampReader
from atoll.storage.snapshots.values import COPY, Snapshot, check_name, read_snapshot
from atoll.storage.volume import locate
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, VISIBLE, open_below
from atoll.storage.volume.locks import holding
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import leftovers, new_file, new_name, read_json


class Archive:
    """The snapshots of one volume.

    Args:
        volume: the volume's directories.

    Raises:
        OSError: they cannot be made or opened.
    """

    def __init__(self, volume: VolumeRoot) -> None:
        self._volume = volume
        self.staging = volume.staging
        self.trees = volume.snapshots
        self.records = _made(volume.snapshots, "../records", 0o700)
        self._way = ""

    def close(self) -> None:
        """Close the directory of the records."""
        os.close(self.records)

    @property
    def way(self) -> str:
        """The best way to copy on this volume's file system."""
        if not self._way:
            self._way = usual_way(self.staging)
        return self._way

    # --- looking ----------------------------------------------------------------------------------------------------

    def all(self) -> list[Snapshot]:
        """Return the snapshots that are complete, in the order in which they were completed."""
        found = []
        for name in locate.names(self.trees):
            with contextlib.suppress(SnapshotError):
                found.append(self.find(name))
        return sorted(found, key=lambda one: (one.generation, one.created, one.name))

    def find(self, name: str) -> Snapshot:
        """Return the record of a snapshot.

        Raises:
            SnapshotError: there is none of that name.
        """
        check_name(name)
        if not self.has(name):
            raise SnapshotError(f"there is no snapshot `{name}`", hint="see `atoll data snapshots`", reason="missing")
        try:
            return read_snapshot({**read_json(self.records, f"{name}.json"), "name": name})
        except (OSError, ValueError):  # removed just now, or damaged: only the tree matters
            if not self.has(name):
                raise SnapshotError(f"there is no snapshot `{name}`", reason="missing") from None
            return Snapshot(name, "/data", 0.0, COPY, 0, 0, 0)

    def has(self, name: str) -> bool:
        """Return True if a snapshot has that name."""
        try:
            os.stat(name, dir_fd=self.trees, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open_tree(self, name: str, below: str = "") -> int:
        """Open a snapshot's tree, or a directory in it.

        Raises:
            OSError: it is not there.
        """
        return open_below(self.trees, f"{name}/{below}" if below else name)

    def stamps(self, name: str, below: str = "") -> StampReader:
        """Read the stamps that the live files had, of a directory in a snapshot."""
        return StampReader(self.records, f"{name}.stamps", below)

    @contextlib.contextmanager
    def previous(self, path: str) -> Iterator[Previous | None]:
        """Give the snapshot that probably shares most with the directory at `path`: the last one made of it or
        restored to it."""
        found: tuple[tuple[bool, int], str, str] | None = None
        for snapshot in self.all():
            base = snapshot.path[len("/data") :].strip("/")
            if base and path != base and not path.startswith(f"{base}/"):
                continue
            with contextlib.suppress(OSError):
                at = os.stat(f"{snapshot.name}.stamps", dir_fd=self.records).st_mtime_ns
                rank = (path == base, at)
                if found is None or rank > found[0]:
                    found = (rank, snapshot.name, path[len(base) :].strip("/"))
        if found is None:
            yield None
            return
        _, name, below = found
        tree = -1
        stamps = self.stamps(name, below)
        try:
            with contextlib.suppress(OSError):
                tree = self.open_tree(name, below)
            yield Previous(tree, stamps.of) if tree >= 0 else None
        finally:
            stamps.close()
            if tree >= 0:
                os.close(tree)

    # --- locks ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def busy_with(self, name: str, *, alone: bool) -> Iterator[None]:
        """Lock a snapshot's name against all other use, or against making and removing.

        Raises:
            SnapshotError: another is busy with it.
        """
        with holding(self._volume.locks, _name_lock(name), exclusive=alone, wait=None) as held:
            if not held:
                raise SnapshotError(
                    f"another client is just making, removing, restoring or reading `{name}`",
                    hint="try again when it has finished",
                    reason="busy",
                )
            yield

    @contextlib.contextmanager
    def staged(self, kind: str) -> Iterator[str]:
        """Make a directory in staging that is removed at the end, unless it was renamed; give its name."""
        name = new_name(kind)
        with holding(self._volume.locks, name, exclusive=True, wait=lambda: True):
            os.mkdir(name, 0o700, dir_fd=self.staging)
            try:
                yield name
            finally:
                with contextlib.suppress(
                    OSError
                ):  # despite any error: the tree may be the state that a restore replaced
                    self._recover_stage(name)

    # --- changing ---------------------------------------------------------------------------------------------------

    def unused_name(self, wanted: str) -> str:
        """Return a name that no snapshot has: `wanted`, or one that begins with it."""
        name, count = wanted, 1
        while self.has(name):
            count += 1
            name = f"{wanted}-{count}"
        return name

    def check_unused(self, name: str) -> None:
        """Refuse a name that is taken.

        Raises:
            SnapshotError: it is.
        """
        if self.has(name):
            raise _taken(name)

    def complete(self, stage: str, snapshot: Snapshot) -> Snapshot:
        """Give a durable staged tree its name, and its stamps, which are in staging as `STAGE.stamps`.

        Raises:
            SnapshotError: the name was taken meanwhile.
        """
        snapshot = self.write_record(snapshot)
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{stage}.stamps", f"{snapshot.name}.stamps", src_dir_fd=self.staging, dst_dir_fd=self.records)
        reached("snapshot_recorded", snapshot=snapshot.name)
        self._name_tree(stage, snapshot.name)
        return snapshot

    def write_record(self, snapshot: Snapshot) -> Snapshot:
        """Write the record of a snapshot, under the next generation."""
        generation = 1 + max((one.generation for one in self.all()), default=0)
        data = {**asdict(snapshot), "generation": generation}
        self.write_json(self.records, f"{snapshot.name}.json", data)
        return read_snapshot(data)

    def _name_tree(self, stage: str, name: str) -> None:
        tree = os.open(stage, OPEN_PLACE, dir_fd=self.staging)
        try:
            mode = os.fstat(tree).st_mode & MODE_BITS
            locate.make_writable(self.staging, stage)  # a rename of a directory writes its `..`
            linux.rename_new(self.staging, stage, self.trees, name)
            if mode & 0o700 != 0o700:
                os.chmod(f"/proc/self/fd/{tree}", mode)
        except FileExistsError as error:
            raise _taken(name) from error
        finally:
            os.close(tree)
        os.fsync(self.trees)
        os.fsync(self.staging)
        reached("snapshot_named", snapshot=name)

    def amend(self, snapshot: Snapshot) -> None:
        """Replace the record of an existing snapshot."""
        self.write_json(self.records, f"{snapshot.name}.json", asdict(snapshot))

    def remove(self, name: str) -> None:
        """Remove a snapshot durably; its tree is removed later, with those that syncs have replaced."""
        locate.move(self.trees, name, self.staging, new_name("old"))
        os.fsync(self.trees)
        os.fsync(self.staging)
        reached("snapshot_unnamed", snapshot=name)
        self._drop_records(name)
        reached("snapshot_removed", snapshot=name)

    def write_json(self, directory: int, name: str, data: dict[str, Any]) -> None:
        """Write a file of one of the private directories, whole and durably."""
        with new_file(self.staging) as (staged, descriptor):
            linux.write_all(descriptor, json.dumps(data).encode())
            os.fsync(descriptor)
            os.rename(staged, name, src_dir_fd=self.staging, dst_dir_fd=directory)
        os.fsync(directory)

    def _drop_records(self, name: str) -> None:
        for kind in ("stamps", "json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{name}.{kind}", dir_fd=self.records)

    def _drop(self, stage: str) -> None:
        """Remove a staged tree with its files; its journal last."""
        self._volume.discard(self.staging, stage)
        self.forget(stage)

    # --- restoring --------------------------------------------------------------------------------------------------

    def write_journal(self, stage: str, kept: Snapshot) -> None:
        """Note, durably, that a staged tree is about to be exchanged, and the snapshot that the replaced one becomes."""
        found = os.stat(stage, dir_fd=self.staging, follow_symlinks=False)
        self.write_json(self.staging, f"{stage}.json", {"inode": found.st_ino, "kept": asdict(kept)})

    def keep_replaced(self, stage: str, kept: Snapshot) -> Snapshot:
        """Turn the tree that a restore has replaced, which is in staging now, into its snapshot.

        Args:
            kept: its record; `generation` is not 0 if that has been written.
        """
        self._volume.mark_restored()
        with contextlib.suppress(OSError):  # where the snapshots are mounted: live data has it, they do not
            os.rmdir(f"{stage}/{VISIBLE}", dir_fd=self.staging)
        if not kept.generation:
            kept = self.write_record(replace(kept, name=self.unused_name(kept.name)))
        self._name_tree(stage, kept.name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{stage}.json", dir_fd=self.staging)
        reached("restore_kept", snapshot=kept.name)
        return kept

    def forget(self, stage: str) -> None:
        """Remove the files of a staged tree that has reached its path."""
        for kind in ("stamps", "json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{stage}.{kind}", dir_fd=self.staging)

    # --- after a crash ----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Finish or drop the leftovers of dead peers."""
        for _, _, name in leftovers(self.staging, "snapshot", "restore"):
            stage, _, _ = name.partition(".")
            with holding(self._volume.locks, stage, exclusive=True, wait=None) as held:
                if held:
                    self._recover_stage(stage)
        for name in locate.names(self.records):
            base, _, kind = name.rpartition(".")
            if kind in ("json", "stamps") and not self.has(base):
                with holding(self._volume.locks, _name_lock(base), exclusive=True, wait=None) as held:
                    if held and not self.has(base):
                        self._drop_records(base)
        for name in locate.names(self._volume.locks):
            if name.startswith(("snapshot-", "restore-", "name-")):
                with holding(self._volume.locks, name, exclusive=True, wait=None):
                    pass  # releasing an unused lock removes its file

    def _recover_stage(self, stage: str) -> None:
        """Drop a staged tree, or keep it if a restore has replaced it.

        Raises:
            OSError: tells these two apart cannot be told, or it cannot be done: everything stays for the next time.
        """
        try:
            data = read_json(self.staging, f"{stage}.json")
            found = os.stat(stage, dir_fd=self.staging, follow_symlinks=False)
        except FileNotFoundError:  # no exchange was near, or the tree has reached its path
            self._drop(stage)
            return
        except ValueError:  # the journal was written whole, and has been damaged since: keep the tree
            return
        if found.st_ino == data.get("inode"):
            self._drop(stage)
            return
        with contextlib.suppress(ValueError, KeyError):
            self.keep_replaced(stage, replace(read_snapshot(data["kept"]), generation=0))


def _taken(name: str) -> SnapshotError:
    return SnapshotError(
        f"there is a snapshot `{name}` already",
        hint="choose another name, or remove that one with `atoll data rm-snapshot`",
        reason="exists",
    )


def _name_lock(name: str) -> str:
    return "name-" + hashlib.sha256(name.encode()).hexdigest()[:32]


def _made(parent: int, name: str, mode: int) -> int:
    """Open a directory, made where it is missing."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
    return os.open(name, OPEN_DIRECTORY, dir_fd=parent)
