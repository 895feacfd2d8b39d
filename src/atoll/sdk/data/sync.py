"""`sync_dir`: a local directory, mirrored to the volume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from atoll.errors import AtollError, DiskFull, HostUnreachable, SyncError
from atoll.sdk.display.output import CallerStreams

if TYPE_CHECKING:
    from typing import TypedDict

    from atoll.host.contract import Host
    from atoll.storage.sync.client import Synced, SyncOptions

    class SyncChoices(TypedDict, total=False):
        """The options of `sync_dir` beside its host."""

        exclude: Iterable[str]
        """Patterns of names that are neither uploaded nor removed at the target, in gitignore's syntax; default: none."""

        delete: bool
        """Remove names at the target that are gone locally; default True."""

        dry_run: bool
        """Print the operations and do nothing; default False."""

        atomic: bool
        """False accepts a moment without the target, where the file system cannot exchange directories; default True."""

        allow_empty: bool
        """A directory with nothing to mirror may empty its target; default False."""


def sync_dir(
    path: str | os.PathLike[str],
    remote_dir: str | os.PathLike[str],
    *,
    exclude: Iterable[str] = (),
    delete: bool = True,
    dry_run: bool = False,
    host: Host | None = None,
    atomic: bool = True,
    allow_empty: bool = False,
) -> str:
    """Make `remote_dir` on the volume a mirror of the local directory `path`.

    Names, contents, modes, modification times, empty directories and symlinks (as they are) are mirrored. Hard links
    become separate files; fifos, sockets and devices are refused. Each lookup of a path finds the old tree or the
    new one, whole. Nothing is written to the local directory.

    A file that vanishes while the sync runs counts as removed, and a line on stderr says so. One that exists and cannot be
    read ends the sync: the error names all such files. Times that nanoseconds in 64 bits cannot express are moved into
    their range, and a line says so. Nothing is left out unless it is asked for: a line names directories of tools (`.git`,
    `.venv`, `node_modules`, `__pycache__`) if much of them is sent. A sync of 5 seconds or more ends with a line that
    counts.

    Each file's digest is verified before it counts. A file counts as unchanged when its mode, size, modification time,
    change time and inode are those of the last sync from here, at the target as well; else the digests decide, or size
    and modification time if the target is unknown. Of a large file only the changed parts travel.

    A function's writes to the target while a sync runs are in the old tree, or in the new one if the file stays, or
    are undone by the next sync. Files that it adds or replaces among kept names (`exclude`, `delete=False`) are copied
    to the new tree.

    A function whose working directory is in the mirror, or that holds a directory of it open, goes on in the tree that
    a sync replaces, unseen by others: its writes there by relative names come to the mirror only when its sandbox has
    ended, as `NAME.replaced-TIME` if the name is taken. So have it write under absolute paths, or elsewhere.

    Args:
        path: the directory to upload; a symlink to one is followed.
        remote_dir: where to; relative to `/data/sync`, or absolute and below `/data`.
        exclude: patterns in gitignore's syntax, relative to `path`, of names that are neither uploaded nor removed at
            the target; they win over `.atollignore` files, which are honoured at any depth. Atoll's own state, where
            it is below `path`, is always left out. The text `"dev"`, not in a list, stands for what tools of developers
            make (`DEV` in `atoll.storage.client.sync_summary`); `["dev"]` is the pattern for something of that name.
        delete: remove names at the target that are gone locally. Without it no file makes room for a directory either.
        dry_run: print the operations to stdout, one a line, and do nothing.
        host: whose volume; the local host's by default.
        atomic: False accepts, where the volume's file system cannot exchange two directories in one step, a moment
            in which the target is not there.
        allow_empty: whether a directory with nothing to mirror in it may empty a target that has something.

    Returns:
        the absolute path of the mirror inside a function.

    Raises:
        ValueError: `remote_dir` names nothing below `/data`, or has `..` or NUL; a pattern is not text; or `exclude` is
            `"dev"`, and `path` has something of that name.
        SourceNotFound: `path` does not exist.
        SyncError: something cannot be mirrored; the target is as it was.
        DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it; the target is as it was.
    """
    from atoll.storage.client.sync_summary import messages
    from atoll.storage.client.volume import absolute

    began = time.monotonic()
    arranged = arrange(
        path,
        remote_dir,
        exclude=exclude,
        delete=delete,
        dry_run=dry_run,
        host=host,
        atomic=atomic,
        allow_empty=allow_empty,
    )
    try:
        check_source(arranged.source)
        synced = arranged.run()
    except BaseException as error:
        from atoll.sdk.futures import hide_frames  # for errors alone

        hide_frames(error)
        raise
    if dry_run:
        for line in synced.plan.lines():
            print(line)
        if synced.refused:
            print(EMPTIES)
    for line in messages(synced, time.monotonic() - began):
        CallerStreams().notice(line)
    return absolute(arranged.target)


