"""Disk quotas of the kernel: `quotactl(2)` and project ids, by system calls alone.

A user quota counts all files of a host uid on a file system, a project quota those with a project's number. A project's
number is inherited by new files of a directory that is marked so; the whole of a user's volume is one project, or a
rename between its parts would fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

USER, PROJECT = 0, 2
NAMES = {USER: "user", PROJECT: "project"}

_GET_XATTR, _SET_XATTR, _INHERIT = 0x801C581F, 0x401C5820, 0x200  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
_XATTR = struct.Struct("=IIIII8s")  # xflags extsize nextents projid cowextsize pad
_DQBLK = struct.Struct("=QQQQQQQQI4x")  # struct if_dqblk: block limits in KiB, space in bytes
_Q_GETQUOTA, _Q_SETQUOTA = 0x800007, 0x800008
_LIMITS = 1 | 4  # QIF_BLIMITS | QIF_ILIMITS
_OPTIONS = {
    USER: {"quota", "usrquota", "uquota", "uqnoenforce"},
    PROJECT: {"prjquota", "pquota"},
}


class Figures(NamedTuple):
    """The use of a user or a project: bytes on the disk, and files with directories."""

    bytes: int
    files: int


class KernelQuota(NamedTuple):
    """A file system that enforces quotas.

    Args:
        device: its block device.
        kind: `USER` or `PROJECT`.
    """

    device: str
    kind: int

    def limit(self, number: int, bytes_: int, files: int) -> None:
        """Set hard limits of a uid or project; 0 for none.

        Raises:
            OSError: the kernel refuses.
        """
        blocks = -(-bytes_ // 1024)
        data = _DQBLK.pack(blocks, 0, 0, files, 0, 0, 0, 0, _LIMITS)
        _quotactl(_Q_SETQUOTA, self.kind, self.device, number, data)

    def used(self, number: int) -> Figures:
        """Return the use of a uid or project.

        Raises:
            OSError: the kernel does not tell.
        """
        try:
            data = _quotactl(_Q_GETQUOTA, self.kind, self.device, number, bytes(_DQBLK.size))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH) and self.kind == PROJECT:
                return Figures(0, 0)  # XFS knows no project without files
            raise
        found = _DQBLK.unpack(data)
        return Figures(found[2], found[5])


def _quotactl(command: int, kind: int, device: str, number: int, data: bytes) -> bytes:
    import ctypes  # a node of one user, whose start somebody waits for, has no quotas

    buffer = ctypes.create_string_buffer(data, len(data))
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_int(ctypes.c_uint32((command << 8) | kind).value)
    if libc.quotactl(word, os.fsencode(device), ctypes.c_int(ctypes.c_uint32(number).value), buffer) < 0:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, os.strerror(number_of_error))
    return buffer.raw


def find(directory: Path, mountinfo: str | None = None) -> KernelQuota | None:
    """Return the quotas of a directory's file system that are on and that this process may set; None for none.

    Args:
        mountinfo: the text of `/proc/self/mountinfo`.
    """
    if mountinfo is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mountinfo = file.read()
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        fields, _, more = line.partition(" - ")
        rest = more.split()
        if fields.split()[2] != wanted or len(rest) < 3 or not rest[1].startswith("/"):
            continue
        options = set(rest[2].split(","))
        for kind in (USER, PROJECT):
            found = KernelQuota(rest[1].replace("\\040", " "), kind)
            if options & _OPTIONS[kind] and _answers(found):
                return found
    return None


def _answers(quota: KernelQuota) -> bool:
    try:
        quota.used(0)
    except OSError:
        return False
    return True


def project_of(path: Path) -> tuple[int, bool]:
    """Return a path's project, and whether new files in it inherit that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = _XATTR.unpack(fcntl.ioctl(descriptor, _GET_XATTR, bytes(_XATTR.size)))
        return found[3], bool(found[0] & _INHERIT)
    finally:
        os.close(descriptor)


def put_into_project(directory: Path, number: int) -> None:
    """Put a directory and all below it into a project; names of other kinds than files and directories stay.

    Raises:
        OSError: the file system has no projects.
    """
    for _, _, names, above in os.fwalk(directory, follow_symlinks=False):
        _set_project(above, number)
        for name in names:
            try:
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=above
                )
            except OSError:
                continue  # a symlink or a socket, or gone
            try:
                _set_project(descriptor, number)
            except OSError as error:
                if error.errno != errno.ENOTTY:  # a device or a pipe has none
                    raise
            finally:
                os.close(descriptor)


def _set_project(descriptor: int, number: int) -> None:
    found = list(_XATTR.unpack(fcntl.ioctl(descriptor, _GET_XATTR, bytes(_XATTR.size))))
    is_directory = os.stat(descriptor).st_mode & 0o170000 == 0o040000
    flags = found[0] | _INHERIT if is_directory else found[0]
    if (found[3], found[0]) == (number, flags):
        return
    found[0], found[3] = flags, number
    fcntl.ioctl(descriptor, _SET_XATTR, _XATTR.pack(*found))
