"""Patterns for paths of a volume: one directory is listed for each that a pattern leads through."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.sdk.volume import Volume


def has_magic(pattern: str) -> bool:
    """Say whether a path is a pattern for `Volume.glob`."""
    return any(char in pattern for char in "*?[")


def matches(volume: Volume, base: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the paths below `base`, a directory, that match the components of a pattern, some perhaps twice.

    An empty component at the end stands for directories only.
    """
    part, rest = parts[0], parts[1:]
    if not part:
        if volume.isdir(base):
            yield base
        return
    if part == "**":
        if not _may_be_read(volume, base):
            return
        for where, directories, files in volume.walk(base):
            directories[:] = [name for name in directories if not name.startswith(".")]
            if rest:
                yield from matches(volume, where, rest)
            else:
                shown = [name for name in files if not name.startswith(".")]
                yield from (f"{where}/{name}" for name in [*directories, *shown])
        return
    if not has_magic(part):
        path = f"{base}/{part}"
        if rest:
            yield from matches(volume, path, rest)
        elif _is_there(volume, path):
            yield path
        return
    match = re.compile(fnmatch.translate(part)).match
    try:
        entries = volume.scandir(base)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        if match(entry.name) and (part.startswith(".") or not entry.name.startswith(".")):
            if not rest:
                yield entry.path
            elif entry.is_dir():
                yield from matches(volume, entry.path, rest)


def _may_be_read(volume: Volume, path: str) -> bool:
    try:
        next(volume.walk(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def _is_there(volume: Volume, path: str) -> bool:
    try:
        volume.stat(path, follow=False)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True
