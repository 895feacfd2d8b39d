"""The target of a sync in the peer: its current tree, and its index, `staging/index-KEY`, from the last sync.

Only peers see it. At the next sync the target is scanned and compared with it; files whose change time alone has
moved are hashed, since making and removing hard links moves it, and so does putting back a modification time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from atoll import linux
from atoll.file_stamp import COARSE_CLOCK_NS, settled
from atoll.storage.content.digest import DIGEST_BYTES, UNKNOWN, Hasher, maker
from atoll.storage.files.scan import ROW, Scan
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Tree, parent_of
from atoll.storage.sync.index import UNSURE, Changes, Index, compare, decode, encode, index_of
from atoll.storage.volume.locate import Place, open_below
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import name_of, new_file

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20


def load(volume: VolumeRoot, key: str) -> Index:
    """Read a target's index, and renew it; one that is missing or damaged is empty."""
    try:
        descriptor = os.open(name_of("index", key), _READ, dir_fd=volume.staging)
        with os.fdopen(descriptor, "rb") as file:
            os.utime(file.fileno())
            return decode(file.read())
    except OSError:
        return Index()


def save(volume: VolumeRoot, key: str, index: Index) -> None:
    """Write a target's index in one step; where that fails the next sync compares more."""
    staging = volume.staging
    with contextlib.suppress(OSError), new_file(staging) as (name, descriptor):
        linux.write_all(descriptor, encode(index))
        os.rename(name, name_of("index", key), src_dir_fd=staging, dst_dir_fd=staging)


class TargetState:
    """The target's current tree, compared with the index of its last sync.

    Args:
        directory: the target, open; -1 where it does not exist.
        scan: its current tree.
        index: that of its last sync.
        scanned_ns: a moment before the scan.

    Attributes:
        same: nothing has changed since that sync.
        changed: numbers in the scan of paths that have changed; files whose content was hashed and is the same are not
            among them.
        gone: paths of the index that do not exist any more.
        stale: the index needs new change times.
    """

    def __init__(self, directory: int, scan: Scan, index: Index, scanned_ns: int) -> None:
        self.scan = scan
        self.index = index
        self.scanned_ns = scanned_ns
        self.same = index.same(scan)
        self.changed: list[int] = []
        self.gone: list[str] = []
        self.stale = False
        self._numbers: array[int] | None = None
        self._suspect: set[int] = set()
        if not self.same and index:
            self._compare(directory)

    def _compare(self, directory: int) -> None:
        difference, numbers = compare(self.scan, self.index)
        self._numbers = numbers
        self.stale = True
        same = self._unchanged(directory, difference)
        self.changed = [number for number in difference.changed if number not in same]
        self.gone = difference.gone
        self._suspect = set(self.changed)

    def _unchanged(self, directory: int, difference: Changes) -> set[int]:
        """Return the files with another change time and the same content."""
        same: set[int] = set()
        for number, other in difference.moved.items():
            known = self.index.digest(other)
            if known == UNKNOWN or self.scan.rows[ROW * number] & 0o170000 != stat.S_IFREG:
                continue
            with contextlib.suppress(OSError):
                if self._hash(directory, number) == known:
                    same.add(number)
        return same

    def _hash(self, directory: int, number: int) -> bytes:
        path, rows = self.scan.paths[number], self.scan.rows
        mode, size = rows[ROW * number : ROW * number + 2]
        if mode & 0o400:
            return hash_below(directory, path, size, self.index.algorithm)
        # Its owner may not read it; a change of its mode moves its change time.
        parent = open_below(directory, parent_of(path))
        try:
            name = path.rpartition("/")[2]
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                link = f"/proc/self/fd/{descriptor}"
                os.chmod(link, mode & 0o7777 | 0o400)
                try:
                    return hash_below(directory, path, size, self.index.algorithm)
                finally:
                    os.chmod(link, mode & 0o7777)
                    rows[ROW * number + 3] = os.fstat(descriptor).st_ctime_ns
            finally:
                os.close(descriptor)
        finally:
            os.close(parent)

    def digest(self, path: str) -> bytes:
        """Return the digest of the file at a path; `UNKNOWN` where it is not known or no file exists."""
        if not self.index:
            return UNKNOWN
        number = self.scan.positions.get(path, -1)
        if number < 0 or number in self._suspect:
            return UNKNOWN
        other = number if self._numbers is None else self._numbers[number]
        return self.index.digest(other) if other >= 0 else UNKNOWN

    def digests(self) -> bytearray:
        """Return the digests of all paths, in the order of the scan."""
        if not self.index:
            return bytearray(UNKNOWN * len(self.scan.paths))
        if self._numbers is None:
            return bytearray(self.index.digests)
        found = bytearray()
        for number, other in enumerate(self._numbers):
            found += UNKNOWN if other < 0 or number in self._suspect else self.index.digest(other)
        return found

    @cached_property
    def change_times(self) -> Sequence[int]:
        """Change times in the order of the scan; -1 where a change, a moment later, may have left the same one."""
        times = self.scan.rows[3::ROW]
        if not times or max(times) < self.scanned_ns - COARSE_CLOCK_NS:
            return times
        return [ctime_ns if settled(ctime_ns, self.scanned_ns) else -1 for ctime_ns in times]

    def changed_at(self, path: str) -> int:
        """Return the change time of a path at the scan; -1 where it proves nothing."""
        number = self.scan.positions.get(path, -1)
        return self.change_times[number] if number >= 0 else -1

    def blocks(self, path: str) -> bytes:
        """Return the digests of the blocks of the file at a path; empty where they are not known."""
        return self.index.blocks.get(path, b"") if self.digest(path) != UNKNOWN else b""


