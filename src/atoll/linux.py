"""Kernel calls that Python's standard library lacks, and facts about mounts, for storage, node and sandbox.

The module imports on every platform; a call that the platform does not have raises `OSError`, as the kernel would.
Directories are open descriptors and names relative to them, so that nobody can swap a component of a path meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # <linux/fs.h>
NO_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""Error numbers of a file system that does not know the flags of `renameat2`."""

_FICLONE = 0x40049409  # <linux/fs.h>: _IOW(0x94, 9, int)
_AT_SYMLINK_NOFOLLOW, _STATX_BTIME, _STATX_BYTES, _BTIME_AT = 0x100, 0x800, 256, 80  # <linux/stat.h>
_READ_DIRECTORY = os.O_RDONLY
for _flag in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"):
    _READ_DIRECTORY |= getattr(os, _flag, 0)

_NETWORK_KINDS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "lustre",
        "gpfs",
        "beegfs",
        "glusterfs",
        "9p",
        "virtiofs",
        "afs",
        "coda",
        "ocfs2",
        "gfs2",
        "orangefs",
        "pvfs2",
        "vboxsf",
        "prl_fs",
        "vmhgfs",
        "davfs",
        "drvfs",
        "fuse",
    ]
)
_LOCAL_FUSE_KINDS = frozenset(
    f"fuse.{name}"
    for name in [
        "mergerfs",
        "gocryptfs",
        "encfs",
        "cryfs",
        "bindfs",
        "fuse-overlayfs",
        "ntfs-3g",
        "lowntfs-3g",
        "zfs-fuse",
    ]
)


@functools.cache  # the look-up takes 30 us, and a replaced tree may have 100,000 files
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any, filename: str | None = None) -> None:
    import ctypes

    function = getattr(_libc(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"the C library has no `{name}`", filename)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), filename)


# --- processes --------------------------------------------------------------------------------------------------------


def pid_of(pidfd: int) -> int:
    """Return the number of a pidfd's process in this process's namespace; 0 outside of it, -1 for one that has ended.

    Raises:
        OSError: the descriptor is no pidfd.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:"):
                return int(line[4:])
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Raises:
        OSError: the kernel does not.
    """
    _call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, <linux/prctl.h>


CLONE_NEWIPC = 0x08000000  # <linux/sched.h>


def enter_namespace(descriptor: int, kind: int) -> None:
    """Move the calling thread into a namespace of this kind.

    Raises:
        OSError: the thread may not.
    """
    _call("setns", descriptor, kind)


def leave_namespaces(kinds: int) -> None:
    """Give the calling thread new namespaces of these kinds.

    Raises:
        OSError: the thread may not.
    """
    _call("unshare", kinds)


def skip_first_segment() -> None:
    """Use up the first number of shared memory in the calling thread's IPC namespace, 0: PostgreSQL takes it for none.

    Raises:
        OSError: there can be none.
    """
    import ctypes

    libc = _libc()
    segment = libc.shmget(0, ctypes.c_size_t(1), 0o600)  # IPC_PRIVATE
    if segment < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _call("shmctl", segment, 0, None)  # IPC_RMID


# --- names ------------------------------------------------------------------------------------------------------------


def renameat2(old_parent: int, old: str, new_parent: int, new: str, flags: int) -> None:
    """Rename as the flags say (Linux 3.15).

    Raises:
        OSError: with an errno of `NO_EXCHANGE` when the file system does not know the flags.
    """
    _call("renameat2", old_parent, os.fsencode(old), new_parent, os.fsencode(new), flags, filename=new)


def exchange(old_parent: int, old: str, new_parent: int, new: str) -> None:
    """Swap two names of one file system in one step.

    Raises:
        OSError: with an errno of `NO_EXCHANGE` when the file system cannot.
    """
    renameat2(old_parent, old, new_parent, new, RENAME_EXCHANGE)


def rename_new(old_parent: int, old: str, new_parent: int, new: str) -> None:
    """Rename unless `new` exists; in two steps where the file system cannot do that in one.

    Raises:
        FileExistsError: it does.
    """
    try:
        renameat2(old_parent, old, new_parent, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=new_parent, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from error
        os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)


# --- contents ---------------------------------------------------------------------------------------------------------


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Write all of `content`."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def fallocate(descriptor: int, length: int) -> None:
    """Allocate the blocks of a file's first bytes, and never write zeros instead, as `posix_fallocate` may.

    Raises:
        OSError: the file system cannot, or has no room.
    """
    import ctypes

    _call("fallocate", descriptor, 0, ctypes.c_longlong(0), ctypes.c_longlong(length))


