"""Late writes: files that functions create or replace in a tree that a sync replaces. They are copied to the new tree.

A function whose working directory, or an open directory, is in a mirror goes on writing into the tree that it opened,
however often syncs replace it. Two moments matter:

    during the switch    (`last_look`; after a crash `copy_during_switch`) where a sync keeps names that the source does
                         not have, a file that appears in the old tree after the scan belongs to the mirror: it is
                         linked into the new tree
    at the end           (`rescue`) when no sandbox lives that can have the replaced tree open, its late writes go to
                         the mirror of that day under their own names; an existing file keeps its name, and the late one
                         is called `NAME.replaced-TIME`

The inode that the old tree has at a path tells late writes from the rest (`pack_inodes`, in the record and the note):

    inode    the mirror has that file too, or got it as a late write: nothing is left to do
    0        the new tree has a different file here, or none, as planned
    absent   the file came after the scan: a late write, as is a file with another inode

A file that the mirror has had since is the mirror's, and its removal there is final. A file at a path with 0 is late
where its modification time or its time of birth is after the switch. Empty directories are not copied, and nothing is
where the mirror is gone.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import stat
import struct
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.crash_points import reached
from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.scan import ROW, TOO_DEEP, scan_target
from atoll.storage.files.tree import DIRECTORY, Tree, parent_of
from atoll.storage.files.tree_wire import from_bytes, pack_names, to_bytes, unpack_names
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE, VISIBLE, locate, make_writable
from atoll.storage.volume.locks import holding_target
from atoll.storage.volume.root import VolumeRoot
from atoll.storage.volume.staging import ReplacedTree, new_name

_LONGEST_NAME = 200
_COUNT = struct.Struct("<I")
_WIDTH = 8


def copy_during_switch(
    volume: VolumeRoot, side: str, new: int, dropped: frozenset[str], inodes: dict[str, int]
) -> None:
    """Link late writes of the old tree into the new one. Skip files that a function deleted from the new tree.

    Args:
        side: the old tree's name in staging.
        new: the new tree, open.
        dropped: paths that the sync removes.
        inodes: those of the old tree; updated.

    Raises:
        OSError: a tree cannot be read.
    """
    old = os.open(side, OPEN_PLACE, dir_fd=volume.staging)
    try:
        _link_late(volume, old, new, dropped, inodes)
    except SyncError as error:
        if error.details.get("reason") != TOO_DEEP:  # a function has just made such a tree, which is left behind
            raise
    finally:
        os.close(old)


def _link_late(volume: VolumeRoot, old: int, new: int, dropped: frozenset[str], inodes: dict[str, int]) -> None:
    scan = scan_target(old)
    late: Tree = scan.tree
    with DirectoryCursor(old) as ours, DirectoryCursor(new) as theirs:
        for path, entry in late.items():
            inode, had = scan.stamps.get(path, (0, 0))[1], inodes.get(path)
            if not path or path in dropped or had == 0 or (had is not None and had == inode):
                continue
            name = path.rpartition("/")[2]
            with contextlib.suppress(OSError):  # `rescue` tries again
                if parent_of(path) in dropped:  # the directory stays for a late file in it
                    make_missing(theirs, parent_of(path))
                parent = theirs.open(parent_of(path))
                there = None
                with contextlib.suppress(FileNotFoundError):
                    there = os.stat(name, dir_fd=parent, follow_symlinks=False)
                replaced = there is not None and there.st_ino == had
                if replaced or (had is None and there is None):
                    holder = os.fstat(parent)
                    if entry.kind == DIRECTORY:
                        os.mkdir(name, entry.mode, dir_fd=parent)
                    else:
                        link_one(volume, ours.open(parent_of(path)), parent, name, had)
                    os.utime(f"/proc/self/fd/{parent}", ns=(holder.st_atime_ns, holder.st_mtime_ns))
                    reached("carried over", path=path)
                if replaced or had is not None or there is None:
                    inodes[path] = inode


def link_one(volume: VolumeRoot, old: int, new: int, name: str, had: int | None) -> None:
    """Link a file of the old tree into the new one; where `had` is an inode, it replaces that file in one step."""
    if had is None:
        os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        return
    staging, link = volume.staging, new_name("new")
    os.link(name, link, src_dir_fd=old, dst_dir_fd=staging, follow_symlinks=False)
    try:
        linux.exchange(staging, link, new, name)
        if inode_of(staging, link) != had:  # a function has just put another file there: that one stays
            linux.exchange(staging, link, new, name)
    except OSError as error:
        if error.errno not in linux.NO_EXCHANGE:
            raise
        os.rename(link, name, src_dir_fd=staging, dst_dir_fd=new)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link, dir_fd=staging)


def inode_of(parent: int, name: str) -> int | None:
    """Return the inode at a name; None where nothing exists."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def rescue(volume: VolumeRoot, old: str) -> bool:
    """Copy the late writes of a replaced tree to its mirror; no sandbox lives that can have the tree open.

    Returns:
        whether the tree can be removed; False where another peer works at its target, and it must be tried again.

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
            late = _late_in(tree, origin.moment_ns, inodes)
        except SyncError as error:
            if error.details.get("reason") != TOO_DEEP:
                raise
            return True  # the mirror could not be used with it either
        if not late:
            return True
        with holding_target(volume.locks, origin.target) as held:
            if not held:
                return False
            volume.refresh()
            with locate(volume.data, origin.target, follow=False) as place:
                mirror = place.path.split("/")[0] != VISIBLE and not place.missing and place.is_directory
                if not mirror or place.path != origin.target:
                    return True  # the mirror was removed since
                root = os.open(place.name, OPEN_PLACE, dir_fd=place.parent)
            try:
                _move_late(tree, root, origin.scope, late)
            finally:
                os.close(root)
            linux.sync_filesystem(volume.staging)
        return True
    finally:
        os.close(tree)


def _late_in(tree: int, moment_ns: int, inodes: dict[str, int]) -> list[str]:
    """List the late files and symlinks of a tree that was replaced at a moment, parents first.

    Args:
        inodes: those of the tree; empty where they are not known.
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
            if ctime_ns <= moment_ns:  # every change moves it, and so do links and removals of other names
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


