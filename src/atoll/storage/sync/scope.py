"""The scope of a plan, which is switched in one step: the deepest path that contains every change. No I/O.

A change is a path that comes, goes or becomes something else, or a directory whose mode changes. One change alone is
switched by itself; several at the deepest directory above all of them, which is rebuilt beside the old one with links
to unchanged files. So one edit among a million files links nothing, and two edits in one directory link that directory.
A large file that is replaced alone is switched with its directory, where that is cheap: then its change time is older
than the switch and can be trusted by the next sync, which else reads it whole, and the old one goes later, with its tree.

A directory that is not rebuilt gets its new mode or time in place after the switch; a lookup finds the same through
it before and after, and a crash in between is mended by recovery. (The directory that holds the scope needs this
anyway: a rename moves its time.) A changed mode elsewhere than above the other changes is a change like others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atoll.storage.files.tree import DIRECTORY, FILE, Entry, Tree, parent_of
from atoll.storage.sync.plan import Plan

_LARGE_BYTES = 16 << 20
_CHEAP_ENTRIES = 1000
"""Entries that may be linked for the sake of one large file: about 10 ms."""


@dataclass(frozen=True)
class Scope:
    """The path that is switched, and the directories that are changed in place.

    Args:
        path: relative to the target: an entry that comes, goes or is replaced, or a directory that is rebuilt; None
            where nothing is switched.
        rebuilt: whether it is a directory before and after.
        in_place: directories outside of it that get their mode and time where they are.
    """

    path: str | None
    rebuilt: bool = False
    in_place: Tree = field(default_factory=dict)

    def contains(self, path: str) -> bool:
        """Return whether a path is switched."""
        return self.path is not None and is_within(path, self.path)


def is_within(path: str, directory: str) -> bool:
    """Return whether a path is a directory's, or that of something in it."""
    return not directory or path == directory or path.startswith(f"{directory}/")


def scope_of(plan: Plan, target: Tree) -> Scope:
    """Find the scope of a plan for a target.

    Args:
        target: the target's current tree; empty when there is none.
    """
    own = {path: entry for path, entry in plan.put.items() if _is_directory(entry) and _is_directory(target.get(path))}
    changed = _topmost([*plan.drop, *(path for path in plan.put if path not in own)])
    modes = [path for path, entry in own.items() if entry.mode != target[path].mode]
    path, rebuilt = _place(changed, modes)
    if path and not rebuilt and _is_large(plan.put.get(path)) and _is_large(target.get(path)):
        holder = parent_of(path)
        if sum(is_within(name, holder) for name in target) <= _CHEAP_ENTRIES:
            path, rebuilt = holder, True
    in_place = {name: entry for name, entry in own.items() if path is None or not is_within(name, path)}
    if path:
        holder = parent_of(path)
        in_place[holder] = plan.put.get(holder) or target[holder]
    return Scope(path, rebuilt, in_place)


def _place(changed: list[str], modes: list[str]) -> tuple[str | None, bool]:
    if not changed and len(modes) <= 1:
        return None, False
    if len(changed) == 1:
        path, rebuilt = changed[0], False
    else:
        path, rebuilt = _above(changed or modes), True
    beside = [name for name in modes if not is_within(path, name) and not is_within(name, path)]
    return (_above([path, *beside]), True) if beside else (path, rebuilt)


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == DIRECTORY


def _is_large(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == FILE and entry.size >= _LARGE_BYTES


def _topmost(paths: Iterable[str]) -> list[str]:
    """Return the paths that are below none of the others."""
    named = set(paths)
    if "" in named:
        return [""]
    return [path for path in named if not any(above in named for above in _ways(path))]


def _ways(path: str) -> Iterator[str]:
    while path := parent_of(path):
        yield path


def _above(paths: list[str]) -> str:
    """Return the deepest directory that contains all the paths, or is one of them."""
    first, last = min(paths, key=_parts), max(paths, key=_parts)
    common = 0
    ours, theirs = _parts(first), _parts(last)
    while common < min(len(ours), len(theirs)) and ours[common] == theirs[common]:
        common += 1
    return "/".join(ours[:common])


def _parts(path: str) -> list[str]:
    return path.split("/") if path else []
