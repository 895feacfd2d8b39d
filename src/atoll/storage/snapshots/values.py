"""Values of snapshots and of their differences, for client and peer.

A snapshot keeps the state of a directory, apart from it: writes to one are not seen in the other. Names are text of a small alphabet, because they are names of directories below `/data/.snapshots`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from atoll.storage.files.tree import check_path

REFLINK, JUICEFS, COPY = "reflink", "juicefs", "copy"
"""The ways to make a snapshot: by clones that share blocks, by JuiceFS, by copies that share files with an earlier one."""

WAYS = (REFLINK, JUICEFS, COPY)
MOST_NAME = 200
_NAME = re.compile(rf"(?![.-])[A-Za-z0-9._-]{{1,{MOST_NAME}}}")

ADDED, REMOVED, CHANGED, ATTRIBUTES = "added", "removed", "changed", "attributes"
CHANGES = (ADDED, REMOVED, CHANGED, ATTRIBUTES)


@dataclass(frozen=True)
class Snapshot:
    """One snapshot.

    Args:
        name: functions see it at `/data/.snapshots/NAME`.
        path: its directory, as functions know it.
        created: seconds since the epoch.
        way: `reflink`, `juicefs` or `copy`.
        generation: counts the volume's snapshots, in the order in which they were completed.
        bytes, files: of its contents.
        copied_bytes: bytes that were copied for it: its cost on the disk, while earlier ones stay.
        moving: how many files were written while they were copied, each time it was tried: such a file may hold a
            mixture of its states.
        left_out: sockets, fifos and devices, which are not in it.
    """

    name: str
    path: str
    created: float
    way: str
    generation: int
    bytes: int
    files: int
    copied_bytes: int = 0
    moving: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Difference:
    """The difference of one path between two states of a directory.

    Args:
        path: as functions know it, below `/data`, whichever snapshot it is in.
        change: `added`, `removed`, `changed` (another kind, content, or symlink target), or `attributes`.
        attributes: which of `mode` and `mtime` differ; the times of directories and symlinks are not looked at.
        old_kind, kind: `f`, `d`, `l` or `s` (see `tree.Entry`), before and after; empty where nothing is.
        old_size, size: bytes of a file, before and after.
    """

    path: str
    change: str
    attributes: tuple[str, ...] = ()
    old_kind: str = ""
    kind: str = ""
    old_size: int = 0
    size: int = 0


def check_name(name: Any) -> str:
    """Return `name` if a snapshot can have it.

    Raises:
        ValueError: it is empty or too long, begins with a dot or `-`, or holds something else than letters, digits, `.`,
            `_` and `-`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a snapshot's name is 1 to {MOST_NAME} of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, without a dot or `-` in front"
        )
    return name


def read_snapshot(data: Any) -> Snapshot:
    """Return a snapshot from the peer's data.

    Raises:
        ValueError: it is malformed.
    """
    try:
        numbers = {field: data[field] for field in ("generation", "bytes", "files")}
        numbers |= {field: data.get(field, 0) for field in ("copied_bytes", "moving", "left_out")}
        created = data["created"]
        if any(type(number) is not int or number < 0 for number in numbers.values()) or type(created) is not float:
            raise ValueError("a snapshot's numbers are not numbers")
        path, way = data["path"], data["way"]
        if way not in WAYS or not isinstance(path, str) or check_path(path.strip("/")) != path[1:]:
            raise ValueError("a snapshot's path or way is malformed")
        return Snapshot(check_name(data["name"]), path, created, way, **numbers)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("a snapshot is malformed") from error


def read_difference(item: Any) -> Difference:
    """Return a difference from the peer's data.

    Raises:
        ValueError: it is malformed.
    """
    if not isinstance(item, list) or len(item) != 7:
        raise ValueError("a difference must have seven fields")
    path, change, attributes, old_kind, kind, old_size, size = item
    texts = isinstance(path, str) and change in CHANGES and isinstance(attributes, list)
    kinds = all(one in ("", "f", "d", "l", "s") for one in (old_kind, kind))
    numbers = all(type(number) is int and number >= 0 for number in (old_size, size))
    if not texts or not kinds or not numbers or not set(attributes) <= {"mode", "mtime"}:
        raise ValueError("a difference is malformed")
    return Difference(path, change, tuple(attributes), old_kind, kind, old_size, size)


def time_name() -> str:
    """Return the present time in UTC as a snapshot's name."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