def clone(source: int, target: int) -> None:
    """Make an open file share all blocks of another (FICLONE).

    Raises:
        OSError: the two cannot share blocks; `target` is unchanged.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    fcntl.ioctl(target, _FICLONE, source)


def born_ns(parent: int, name: str) -> int:
    """Return when a file was made, nanoseconds since the epoch; 0 where the file system does not know."""
    import ctypes

    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        _call("statx", parent, os.fsencode(name), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer)
    except OSError:
        return 0
    (mask,) = struct.unpack_from("=I", buffer.raw)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer.raw, _BTIME_AT)
    return int(seconds) * 10**9 + int(nanoseconds) if mask & _STATX_BTIME else 0


# --- durability -------------------------------------------------------------------------------------------------------


def sync_filesystem(descriptor: int) -> None:
    """Make everything that was written to the descriptor's file system durable (syncfs).

    Raises:
        OSError: something could not be written.
    """
    _call("syncfs", descriptor)


def sync_directory(directory: int | str) -> None:
    """Make the names in a directory durable: a path, or a descriptor, which need not be readable itself."""
    if isinstance(directory, int):
        readable = os.open(".", _READ_DIRECTORY, dir_fd=directory)  # fsync refuses an O_PATH descriptor
    else:
        readable = os.open(directory, _READ_DIRECTORY & ~getattr(os, "O_NOFOLLOW", 0))
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


# --- processes --------------------------------------------------------------------------------------------------------

_SPAWN_SETSIGDEF, _SPAWN_SETSIGMASK, _SPAWN_SETSID, _SPAWN_SETCGROUP = 0x04, 0x08, 0x80, 0x100  # <spawn.h>
_SPAWN_BYTES = 1024  # more than any C library's attributes, actions or set of signals take


def spawn_in_group(
    argv: Sequence[str],
    env: Mapping[str, str],
    descriptors: Sequence[int],
    streams: Sequence[int],
    cwd: str,
    group: int,
) -> int:
    """Start a program in a session of its own and in a control group of version 2; return its number.

    The kernel makes the process inside the group (Linux 5.7, glibc 2.39), which holds up no other fork.

    Args:
        descriptors: kept under the same numbers; all others are closed.
        streams: become the descriptors 0, 1 and 2.
        group: the open directory of the group.

    Raises:
        OSError: with ENOSYS when the C library cannot; else as the kernel says.
    """
    import ctypes

    libc = _libc()
    if not hasattr(libc, "posix_spawnattr_setcgroup_np"):
        raise OSError(errno.ENOSYS, "the C library has no `posix_spawnattr_setcgroup_np`")
    attributes, actions, signals = (ctypes.create_string_buffer(_SPAWN_BYTES) for _ in range(3))

    def call(name: str, *arguments: Any) -> None:
        number = getattr(libc, name)(*arguments)
        if number:
            raise OSError(number, os.strerror(number), argv[0])

    high = [os.dup(stream) for stream in streams]  # `dup` gives the lowest free number, which is not 0, 1 or 2 here
    call("posix_spawnattr_init", attributes)
    call("posix_spawn_file_actions_init", actions)
    try:
        flags = _SPAWN_SETSIGDEF | _SPAWN_SETSIGMASK | _SPAWN_SETSID | _SPAWN_SETCGROUP
        call("posix_spawnattr_setflags", attributes, ctypes.c_short(flags))
        libc.sigemptyset(signals)
        call("posix_spawnattr_setsigmask", attributes, signals)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
            libc.sigaddset(signals, int(number))
        call("posix_spawnattr_setsigdefault", attributes, signals)
        call("posix_spawnattr_setcgroup_np", attributes, group)
        for target, descriptor in enumerate(high):
            call("posix_spawn_file_actions_adddup2", actions, descriptor, target)
        for descriptor in descriptors:
            call("posix_spawn_file_actions_adddup2", actions, descriptor, descriptor)  # clears its close-on-exec flag
        for descriptor in _inheritable():
            if descriptor > 2 and descriptor not in descriptors:
                call("posix_spawn_file_actions_addclose", actions, descriptor)
        call("posix_spawn_file_actions_addchdir_np", actions, os.fsencode(cwd))
        words = [os.fsencode(word) for word in argv]
        pairs = [os.fsencode(f"{name}={value}") for name, value in env.items()]
        line = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        variables = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
        pid = ctypes.c_int()
        call("posix_spawn", ctypes.byref(pid), words[0], actions, attributes, line, variables)
        return pid.value
    finally:
        libc.posix_spawn_file_actions_destroy(actions)
        libc.posix_spawnattr_destroy(attributes)
        for descriptor in high:
            os.close(descriptor)


def _inheritable() -> Iterator[int]:
    """Yield the descriptors of this process that a program would inherit."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own, closed by now
            if os.get_inheritable(int(name)):
                yield int(name)


# --- mounts -----------------------------------------------------------------------------------------------------------


class Mount(NamedTuple):
    """One line of `/proc/self/mountinfo`.

    Args:
        number: the mount's id.
        root: the directory of the file system that is mounted.
        point: where.
        kind: the type of the file system, as `mount` names it (`ext4`, `fuse.juicefs`).
        options: those of the file system.
    """

    number: str
    root: str
    point: str
    kind: str
    options: str


def mounts(mountinfo: str) -> Iterator[Mount]:
    """Yield the mounts in the text of a `mountinfo` file."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        number, _parent, _device, root, point = before.split(" ", 5)[:5]
        kind, _source, options = (*after.split(" ", 2), "", "")[:3]  # the source may be empty
        yield Mount(number, root, point, kind, options)


def kind_of(path: str | int) -> str:
    """Return the type of the file system that a directory (a path, or an open one) is on.

    Empty where nobody can tell: on another system than Linux, or without `/proc`.
    """
    try:
        descriptor = os.dup(path) if isinstance(path, int) else os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            number = dict(line.split(":", 1) for line in file if ":" in line).get("mnt_id", "").strip()
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            return next((mount.kind for mount in mounts(file.read()) if mount.number == number), "")
    except (OSError, ValueError):
        return ""
    finally:
        os.close(descriptor)


def unmount(point: str, *, lazily: bool) -> None:
    """Unmount a path: lazily, when nothing has it open any more, or by force, whereupon waiting requests fail."""
    _call("umount2", os.fsencode(point), 2 if lazily else 1, filename=point)  # MNT_DETACH, MNT_FORCE


def is_network(kind: str) -> bool:
    """Whether a type of file system is, or may be, served by another machine, which changes files unseen."""
    return kind in _NETWORK_KINDS or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE_KINDS)
