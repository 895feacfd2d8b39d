"""What a storage peer does to a volume's file system below the level of trees. Linux only, standard library only.

Functions write into the volume while a peer works, so no path is ever handed to the kernel whole: `locate` walks one
component at a time, each opened relative to the one before and without following symlinks, and resolves symlinks
itself, as a function sees them: `/data` is the volume's data, and nothing else exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections import deque
from dataclasses import dataclass
from typing import Self

from atoll import linux
from atoll.errors import AtollError, DiskFull, QuotaExceeded, StateUnusable, SyncError
from atoll.storage.files.tree import printable
from atoll.storage.volume.root import QUICK_SECONDS, seconds_for_a_file, spread

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_SYMLINKS = 40  # the kernel's own limit for one lookup
_MAX_DEPTH = 100
_DRAWS, _DRAWS_BELOW = 8, 2


VISIBLE = ".snapshots"
"""The name in `/data` at which functions see the snapshots, read-only; syncs, usage and snapshots leave it out."""

RESTORED = "restored"
"""A file in staging, whose time is that of the last restore."""

_PARTS = {"data": 0o755, "staging": 0o700, "staging/locks": 0o700, "snapshots": 0o700, "snapshots/trees": 0o700}


class VolumeRoot:
    """A volume's directories, open.

    Args:
        path: the volume's directory; `data` and `staging` are made where they are missing.

    Raises:
        StateUnusable: they cannot be made or opened, or are on different file systems.
    """

    def __init__(self, path: str) -> None:
        try:
            for name, mode in _PARTS.items():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(f"{path}/{name}", mode)
            self.data = os.open(f"{path}/data", OPEN_DIRECTORY)
            self.staging = os.open(f"{path}/staging", OPEN_DIRECTORY)
            self.locks = os.open(f"{path}/staging/locks", OPEN_DIRECTORY)
            self.snapshots = os.open(f"{path}/snapshots/trees", OPEN_DIRECTORY)
        except OSError as error:
            raise StateUnusable(
                f"the volume cannot be opened: {error.strerror}",
                hint="check that its disk is mounted writable and that the volume belongs to its user",
            ) from error
        self._mark = self._restored()
        if os.fstat(self.data).st_dev != os.fstat(self.staging).st_dev:
            raise StateUnusable("`data` and `staging` of the volume are on different file systems")
        spread(self.staging)

    def refresh(self) -> bool:
        """Have `data` be the directory that has this name now: a restore may replace it.

        Returns:
            whether anything of the volume has been restored since the last time.
        """
        mark, self._mark = self._mark, self._restored()
        mine, found = os.fstat(self.data), os.stat("../data", dir_fd=self.staging, follow_symlinks=False)
        if (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino):
            return mark != self._mark
        current = os.open("../data", OPEN_DIRECTORY, dir_fd=self.staging)
        try:
            os.dup2(current, self.data, inheritable=False)
        finally:
            os.close(current)
        return True

    def _restored(self) -> int:
        try:
            return os.stat(RESTORED, dir_fd=self.staging, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            return 0

    def mark_restored(self) -> None:
        """Tell all peers that something of the volume has been replaced by what a snapshot held."""
        descriptor = os.open(
            RESTORED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.staging
        )
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    def temporary_name(self, kind: str) -> str:
        """Return a new name below `staging`."""
        return f"{kind}-{secrets.token_hex(8)}"

    def make_apart(self, name: str, parent: int | None = None) -> None:
        """Make a directory of `staging` whose files go to a part of the disk where nothing was removed lately.

        Where that is the file system draws from the name that a directory is made under (see `placement`). A part
        that turns out to be slow all the same is given up for another, a few times.

        Args:
            name: the directory, relative to `parent`.
            parent: the open directory that gets it; `staging` by default.

        Raises:
            OSError: it cannot be made.
        """
        best, best_seconds = "", 0.0
        for _ in range(_DRAWS if parent is None else _DRAWS_BELOW):
            drawn = self.temporary_name("new")
            os.mkdir(drawn, 0o700, dir_fd=self.staging)
            seconds = seconds_for_a_file(self.staging, drawn)
            if not best or seconds < best_seconds:
                best, drawn, best_seconds = drawn, best, seconds
            if drawn:
                with contextlib.suppress(OSError):
                    os.rmdir(drawn, dir_fd=self.staging)
            if best_seconds < QUICK_SECONDS:
                break
        target = self.staging if parent is None else parent
        os.rename(best, name, src_dir_fd=self.staging, dst_dir_fd=target)

    def discard(self, parent: int, name: str) -> None:
        """Take what stands at `name` out of sight in one step, and remove it; what is not there is left alone."""
        if (trash := self.take(parent, name)) is not None:
            remove_tree(self.staging, trash)

    def take(self, parent: int, name: str) -> str | None:
        """Take what stands at `name` out of sight in one step; return what it is called in staging, None for nothing."""
        trash = self.temporary_name("trash")
        try:
            move(parent, name, self.staging, trash)
        except FileNotFoundError:
            return None
        return trash


@dataclass
class Place:
    """Where a path of the volume leads.

    Args:
        parent: the deepest directory on the way that exists, open; owned by the place.
        name: the last component; empty for the volume's root itself.
        path: the path with all symlinks resolved, relative to the root.
        missing: directories between `parent` and `name` that do not exist.
        found: what stands there, not followed; None when nothing does.
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
        """Return what stands there.

        Raises:
            FileNotFoundError: nothing does.
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
        snapshots: the open directory that functions see at `/data/.snapshots`, for who only reads.

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
    """Whether there is something at a name, a dangling symlink included."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def names(directory: int) -> list[str]:
    """Return what an open directory holds now: a descriptor itself lists, on btrfs, what was there at its last use."""
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


