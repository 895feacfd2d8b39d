"""The peer's index: what stood at a target after its last sync, `staging/index-KEY`.

Only peers see it. At the next sync the target is scanned and compared with it; files whose change time alone has
moved are hashed, since making and removing hard links moves it, and so does putting back a modification time.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Mapping

from atoll.storage.digest import DIGEST_BYTES, UNKNOWN, Hasher, maker
from atoll.storage.filesystem import OPEN_DIRECTORY, VolumeRoot, write_all
from atoll.storage.index import Difference, Index, compare, decode, encode, index_of
from atoll.storage.scan import ROW, Scan
from atoll.storage.tree import DIRECTORY, FILE, SYMLINK, Tree, parent_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20


def name_of(key: str) -> str:
    """Return the name in staging of the index of the target with this key."""
    return f"index-{key}"


def load(volume: VolumeRoot, key: str) -> Index:
    """Read a target's index; one that is missing or damaged is empty."""
    try:
        descriptor = os.open(name_of(key), _READ, dir_fd=volume.staging)
        with os.fdopen(descriptor, "rb") as file:
            return decode(file.read())
    except OSError:
        return Index()


def save(volume: VolumeRoot, key: str, index: Index) -> None:
    """Write a target's index in one step; where that fails the next sync compares more."""
    name = volume.temporary_name("file")
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=volume.staging)
        try:
            write_all(descriptor, encode(index))
            os.rename(name, name_of(key), src_dir_fd=volume.staging, dst_dir_fd=volume.staging)
        except OSError:
            os.unlink(name, dir_fd=volume.staging)
            raise
        finally:
            os.close(descriptor)


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
        self._numbers: list[int] | None = None
        if not self.same and index:
            self._compare(directory)

    def _compare(self, directory: int) -> None:
        difference, numbers = compare(self.scan, self.index)
        self._numbers = list(numbers)
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
                if hash_below(directory, self.scan.paths[number], self.index.algorithm) == known:
                    same.add(number)
        return same

    def digests(self) -> dict[str, bytes]:
        """Return what is known of the content of the files that stand."""
        if not self.index:
            return {}
        paths = self.scan.paths
        if self._numbers is None:
            numbers, changed = list(range(len(paths))), set[int]()
        else:
            numbers, changed = self._numbers, self._suspect
        known = {}
        digests = self.index.digests
        for number, other in enumerate(numbers):
            if other >= 0 and number not in changed:
                digest = digests[other * DIGEST_BYTES : (other + 1) * DIGEST_BYTES]
                if digest != UNKNOWN:
                    known[paths[number]] = digest
        return known


def hash_below(directory: int, path: str, algorithm: str) -> bytes:
    """Return the digest of a file below an open directory, entered without following a symlink.

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
        while piece := os.read(descriptor, _PIECE_BYTES):
            hasher.update(piece)
    finally:
        os.close(descriptor)
    return hasher.digest()


def open_below(directory: int, path: str) -> int:
    """Open a directory below another, one component at a time, so that no symlink is followed.

    Raises:
        OSError: it cannot be opened.
    """
    here = os.dup(directory)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def index_after(
    tree: Tree,
    stamps: Mapping[str, tuple[int, int]],
    digests: Mapping[str, bytes],
    blocks: Mapping[str, bytes],
    generation: str,
    algorithm: str,
    *,
    now_ns: int | None = None,
) -> Index:
    """Make the index of a tree that has just been put in place.

    Args:
        stamps: change time and inode of files and symlinks; those that are not here are looked at again.
        now_ns: when functions could first write to what arrived.
    """
    scan = Scan()
    for path in in_order(tree):
        entry = tree[path]
        ctime_ns, inode = (0, 0) if entry.kind == DIRECTORY else stamps.get(path, (-1, -1))
        mode = entry.mode | _TYPE_BITS.get(entry.kind, 0)
        if entry.kind == SYMLINK:
            scan.targets[path] = entry.target
        scan.paths.append(path)
        scan.rows.extend((mode, entry.size, entry.mtime_ns, ctime_ns, inode))
    moment = time.time_ns() if now_ns is None else now_ns
    return index_of(scan, generation, now_ns=moment, digests=digests, algorithm=algorithm, blocks=blocks)


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
