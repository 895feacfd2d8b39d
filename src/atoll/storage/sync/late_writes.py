"""Bring to a mirror what was written into a tree that it has replaced. Linux only.

A function whose working directory, or an open directory, is in a mirror goes on writing into the tree that stood there
when it began, however often syncs replace it: relative names lead nowhere else. When the sandboxes of that time have
ended, and before the tree is removed, what was made or rewritten in it since it was replaced goes to where the mirror
is now, under its own name where that is free, else beside what has it (`NAME.replaced-TIME`): nothing is overwritten,
and the next sync treats it as whatever a function writes there.

Which files these are the note beside the tree tells: it knows the inodes that stood there when it was replaced. A file
that the mirror has had since is left to the mirror, whatever became of it there. One at a path where another or none
stood came later, as did what was written after the switch into a file that the mirror does not share: that its
modification time or its time of birth tells. Empty directories stay out, and all where no mirror is any more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import ROW, TOO_DEEP, scan_target
from atoll.storage.files.tree import parent_of
from atoll.storage.sync.inodes import unpack_inodes
from atoll.storage.volume import locate as filesystem
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, VISIBLE, locate
from atoll.storage.volume.locks import holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import ReplacedTree

_LONGEST_NAME = 200


def rescue(volume: VolumeRoot, old: str) -> bool:
    """Bring along what was written into a replaced tree; no sandbox that could have it open lives.

    Returns:
        whether the tree can be removed: False where somebody is at work at its target; then it must be tried again.

    Raises:
        OSError: the volume cannot be read or written.
    """
    try:
        origin = ReplacedTree.read(volume.staging, old)
        inodes = unpack_inodes(origin.inodes)
    except (FileNotFoundError, ValueError):
        return True
    try:
        tree = os.open(old, OPEN_DIRECTORY, dir_fd=volume.staging)
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        try:
            late = _written(tree, origin.moment_ns, inodes)
        except SyncError as error:
            if error.details.get("reason") != TOO_DEEP:
                raise
            return True  # nobody could use it at the mirror either
        if not late:
            return True
        with holding_target(volume.locks, origin.target) as held:
            if not held:
                return False
            volume.refresh()
            with locate(volume.data, origin.target, follow=False) as place:
                mirror = place.path.split("/")[0] != VISIBLE and not place.missing and place.is_directory
                if not mirror or place.path != origin.target:
                    return True  # somebody has removed the mirror since
                root = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
            try:
                _bring(tree, root, origin.scope, late)
            finally:
                os.close(root)
            linux.sync_filesystem(volume.staging)
        return True
    finally:
        os.close(tree)


def _written(tree: int, moment_ns: int, inodes: dict[str, int]) -> list[str]:
    """List the files and symlinks that came or were rewritten after a moment, and that the mirror has not had; parents
    first.

    Args:
        inodes: what is known of the tree; empty where nothing is.
    """

    def unlock(path: str, mode: int) -> None:
        with DirectoryCursor(tree) as cursor:
            os.chmod(f"/proc/self/fd/{cursor.open(path)}", mode | 0o700)

    scan, now_ns = scan_target(tree, unlock), time.time_ns()
    found, rows = list[str](), scan.rows
    columns = zip(scan.paths, rows[::ROW], rows[2::ROW], rows[3::ROW], rows[4::ROW], strict=True)
    with DirectoryCursor(tree, OPEN_PLACE) as cursor:
        for path, mode, mtime_ns, ctime_ns, inode in columns:
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                continue
            if ctime_ns <= moment_ns:  # every change moves it; links, and removals of other names, do so as well
                continue
            had = inodes.get(path) if inodes else 0
            if had == 0:
                late = (
                    moment_ns < mtime_ns <= now_ns
                    or linux.born_ns(cursor.open(parent_of(path)), path.rpartition("/")[2]) > moment_ns
                )
            else:
                late = had != inode
            if late:
                found.append(path)
    return found


def _bring(tree: int, root: int, scope: str, late: list[str]) -> None:
    with DirectoryCursor(tree) as ours, DirectoryCursor(root) as theirs:
        for path in late:
            where = f"{scope}/{path}" if scope else path
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a file stands where a directory was
                make_missing(theirs, parent_of(where))
                old, new = ours.open(parent_of(path)), theirs.open(parent_of(where))
                filesystem.make_writable(old, ".")
                with _unchanged(new):
                    _bring_one(old, new, path.rpartition("/")[2])
                reached("rescued", path=where)


@contextlib.contextmanager
def _unchanged(directory: int) -> Iterator[None]:
    """Have a directory writable, and give it its mode and time again."""
    found, itself = os.fstat(directory), f"/proc/self/fd/{directory}"
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o300 != 0o300:
        os.chmod(itself, mode | 0o300)
    try:
        yield
    finally:
        os.utime(itself, ns=(found.st_atime_ns, found.st_mtime_ns))
        if mode & 0o300 != 0o300:
            os.chmod(itself, mode)


def _bring_one(old: int, new: int, name: str) -> None:
    found, there = os.stat(name, dir_fd=old, follow_symlinks=False), None
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(name, dir_fd=new, follow_symlinks=False)
    if there is not None and os.path.samestat(there, found):
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(found.st_mtime))
    short = os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
    for free in (name, f"{short}.replaced-{stamp}", f"{short}.replaced-{stamp}-{secrets.token_hex(4)}"):
        with contextlib.suppress(FileExistsError):
            linux.rename_new(old, name, new, free)
            return


def make_missing(theirs: DirectoryCursor, directory: str) -> None:
    """Make a directory of the mirror, and those above it, where they are missing.

    Raises:
        NotADirectoryError: something else stands on the way.
    """
    parts = directory.split("/") if directory else []
    for depth in range(1, len(parts) + 1):
        parent = theirs.open("/".join(parts[: depth - 1]))
        try:
            found = os.stat(parts[depth - 1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            with _unchanged(parent):
                os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
        else:
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(parts[depth - 1])