class Removing:
    """How `remove_tree` takes away each name; a subclass may do it at a pace of its own."""

    def file(self, parent: int, name: str) -> bool:
        """Remove a file; return False where it is a directory, which is left.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            return False
        return True

    def directory(self, parent: int, name: str) -> None:
        """Remove an empty directory.

        Raises:
            OSError: it cannot be removed.
        """
        os.rmdir(name, dir_fd=parent)


def remove_tree(parent: int, name: str, removing: Removing | None = None) -> None:
    """Remove a file or a whole directory, whatever its modes and depth; what is gone already is left alone.

    Args:
        parent: private to peers (`staging`): directories that are nested too deeply are moved up into it.
        removing: takes away each name; as fast as it goes by default.

    Raises:
        OSError: something cannot be removed.
    """
    pending = [name]
    while pending:
        _remove(parent, pending.pop(), parent, pending, 0, removing or Removing())


def _remove(parent: int, name: str, top: int, pending: list[str], depth: int, removing: Removing) -> None:
    with contextlib.suppress(FileNotFoundError):  # another peer may be at it too
        if removing.file(parent, name):
            return
        make_writable(parent, name)
        if depth >= _MAX_DEPTH:
            moved = f"trash-{secrets.token_hex(8)}"
            os.rename(name, moved, src_dir_fd=parent, dst_dir_fd=top)
            pending.append(moved)
            return
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        try:
            for below in os.listdir(descriptor):
                _remove(descriptor, below, top, pending, depth + 1, removing)
        finally:
            os.close(descriptor)
        removing.directory(parent, name)


_HINTS = {
    errno.EPERM: "choose a target that may be changed",
    errno.ENAMETOOLONG: "choose a shorter name; the file system takes 255 bytes",
    errno.ENOTDIR: "choose a target below a directory, or remove what is in its way",
}


def translated(error: Exception, what: str) -> AtollError:
    """Return the named error for a failure of the volume's file system while `what` was done."""
    if isinstance(error, AtollError):
        return error
    if not isinstance(error, OSError):
        return SyncError(f"{what}: {error}")
    text = (error.strerror or str(error)).lower()
    if error.errno == errno.ENOSPC:
        return DiskFull(f"{what}: the volume's disk is full", hint="free some space there and try again")
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(f"{what}: the volume's quota is used up", hint="remove something and try again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EIO):
        return StateUnusable(f"{what}: {text}", hint="check that the volume's disk is sound and mounted writable")
    where = f" (`{printable(os.fsdecode(error.filename))}`)" if isinstance(error.filename, (str, bytes)) else ""
    return SyncError(f"{what}: {text}{where}", hint=_HINTS.get(error.errno or 0, ""))
