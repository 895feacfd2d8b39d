"""Places of the local file system that one file's content is written into, since nothing can take their name.

Devices and fifos are such, and what this process has open already, as `/dev/stdout` or a shell's `>(...)`. A symlink
counts only where no copy from a volume can have put it: one that a function planted could lead to a disk.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from atoll.storage.client.local_target import is_special
from atoll.storage.files.tree import special_name

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_WRITE = os.O_WRONLY
for _flag in ("O_NOCTTY", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
    _WRITE |= getattr(os, _flag, 0)


class Outlet:
    """A device, a fifo or an open descriptor, to be written into from where it stands.

    Args:
        local: how it is called in errors.
        descriptor: open for writing; it is closed by `close`.

    Raises:
        OSError: from each method: it takes no more; the error names the local path.
    """

    def __init__(self, local: str, descriptor: int) -> None:
        self._local = local
        self._descriptor = descriptor

    def write(self, content: bytes | bytearray) -> None:
        """Write all of it."""
        view = memoryview(content)
        try:
            while view.nbytes:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._local) from error

    def close(self) -> None:
        """Close it; it may be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def open_outlet(local: str) -> Outlet | None:
    """Open what stands at `local` where a file's content is to be written into it; None where a file is to be made.

    A fifo is waited for until somebody reads it.

    Raises:
        OSError: it is a socket, or cannot be opened for writing.
    """
    descriptor = _descriptor_of(local)
    if descriptor is not None:
        try:
            return Outlet(local, os.dup(descriptor))
        except OSError as error:
            raise OSError(error.errno, error.strerror, local) from error
    try:
        mode = os.lstat(local).st_mode
        follow = stat.S_ISLNK(mode) and _of_the_system(local)
        if follow:
            mode = os.stat(local).st_mode
    except OSError:
        return None  # who makes the file says what is wrong
    if not is_special(mode):
        return None
    if not _takes_a_stream(mode):
        raise OSError(errno.ENXIO, f"a {special_name(mode)}, which no file can be written into", local)
    opened = os.open(local, _WRITE | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    if not _takes_a_stream(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EBUSY, "it became something else meanwhile", local)
    return Outlet(local, opened)


def _descriptor_of(local: str) -> int | None:
    """Return the number of a descriptor of this process that a path stands for."""
    path = os.path.abspath(local) if os.sep == "/" else ""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STANDARD.get(path)


def _of_the_system(link: str) -> bool:
    """Whether a symlink is in a directory that only the system makes links in."""
    above = os.path.realpath(os.path.dirname(os.path.abspath(link)))
    return above == "/dev" or above.startswith("/proc/")


def _takes_a_stream(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode)
