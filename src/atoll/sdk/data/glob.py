"""Patterns for paths of a volume; each directory that a pattern leads through is listed once."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Entry(Protocol):
    """One name in a directory, as `os.DirEntry`."""

    name: str
    path: str

    def is_dir(self) -> bool:
        """Return True for a directory, and a symlink to one."""


class Directories(Protocol):
    """The methods of a volume that matching needs."""

    def isdir(self, path: str) -> bool:
        """Return True for a directory."""

    def scandir(self, path: str) -> Sequence[Entry]:
        """Return the entries of a directory, sorted by name."""

    def walk(self, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield directories, as `os.walk`."""

    def stat(self, path: str, *, follow: bool = ...) -> Any:
        """Return the status of a path."""


def has_magic(pattern: str) -> bool:
    """Return True for a path that is a pattern for `Volume.glob`."""
    return any(char in pattern for char in "*?[")


def matches(volume: Directories, base: str, parts: Sequence[str]) -> Iterator[str]:
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


def _may_be_read(volume: Directories, path: str) -> bool:
    try:
        next(volume.walk(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def _is_there(volume: Directories, path: str) -> bool:
    try:
        volume.stat(path, follow=False)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True