def _move_late(tree: int, root: int, scope: str, late: list[str]) -> None:
    with DirectoryCursor(tree) as ours, DirectoryCursor(root) as theirs:
        for path in late:
            where = f"{scope}/{path}" if scope else path
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # a file may be in place of the directory
                make_missing(theirs, parent_of(where))
                old, new = ours.open(parent_of(path)), theirs.open(parent_of(where))
                make_writable(old, ".")
                with mode_and_time_kept(new):
                    _move_one(old, new, path.rpartition("/")[2])
                reached("rescued", path=where)


@contextlib.contextmanager
def mode_and_time_kept(directory: int) -> Iterator[None]:
    """Make a directory writable for a moment; it gets its mode and time back."""
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


def _move_one(old: int, new: int, name: str) -> None:
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
    """Make the missing directories of a path in the new tree or the mirror.

    Raises:
        NotADirectoryError: a file is in place of one.
    """
    parts = directory.split("/") if directory else []
    for depth in range(1, len(parts) + 1):
        parent = theirs.open("/".join(parts[: depth - 1]))
        try:
            found = os.stat(parts[depth - 1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            with mode_and_time_kept(parent):
                os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
        else:
            if not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(parts[depth - 1])


def pack_inodes(inodes: Mapping[str, int]) -> str:
    """Return the text; `unpack_inodes` takes it back."""
    data = _COUNT.pack(len(inodes)) + to_bytes(array("Q", inodes.values())) + pack_names(inodes)
    return base64.b64encode(zlib.compress(data, 1)).decode("ascii")


def unpack_inodes(text: str) -> dict[str, int]:
    """Return the inodes in a text of `pack_inodes`; none for an empty text.

    Raises:
        ValueError: it is malformed.
    """
    if not text:
        return {}
    try:
        data = memoryview(zlib.decompress(base64.b64decode(text, validate=True)))
        (count,) = _COUNT.unpack_from(data)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"inodes are malformed: {error}") from error
    end = _COUNT.size + _WIDTH * count
    if len(data) < end:
        raise ValueError("inodes are cut short")
    return dict(zip(unpack_names(data[end:], count), from_bytes("Q", data[_COUNT.size : end]), strict=True))
