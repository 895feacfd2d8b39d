"""The directories of volumes on this machine, and where functions see the snapshots.

Theory of operation. `snapshots/trees` is mounted read-only at `/data/.snapshots`, so that a snapshot is seen as soon
as it has its name. The place to mount it on is in the volume, where functions write; and who starts a sandbox follows
symlinks there, as root with capabilities, before anything is confined. So the place must not be one that a function
can change at that moment. It is not, because every sandbox that sees a volume has something mounted there from its
first process to its last, and what is mounted on can neither be renamed nor removed by who sees the mount; storage
peers, which see the volume without it, refuse the name (`storage.volume.locate.locate`). What else has been put there,
by the machine's user for example, is moved aside under another name and never followed.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from atoll import errors
from atoll.model.mounts import Bind, Identity
from atoll.sandbox.identity import give

SNAPSHOTS = "/data/.snapshots"
_PARTS = ("", "data", "staging", "snapshots", "snapshots/trees")


def users(directory: Path) -> set[str]:
    """Return the users whose volumes are below `directory`."""
    try:
        return {entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)}
    except OSError:
        return set()


def prepare(directory: Path, identity: Identity) -> None:
    """Make a user's volume at `directory`, if it is not there, and have it belong to its user.

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


def binds(directory: Path) -> list[Bind]:
    """Return what a function sees of a volume that is prepared."""
    return [
        Bind(str(directory / "data"), "/data", writable=True),
        Bind(str(directory / "snapshots" / "trees"), SNAPSHOTS),
    ]


def _make_place(data: Path, identity: Identity) -> None:
    """Have a real directory where the snapshots are mounted; what else is there goes aside."""
    name = os.path.basename(SNAPSHOTS)
    descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while True:
            try:
                if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    return
                aside = f"{name}-{secrets.token_hex(4)}"
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