def hash_below(directory: int, path: str, size: int, algorithm: str) -> bytes:
    """Return the digest of a file of this size below an open directory, entered without following a symlink.

    Of a file that has grown the digest is another one.

    Raises:
        OSError: it cannot be read.
    """
    parent = open_below(directory, parent_of(path))
    try:
        descriptor = os.open(path.rpartition("/")[2], _READ, dir_fd=parent)
    finally:
        os.close(parent)
    hasher = Hasher(maker(algorithm))
    try:
        left = size + 1  # a function may append to it faster than it can be read
        while left > 0 and (piece := os.read(descriptor, min(left, _PIECE_BYTES))):
            hasher.update(piece)
            left -= len(piece)
    finally:
        os.close(descriptor)
    return hasher.digest()


@dataclass
class TargetSync:
    """One sync at its target, as the peer's modules share it.

    Args:
        volume: the volume's directories.
        key: names the target in staging; its lock is held.
        place: the target; `place.path` has all symlinks resolved.
        directory: the target, open; -1 where it does not exist.
        state: its current tree, compared with its index.
        remembered: whether the peer has an index, of any digest algorithm.
        algorithm: that of the digests.
        generation: names this sync.
        began_ns: a moment before the scan, nanoseconds since the epoch.
    """

    volume: VolumeRoot
    key: str
    place: Place
    directory: int
    state: TargetState
    remembered: bool
    algorithm: str
    generation: str
    began_ns: int

    @property
    def scan(self) -> Scan:
        """The target's tree before the sync."""
        return self.state.scan

    @property
    def tree(self) -> Tree:
        """The same, as entries."""
        return self.state.scan.tree

    def remember(self, generation: str) -> None:
        """Save the index after a sync that changed nothing."""
        state = self.state
        blocks = {path: packed for path, packed in state.index.blocks.items() if state.blocks(path)}
        about = Index(generation, algorithm=self.algorithm, blocks=blocks)
        save(self.volume, self.key, index_of(state.scan, about, now_ns=state.scanned_ns, digests=state.digests()))


@dataclass
class Arrived:
    """The new tree of a target, and the sync's knowledge of its files.

    Args:
        tree: the new tree.
        put: paths that came or changed.
        stamps: change time and inode of files that were received, linked or copied.
        digests: of files that were received.
        blocks: the digests of the blocks of large files.
        complete_ns: when the tree was complete, before functions could write to it.
    """

    tree: Tree
    put: Collection[str]
    stamps: Mapping[str, tuple[int, int]]
    digests: Mapping[str, bytes]
    blocks: dict[str, bytes]
    complete_ns: int


def index_after(target: TargetSync, arrived: Arrived) -> Index:
    """Make the index of a tree that has just been switched to."""
    state, tree, stamps = target.state, arrived.tree, arrived.stamps
    scan, old = Scan(), state.scan
    same_paths = len(tree) == len(old.paths) and all(path in tree for path in old.paths)
    scan.paths = old.paths if same_paths else in_order(tree)
    if same_paths:
        digests, get = state.digests(), old.positions.get
    else:
        digests = bytearray(b"".join([state.digest(path) for path in scan.paths]))
        get = {path: number for number, path in enumerate(scan.paths)}.get
    add = scan.rows.extend
    for path in scan.paths:
        entry = tree[path]
        kind = entry.kind
        if kind == DIRECTORY:
            ctime_ns = inode = 0
        elif (stamp := stamps.get(path)) is not None:
            ctime_ns, inode = stamp
        elif path not in arrived.put:
            ctime_ns, inode = state.changed_at(path), old.row(old.positions[path])[4]
        else:
            ctime_ns = inode = UNSURE
        if kind == SYMLINK:
            scan.targets[path] = entry.target
        add((entry.mode | _TYPE_BITS.get(kind, 0), entry.size, entry.mtime_ns, ctime_ns, inode))
    known = {path: UNKNOWN for path in arrived.put if tree[path].kind != FILE}  # a file may have been there before
    for path, digest in {**known, **arrived.digests}.items():
        if (number := get(path)) is not None:
            digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = digest
    about = Index(target.generation, algorithm=target.algorithm, blocks=arrived.blocks)
    return index_of(scan, about, now_ns=arrived.complete_ns, digests=digests)


_TYPE_BITS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}


def in_order(tree: Tree) -> list[str]:
    """Return a tree's paths in the order in which a scan finds them."""
    below: dict[str, list[str]] = {}
    for path in tree:
        if path:
            below.setdefault(parent_of(path), []).append(path)
    found, pending = [""], [""]
    while pending:
        here = sorted(below.get(pending.pop(), ()))
        found += here
        pending += [path for path in here if tree[path].kind == DIRECTORY]
    return found
