"""`Volume`: the caller's own `/data`, outside of functions and inside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

from atoll.errors import AtollError
from atoll.sdk.data.connections import VolumeConnections
from atoll.sdk.data.glob import matches
from atoll.storage.client.volume import VolumeRequests
from atoll.storage.protocol.connection import ROOT, AnyPath, Connection, absolute, volume_path
from atoll.storage.snapshots.values import check_name

if TYPE_CHECKING:
    import io
    from typing import (
        Self,  # functions may run on Python 3.10
        Unpack,
    )

    from atoll.host.contract import Host
    from atoll.model.quota import Quota
    from atoll.sdk.data.sync import SyncChoices
    from atoll.storage.files.tree import Status


class VolumeEntry:
    """One name in a directory of a volume, as `os.DirEntry`.

    Attributes:
        name: in its directory.
        path: absolute, below `/data`.
    """

    def __init__(self, path: str, status: Status) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self._status = status

    def __repr__(self) -> str:
        return f"<VolumeEntry {self.name!r}>"

    def __fspath__(self) -> str:
        return self.path

    def stat(self) -> os.stat_result:
        """Return the status of the name; of a symlink its own."""
        return self._status.as_stat()

    def inode(self) -> int:
        """Return the inode's number."""
        return self._status.inode

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return True for a directory, and a symlink to one inside `/data`."""
        return "d" in (self._status.kind, self._status.leads if follow_symlinks else "")

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return True for a file, and a symlink to one inside `/data`."""
        return "f" in (self._status.kind, self._status.leads if follow_symlinks else "")

    def is_symlink(self) -> bool:
        """Return True for a symlink."""
        return self._status.kind == "l"

    def target(self) -> str:
        """Return the stored target of a symlink; empty for anything else."""
        return self._status.target


