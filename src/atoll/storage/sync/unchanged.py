"""Which files have the same content here and at the target: what a plan has to know beside two trees.

    neither has changed since a sync that both remember      the same
    the target's digest is known                             the digests decide; the local file is hashed where its own
                                                             is not known and its size is the target's
    the target was changed by something else than a sync     not the same
    neither side remembers a sync                            size and modification time decide, as for rsync

A large file of the same size with another modification time is not hashed for this: finding out what has changed in
it (`chunks`) costs no more.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cached_property
from typing import Any

from atoll.errors import SyncError
from atoll.storage.content.delta import DELTA_BYTES
from atoll.storage.content.digest import DIGEST_BYTES, UNKNOWN, Make
from atoll.storage.files.scan import Scan
from atoll.storage.files.tree import FILE, Tree
from atoll.storage.files.tree_wire import unpack_entries, unpack_paths
from atoll.storage.sync.index import Index, compare


class Standing:
    """What the peer has said of the target.

    Args:
        header, buffers: of its message.
        known: the client's index.

    Raises:
        SyncError: the message is malformed.
    """

    def __init__(self, header: dict[str, Any], buffers: list[Any], known: Index) -> None:
        self.algorithm = str(header.get("algorithm", ""))
        self.compressions: list[Any] = list(header.get("compressions") or ())
        """How the peer takes contents compressed."""
        self.known = header.get("known") is True
        """Whether the peer remembers a sync."""
        self.next = str(header.get("next", ""))
        """The generation of this sync."""
        self.since = bool(known) and header.get("since") == known.generation
        """Whether it told what has changed since the client's last sync, and nothing else."""
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
            raise SyncError(f"what the storage peer sent is malformed: {error}") from error
        self._digests = digests

    @property
    def untouched(self) -> bool:
        """Whether nothing has changed at the target since the client's last sync."""
        return self.since and not self.changed and not self.gone

    @cached_property
    def tree(self) -> Tree:
        """What stands at the target."""
        if not self.since:
            return self.changed
        tree = {**self._index.scan.tree, **self._index.extras}
        for path in self.gone:
            tree.pop(path, None)
        tree.update(self.changed)
        return tree

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """Those that the peer has sent."""
        view = self._digests
        return {
            path: view[start : start + DIGEST_BYTES]
            for path, start in zip(self.changed, range(0, len(view), DIGEST_BYTES), strict=False)
            if view[start : start + DIGEST_BYTES] != UNKNOWN
        }

    def as_known(self, path: str) -> bool:
        """Whether what stands at a path is what the client's last sync left there."""
        return self.since and path not in self.changed


class Judgement:
    """Finds out which contents are the same.

    Args:
        scan: what is here.
        known: the client's index.
        standing: what is there.
        make: makes the hashes.
        hash_file: returns the digest of a local file, None where it changes meanwhile.

    Attributes:
        suspect: files of the same size and modification time whose content is not the same, for all that is known.
        alike: files with another modification time whose content is the same.
        hashed: the digests of the local files that had to be hashed.
    """

    def __init__(
        self,
        scan: Scan,
        known: Index,
        standing: Standing,
        make: Make,
        hash_file: Callable[[str, Make], bytes | None],
    ) -> None:
        self._scan = scan
        self._known = known
        self._standing = standing
        self._make = make
        self._hash = hash_file
        self.suspect: set[str] = set()
        self.alike: set[str] = set()
        self.hashed: dict[str, bytes] = {}
        self._changed: set[str] = set()
        self._numbers: array[int] | None = None

    def run(self) -> Judgement:
        """Do it; returns itself."""
        scan, standing = self._scan, self._standing
        if self._known:
            difference, numbers = compare(scan, self._known)
            self._changed = {scan.paths[number] for number in difference.changed}
            if self._known.algorithm == standing.algorithm:
                self._numbers = numbers
        for path in self._doubtful():
            self._judge(path)
        return self

    def digest(self, path: str) -> bytes:
        """Return the digest of a local file; `UNKNOWN` where it is not known."""
        if path in self.hashed:
            return self.hashed[path]
        if self._numbers is None or path in self._changed:
            return UNKNOWN
        number = self._numbers[self._scan.positions[path]]
        return self._known.digest(number) if number >= 0 else UNKNOWN

    def keeps(self, path: str) -> bool:
        """Whether a local file has the content that it had at the last sync."""
        return path in self._scan.positions and path not in self._changed and self.digest(path) != UNKNOWN

    def _doubtful(self) -> list[str]:
        if self._standing.since:
            return [path for path in self._changed | self._standing.changed.keys() if path in self._scan.positions]
        return self._scan.paths

    def _judge(self, path: str) -> None:
        entry, old = self._scan.tree[path], self._standing.tree.get(path)
        if old is None or entry.kind != FILE or old.kind != FILE or entry.size != old.size:
            return
        same_time = entry.mtime_ns == old.mtime_ns
        theirs = self._theirs(path)
        if theirs is None:
            # Where nobody remembers a sync, size and time decide. Where this side alone does, functions may have put
            # something else at the target's place.
            if same_time and (self._standing.known or self._known):
                self.suspect.add(path)
            return
        if not same_time and entry.size >= DELTA_BYTES:
            return
        ours: bytes | None = self.digest(path)
        if ours == UNKNOWN and (ours := self._hash(path, self._make)) is not None:
            self.hashed[path] = ours
        if ours != theirs:
            if same_time:
                self.suspect.add(path)
        elif not same_time:
            self.alike.add(path)

    def _theirs(self, path: str) -> bytes | None:
        standing = self._standing
        if not standing.since:
            return standing.digests.get(path)
        if path in standing.changed:
            return None
        if self._known.algorithm != standing.algorithm:
            return None
        number = self._positions.get(path, -1)
        digest = self._known.digest(number) if number >= 0 else UNKNOWN
        return None if digest == UNKNOWN else digest

    @cached_property
    def _positions(self) -> dict[str, int]:
        return self._known.scan.positions
