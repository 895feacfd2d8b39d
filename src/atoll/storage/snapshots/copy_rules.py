"""Rules and results of copies within a volume, and the copy of one file's content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from atoll import linux
from atoll.file_stamp import Stamp
from atoll.storage.content import copy
from atoll.storage.content.copy import copy_content
from atoll.storage.files.tree import MODE_BITS
from atoll.storage.snapshots.values import COPY, JUICEFS, REFLINK


@dataclass
class Copied:
    """The contents of a copy.

    Args:
        bytes: of all files.
        files: their number.
        copied_bytes: that neither a clone nor a link saved.
        moving: files that changed during each attempt to copy them.
        left_out: special files.
    """

    bytes: int = 0
    files: int = 0
    copied_bytes: int = 0
    moving: int = 0
    left_out: int = 0


@dataclass
class Previous:
    """An earlier copy, whose files the new one may link.

    Args:
        tree: its open directory, which the maker of this value closes.
        stamps: returns, for a directory's path, the trusted stamps of its source files when they were copied, by name.
    """

    tree: int
    stamps: Callable[[str], dict[str, Stamp]]


@dataclass(frozen=True)
class CopyRules:
    """The rules of one copy.

    Args:
        way: `REFLINK`, `JUICEFS` or `COPY`.
        previous: the copy to share files with; only for live data as the source.
        leave_out: a name at the top that is left out.
        trust_ns: change times from here on are too young to be trusted later; 0 trusts none.
        keep: takes the path of each directory with the stamps of its files: the source's, or the copy's.
        keep_of_copy: selects the copy's stamps.
        plain: as `cp` does: each name of a file becomes a file, special files are errors, modes of the source are
            never changed, and a file is copied once, even if it changes meanwhile.
        progress: takes the number of bytes that have been copied, of each piece, and 0 after each file.
    """

    way: str
    previous: Previous | None = None
    leave_out: str = ""
    trust_ns: int = 0
    keep: Callable[[str, dict[str, Stamp]], None] | None = None
    keep_of_copy: bool = False
    plain: bool = False
    progress: Callable[[int], None] | None = None


def fill(source: int, target: int, info: os.stat_result, rules: CopyRules, attributes: dict[str, bytes]) -> bool:
    """Give an empty file the content, mode and modification time of another; return whether it was cloned.

    Args:
        info: the source's status.
        attributes: extended ones.
    """
    cloned = rules.way == REFLINK and copy.clone(source, target)
    if not cloned:
        os.ftruncate(target, copy_content(source, target, info.st_size, rules.progress))
    for key, value in attributes.items():
        os.setxattr(target, key, value)  # before the mode, which may forbid it
    os.fchmod(target, info.st_mode & MODE_BITS)
    os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))
    if rules.progress is not None:
        rules.progress(0)
    return cloned


def usual_way(directory: int) -> str:
    """Return the best way to copy files within the volume, found by trying it on the file system.

    Args:
        directory: an open directory of the volume that is private to peers.
    """
    if copy.can_clone(directory):
        return REFLINK
    return JUICEFS if linux.kind_of(directory) == "fuse.juicefs" else COPY
