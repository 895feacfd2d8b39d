"""The peer's index: what stood at a target after its last sync, `staging/index-KEY`.

Only peers see it. At the next sync the target is scanned and compared with it; files whose change time alone has
moved are hashed, since making and removing hard links moves it, and so does putting back a modification time.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections.abc import Callable, Mapping

from atoll import linux
from atoll.file_stamp import settled
from atoll.storage.content.digest import UNKNOWN, Hasher, maker
from atoll.storage.files.scan import ROW, Scan
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Tree, parent_of
from atoll.storage.sync.index import Difference, Index, compare, decode, encode, index_of
from atoll.storage.volume.locate import open_below
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


class Standing:
    """What stands at a target now, and what is known of it.

    Args:
        directory: the target, open; -1 where there is none.
        scan: what was found in it.
        index: what is known from its last sync.
        scanned_ns: a moment before the scan.

    Attributes:
        same: nothing has changed since that sync.
        changed: numbers in the scan of what has, with files left out that turned out to be as they were.
        gone: paths that were there and are not.
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

    def _unchanged(self, directory: int, difference: Difference) -> set[int]:
        """Return those of the files with another change time whose content is what it was."""
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
        # Its owner may not read it; lending the permission moves its change time.
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
        """Return the digest of what stands at a path; `UNKNOWN` where it is not known or nothing stands."""
        if not self.index:
            return UNKNOWN
        number = self.scan.positions.get(path, -1)
        if number < 0 or number in self._suspect:
            return UNKNOWN
        other = number if self._numbers is None else self._numbers[number]
        return self.index.digest(other) if other >= 0 else UNKNOWN

    def changed_at(self, path: str) -> int:
        """Return the change time that what stands at a path had when it was scanned; -1 where another change, a moment
        later, may have left the same one."""
        number = self.scan.positions.get(path, -1)
        ctime_ns = self.scan.rows[ROW * number + 3] if number >= 0 else -1
        return ctime_ns if settled(ctime_ns, self.scanned_ns) else -1

    def blocks(self, path: str) -> bytes:
        """Return the digests of the blocks of what stands at a path; empty where they are not known."""
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


def index_after(
    tree: Tree,
    stamp: Callable[[str], tuple[int, int]],
    digest: Callable[[str], bytes],
    blocks: Mapping[str, bytes],
    generation: str,
    algorithm: str,
    *,
    now_ns: int,
) -> Index:
    """Make the index of a tree that has just been put in place.

    Args:
        stamp: returns change time and inode of a path that is no directory; -1 where they are to be looked at again.
        digest: returns that of a path, or `UNKNOWN`.
        now_ns: when functions could first write to what arrived.
    """
    scan = Scan()
    for path in in_order(tree):
        entry = tree[path]
        ctime_ns, inode = (0, 0) if entry.kind == DIRECTORY else stamp(path)
        mode = entry.mode | _TYPE_BITS.get(entry.kind, 0)
        if entry.kind == SYMLINK:
            scan.targets[path] = entry.target
        scan.paths.append(path)
        scan.rows.extend((mode, entry.size, entry.mtime_ns, ctime_ns, inode))
    return index_of(scan, generation, now_ns=now_ns, digest=digest, algorithm=algorithm, blocks=blocks)


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
