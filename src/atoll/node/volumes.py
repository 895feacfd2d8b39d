"""The directories of volumes on this machine, and the mount point of their snapshots.

Theory of operation. `snapshots/trees` is mounted read-only at `/data/.snapshots`, so that a snapshot is seen as soon
as it has its name. This mount point lies in the volume, where functions write. The mount is made as root with
capabilities, before anything is confined, and follows symlinks. So no function may be able to replace the mount point
at that moment. None can: in every sandbox that sees a volume the mount exists from its first process to its last, and
a process that sees a mount can neither rename nor remove the mount point. Storage peers, which see the volume without
the mount, refuse the name (`storage.volume.locate.locate`). Any other entry of that name, made by the machine's user
for example, is moved aside under another name and never followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from atoll import errors
from atoll.model.mounts import Bind, Identity
from atoll.sandbox.identity import give
from atoll.storage.volume.locks import EXCHANGE

SNAPSHOTS = "/data/.snapshots"
_PARTS = ("", "data", "staging", "staging/locks", "snapshots", "snapshots/trees")


def users(directory: Path) -> set[str]:
    """Return the users with a volume below `directory`."""
    try:
        return {entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)}
    except OSError:
        return set()


def prepare(directory: Path, identity: Identity) -> None:
    """Make a user's volume at `directory`, if it is missing, and give it to its user.

    Raises:
        StateUnusable: it cannot be made.
    """
    try:
        directory.parent.mkdir(mode=0o711, exist_ok=True)
        for part in _PARTS:
            path = directory / part if part else directory
            path.mkdir(mode=0o700, exist_ok=True)
            if path.stat().st_uid != identity.uid:
                give(path, identity, 0o700)
        _make_place(directory / "data", identity)
    except OSError as error:
        raise errors.StateUnusable(
            f"cannot prepare the volume at `{directory}`: {error}", hint="mend the directory's permissions"
        ) from error


def make_lock(directory: Path, identity: Identity) -> None:
    """Make the lock that every change of a prepared volume needs, before its file system may refuse new files.

    Raises:
        OSError: it cannot be made.
    """
    lock = directory / "staging" / "locks" / EXCHANGE
    os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    give(lock, identity, 0o600)


def binds(directory: Path) -> list[Bind]:
    """Return the mounts of a prepared volume in a function's sandbox."""
    return [
        Bind(str(directory / "data"), "/data", writable=True),
        Bind(str(directory / "snapshots" / "trees"), SNAPSHOTS),
    ]


def _make_place(data: Path, identity: Identity) -> None:
    """Make the mount point of the snapshots a real directory; any other entry there is moved aside."""
    name = os.path.basename(SNAPSHOTS)
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while True:
            try:
                if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    return
                aside = f"{name}-{os.urandom(4).hex()}"
                os.rename(name, aside, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            except FileNotFoundError:
                pass
            try:
                os.mkdir(name, 0o755, dir_fd=descriptor)
            except FileExistsError:
                continue
            if os.geteuid() == 0:
                os.chown(name, identity.uid, identity.gid, dir_fd=descriptor, follow_symlinks=False)
            return
    finally:
        os.close(descriptor)
