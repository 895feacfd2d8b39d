"""What a volume knows of one path, for clients that look at it: more than a sync mirrors, and less than `stat` says."""

from __future__ import annotations

import os
import stat
from typing import Any, NamedTuple

from atoll.storage.files.tree import DIRECTORY, FILE, MODE_BITS, SPECIAL, SYMLINK, check_path, entry_of

_BITS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, SPECIAL: stat.S_IFIFO}


class Status(NamedTuple):
    """One path of a volume.

    Args:
        kind: `tree.FILE`, `DIRECTORY`, `SYMLINK` or `SPECIAL`.
        mode: permission bits.
        size: bytes of a file; 0 for the others.
        mtime_ns: modification time, nanoseconds since the epoch.
        target: where a symlink points, as it is stored.
        ctime_ns: when the inode changed, nanoseconds since the epoch.
        atime_ns: access time, as far as the file system keeps it.
        inode: its number; a file that is replaced has another one.
        links: how many names it has.
        allocated: bytes on disk.
        uid: whose it is.
        gid: whose group's it is.
        leads: what a symlink leads to, of the kinds above; empty where it leads nowhere, and for what is no symlink.
        leads_size: the size of that.
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
    """Make the status of what `lstat` found.

    Args:
        target: where a symlink points.
        leads: what `stat` found at its end, None where it leads nowhere.
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


def seconds(time_ns: int) -> float:
    """Return nanoseconds since the epoch as seconds, rounded as `os.stat` does it."""
    whole, rest = divmod(time_ns, 10**9)
    return whole + 1e-9 * rest
