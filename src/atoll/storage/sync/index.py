"""The state after the last sync: kept by the client for its local files, and by the peer for the target.

Size and modification time of a file can be put back after its content has changed; its change time and inode cannot.
So where all four and the mode are those of the index, the content is the one whose digest the index has. The two
indexes of a sync carry the same generation, made by chance for each: where client and peer find nothing changed since
the same generation, the two trees are as that sync left them, and nothing travels.

An index may be lost, damaged or removed at any time: it only makes syncs faster and sharper. So each use of one renews
it, and one that has not been used for `KEPT_SECONDS`, whose source or target is most likely gone, is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import time
from array import array
from collections.abc import Container
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll import ownership
from atoll.errors import StateUntrusted
from atoll.file_stamp import COARSE_CLOCK_NS, settled
from atoll.storage.content.digest import DIGEST_BYTES, UNKNOWN
from atoll.storage.files.scan import ROW, Scan
from atoll.storage.files.tree import Tree
from atoll.storage.files.tree_wire import from_bytes, pack_entries, pack_names, to_bytes, unpack_entries, unpack_names
from atoll.storage.volume.staging import KEPT_SECONDS
from atoll.wire import nested

_MAGIC = b"ATOLLIX3"
_HEAD = struct.Struct("<8s32sI")
_WIDTH = 8 * ROW
_CHANGED_AT = 3
UNSURE = -1


def index_path(home: Path, host: str, source: str, target: str) -> Path:
    """Return where the index of one source and one target on one host is kept."""
    text = json.dumps([host, source, target])
    return home / "sync" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.index"


@dataclass
class Index:
    """One side's state after a sync.

    Args:
        generation: names the sync; empty for none.
        terms: the other conditions of the state, such as the sync's options.
        algorithm: that of the digests.
        names, rows, links: a scan's paths, rows and symlinks' targets, as bytes.
        digests: one for each path; `UNKNOWN` for entries that are no files, and for unknown ones.
        extras: entries of the target that the source does not have; the client's only.
        blocks: the digests of the blocks of large files.
    """

    generation: str = ""
    terms: str = ""
    algorithm: str = ""
    names: bytes = b""
    rows: bytes = b""
    links: bytes = b""
    digests: bytes = b""
    extras: Tree = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.generation)

    @property
    def scan(self) -> Scan:
        """The scan that was kept; change times that could not be trusted are -1."""
        rows = from_bytes("q", self.rows)
        paths = unpack_names(self.names, len(rows) // ROW)
        links = [path for path, mode in zip(paths, rows[::ROW], strict=True) if mode & 0o170000 == 0o120000]
        return Scan(paths, rows, dict(zip(links, unpack_names(self.links, len(links)), strict=True)))

    def digest(self, number: int) -> bytes:
        """Return the digest of the path with this number."""
        return self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def same(self, scan: Scan) -> bool:
        """Return whether a scan found exactly this."""
        return (
            bool(self.generation)
            and len(self.rows) == _WIDTH * len(scan.paths)
            and self.rows == to_bytes(scan.rows)
            and self.names == pack_names(scan.paths)
            and self.links == pack_names(scan.targets.values())
        )


def index_of(
    scan: Scan, about: Index, *, now_ns: int, digests: bytes | bytearray = b"", sure: Container[str] = ()
) -> Index:
    """Make the index of a state.

    Args:
        about: its generation, terms, algorithm, extras and blocks.
        now_ns: a moment; change times that a change after it could repeat are not kept.
        digests: one for each path; none are known by default.
        sure: paths whose change time is kept all the same: it was read later.
    """
    rows, changed_at = scan.rows[:], scan.rows[_CHANGED_AT::ROW]
    if changed_at and max(changed_at) >= now_ns - COARSE_CLOCK_NS:
        for number, ctime_ns in enumerate(changed_at):
            if ctime_ns and not settled(ctime_ns, now_ns) and scan.paths[number] not in sure:
                rows[ROW * number + _CHANGED_AT] = UNSURE
    return replace(
        about,
        names=pack_names(scan.paths),
        rows=to_bytes(rows),
        links=pack_names(scan.targets.values()),
        digests=bytes(digests) or UNKNOWN * len(scan.paths),
    )


@dataclass
class Changes:
    """The differences between a scan and an index.

    Args:
        changed: numbers in the scan of paths that are new or have another row.
        moved: those of `changed` that differ in nothing but the change time, with their number in the index.
        gone: paths of the index that the scan has not.
    """

    changed: list[int] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


def compare(scan: Scan, index: Index) -> tuple[Changes, array[int]]:
    """Return how a scan differs from an index, and for each of its paths the number in the index, -1 for new ones."""
    found = Changes()
    names = pack_names(scan.paths)
    if names == index.names and len(scan.paths) * _WIDTH == len(index.rows):
        numbers = array("q", range(len(scan.paths)))
    else:
        old_paths = unpack_names(index.names, len(index.rows) // _WIDTH)
        old = {path: number for number, path in enumerate(old_paths)}
        get = old.get
        numbers = array("q", [get(path, -1) for path in scan.paths])
        here = set(scan.paths)
        found.gone = [path for path in old_paths if path not in here]
    rows, old_rows = memoryview(to_bytes(scan.rows)), memoryview(index.rows)
    old_links: dict[str, str] | None = None
    for number, other in enumerate(numbers):
        start, before = _WIDTH * number, _WIDTH * other
        row = rows[start : start + _WIDTH]
        if other < 0:
            found.changed.append(number)
        elif row != (was := old_rows[before : before + _WIDTH]):
            found.changed.append(number)
            if row[:24] == was[:24] and row[32:] == was[32:]:
                found.moved[number] = other
    if scan.targets and index.links != pack_names(scan.targets.values()):
        old_links = index.scan.targets
        changed = set(found.changed)
        positions = scan.positions
        for path, target in scan.targets.items():
            if old_links.get(path) != target and positions[path] not in changed:
                found.changed.append(positions[path])
    return found, numbers


def encode(index: Index) -> bytes:
    """Return an index as one buffer with a checksum."""
    blocks = {path: len(packed) for path, packed in index.blocks.items()}
    sections = [index.names, index.rows, index.links, index.digests, *pack_entries(index.extras)]
    head = json.dumps({
        "generation": index.generation,
        "terms": index.terms,
        "algorithm": index.algorithm,
        "sizes": [len(section) for section in sections],
        "blocks": blocks,
    }).encode()  # fmt: skip
    body = b"".join([head, *sections, *index.blocks.values()])
    return _HEAD.pack(_MAGIC, hashlib.sha256(body).digest(), len(head)) + body


def decode(data: bytes) -> Index:
    """Return the index in a buffer of `encode`; an empty one where the buffer is damaged or of another version."""
    try:
        magic, checksum, head_bytes = _HEAD.unpack_from(data)
        body = memoryview(data)[_HEAD.size :]
        if magic != _MAGIC or hashlib.sha256(body).digest() != checksum:
            return Index()
        head = json.loads(bytes(body[:head_bytes]))
        position, sections = head_bytes, list[bytes]()
        for size in [*head["sizes"], *head["blocks"].values()]:
            sections.append(bytes(body[position : position + size]))
            position += size
        count = len(head["sizes"])
        extras: Tree = {}
        for section in sections[4:count]:
            extras.update(unpack_entries(section))
        blocks = dict(zip(head["blocks"], sections[count:], strict=True))
        names, rows, links, digests = sections[:4]
        return Index(head["generation"], head["terms"], head["algorithm"], names, rows, links, digests, extras, blocks)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError):
        return Index()


def load(path: Path) -> Index:
    """Read an index, and renew it; one that is missing or damaged is empty.

    Raises:
        StateUntrusted: another user can change it, and so decide which files a sync takes for unchanged.
    """
    try:
        data = path.read_bytes() if nested.inside() else ownership.read(path)  # a sandbox is its functions' own
    except StateUntrusted:
        raise
    except OSError:
        return Index()
    with contextlib.suppress(OSError):
        os.utime(path)
    return decode(data)


def save(path: Path, index: Index) -> None:
    """Write an index in one step; in a home that cannot be written, the next sync is merely slower."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not nested.inside():
            ownership.check(path.parent)
        temporary.write_bytes(encode(index))
        if not path.exists():  # a new source or target: the moment to look for those that are gone
            _drop_unused(path.parent)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _drop_unused(directory: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for found in directory.iterdir():
        with contextlib.suppress(OSError):
            if found.stat().st_mtime < oldest:
                found.unlink()
