"""The last look at a tree before it is replaced: its new tree gets what functions made, replaced and removed since.

Between the scan and the exchange, functions go on. A name that the sync does not touch, such as a database's journal in
an excluded directory, must be in the new tree exactly if it is in the old one: a journal that was removed and comes back
rolls a committed transaction back, and one that is missing leaves a torn one. So there are two looks. The first is at
everything, while functions run. The second comes while the daemon holds the user's sandboxes (`pause`), and reads again
only those directories whose times have moved, or could have without a trace: that takes as long as a `stat` of each
directory. After the exchange a third one, without removals, finds what others than sandboxes have written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atoll.file_stamp import settled
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import MAX_PATH
from atoll.storage.files.tree import parent_of
from atoll.storage.sync.late_writes import inode_of, link_one, make_missing, mode_and_time_kept
from atoll.storage.sync.scope import is_within
from atoll.storage.volume.locate import OPEN_DIRECTORY
from atoll.storage.volume.root import VolumeRoot

_Stamp = tuple[int, int, int]


@dataclass
class _Seen:
    """A directory of the old tree as it was listed."""

    stamp: _Stamp
    sure: bool
    below: list[str] = field(default_factory=list)


class LastLook:
    """Keeps the untouched names of a new tree as they are in the old one.

    Args:
        volume: its staging holds replacements for a moment.
        old, new: the trees, open; the caller closes them.
        dropped: paths that the sync removes.
        directories: paths of the old tree's directories that the sync leaves as they are.
        inodes: those of the old tree, by path, as in `late_writes`: 0 for what the sync touches; updated.
    """

    def __init__(
        self,
        volume: VolumeRoot,
        old: int,
        new: int,
        dropped: frozenset[str],
        directories: Iterable[str],
        inodes: dict[str, int],
    ) -> None:
        self._volume = volume
        self._old, self._new = old, new
        self._dropped = dropped
        self._inodes = inodes
        self._seen: dict[str, _Seen] = {}
        self._late = set[str]()
        self._left = set[str]()
        self._names: dict[str, set[str]] = {}
        """The untouched names in each directory that the new tree has from the old one."""
        self._directories = set(directories)
        for path, inode in inodes.items():
            if path and (inode or path in self._directories):
                self._names.setdefault(parent_of(path), set()).add(path)

    def look(self, *, removals: bool = True) -> None:
        """Bring the new tree up to date with the old one.

        Args:
            removals: whether names that the old tree has lost go from the new one.
        """
        with (
            DirectoryCursor(self._old, OPEN_DIRECTORY) as ours,
            DirectoryCursor(self._new) as theirs,
        ):
            pending = [""]
            while pending:
                path = pending.pop()
                if any(is_within(path, left) for left in self._left):
                    continue
                if len(path) > MAX_PATH:  # the mirror could not be used with it
                    self._leave_behind(path, theirs)
                    continue
                with contextlib.suppress(OSError):  # gone since, or closed to its owner: `rescue` tries again
                    pending += self._look_at(path, ours, theirs, removals=removals)

    def _look_at(self, path: str, ours: DirectoryCursor, theirs: DirectoryCursor, *, removals: bool) -> list[str]:
        """Look at one directory, unless it is as it was; return the directories in it."""
        here, now_ns = ours.open(path), time.time_ns()
        info = os.fstat(here)
        stamp = (info.st_ino, info.st_ctime_ns, info.st_mtime_ns)
        seen = self._seen.get(path)
        if seen is not None and seen.sure and seen.stamp == stamp:
            return seen.below
        listed, below = set[str](), list[str]()
        start = f"{path}/" if path else ""
        for item in self._entries(here, path):
            name = start + item.name
            listed.add(name)
            if name in self._left:
                continue
            directory = item.is_dir(follow_symlinks=False)
            if removals and (name in self._directories if not directory else self._inodes.get(name)):
                self._remove(name, theirs)  # it became something else
            if directory:
                below.append(name)
                if name not in self._inodes and name not in self._dropped:
                    with contextlib.suppress(OSError):
                        self._make_directory(name, item, theirs)
            elif name not in self._dropped:
                with contextlib.suppress(OSError):
                    self._take(name, item, here, theirs, hidden=removals)
        if removals:
            for name in self._names.get(path, set()) - listed:
                with contextlib.suppress(OSError):
                    self._remove(name, theirs)
        if path in self._directories:
            with contextlib.suppress(OSError):
                times = (info.st_atime_ns, info.st_mtime_ns)
                os.utime(f"/proc/self/fd/{theirs.open(path)}", ns=times)
        self._seen[path] = _Seen(stamp, settled(max(stamp[1:]), now_ns), below)
        return below

    @staticmethod
    def _entries(here: int, path: str) -> Iterator[os.DirEntry[str]]:
        """Give a directory's entries, which are looked up by an open descriptor."""
        descriptor = here if path else os.open(".", OPEN_DIRECTORY, dir_fd=here)  # the root is listed again and again
        try:
            with os.scandir(descriptor) as found:
                entries = list(found)
            yield from entries
        finally:
            if not path:
                os.close(descriptor)

    def _make_directory(self, name: str, item: os.DirEntry[str], theirs: DirectoryCursor) -> None:
        mode = stat.S_IMODE(item.stat(follow_symlinks=False).st_mode)
        make_missing(theirs, parent_of(name))
        parent = theirs.open(parent_of(name))
        with mode_and_time_kept(parent), contextlib.suppress(FileExistsError):
            os.mkdir(item.name, mode | 0o700, dir_fd=parent)
            self._directories.add(name)
            self._late.add(name)
            self._inodes[name] = 0
            self._names.setdefault(parent_of(name), set()).add(name)
            reached("carried over", path=name)

    def _take(self, name: str, item: os.DirEntry[str], here: int, theirs: DirectoryCursor, *, hidden: bool) -> None:
        """Link a file that the new tree does not have, or has as it was.

        Args:
            hidden: whether no function has seen the new tree, so that its file is an earlier one of the old tree.
        """
        had = self._inodes.get(name)
        if had == 0 or had == item.inode():
            return
        inode = item.stat(follow_symlinks=False).st_ino  # the listing of some file systems has other numbers
        if had == inode:
            return
        if parent_of(name) in self._dropped:  # the directory stays for a late file in it
            make_missing(theirs, parent_of(name))
        parent = theirs.open(parent_of(name))
        there = inode_of(parent, item.name)
        if there not in (inode, had) and not hidden:  # a removal in the mirror is final, and so is another file
            return
        if there != inode:
            with mode_and_time_kept(parent):
                link_one(self._volume, here, parent, item.name, there)
            there = inode_of(parent, item.name)  # a function may have replaced it again since it was listed
            reached("carried over", path=name)
        self._note(name, there or 0)

    def _note(self, name: str, inode: int) -> None:
        self._inodes[name] = inode
        self._names.setdefault(parent_of(name), set()).add(name)

    def _remove(self, name: str, theirs: DirectoryCursor) -> None:
        """Remove a name, with all that the new tree has below it from the old one."""
        found = [name]
        for path in found:  # it grows
            found += self._names.get(path, ())
        for path in reversed(found):
            last = path.rpartition("/")[2]
            with contextlib.suppress(OSError), mode_and_time_kept(parent := theirs.open(parent_of(path))):
                if path not in self._directories:
                    if inode_of(parent, last) == self._inodes[path]:
                        os.unlink(last, dir_fd=parent)
                else:
                    os.rmdir(last, dir_fd=parent)  # unless the sync put something there
            self._directories.discard(path)
            self._inodes.pop(path, None)
            self._names[parent_of(path)].discard(path)
        reached("taken away", path=name)

    def _leave_behind(self, path: str, theirs: DirectoryCursor) -> None:
        """Remove the topmost late directory above a path, and take nothing below it any more."""
        while path and parent_of(path) in self._late:
            path = parent_of(path)
        self._left.add(path)
        if path in self._late:
            self._remove(path, theirs)
