"""Files and directories of the volume for copier, comparison and restore: open, attributes, content, size.

A peer works as the volume's owner, who may lack the right to read some of his files. So modes are changed for the
moment at which a directory is listed or a file opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from atoll.storage.files.tree import MODE_BITS
from atoll.storage.volume.locate import OPEN_DIRECTORY, OPEN_PLACE
from atoll.storage.volume.walk import Walk

GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of a name that vanished, or became something else, since it was listed."""

_COMPARE_BYTES = 1 << 20
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_directory(parent: int, name: str) -> tuple[int, int | None]:
    """Open a directory for listing, and give its owner the right to list it first, if that is missing.

    Returns:
        the descriptor, and the mode that the caller restores after listing; None if the mode is unchanged.
    """
    try:
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
        if os.access(".", os.X_OK, dir_fd=descriptor, effective_ids=True):
            return descriptor, None
        os.close(descriptor)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    except PermissionError:
        place = os.open(name, OPEN_PLACE, dir_fd=parent)
        try:
            mode = os.fstat(place).st_mode & MODE_BITS
            os.chmod(f"/proc/self/fd/{place}", mode | 0o500)
            try:
                return os.open(".", OPEN_DIRECTORY, dir_fd=place), mode
            except OSError:
                os.chmod(f"/proc/self/fd/{place}", mode)
                raise
        finally:
            os.close(place)


def open_file(parent: int, name: str) -> int:
    """Open an ordinary file for reading, even if its owner may not read it; -1 if it has vanished."""
    try:
        descriptor = os.open(name, READ, dir_fd=parent)
    except PermissionError:
        descriptor = _open_locked(parent, name)
    except OSError as error:
        if error.errno in GONE or error.errno == errno.ENXIO:
            return -1
        raise
    if descriptor >= 0 and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return -1
    return descriptor


def _open_locked(parent: int, name: str) -> int:
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(place).st_mode
        if not stat.S_ISREG(mode):
            return -1
        os.chmod(f"/proc/self/fd/{place}", (mode & MODE_BITS) | 0o400)
        try:
            return os.open(f"/proc/self/fd/{place}", READ & ~os.O_NOFOLLOW)
        finally:
            os.chmod(f"/proc/self/fd/{place}", mode & MODE_BITS)
    finally:
        os.close(place)


def same_content(one: int, other: int) -> bool:
    """Compare two open files of one size byte by byte; common holes are skipped."""
    offset = 0
    while True:
        offset = min(_next_data(one, offset), _next_data(other, offset))
        ours, theirs = os.pread(one, _COMPARE_BYTES, offset), os.pread(other, _COMPARE_BYTES, offset)
        if ours != theirs:
            return False
        if not ours:
            return True
        offset += len(ours)


def _next_data(descriptor: int, offset: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # the file system does not tell holes from data
            return offset
        return max(offset, os.fstat(descriptor).st_size)


def attributes_of(descriptor: int) -> dict[str, bytes]:
    """Return the user's extended attributes of an open file; none on a file system without any.

    A file that its owner may not read is made readable for that moment, which moves its change time.
    """
    try:
        return _attributes(descriptor)
    except PermissionError:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o400:
            return {}
    try:
        os.fchmod(descriptor, mode | 0o400)
        try:
            return _attributes(descriptor)
        finally:
            os.fchmod(descriptor, mode)
    except PermissionError:
        return {}


def _attributes(descriptor: int) -> dict[str, bytes]:
    try:
        names = [name for name in os.listxattr(descriptor) if name.startswith("user.")]
        return {name: os.getxattr(descriptor, name) for name in names}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSYS):
            return {}
        raise


def copy_attributes(source: int, target: int) -> None:
    """Copy the user's extended attributes of one open file to another."""
    for name, value in attributes_of(source).items():
        os.setxattr(target, name, value)


def measure(tree: int) -> tuple[int, int]:
    """Return bytes and number of the files below a directory."""
    size = count = 0
    with Walk(tree) as walk:
        for step in walk.steps():
            for name in step.names:
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(name, dir_fd=step.descriptor, follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        walk.below.append(name)
                    elif stat.S_ISREG(info.st_mode):
                        size, count = size + info.st_size, count + 1
    return size, count


def closed_by(stack: contextlib.ExitStack, descriptor: int) -> int:
    """Return a descriptor that a stack closes at its end."""
    stack.callback(os.close, descriptor)
    return descriptor
