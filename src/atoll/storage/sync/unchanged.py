"""Comparison of contents on both sides of a sync, for the client's plan.

    neither has changed since a sync that both remember      the same
    the target's digest is known                             the digests decide; a local file without one is hashed if
                                                             its size is the target's
    the target was changed by something else than a sync     not the same
    neither side remembers a sync                            size and modification time decide, as for rsync

A large file of the same size with another modification time is not hashed for this: to send its changed parts
(`content.delta`) costs no more.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from atoll.errors import SyncError
from atoll.storage.content.delta import DELTA_BYTES
from atoll.storage.content.digest import DIGEST_BYTES, UNKNOWN, Make, maker
from atoll.storage.files.scan import Scan
from atoll.storage.files.tree import FILE, Tree
from atoll.storage.files.tree_wire import unpack_entries, unpack_paths
from atoll.storage.sync.index import Index, compare


class TargetReport:
    """The target's state, as the peer has reported it.

    Args:
        header, buffers: of its message.
        known: the client's index.

    Raises:
        SyncError: the message is malformed.
    """

    def __init__(self, header: dict[str, Any], buffers: list[Any], known: Index) -> None:
        self.algorithm = str(header.get("algorithm", ""))
        self.compressions: list[Any] = list(header.get("compressions") or ())
        """The compressions that the peer accepts."""
        self.known = header.get("known") is True
        """Return whether the peer remembers a sync."""
        self.next = str(header.get("next", ""))
        """The generation of this sync."""
        self.since = bool(known) and header.get("since") == known.generation
        """Return whether it lists only the changes since the client's last sync."""
        self._index = known
        self.changed: Tree = {}
        self.gone: list[str] = []
        digests = b""
        try:
            if self.since and buffers:
                self.gone = unpack_paths(buffers[0])
            elif buffers:
                digests = bytes(buffers[0])
            for buffer in buffers[1:]:
                self.changed.update(unpack_entries(buffer))
            if digests and len(digests) != DIGEST_BYTES * len(self.changed):
                raise ValueError("the digests of the target are not as many as its entries")
        except ValueError as error:
            raise SyncError(f"the storage peer's report is malformed: {error}") from error
        self._digests = digests

    @property
    def untouched(self) -> bool:
        """Return whether nothing has changed at the target since the client's last sync."""
        return self.since and not self.changed and not self.gone

    @cached_property
    def tree(self) -> Tree:
        """The target's tree."""
        if not self.since:
            return self.changed
        tree = {**self._index.scan.tree, **self._index.extras}
        for path in self.gone:
            tree.pop(path, None)
        tree.update(self.changed)
        return tree

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """The digests that the peer has sent."""
        view = self._digests
        return {
            path: view[start : start + DIGEST_BYTES]
            for path, start in zip(self.changed, range(0, len(view), DIGEST_BYTES), strict=False)
            if view[start : start + DIGEST_BYTES] != UNKNOWN
        }

    def as_known(self, path: str) -> bool:
        """Return whether a path of the target is as the client's last sync left it."""
        return self.since and path not in self.changed


class UnchangedFiles:
    """Finds the files whose content is the same on both sides.

    Args:
        scan: the local tree.
        index: the client's index.
        hash_file: returns the digest of a local file, None where it changes meanwhile.

    Attributes:
        suspect: equal size and modification time, content may differ.
        alike: another modification time, equal content.
        hashed: the digests of the local files that had to be hashed.
    """

    def __init__(self, scan: Scan, index: Index, hash_file: Callable[[str, Make], bytes | None]) -> None:
        self._scan = scan
        self._index = index
        self._hash = hash_file
        self.suspect: set[str] = set()
        self.alike: set[str] = set()
        self.hashed: dict[str, bytes] = {}
        self._changed: set[str] = set()
        self._numbers: array[int] | None = None
        self._compared = False

    def compare_with_index(self) -> None:
        """Find the local changes since the last sync; this needs no report of the target."""
        if self._index and not self._compared:
            changes, self._numbers = compare(self._scan, self._index)
            self._changed = {self._scan.paths[number] for number in changes.changed}
        self._compared = True

    def compare_with_target(self, target: TargetReport) -> None:
        """Compare contents with those of the target."""
        self.compare_with_index()
        if self._index.algorithm != target.algorithm:
            self._numbers = None
        make = maker(target.algorithm)
        paths: Iterable[str] = self._scan.paths
        if target.since:
            paths = [path for path in self._changed | target.changed.keys() if path in self._scan.positions]
        for path in paths:
            self._compare_file(path, target, make)

    def digest(self, path: str) -> bytes:
        """Return the digest of a local file; `UNKNOWN` where it is not known."""
        if path in self.hashed:
            return self.hashed[path]
        if self._numbers is None or path in self._changed:
            return UNKNOWN
        number = self._numbers[self._scan.positions[path]]
        return self._index.digest(number) if number >= 0 else UNKNOWN

    def digests(self) -> list[bytes]:
        """Return the digests of all paths, in the order of the scan."""
        if self._numbers is None:
            found = [UNKNOWN] * len(self._scan.paths)
        else:
            digest = self._index.digest
            found = [digest(number) if number >= 0 else UNKNOWN for number in self._numbers]
        for path in self._changed:
            found[self._scan.positions[path]] = UNKNOWN
        for path, hashed in self.hashed.items():
            found[self._scan.positions[path]] = hashed
        return found

    def keeps(self, path: str) -> bool:
        """Return whether a local file has the content of the last sync."""
        return path in self._scan.positions and path not in self._changed and self.digest(path) != UNKNOWN

    def _compare_file(self, path: str, target: TargetReport, make: Make) -> None:
        entry, old = self._scan.tree[path], target.tree.get(path)
        if old is None or entry.kind != FILE or old.kind != FILE or entry.size != old.size:
            return
        same_time = entry.mtime_ns == old.mtime_ns
        theirs = self._digest_at(target, path)
        if theirs is None:
            # Where neither side remembers a sync, size and time decide. Where only this side does, functions may have
            # replaced the target.
            if same_time and (target.known or self._index):
                self.suspect.add(path)
            return
        if not same_time and entry.size >= DELTA_BYTES:
            return
        ours: bytes | None = self.digest(path)
        if ours == UNKNOWN and (ours := self._hash(path, make)) is not None:
            self.hashed[path] = ours
        if ours != theirs:
            if same_time:
                self.suspect.add(path)
        elif not same_time:
            self.alike.add(path)

    def _digest_at(self, target: TargetReport, path: str) -> bytes | None:
        if not target.since:
            return target.digests.get(path)
        if path in target.changed or self._index.algorithm != target.algorithm:
            return None
        number = self._positions.get(path, -1)
        digest = self._index.digest(number) if number >= 0 else UNKNOWN
        return None if digest == UNKNOWN else digest

    @cached_property
    def _positions(self) -> dict[str, int]:
        return self._index.scan.positions
