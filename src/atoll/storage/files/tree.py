"""Trees as values: result of a scan, input of a plan, content of messages between client and peer.

A path is relative to the tree's root, with `/` between components and without `.` or `..`; the root itself is the
empty path. Names are text in which bytes that are not UTF-8 are surrogates (`surrogateescape`), on every platform
and whatever the locale.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from atoll.terminal_text import printable

FILE, DIRECTORY, SYMLINK = "f", "d", "l"
SPECIAL = "s"
"""A fifo, socket or device: a target may have them, a source may not."""

BATCH_ENTRIES = 20_000
MODE_BITS = 0o7777


class Entry(NamedTuple):
    """Attributes of one path that a sync mirrors besides a file's content.

    Args:
        kind: `FILE`, `DIRECTORY`, `SYMLINK` or `SPECIAL`.
        mode: permission bits; 0 for a symlink, which has none of its own.
        size: bytes of a file; 0 for the others.
        mtime_ns: modification time, nanoseconds since the epoch.
        target: target of a symlink, as stored.
    """

    kind: str
    mode: int
    size: int
    mtime_ns: int
    target: str = ""


Tree = dict[str, Entry]


KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}
_SPECIAL_NAMES = {
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def entry_of(found: os.stat_result, target: str = "") -> Entry:
    """Make an entry from the result of `lstat`; `target` is a symlink's target."""
    kind = KINDS.get(stat.S_IFMT(found.st_mode), SPECIAL)
    if kind == SYMLINK:
        return Entry(kind, 0, 0, found.st_mtime_ns, target)
    return Entry(kind, found.st_mode & MODE_BITS, found.st_size if kind == FILE else 0, found.st_mtime_ns)


def special_name(mode: int) -> str:
    """Return the name of a special file's kind by its mode."""
    return _SPECIAL_NAMES.get(stat.S_IFMT(mode), "special file")


def parent_of(path: str) -> str:
    """Return the path of the directory that holds `path`; the root's parent is the root."""
    return path.rpartition("/")[0]


def check_path(path: Any) -> str:
    """Return `path` if it names something inside a tree (the root included).

    Raises:
        ValueError: it is absolute, or a component is empty, `.`, `..` or holds NUL.
    """
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("a path must be text without NUL")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"`{printable(path)}` is not a path inside a tree")
    return path


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


def pack(items: Iterable[Any]) -> Iterator[bytes]:
    """Turn a sequence of JSON-compatible items into buffers of bounded size, each a JSON list."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH_ENTRIES:
            yield _encode(batch).encode("ascii")
            batch = []
    if batch:
        yield _encode(batch).encode("ascii")


def unpack(buffer: bytes | bytearray) -> list[Any]:
    """Return the items of one buffer that `pack` made.

    Raises:
        ValueError: it is not a JSON list.
    """
    items = json.loads(buffer)
    if not isinstance(items, list):
        raise ValueError("a batch must be a list")
    return items


_BITS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, SPECIAL: stat.S_IFIFO}


class Status(NamedTuple):
    """One path of a volume.

    Args:
        kind: `tree.FILE`, `DIRECTORY`, `SYMLINK` or `SPECIAL`.
        mode: permission bits.
        size: bytes of a file; 0 for the others.
        mtime_ns: modification time, nanoseconds since the epoch.
        target: target of a symlink, as stored.
        ctime_ns: when the inode changed, nanoseconds since the epoch.
        atime_ns: access time, as far as the file system keeps it.
        inode: its number; a file that is replaced has another one.
        links: number of names.
        allocated: bytes on disk.
        uid: owner.
        gid: group.
        leads: kind of the file at a symlink's end; empty for a dangling symlink, and for other files.
        leads_size: size of the file at a symlink's end.
    """

    kind: str
    mode: int
    size: int
    mtime_ns: int
    target: str = ""
    ctime_ns: int = 0
    atime_ns: int = 0
    inode: int = 0
    links: int = 1
    allocated: int = 0
    uid: int = 0
    gid: int = 0
    leads: str = ""
    leads_size: int = 0

    @property
    def st_mode(self) -> int:
        """Kind and permission bits, as `stat` gives them."""
        return _BITS[self.kind] | (0o777 if self.kind == SYMLINK else self.mode)

    def as_stat(self) -> os.stat_result:
        """Return it as `os.lstat` would; the device is 0."""
        size = len(self.target.encode("utf-8", "surrogateescape")) if self.kind == SYMLINK else self.size
        times = (self.atime_ns, self.mtime_ns, self.ctime_ns)
        whole = (self.st_mode, self.inode, 0, self.links, self.uid, self.gid, size, *(at // 10**9 for at in times))
        exact = (*map(seconds, times), *times)
        return os.stat_result((*whole, *exact), {"st_blocks": self.allocated // 512})


Listing = dict[str, Status]


def status_of(found: os.stat_result, target: str = "", leads: os.stat_result | None = None) -> Status:
    """Make a status from the result of `lstat`.

    Args:
        target: target of a symlink.
        leads: result of `stat` at its end, None for a dangling symlink.
    """
    entry = entry_of(found, target)
    end = entry_of(leads) if leads is not None and entry.kind == SYMLINK else None
    return Status(
        *entry,
        found.st_ctime_ns,
        found.st_atime_ns,
        found.st_ino,
        found.st_nlink,
        found.st_blocks * 512,
        found.st_uid,
        found.st_gid,
        end.kind if end is not None else "",
        end.size if end is not None else 0,
    )


def check_status(item: Any) -> tuple[str, Status]:
    """Return path and status of one received item, `[path, *status]`.

    Raises:
        ValueError: a field has a wrong type or value.
    """
    if not isinstance(item, list) or len(item) != 15:
        raise ValueError("a status must have fifteen fields")
    status = Status(*item[1:])
    texts = (status.kind, status.target, status.leads)
    numbers = [value for value in item[3:] if not isinstance(value, str)]
    if status.kind not in _BITS or status.leads not in ("", *_BITS) or not all(isinstance(text, str) for text in texts):
        raise ValueError("the kind of a status is malformed")
    if len(numbers) != 10 or not all(type(number) is int and abs(number) < 1 << 64 for number in [*numbers, item[2]]):
        raise ValueError("a number of a status is malformed")
    if not 0 <= status.mode <= MODE_BITS or min(status.size, status.links, status.allocated, status.leads_size) < 0:
        raise ValueError("a number of a status is malformed")
    return check_path(item[0]), status


def version_of(status: Status) -> str:
    """Return the version of a file: another one after each change, and for each file that replaces it."""
    return f"{status.inode:x}-{status.size:x}-{status.mtime_ns:x}-{status.ctime_ns:x}"


def seconds(time_ns: int) -> float:
    """Return nanoseconds since the epoch as seconds, rounded as `os.stat` does it."""
    whole, rest = divmod(time_ns, 10**9)
    return whole + 1e-9 * rest
