"""The snapshots of a volume: `Volume`'s methods for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from atoll.sdk.volume_connection import VolumeConnection

if TYPE_CHECKING:
    from atoll.storage.snapshots.values import Difference, Snapshot

Path = str | os.PathLike[str]


class VolumeSnapshots(VolumeConnection):
    """What a volume was, and going back to it."""

    def snapshot(self, name: str | None = None, path: Path = "/data") -> Snapshot:
        """Keep what a directory holds now; functions see it, read-only, at `/data/.snapshots/NAME`.

        Nothing that is written later changes it. It shares blocks with the live files where the file system can (XFS,
        btrfs, JuiceFS), else the files that have not changed with an earlier snapshot; `way` and `copied_bytes` of
        the result say which, and what it took. Sync by sync it is consistent: each is in it whole or not at all. A
        file that a program writes meanwhile is in it as it was at some moment, which may be another one for each file;
        for a moment in time of several, let nothing write.

        Args:
            name: letters, digits, `.`, `_` and `-`, without a dot in front, at most 200; the time in UTC by default.
            path: the directory.

        Raises:
            ValueError: no snapshot can have that name.
            SnapshotError: there is one of that name.
            NotADirectoryError, FileNotFoundError: `path` is no directory.
        """
        with self.clients.lend() as lent:
            return lent.client.snapshot(name, os.fspath(path))

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, the oldest first."""
        with self.clients.lend() as lent:
            return lent.client.snapshots()

    def diff(self, old: str, new: str | None = None) -> list[Difference]:
        """Return how a snapshot differs from a later one, or from what is there now, a directory at a time.

        Files are compared by content, unless it is known that nothing has written them since. For snapshots of
        different directories, the deeper one is what is compared.

        Raises:
            SnapshotError: there is no such snapshot, or the directory is not there now.
            SyncError: they are of directories neither of which is in the other.
        """
        with self.clients.lend() as lent:
            return list(lent.client.diff(old, new))

    def restore(self, name: str, *, wait: bool = False) -> str | None:
        """Put what a snapshot holds where its directory is, in one step.

        Functions see all of the old state or all of the new: idle sandboxes end first, calls that run are waited for
        or the restore is refused, and calls that come meanwhile begin after it. Syncs take their turn.

        Args:
            wait: wait for running calls; new ones wait too, but for those that running ones make.

        Returns:
            the name of a snapshot that holds what was replaced; None where nothing was there.

        Raises:
            VolumeBusy: calls run, which its `calls` lists; or this is one: a function cannot restore its own volume.
            SnapshotError: there is no such snapshot.
        """
        from atoll.storage.snapshots.values import check_name

        answer = self.host.request("volume.restore", {"name": check_name(name), "wait": wait})
        return answer.get("kept") or None

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; its space is free some time after, and what others share with it stays.

        Raises:
            SnapshotError: there is none of that name, or it is in use.
        """
        with self.clients.lend() as lent:
            lent.client.remove_snapshot(name)
