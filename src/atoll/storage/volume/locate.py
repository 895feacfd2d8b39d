"""Lookups and changes of single paths of a volume, for storage peers. Linux only, standard library only.

Functions write into the volume while a peer works, so no path is ever handed to the kernel whole: `locate` walks one
component at a time, each opened relative to the one before and without following symlinks, and resolves symlinks
itself, as a function sees them: `/data` is the volume's data, and nothing else exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from typing import Self

from atoll import linux

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SYMLINKS = 40  # the kernel's own limit for one lookup


VISIBLE = ".snapshots"
"""The name in `/data` at which functions see the snapshots, read-only; syncs, usage and snapshots leave it out."""


@dataclass
class Place:
    """The place that a path of the volume leads to.

    Args:
        parent: the deepest directory on the way that exists, open; owned by the place.
        name: the last component; empty for the volume's root itself.
        path: the path with all symlinks resolved, relative to the root.
        missing: directories between `parent` and `name` that do not exist.
        found: status of the entry there, not followed; None when there is none.
    """

    parent: int
    name: str
    path: str
    missing: tuple[str, ...]
    found: os.stat_result | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.parent)

    @property
    def is_directory(self) -> bool:
        return self.found is not None and stat.S_ISDIR(self.found.st_mode)

    def existing(self) -> os.stat_result:
        """Return the status of the entry there.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        return self.found

    def make_parents(self) -> None:
        """Make the missing directories, durably; another process may do the same."""
        for name in self.missing:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self.parent)
                linux.sync_directory(self.parent)
            below = os.open(name, OPEN_DIRECTORY, dir_fd=self.parent)
            os.close(self.parent)
            self.parent = below
        self.missing = ()


def locate(data: int, path: str, *, follow: bool, snapshots: int = -1) -> Place:
    """Find out where `path`, relative to the volume's root, leads.

    Args:
        follow: whether a symlink at the last component is followed too.
        snapshots: the open directory that functions see at `/data/.snapshots`, for read-only use.

    Raises:
        PermissionError: a symlink on the way leads out of `/data`; or it leads to the snapshots, and these were not given.
        NotADirectoryError: something on the way is not a directory.
        OSError: the way cannot be followed otherwise.
    """
    todo = deque(path.split("/") if path else [])
    opened, names, links = [os.dup(data)], list[str](), 0
    try:
        while todo:
            name = todo.popleft()
            if name == "..":
                if not names:
                    raise _leads_out(path)
                os.close(opened.pop())
                names.pop()
                continue
            if name == VISIBLE and not names:
                if snapshots < 0:
                    raise PermissionError(errno.EPERM, "snapshots cannot be changed", path)
                opened.append(os.dup(snapshots))
                names.append(name)
                continue
            try:
                found = os.stat(name, dir_fd=opened[-1], follow_symlinks=False)
            except FileNotFoundError:
                if ".." in todo:
                    raise
                below = [name, *todo]
                return Place(opened.pop(), below[-1], "/".join([*names, *below]), tuple(below[:-1]), None)
            except PermissionError as error:  # the directory may not be entered
                raise PermissionError(error.errno, error.strerror, "/".join(names)) from error
            if stat.S_ISLNK(found.st_mode) and (todo or follow):
                links += 1
                if links > _MAX_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                todo.extendleft(reversed(_follow(name, opened, names, path)))
            elif not todo:
                return Place(opened.pop(), name, "/".join([*names, name]), (), found)
            else:
                if not stat.S_ISDIR(found.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/".join([*names, name]))
                opened.append(os.open(name, OPEN_PLACE, dir_fd=opened[-1]))
                names.append(name)
        if not names:
            return Place(opened.pop(), "", "", (), os.fstat(data))
        if names == [VISIBLE]:
            return Place(opened.pop(), "", VISIBLE, (), os.fstat(snapshots))
        # The path ended in `..` of a symlink: name the directory from above.
        name = names.pop()
        os.close(opened.pop())
        found = os.stat(name, dir_fd=opened[-1], follow_symlinks=False)
        return Place(opened.pop(), name, "/".join([*names, name]), (), found)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _follow(name: str, opened: list[int], names: list[str], path: str) -> list[str]:
    """Return the components of a symlink's target; an absolute one leads back to the root."""
    target = os.readlink(name, dir_fd=opened[-1])
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if not target.startswith("/"):
        return parts
    if parts[:1] != ["data"]:
        raise _leads_out(path)
    while len(opened) > 1:
        os.close(opened.pop())
    names.clear()
    return parts[1:]


def _leads_out(path: str) -> PermissionError:
    return PermissionError(errno.EPERM, "a symlink on the way leads out of `/data`", path)


def open_below(directory: int, path: str) -> int:
    """Open a directory below another, one component at a time, so that no symlink is followed.

    Raises:
        OSError: it cannot be opened.
    """
    here = os.dup(directory)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, OPEN_DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def exists(parent: int, name: str) -> bool:
    """Return whether a name exists, that of a dangling symlink included."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def names(directory: int) -> list[str]:
    """Return the names in an open directory now: on btrfs the descriptor itself lists those of its last use."""
    fresh = os.open(".", OPEN_DIRECTORY, dir_fd=directory)
    try:
        return os.listdir(fresh)
    finally:
        os.close(fresh)


def move(old_parent: int, old: str, new_parent: int, new: str) -> None:
    """Rename; a directory that its owner may not write is made writable first, since moving one changes its `..`."""
    try:
        os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)
    except PermissionError:
        try:
            make_writable(old_parent, old)
        except NotADirectoryError:  # so it is one of the directories that it moves between which may not be written
            pass
        else:
            os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)
            return
        raise


def make_writable(parent: int, name: str) -> None:
    """Give the owner of a directory all access to it; anything else is left alone."""
    descriptor = os.open(name, OPEN_PLACE, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{descriptor}", mode | 0o700)
    finally:
        os.close(descriptor)
