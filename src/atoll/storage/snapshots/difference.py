"""Comparison of two directories: one walk through both, a level at a time, safe against hostile names and swaps.

Two files are equal without reading them if they are one inode, or if their stamps prove that both were copied from
the same state of a live file. Else files of the same size are compared byte by byte.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from atoll.errors import SyncError
from atoll.file_stamp import Stamp, stamp_of
from atoll.storage.files.tree import MODE_BITS, entry_of
from atoll.storage.snapshots.file_access import open_directory, open_file, same_content
from atoll.storage.snapshots.tree_copy import MAX_DEPTH
from atoll.storage.snapshots.values import ADDED, ATTRIBUTES, CHANGED, REMOVED, Difference
from atoll.terminal_text import printable

Items = dict[str, os.stat_result]
Stamps = Callable[[str], dict[str, Stamp]]


@dataclass
class Side:
    """One of the two directories.

    Args:
        root: the open directory, which the maker of this value closes.
        stamps: returns the stamps of live files that a directory's files were copied from, by name; None for live
            data itself.
        leave_out: a name at the top that is left out.
    """

    root: int
    stamps: Stamps | None
    leave_out: str = ""


@dataclass
class _Level:
    path: str
    opened: list[int]
    modes: list[int | None]
    below: Iterator[tuple[str, list[bool]]] = field(default_factory=lambda: iter(()))


def differences(old: Side, new: Side, prefix: str) -> Iterator[Difference]:
    """Yield how `new` differs from `old`; `prefix` goes before the paths.

    Raises:
        SyncError: directories are nested too deeply.
    """
    sides = (old, new)
    levels = [_Level("", [os.dup(side.root) for side in sides], [None, None])]
    try:
        yield from _attributes(prefix, os.fstat(old.root), os.fstat(new.root))
        found, below = _compare(sides, levels[0], prefix)
        levels[0].below = iter(below)
        yield from found
        while levels:
            level = levels[-1]
            step = next(level.below, None)
            if step is None:
                _close(levels.pop())
                continue
            if len(levels) >= MAX_DEPTH:
                raise SyncError(f"`{printable(level.path[:100])}…` is nested more than {MAX_DEPTH} directories deep")
            name, there = step
            entered = _enter(level, name, there)
            levels.append(entered)
            found, below = _compare(sides, entered, prefix)
            entered.below = iter(below)
            yield from found
    finally:
        for level in reversed(levels):
            _close(level)


def _enter(above: _Level, name: str, there: list[bool]) -> _Level:
    level = _Level(f"{above.path}/{name}" if above.path else name, [], [])
    for is_there, parent in zip(there, above.opened, strict=True):
        descriptor, mode = -1, None
        if is_there and parent >= 0:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                descriptor, mode = open_directory(parent, name)
        level.opened.append(descriptor)
        level.modes.append(mode)
    return level


def _close(level: _Level) -> None:
    for descriptor, mode in zip(level.opened, level.modes, strict=True):
        if descriptor >= 0:
            if mode is not None:
                with contextlib.suppress(OSError):
                    os.fchmod(descriptor, mode)
            os.close(descriptor)


def _items(level: _Level, number: int, side: Side) -> Items:
    found: Items = {}
    if level.opened[number] < 0:
        return found
    with os.scandir(level.opened[number]) as items:
        for item in items:
            if level.path or item.name != side.leave_out:
                with contextlib.suppress(FileNotFoundError):
                    found[item.name] = item.stat(follow_symlinks=False)
    return found


def _compare(
    sides: tuple[Side, Side], level: _Level, prefix: str
) -> tuple[list[Difference], list[tuple[str, list[bool]]]]:
    """Return how one directory differs, and which directories in it are to be looked at, with the sides they are on."""
    old, new = (_items(level, number, side) for number, side in enumerate(sides))
    stamps = [side.stamps(level.path) if side.stamps is not None else None for side in sides]
    found: list[Difference] = []
    below: list[tuple[str, list[bool]]] = []
    start = f"{prefix}/{level.path}/" if level.path else f"{prefix}/"
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        path = start + name
        there = [one is not None and stat.S_ISDIR(one.st_mode) for one in (before, after)]
        if any(there):
            below.append((name, there))
        if before is None and after is not None:
            found.append(Difference(path, ADDED, kind=_kind(after), size=_size(after)))
        elif after is None and before is not None:
            found.append(Difference(path, REMOVED, old_kind=_kind(before), old_size=_size(before)))
        elif before is not None and after is not None:
            if _same(level, name, before, after, stamps):
                found += _attributes(path, before, after)
            else:
                kinds = (_kind(before), _kind(after))
                attributes = _differing(before, after) if kinds[0] == kinds[1] else ()
                found.append(Difference(path, CHANGED, attributes, *kinds, _size(before), _size(after)))
    return found, below


def _same(
    level: _Level, name: str, before: os.stat_result, after: os.stat_result, stamps: list[dict[str, Stamp] | None]
) -> bool:
    """Return True if kind, content and symlink target are equal."""
    if stat.S_IFMT(before.st_mode) != stat.S_IFMT(after.st_mode):
        return False
    if stat.S_ISLNK(before.st_mode):
        try:
            targets = {os.readlink(name, dir_fd=directory) for directory in level.opened}
        except OSError:
            return False
        return len(targets) == 1
    if not stat.S_ISREG(before.st_mode):
        return True
    if before.st_size != after.st_size:
        return False
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
        return True
    own = [known.get(name) if known is not None else None for known in stamps]
    for number, info in enumerate((before, after)):
        if stamps[number] is None:  # live data is its own stamp
            own[number] = stamp_of(info)
    if own[0] is not None and own[0] == own[1] and stamps != [None, None]:
        return True
    return _same_bytes(level, name)


def _same_bytes(level: _Level, name: str) -> bool:
    opened = [open_file(directory, name) for directory in level.opened]
    try:
        return min(opened) >= 0 and same_content(*opened)
    finally:
        for descriptor in opened:
            if descriptor >= 0:
                os.close(descriptor)


def _attributes(path: str, before: os.stat_result, after: os.stat_result) -> list[Difference]:
    found = _differing(before, after)
    if not found:
        return []
    return [Difference(path, ATTRIBUTES, found, _kind(before), _kind(after), _size(before), _size(after))]


def _differing(before: os.stat_result, after: os.stat_result) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    if not stat.S_ISLNK(before.st_mode) and (before.st_mode ^ after.st_mode) & MODE_BITS:
        found += ("mode",)
    if stat.S_ISREG(before.st_mode) and before.st_mtime_ns != after.st_mtime_ns:
        found += ("mtime",)
    return found


def _kind(info: os.stat_result) -> str:
    return entry_of(info).kind


def _size(info: os.stat_result) -> int:
    return entry_of(info).size
