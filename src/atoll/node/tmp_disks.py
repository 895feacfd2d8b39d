"""`/tmp` directories on the disk, of a bounded size, each for one sandbox.

As root, where the kernel lets it, a `/tmp` is a file system of its own in a sparse file: the bound is the kernel's, and
a write beyond it is `ENOSPC`. It is mounted by a program that becomes bubblewrap, in a mount namespace that nothing
else is in, and the file loses its name at once. So both are gone with the last process of the sandbox, however the
daemon ends, and nothing is left to clean up.

Elsewhere it is a directory that is counted (`build_disk`), and a sandbox over its bound is ended. The directory is
removed after its sandbox; those of a killed daemon, by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from atoll import errors
from atoll.environments.built.removal import remove_tree
from atoll.model import amounts
from atoll.model.mounts import Identity
from atoll.node.build_disk import BuildDisk
from atoll.process import run
from atoll.sandbox import programs
from atoll.sandbox.limits.memory_watchdog import children, started_at
from atoll.settings import Settings
from atoll.work_threads import WorkThreads

PROBE_BYTES = 32 << 20
PROBE_SECONDS = 20.0
LOOK_SECONDS = 0.5
THREADS = 4
"""Directories that are counted or removed at a time: functions decide how long that takes."""
PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
"""Directories of the programs that make and mount a file system."""

_MOUNT = """set -e
PATH=$1 image=$2 size=$3 place=$4 owner=$5; shift 5
export PATH
(umask 077; : > "$image")
truncate -s "$size" "$image"
mkfs.ext4 -q -F -m 0 -b 4096 -i 16384 -O ^has_journal,^resize_inode -E lazy_itable_init=1,nodiscard,root_owner="$owner" "$image" </dev/null
mount -o loop,nosuid,nodev,noatime,discard "$image" "$place"
rm "$image"
rmdir "$place/lost+found"
chmod 1777 "$place"
exec "$@"
"""
"""Makes a file system in a sparse file, mounts it, and becomes the program that follows."""


class TmpDisk:
    """The `/tmp` of one sandbox.

    Args:
        source: the directory that is shown as `/tmp`.
        size_bytes: the most that it may hold.
        threads: count and remove a directory.
        prepare: a program and its arguments that mounts it and becomes another; empty for a counted directory.
    """

    def __init__(self, source: Path, size_bytes: int, threads: WorkThreads, prepare: tuple[str, ...] = ()) -> None:
        self._threads = threads
        self.source = source
        self.prepare = prepare
        self.failure: errors.AtollError | None = None
        self._size_bytes = size_bytes
        self._closed = asyncio.Event()

    async def watch(self, pid: Callable[[], int], kill: Callable[[], Awaitable[None]]) -> None:
        """Count a directory until it is closed, and end its sandbox when it holds too much; then remove it.

        Args:
            pid: returns the sandbox's outer process; 0 while there is none.
        """
        if self.prepare:
            return
        disk = BuildDisk([str(self.source)], self._size_bytes)
        try:
            while not self._closed.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), LOOK_SECONDS)
                if self._closed.is_set() or not disk.is_due():
                    continue
                used = await self._threads.run(str(self.source), lambda: disk.used_bytes(_below(pid())))
                if used > self._size_bytes:
                    self.failure = _full(self._size_bytes, used)
                    await kill()
        finally:
            disk.stop()
            await self._threads.run(str(self.source), lambda: remove_tree(self.source))

    def close(self) -> None:
        """Let it go; its sandbox has ended."""
        self._closed.set()


class TmpDisks:
    """Makes `/tmp` directories below the state directory.

    Args:
        settings: the state directory.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.home / "tmp"
        self._place = settings.run_directory / "tmp"
        self._numbers = itertools.count(1)
        self._owner = f"{os.getpid()}-{started_at(os.getpid())}"
        self._mounts: bool | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._threads = WorkThreads("disks", THREADS)

    async def check(self, size_bytes: int) -> None:
        """Find out whether a `/tmp` of this size can be made; 0 for one in memory.

        Raises:
            ResourcesUnavailable: the disk has not as much free space.
        """
        if not size_bytes:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.statvfs(self._directory)
        free = found.f_bavail * found.f_frsize
        if size_bytes > free:
            raise errors.ResourcesUnavailable(
                f'the function asks for `disk="{amounts.shown(size_bytes)}"`, and the disk of the state directory has '
                f"{free / (1 << 30):.1f} GiB free",
                hint=f'nearest: `disk="{amounts.shown(free)}"`, or put large files below `/data`',
            )
        if self._mounts is None:
            self._mounts = await self._can_mount()

    async def _can_mount(self) -> bool:
        """Return whether a file system in a file can be mounted, by trying it once."""
        if os.geteuid() != 0 or not shutil.which("mkfs.ext4", path=PROGRAMS):
            return False
        try:
            probe = self._mounted(PROBE_BYTES, "0:0")
            done = await run([*probe.prepare, "/bin/sh", "-c", ":"], env={}, timeout_seconds=PROBE_SECONDS)
        except (OSError, errors.AtollError, TimeoutError):
            return False
        return done.status == 0

    def make(self, size_bytes: int, identity: Identity) -> TmpDisk | None:
        """Return a `/tmp` of a size that `check` has seen, for a sandbox with this identity; None for one in memory.

        Raises:
            OSError: it cannot be made.
        """
        if not size_bytes:
            return None
        if self._mounts:
            return self._mounted(size_bytes, f"{identity.uid}:{identity.gid}")
        source = self._directory / f"{self._owner}-{next(self._numbers)}"
        source.mkdir(mode=0o700, parents=True)
        source.chmod(0o1777)  # the directory above it is closed to others
        return TmpDisk(source, size_bytes, self._threads)

    def _mounted(self, size_bytes: int, owner: str) -> TmpDisk:
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        image = self._directory / f"{self._owner}-{next(self._numbers)}"
        line = [programs.find_unshare(), "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _MOUNT, "sh"]
        line += [PROGRAMS, str(image), str(_with_tables(size_bytes)), str(self._place), owner]
        return TmpDisk(self._place, size_bytes, self._threads, tuple(line))

    def watch(self, disk: TmpDisk | None, pid: Callable[[], int], kill: Callable[[], Awaitable[None]]) -> None:
        """Watch over a sandbox's `/tmp` until it is closed."""
        if disk is not None:
            task = asyncio.get_running_loop().create_task(disk.watch(pid, kill))
            self._watches.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._watches.discard)

    def sweep(self) -> None:
        """Remove what daemons that have ended left behind; may take long."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                pid, _, rest = name.partition("-")
                if not (pid.isdigit() and str(started_at(int(pid))) == rest.partition("-")[0]):
                    path = self._directory / name
                    if path.is_dir() and not path.is_symlink():
                        remove_tree(path)
                    else:
                        path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Wait until the directories are removed; all sandboxes have ended."""
        await asyncio.gather(*self._watches, return_exceptions=True)


def _with_tables(size_bytes: int) -> int:
    """Return the size of a file whose file system has room for `size_bytes`: ext4's tables of inodes take 1/64 of it,
    and it keeps up to 4096 blocks back."""
    return size_bytes + size_bytes // 60 + min(size_bytes // 40, 17 << 20) + (8 << 20)


def _below(pid: int) -> list[int]:
    """Return the processes of a sandbox."""
    found = [pid] if pid else []
    for one in found:
        found += children(one)
    return found


def _full(size_bytes: int, used: int) -> errors.WorkerDied:
    return errors.WorkerDied(
        f'the function\'s `/tmp` holds more than its `disk="{amounts.shown(size_bytes)}"`: {used >> 20} MiB',
        hint="give the function a larger `disk`, remove temporary files, or put large ones below `/data`",
        signal=9,
    )
