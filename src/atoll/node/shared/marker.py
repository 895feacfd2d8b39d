"""The marker of a shared file system: its identity, made once, and the host uid of the daemons that use it.

A directory without a marker is not used. So a disk that is not mounted is never taken for an empty shared one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll import errors, linux
from atoll.settings import Settings

NAME = "atoll-volumes.json"
KNOWN = "shared-volumes"
"""The file of the state directory with the identity that this machine has used."""
_INIT = "run `atoll data filesystem init` on one machine, once"
_PROBE_UID = 1_879_100_001


@dataclass(frozen=True)
class Marker:
    """The facts of a shared file system.

    Args:
        id: random, made once.
        uid: host uid of the daemons that use it; 0 for root's, which give each user a host uid.
    """

    id: str
    uid: int


def identity(options: Settings) -> str:
    """Return the identity of the file system that carries the volumes, empty for a machine's own.

    Machines with the same one share every user's `/data`. It is read from the file system itself, which the daemon has
    mounted and checked (`SharedData`): a machine without it gets no identity.

    Raises:
        VolumesUnavailable: it cannot be read.
    """
    return read(options.storage.root(options.home)).id if options.storage.is_shared else ""


def read(root: Path) -> Marker:
    """Return the marker of a shared file system.

    Raises:
        VolumesUnavailable: it has none, or none that can be read.
    """
    try:
        data = json.loads((root / NAME).read_bytes())
        return Marker(str(data["id"]), int(data["uid"]))
    except FileNotFoundError:
        raise errors.VolumesUnavailable(
            f"`{root}` has no `{NAME}`: it is not mounted, or was never prepared for volumes",
            hint=f"mount it; for a new one {_INIT}",
        ) from None
    except OSError as error:
        raise errors.VolumesUnavailable(
            f"`{root}` cannot be read: {error.strerror}", hint="mount it again, or see `logs/storage-mount.log`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise errors.VolumesUnavailable(f"`{root / NAME}` is damaged: {error!r}", hint="restore the file") from error


def create(root: Path) -> Marker:
    """Prepare a shared file system for volumes, or return the marker that it has.

    Raises:
        VolumesUnavailable: it cannot be written, or does not let root give files to users.
    """
    with contextlib.suppress(FileNotFoundError):
        (root / NAME).stat()
        return read(root)
    made = Marker(secrets.token_hex(16), os.geteuid())
    staged = root / f".{NAME}-{made.id}"
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            linux.write_all(descriptor, json.dumps(asdict(made)).encode())
            os.fsync(descriptor)
            if made.uid == 0:
                _try_giving(root, staged, descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):  # another machine was first
            os.link(staged, root / NAME)
        os.chmod(root, 0o711)  # noqa: S103 - functions of other uids pass through
        linux.sync_directory(str(root))
    except OSError as error:
        if isinstance(error, errors.AtollError):
            raise
        raise errors.VolumesUnavailable(
            f"`{root}` cannot be prepared: {error.strerror}", hint="mount it with rights to write for this user"
        ) from error
    finally:
        staged.unlink(missing_ok=True)
    return read(root)


def _try_giving(root: Path, staged: Path, descriptor: int) -> None:
    try:
        os.fchown(descriptor, _PROBE_UID, _PROBE_UID)
        found = staged.stat().st_uid
        os.fchown(descriptor, 0, 0)
    except OSError:
        found = -1
    if found != _PROBE_UID:
        raise errors.VolumesUnavailable(
            f"`{root}` does not let root give files to users: it maps root to another user",
            hint="export it with `no_root_squash` (NFS), or run the daemons of all machines as one plain user",
        )


def _remember(known: Path, identity: str) -> None:
    """Write the identity whole: an empty file would be that of another file system."""
    temporary = known.with_name(f".{known.name}-{os.getpid()}")
    try:
        temporary.write_text(identity)
        os.replace(temporary, known)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise errors.VolumesUnavailable(
            f"cannot write `{known}`: {error.strerror}", hint="make room on the disk, or mount it to be written"
        ) from error


def check(options: Settings) -> Marker:
    """Return the marker, after a check that it is of this machine's file system and user.

    Raises:
        VolumesUnavailable: it is another file system than before, or its daemons run as another user.
    """
    root = options.storage.root(options.home)
    found, known = read(root), options.home / KNOWN
    if found.uid != os.geteuid():
        ours, theirs = (("root" if uid == 0 else f"the uid {uid}") for uid in (os.geteuid(), found.uid))
        raise errors.VolumesUnavailable(
            f"the volumes in `{root}` belong to daemons of {theirs}, and this one runs as {ours}",
            hint=f"run the daemons of all machines as {theirs}; files belong to host uids",
        )
    try:
        before = known.read_text().strip()
    except FileNotFoundError:
        _remember(known, found.id)
        return found
    if before != found.id:
        raise errors.VolumesUnavailable(
            f"`{root}` is another file system than the one whose volumes this machine has used",
            hint=f"mount the one before; if the change is meant, remove `{known}`",
        )
    return found
