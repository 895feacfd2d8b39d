"""Table of the names in a volume's `staging`, for every module of storage that puts something there.

`staging` is on the file system of `data` and private to peers, so that a finished file or tree gets its path by one
rename. A name is `KIND-KEY`: the key is a digest of the target's path (`locks.target_key`), or random. `KINDS` lists
for each kind its maker, its next names, and the way in which `sync.cleanup` reclaims a leftover of a killed peer. Two names have
no kind: the directory `locks`, and the file `restored`, whose time is that of the last restore.

A replaced tree (`old-TIME-RAND`) has a note beside it, `old-TIME-RAND.json`: its path in the volume, for late writes.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from atoll import linux
from atoll.storage.crash_points import reached
from atoll.storage.files.tree import check_path

RESTORED = "restored"
"""The file whose modification time is that of the last restore."""
NOTE = ".json"
ABANDONED_SECONDS = 24 * 3600.0
"""Seconds for which the contents of an interrupted sync are kept for the next one to its target."""
QUIET_SECONDS = 30.0
"""A file or tree that was written to within this time most likely has a living writer."""
UPLOAD_SECONDS = 7 * 24 * 3600.0
"""Seconds for which an unfinished upload is kept."""
KEPT_SECONDS = 90 * 24 * 3600.0
"""Seconds for which an unused index is kept."""
GONE = frozenset({errno.ENOENT, errno.EPERM, errno.ESTALE})
"""Error numbers for a file that another machine removes while it is opened: JuiceFS opens nothing in its trash."""
NO_LOCKS = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Error numbers of a file system that does not lock directories, or files that are open to be read alone."""
_MAX_JSON_BYTES = 1 << 30
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Reclaim(enum.Enum):
    """The ways to reclaim a leftover."""

    REMOVED = "at once"
    UNLOCKED = "at once, unless its writer lives and holds its `flock`"
    RECOVERED = "its switch is finished or undone (`sync.switch_record`)"
    ARCHIVED = "its snapshot or restore is finished or dropped (`snapshots.archive`)"
    ABANDONED = "when it is old, with its target's lock held"
    OLD = "when it is old"
    UNSEEN = "when no sandbox lives that may have it open, after late writes were copied (`sync.late_writes`)"


class Kind(NamedTuple):
    """One kind of name.

    Args:
        owner: the module that makes it.
        becomes: its next names, in the course of its work.
        reclaim: the way to reclaim a leftover.
        seconds: the age at which it counts as a leftover.
    """

    owner: str
    becomes: str
    reclaim: Reclaim
    seconds: float = 0.0


KINDS = {
    "stage": Kind("sync.receiver", "switch, partial", Reclaim.ABANDONED, ABANDONED_SECONDS),
    "partial": Kind("sync.receiver", "its files move to stage", Reclaim.ABANDONED, ABANDONED_SECONDS),
    "switch": Kind("sync.stage", "the target; the replaced tree becomes old", Reclaim.RECOVERED),
    "record": Kind("sync.switch_record", "the note of an old tree", Reclaim.RECOVERED),
    "index": Kind("sync.target_state", "", Reclaim.OLD, KEPT_SECONDS),
    "upload": Kind("peer.uploads", "a file of the volume", Reclaim.OLD, UPLOAD_SECONDS),
    "parts": Kind("peer.parts", "a file of the volume", Reclaim.OLD, ABANDONED_SECONDS),
    "old": Kind("sync.switch_record, snapshots.archive", "", Reclaim.UNSEEN),
    "trash": Kind("volume.root", "", Reclaim.REMOVED),
    "file": Kind("volume.staging", "a file of the volume, an index", Reclaim.UNLOCKED, QUIET_SECONDS),
    "tree": Kind("peer.copies, selftest.examine", "a directory of the volume", Reclaim.UNLOCKED, QUIET_SECONDS),
    "new": Kind("volume.root, peer.copies, sync.late_writes", "any name, at once", Reclaim.OLD, QUIET_SECONDS),
    "snapshot": Kind("snapshots.peer", "a tree below `snapshots`", Reclaim.ARCHIVED),
    "restore": Kind("snapshots.peer", "the target; the replaced tree becomes a snapshot", Reclaim.ARCHIVED),
}


def name_of(kind: str, key: str) -> str:
    """Return the name that belongs to a target's key."""
    assert kind in KINDS
    return f"{kind}-{key}"


def new_name(kind: str) -> str:
    """Return a name that nothing has; that of an old tree begins with the present time."""
    if kind == "old":
        return f"old-{time.time_ns()}-{secrets.token_hex(4)}"
    return name_of(kind, secrets.token_hex(8))


def parse(name: str) -> tuple[str, str]:
    """Return kind and key of a name; an empty kind for a name without one."""
    kind, _, key = name.partition("-")
    return (kind, key) if kind in KINDS else ("", name)


def replaced_ns(name: str) -> int | None:
    """Return when the tree of an `old` name was replaced, nanoseconds since the epoch; None for any other name."""
    kind, key = parse(name)
    moment, _, chance = key.partition("-")
    if kind != "old" or not moment.isdecimal() or not chance.isalnum():
        return None
    return int(moment)