EMPTIES = "refused: it empties the target; `allow_empty=True` (`--allow-empty`) says that this is meant"
"""The last line of a dry run whose sync would be refused."""


class Arranged(NamedTuple):
    """A sync that can be run, once or again and again.

    Args:
        host: whose volume.
        source: the local directory, as it was named.
        target: relative to the volume's root.
        options: how.
    """

    host: Host
    source: str
    target: str
    options: SyncOptions

    def run(self) -> Synced:
        """Sync, with the errors of `sync_dir`; on a full disk, remove the leftovers of syncs and removed snapshots,
        and try once more."""
        try:
            return self._run_answered()
        except DiskFull:
            if self.options.dry_run or not self._made_room():
                raise
        return self._run()

    def _made_room(self) -> bool:
        try:
            return bool(self.host.request("volume.make_room", {}).get("made"))
        except AtollError:  # the daemon refuses that to functions
            return False

    def _run_answered(self) -> Synced:
        """Sync, by another peer if the first, which may have been idle when its daemon was killed, is silent."""
        try:
            return self._run()
        except HostUnreachable as error:
            if not error.details.get("unanswered"):
                raise
        return self._run()

    def _run(self) -> Synced:
        from atoll.storage.client.volume import VolumeClient

        with VolumeClient(self.host.open_storage(), getattr(self.host, "keep_storage", None)) as volume:
            return volume.sync(self.source, self.target, self.options)


def arrange(
    path: str | os.PathLike[str],
    remote_dir: str | os.PathLike[str],
    *,
    exclude: Iterable[str] = (),
    delete: bool = True,
    dry_run: bool = False,
    host: Host | None = None,
    atomic: bool = True,
    allow_empty: bool = False,
) -> Arranged:
    """Check the arguments of `sync_dir`, and return the sync."""
    from atoll import settings
    from atoll.storage.client.volume import sync_target
    from atoll.storage.sync.client import SyncOptions
    from atoll.storage.sync.index import index_path

    target = sync_target(remote_dir)
    source = os.fsdecode(os.fspath(path))
    patterns = _patterns(source, exclude)
    if host is None:
        from atoll.host.default import default_host

        host = default_host()
    elif not hasattr(host, "open_storage"):
        raise TypeError(f"`host` must be a host such as `local`, is {host!r}")
    home = settings.default_home()
    real = os.path.realpath(source)
    options = SyncOptions(
        exclude=patterns,
        delete=delete,
        atomic=atomic,
        dry_run=dry_run,
        allow_empty=allow_empty,
        index=index_path(home, getattr(host, "identity", host.name), real, target),
        leave_out=_below(real, os.path.realpath(home)),
    )
    return Arranged(host, source, target, options)


def _patterns(source: str, exclude: Iterable[str]) -> tuple[str, ...]:
    if exclude == "dev":
        from atoll.storage.client.sync_summary import DEV

        if os.path.lexists(os.path.join(source, "dev")):
            raise ValueError(
                '`exclude="dev"` leaves out what tools of developers make, and the source has a `dev` of its own: write'
                f' `exclude=["/dev"]` for that, or list the preset\'s patterns: {list(DEV)}'
            )
        return DEV
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def check_source(source: str) -> None:
    """Raise for a source that is no directory, before a host is started for the sync."""
    from atoll.storage.files import scan

    try:
        scan.check_source(source)
    except SyncError as error:
        if error.__cause__ is not None:  # its message repeats this one
            error.__cause__.__traceback__ = None
        raise


def _below(root: str, path: str) -> str:
    """Return `path` relative to `root` as trees spell it; empty when it is not below."""
    from atoll.storage.files.scan import to_name

    try:
        relative = os.path.relpath(path, root)
    except ValueError:  # another drive
        return ""
    if relative == os.curdir or relative.split(os.sep)[0] == os.pardir:
        return ""
    return to_name(relative.replace(os.sep, "/"))
