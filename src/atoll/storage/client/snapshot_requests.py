"""What a volume's client asks about snapshots; a restore is asked of the daemon, which knows what runs."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.storage.files.tree import unpack
from atoll.storage.protocol.connection import Requests
from atoll.storage.snapshots.values import Difference, Snapshot, check_name, read_difference, read_snapshot


class SnapshotRequests(Requests):
    """Ask the storage peer at the other end of a channel about snapshots."""

    def snapshot(self, name: str | None = None, path: str = "/data") -> Snapshot:
        """Make a snapshot of a directory of the volume.

        Files that are written meanwhile are each as they were at some moment of it; it is a moment in time of the
        whole directory only where nothing writes. A sync is in it whole or not at all.

        Args:
            name: what to call it; the time in UTC by default.

        Raises:
            ValueError: no snapshot can have that name.
            SnapshotError: there is one of that name.
            NotADirectoryError, FileNotFoundError: `path` is not a directory.
            DiskFull, QuotaExceeded: there is not enough space; no snapshot is left.
        """
        if name is not None:
            check_name(name)
        *_, done = self._messages("snapshot", path, {"name": name})
        return read_snapshot(done.header["snapshot"])

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, in the order in which they were completed."""
        found: list[Snapshot] = []
        for message in self._messages("snapshots", "", {}):
            found += [read_snapshot(item) for buffer in message.buffers for item in unpack(buffer)]
        return found

    def diff(self, old: str, new: str | None = None) -> Iterator[Difference]:
        """Yield how a snapshot differs from a later one, or from what is there now; a directory at a time, sorted.

        Who stops early closes the client.

        Raises:
            SnapshotError: there is no such snapshot, or it is just being removed.
            ValueError: a name is none, or they are of directories neither of which is in the other.
        """
        arguments = {"old": check_name(old), "new": check_name(new) if new is not None else None}
        for message in self._messages("diff", "", arguments):
            for buffer in message.buffers:
                yield from (read_difference(item) for item in unpack(buffer))

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; its space is free some time after.

        Raises:
            SnapshotError: there is none of that name, or it is in use.
        """
        self._ask("remove_snapshot", "", {"name": check_name(name)})