def leftovers(staging: int, *kinds: str) -> Iterator[tuple[str, str, str]]:
    """Yield kind, key and name of everything in staging that is of one of these kinds; of all by default."""
    # A descriptor itself lists, on btrfs, the names at its last use.
    fresh = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging)
    try:
        found = os.listdir(fresh)
    finally:
        os.close(fresh)
    for name in found:
        kind, key = parse(name)
        if kind and (not kinds or kind in kinds):
            yield kind, key, name


# --- files ------------------------------------------------------------------------------------------------------------


def create_file(staging: int) -> tuple[str, int]:
    """Create a file in staging; returns name and descriptor. While that is open, no cleanup takes the file for a leftover."""
    import fcntl

    name = new_name("file")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=staging)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if has_name(staging, name, descriptor):
            return name, descriptor
        os.close(descriptor)  # a peer has removed it before it was locked


def has_name(directory: int, name: str, descriptor: int) -> bool:
    """Return whether a name still leads to an open file or directory.

    A count of links does not tell: JuiceFS keeps one of each removed file in its trash. The name is opened, since that
    alone asks the server of a network file system.
    """
    try:
        found = os.open(name, _READ | getattr(os, "O_NONBLOCK", 0), dir_fd=directory)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return False
    try:
        return os.path.samestat(os.fstat(found), os.fstat(descriptor))
    finally:
        os.close(found)


def hold(directory: int) -> None:
    """Hold the `flock` of an open directory, so that no cleanup takes it for a leftover while its writer lives.

    Network file systems may lock files only: there a leftover is known by its age (`sync.cleanup`).
    """
    import fcntl

    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


@contextlib.contextmanager
def new_file(staging: int) -> Iterator[tuple[str, int]]:
    """Create a file in staging that is gone at the end, unless it was renamed; gives name and descriptor."""
    name, descriptor = create_file(staging)
    try:
        yield name, descriptor
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=staging)
        os.close(descriptor)


def write_json(directory: int, name: str, data: Any, *, exclusive: bool = False) -> int:
    """Write a JSON file; returns it, open: it is not durable yet.

    Args:
        exclusive: whether the file must not exist; then nothing is left of it after an error.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        linux.write_all(descriptor, json.dumps(data).encode("ascii"))
    except BaseException:
        os.close(descriptor)
        if exclusive:
            os.unlink(name, dir_fd=directory)
        raise
    return descriptor


def read_json(directory: int, name: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is torn, by a power cut.
    """
    with os.fdopen(os.open(name, _READ, dir_fd=directory), "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_JSON_BYTES:
            raise ValueError("a record is too large")
        data = json.loads(file.read())  # without a size: that much memory would be allocated at once
    if not isinstance(data, dict):
        raise ValueError("a record must be an object")
    return data


# --- replaced trees ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplacedTree:
    """The note of a replaced tree.

    Args:
        target: the resolved path of its mirror, relative to the volume's root.
        scope: the path in the mirror that was replaced.
        moment_ns: when, nanoseconds since the epoch.
        inodes: its inodes at that moment (`sync.late_writes.pack_inodes`); empty where they are not known.
    """

    target: str
    scope: str
    moment_ns: int
    inodes: str = ""

    def write(self, staging: int, old: str) -> None:
        """Write the note of the tree with the name `old`; without one a tree is just removed.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        os.close(write_json(staging, old + NOTE, asdict(self), exclusive=True))

    @classmethod
    def read(cls, staging: int, old: str) -> Self:
        """Read the note of a replaced tree, which may be the record of its switch.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is torn, by a power cut after which no sandbox was left.
        """
        data = read_json(staging, old + NOTE)
        try:
            moment_ns = int(data["moment_ns"] if "moment_ns" in data else data["since_ns"] or data["generation"])
            return cls(check_path(data["target"]), check_path(data["scope"] or ""), moment_ns, str(data["inodes"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the note of a replaced tree is malformed: {error!r}") from error


def retire(staging: int, name: str, tree: ReplacedTree | None = None, record: str = "") -> None:
    """Rename a leftover, which may be a replaced tree, to an `old` name; one that is gone is left alone.

    Args:
        tree: its note.
        record: the switch's record, which can be the note where the disk has no room for one.

    Raises:
        OSError: the note cannot be written; the tree keeps its name.
    """
    old = new_name("old")
    if tree is not None:
        try:
            tree.write(staging, old)
        except OSError:
            _link_note(staging, record, old)
        reached("noted")
    try:
        os.rename(name, old, src_dir_fd=staging, dst_dir_fd=staging)
    except FileNotFoundError:
        if tree is not None:
            os.unlink(old + NOTE, dir_fd=staging)
    else:
        reached("retired")


def _link_note(staging: int, record: str, old: str) -> None:
    os.link(record, old + NOTE, src_dir_fd=staging, dst_dir_fd=staging)