class Volume(VolumeRequests):
    """The caller's own volume, which functions see as `/data`.

    Paths are absolute (`/data/a/b`), relative to `/data` or addresses (`atoll://a/b`); `..` is a `ValueError`. Symlinks
    that stay below `/data` are followed as inside a function. Errors of the file system are the builtin `OSError`
    classes (`FileNotFoundError`, `IsADirectoryError`, …) with the path as functions know it. Besides, every method may
    raise

        DiskFull, QuotaExceeded: the volume cannot take more; its content is unchanged.
        StateUnusable: the volume cannot be read or written.
        HostUnreachable: the host, or the process that serves the volume, went away.

    All methods use the current state; nothing is cached. A volume may be used from several threads and in forked
    processes, pickled (it opens its own connections there), and used inside functions, where plain `open` on `/data`
    does the same faster. `close`, or leaving a `with` block, closes connections and open files.

    Args:
        host: the volume's host; the local one by default.
    """

    def __init__(self, host: Host | None = None) -> None:
        if host is None:
            from atoll.host.default import default_host

            host = default_host()
        if not hasattr(host, "open_storage"):
            raise TypeError(f"`host` must be a host such as `local`, is {host!r}")
        self.host: Host = host
        self.connections = VolumeConnections(host)
        """The volume's connections to storage peers."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.host!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.host,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and open files; content of new files that are still open is dropped.

        The volume can be used again; such a file cannot, which is a `ValueError` as for all closed files.
        """
        self.connections.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self.connections.borrow() as borrowed:
            yield borrowed.connection

    def quota(self) -> Quota:
        """Return the volume's quota and its use, with `kind`: who enforces it, `user` or `project` of the file system, or
        `measured`; `none` without one.

        Raises:
            ResourcesUnavailable: a function asks.
        """
        from atoll.model.quota import Quota

        return Quota.from_data(self.host.request("volume.quota", {}))

    # --- looking ------------------------------------------------------------------------------------------------

    def exists(self, path: AnyPath) -> bool:
        """Return True if a path leads to anything; False for a symlink that leads nowhere, or in a circle."""
        return self._kind(path) != ""

    def isdir(self, path: AnyPath) -> bool:
        """Return True if a path leads to a directory."""
        return self._kind(path) == "d"

    def isfile(self, path: AnyPath) -> bool:
        """Return True if a path leads to a file."""
        return self._kind(path) == "f"

    def _kind(self, path: AnyPath) -> str:
        try:
            return self.status(path).kind
        except OSError as error:
            if isinstance(error, AtollError):
                raise
            return ""

    def entry(self, path: AnyPath) -> VolumeEntry:
        """Return the entry of a path, as `scandir` of the directory above would."""
        where = absolute(volume_path(path))
        return VolumeEntry(where, self.status(where, follow=False))

    def scandir(self, path: AnyPath = ROOT) -> list[VolumeEntry]:
        """Return the entries of a directory, with the status of each, sorted by name."""
        where = absolute(volume_path(path))
        return [VolumeEntry(f"{where}/{name}", status) for name, status in self.statuses(where).items()]

    def walk(self, path: AnyPath = ROOT) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, names of directories in it, other names) for a directory and all below it, as `os.walk`.

        Names that the consumer removes from the second are not walked. Symlinks to directories are among them and not
        followed. Directories that vanish meanwhile, may not be read, or hold snapshots are left out.

        Raises:
            FileNotFoundError, NotADirectoryError: `path` is no directory.
            PermissionError: `path` itself may not be read.
        """
        top = absolute(volume_path(path))
        pending = [top]
        while pending:
            where = pending.pop()
            try:
                entries = {entry.name: entry for entry in self.scandir(where)}
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                if where == top:
                    raise
                continue
            if where == ROOT:
                entries.pop(".snapshots", None)
            directories = [name for name, entry in entries.items() if entry.is_dir()]
            yield where, directories, [name for name, entry in entries.items() if not entry.is_dir()]
            below = [name for name in directories if name in entries and not entries[name].is_symlink()]
            pending.extend(f"{where}/{name}" for name in reversed(below))

    def glob(self, pattern: AnyPath) -> list[str]:
        """Return the paths that match a pattern, absolute and sorted.

        `*`, `?` and `[...]` match within a name, `**` any number of directories. As in a shell, names that begin with
        a dot are matched only by patterns that do; symlinks to directories are followed except by `**`. A pattern that
        ends with `/` matches directories only; directories that may not be read are left out.
        """
        parts = volume_path(pattern).split("/")
        if parts != [""] and os.fspath(pattern).endswith("/"):
            parts.append("")
        return sorted(set(matches(self, ROOT, parts))) if parts != [""] else [ROOT]

    # --- contents -----------------------------------------------------------------------------------------------

    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["rb", "br"],
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> io.BufferedReader: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["wb", "bw", "xb", "bx", "ab", "ba"],
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> io.BufferedWriter: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["r", "w", "x", "a", "rt", "wt", "xt", "at", "r+", "w+", "x+", "a+"] = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any: ...
    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open a file, as the builtin `open` does; text is UTF-8 unless `encoding` says otherwise.

        A file that is read keeps its state, even if it is replaced meanwhile. Only the parts that are read travel, up
        to 8 MiB ahead for reads in order.

        `w` and `x` make a new file that takes its name, durably and in one step, when it is closed; until then the old
        one stays. A `with` block that an exception leaves drops the new file, and so does a write that fails. `a` and
        `r+` change the file in place, as a function does: others see each piece as it is written (pieces of `a` go to
        the end, beside other writers), `close` makes it durable, and an exception keeps the written part. If a sync
        replaces or removes the file meanwhile, their further writes go to the old file, which has no name any more; a
        file that the sync keeps (`exclude`, `delete=False`) stays the same. Missing directories are made. A file
        object that is garbage is closed.

        Raises:
            FileNotFoundError: a file to be read does not exist.
            FileExistsError: the path exists, in mode `x`; also from `close`.
            IsADirectoryError: the path is a directory.
            ValueError: the mode is invalid.
        """
        from atoll.sdk.data.file import open_file

        return open_file(self.connections, os.fspath(path), mode, buffering, encoding, errors, newline)

    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a file as text, with its line ends as they are."""
        return self.read_bytes(path).decode(encoding, errors)

    def write_text(self, path: AnyPath, content: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Replace a file by text, as `write_bytes`; line ends are written as they are."""
        if not isinstance(content, str):
            raise TypeError("`write_text` takes text; `write_bytes` writes bytes")
        self.write_bytes(path, content.encode(encoding, errors))
        return len(content)

    # --- trees --------------------------------------------------------------------------------------------------

    def restore(self, name: str, *, wait: bool = False) -> str | None:
        """Replace a snapshot's directory by the snapshot's state, in one step.

        Functions see all of the old state or all of the new: idle sandboxes end first, running calls are waited for
        or the restore is refused, and new calls begin after it. Syncs take their turn.

        Args:
            wait: wait for running calls; new ones wait too, except those that running ones make.

        Returns:
            the name of a snapshot that holds the replaced state; None if the directory did not exist.

        Raises:
            VolumeBusy: calls run, which its `calls` lists; or this is one: a function cannot restore its own volume.
            SnapshotError: no such snapshot exists.
        """
        answer = self.host.request("volume.restore", {"name": check_name(name), "wait": wait})
        return answer.get("kept") or None

    def sync(self, local: AnyPath, path: AnyPath, **options: Unpack[SyncChoices]) -> str:
        """Make `path` a mirror of a local directory; see `atoll.sync_dir`, whose options it takes."""
        from atoll.sdk.data.sync import sync_dir

        return sync_dir(local, path, host=self.host, **options)
