"""Preparation of a shared file system by an explicit command, and its state for people."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atoll import errors, process
from atoll.model.options.storage import JUICEFS
from atoll.node.shared import juicefs, marker
from atoll.node.shared.data import findings, linux_kind
from atoll.node.shared.mount_hold import MountHold
from atoll.settings import Settings

FORMAT_SECONDS = 60.0


class Prepared(NamedTuple):
    """A prepared file system.

    Args:
        root: here.
        identity: of the file system.
        left: users whose volumes are on this machine's own disk alone.
    """

    root: Path
    identity: str
    left: tuple[str, ...]


def prepare(options: Settings) -> Prepared:
    """Make the shared file system that the settings name ready for volumes; one that is ready stays as it is.

    Raises:
        VolumesUnavailable: it cannot be made, mounted or written.
    """
    storage, root = options.storage, options.storage.root(options.home)
    hold = MountHold(options)
    try:
        if storage.filesystem == JUICEFS:
            _format(options)
            hold.take()
        elif not root.is_dir():
            raise errors.VolumesUnavailable(
                f"`{root}` is no directory here", hint="mount the shared file system, and make the directory on it"
            )
        options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = marker.create(root)
        options.volumes_directory.mkdir(mode=0o711, exist_ok=True)
        marker.check(options)
        left = _names(options.home / "volumes") - _names(options.volumes_directory)
        return Prepared(root, made.id, tuple(sorted(left)))
    except OSError as error:
        if isinstance(error, errors.AtollError):
            raise
        raise errors.VolumesUnavailable(f"`{root}` cannot be prepared: {error}", hint="see the message") from error
    finally:
        hold.release()


def _names(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()} if directory.is_dir() else set()


@contextlib.contextmanager
def mounted(options: Settings) -> Iterator[Path]:
    """Give the directory above all volumes, which is mounted and checked while the context is open.

    Raises:
        VolumesUnavailable: the shared file system is not there, or not the one that this machine has used.
    """
    hold = MountHold(options)
    try:
        if options.storage.filesystem == JUICEFS:
            hold.take()
        if options.storage.is_shared:
            marker.check(options)
        yield options.storage.root(options.home)
    finally:
        hold.release()


def _format(options: Settings) -> None:
    """Make the JuiceFS that the settings name, unless its metadata holds one; contents of others are never touched."""
    storage = options.storage
    if not storage.bucket:
        raise errors.VolumesUnavailable(
            "`storage.bucket` is not set: JuiceFS needs a place for contents",
            hint='such as "https://BUCKET.s3.REGION.amazonaws.com", or with `objects = "file"` a directory',
        )
    try:
        line = juicefs.format_command(storage)
        done = process.check(line, env=juicefs.environment(storage), timeout_seconds=FORMAT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise errors.VolumesUnavailable(
            f"JuiceFS could not be made within {FORMAT_SECONDS:.0f} s: metadata or bucket do not answer",
            hint="check `storage.metadata` and `storage.bucket`, and that this machine reaches them",
        ) from error
    if done.status != 0:
        raise errors.VolumesUnavailable(
            f"JuiceFS could not be made: {juicefs.words(done.output)}",
            hint="check `storage` in `settings.toml`; a bucket with other contents needs another `storage.name`",
        )


def state(options: Settings) -> dict[str, Any]:
    """Return the state of the shared file system as JSON-compatible data; nothing is mounted."""
    root = options.storage.root(options.home)
    found = findings(options)[0]
    identity = ""
    if found.works:
        with contextlib.suppress(errors.VolumesUnavailable):  # it is not mounted now
            identity = marker.read(root).id
    return {
        "filesystem": options.storage.filesystem,
        "root": str(root),
        "kind": linux_kind(root),
        "identity": identity,
        "works": found.works,
        "detail": found.detail,
    }
