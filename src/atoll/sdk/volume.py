"""`Volume`: the caller's own `/data`, from outside of functions or inside."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from atoll.errors import AtollError
from atoll.sdk.glob import matches
from atoll.sdk.volume_entry import VolumeEntry
from atoll.sdk.volume_snapshots import Path, VolumeSnapshots
from atoll.storage.protocol.connection import absolute, volume_path

if TYPE_CHECKING:
    import io

    from atoll.storage.client.volume import Usage
    from atoll.storage.files.status import Status
    from atoll.storage.protocol.progress import ProgressLine


class Volume(VolumeSnapshots):
    """The caller's own volume: what functions see as `/data`.

    Paths are absolute (`/data/a/b`), relative to `/data` or addresses (`atoll://a/b`); `..` is a `ValueError`. Symlinks
    are followed as inside a function, where they stay below `/data`. What the file system refuses is the builtin
    `OSError` for it (`FileNotFoundError`, `IsADirectoryError`, …) with the path as functions know it. Besides, every
    method may raise

        DiskFull, QuotaExceeded: the volume cannot take more; what was there is as it was.
        StateUnusable: the volume cannot be read or written.
        HostUnreachable: the host, or the process that serves the volume, went away.

    All methods work on what is there at that moment; nothing is cached. A volume may be used from several threads and
    in forked processes, pickled (it opens its own connections there), and used inside functions, where plain `open`
    on `/data` does the same faster. `close`, or leaving a `with` block, closes connections and files that are open.

    Args:
        host: whose volume; the local host's by default.
    """

    # --- looking ------------------------------------------------------------------------------------------------

    def stat(self, path: Path = "/data", *, follow: bool = True) -> os.stat_result:
        """Return the status of a path; of a symlink at its end its own where `follow` is False.

        Raises:
            FileNotFoundError: there is nothing.
            PermissionError: a symlink leads out of `/data`.
        """
        return self._status(path, follow=follow).as_stat()

    def _status(self, path: Path, *, follow: bool = True) -> Status:
        with self.lent() as client:
            return client.stat(os.fspath(path), follow=follow)

    def exists(self, path: Path) -> bool:
        """Say whether something is at the end of a path; False for a symlink that leads nowhere, or in a circle."""
        return self._kind(path) != ""

    def isdir(self, path: Path) -> bool:
        """Say whether a path leads to a directory."""
        return self._kind(path) == "d"

    def isfile(self, path: Path) -> bool:
        """Say whether a path leads to a file."""
        return self._kind(path) == "f"

    def entry(self, path: Path) -> VolumeEntry:
        """Return what stands at a path, a symlink itself, as `scandir` of the directory above would give it."""
        where = absolute(volume_path(path))
        return VolumeEntry(where, self._status(where, follow=False))

    def _kind(self, path: Path) -> str:
        try:
            return self._status(path).kind
        except OSError as error:
            if isinstance(error, AtollError):
                raise
            return ""

    def listdir(self, path: Path = "/data") -> list[str]:
        """Return the names in a directory, sorted."""
        with self.lent() as client:
            return list(client.listdir(os.fspath(path)))

    def scandir(self, path: Path = "/data") -> list[VolumeEntry]:
        """Return what a directory holds, with the status of each, sorted by name."""
        where = absolute(volume_path(path))
        with self.lent() as client:
            found = client.listdir(where)
        return [VolumeEntry(f"{where}/{name}", status) for name, status in found.items()]

    def walk(self, path: Path = "/data") -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, names of directories in it, other names) for a directory and all below it, as `os.walk`.

        Names that the consumer removes from the second are not walked. Symlinks to directories are among them and not
        followed. What vanishes meanwhile is left out, what may not be read, and what holds snapshots.

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
            if where == "/data":
                entries.pop(".snapshots", None)
            directories = [name for name, entry in entries.items() if entry.is_dir()]
            yield where, directories, [name for name, entry in entries.items() if not entry.is_dir()]
            below = [name for name in directories if name in entries and not entries[name].is_symlink()]
            pending.extend(f"{where}/{name}" for name in reversed(below))

    def glob(self, pattern: Path) -> list[str]:
        """Return the paths that match a pattern, absolute and sorted.

        `*`, `?` and `[...]` match within a name, `**` any number of directories. As in a shell, names that begin with
        a dot are matched only by patterns that do; symlinks to directories are followed except by `**`. A pattern that
        ends with `/` matches directories only; directories that may not be read are left out.
        """
        parts = volume_path(pattern).split("/")
        if parts != [""] and os.fspath(pattern).endswith("/"):
            parts.append("")
        return sorted(set(matches(self, "/data", parts))) if parts != [""] else ["/data"]

    def usage(self, path: Path = "/data") -> Usage:
        """Return what a path takes with all below it, and the size and free space of its file system, in bytes.

        A file with several names counts once. Snapshots are no part of `/data`.
        """
        from atoll.storage.client.volume import Usage

        with self.lent() as client:
            sums, disk, free = client.usage(os.fspath(path))
        return Usage(*sums[""], disk, free)

    # --- contents -----------------------------------------------------------------------------------------------

    @overload
    def open(
        self,
        path: Path,
        mode: Literal["rb", "br"],
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> io.BufferedReader: ...
    @overload
    def open(
        self,
        path: Path,
        mode: Literal["wb", "bw", "xb", "bx", "ab", "ba"],
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> io.BufferedWriter: ...
    @overload
    def open(
        self,
        path: Path,
        mode: Literal["r", "w", "x", "a", "rt", "wt", "xt", "at", "r+", "w+", "x+", "a+"] = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    def open(
        self,
        path: Path,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any: ...
    def open(
        self,
        path: Path,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open a file, as the builtin `open` does; text is UTF-8 unless `encoding` says otherwise.

        A file that is read is one state of it: who replaces it meanwhile does not tear it. Only what is read travels,
        with up to 8 MiB ahead for who reads in order.

        `w` and `x` make a new file that takes its name, durably and in one step, when it is closed; until then what
        was there stays. A `with` block that an exception leaves drops it, and so does a write that fails. `a` and
        `r+` change the file in place, as a function does: others see each piece as it is written (pieces of `a` go to
        the end, whoever else appends), `close` makes it durable, and an exception leaves what was written.
        What they write after a sync has replaced or removed that very file goes to the old one, which has no name any
        more; a file that the sync keeps (`exclude`, `delete=False`) stays the same. Missing directories are made. A
        file that is garbage is closed.

        Raises:
            FileNotFoundError: there is none to read.
            FileExistsError: mode `x`, and there is something; also from `close`.
            IsADirectoryError: it is one.
            ValueError: the mode is none.
        """
        from atoll.sdk.volume_file import open_file

        return open_file(self.clients, os.fspath(path), mode, buffering, encoding, errors, newline)

    def read_bytes(self, path: Path, offset: int = 0, length: int | None = None) -> bytes:
        """Return the content of a file from `offset` on (negative: from the end), at most `length` bytes.

        Raises:
            ValueError: `length` is negative.
        """
        return self.read_ranges(path, [(offset, length)])[0]

    def read_ranges(self, path: Path, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
        """Return pieces of one state of a file: offset (negative: from the end) and length (None: up to the end) of
        each, in bytes. What is behind the end is left out."""
        with self.lent() as client:
            return client.read_ranges(os.fspath(path), ranges)

    def read_text(self, path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a file as text, with its line ends as they are."""
        return self.read_bytes(path).decode(encoding, errors)

    def write_bytes(self, path: Path, content: Any, *, mode: int | None = None) -> int:
        """Replace a file durably and in one step; missing directories are made.

        Args:
            content: bytes, anything else that gives its bytes as a buffer, or an iterable of such.
            mode: permission bits; by default those of the file that is replaced, or 0644.

        Returns:
            how many bytes it has.
        """
        count = 0

        def counted(pieces: Iterable[Any]) -> Iterator[memoryview]:
            nonlocal count
            for piece in pieces:
                view = memoryview(piece).cast("B")
                count += view.nbytes
                yield view

        try:
            pieces: Iterable[Any] = [memoryview(content)]
        except TypeError:
            if isinstance(content, str):
                raise TypeError("`write_bytes` takes bytes; `write_text` writes text") from None
            pieces = content
        with self.lent() as client:
            client.write(os.fspath(path), counted(pieces), mode=mode)
        return count

    def write_text(self, path: Path, content: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Replace a file by text, as `write_bytes`; line ends are written as they are."""
        if not isinstance(content, str):
            raise TypeError("`write_text` takes text; `write_bytes` writes bytes")
        self.write_bytes(path, content.encode(encoding, errors))
        return len(content)

    # --- names --------------------------------------------------------------------------------------------------

    def mkdir(self, path: Path, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory, with `parents` those above it too.

        Raises:
            FileExistsError: there is something, unless it is a directory and `exist_ok` is set.
            FileNotFoundError: the directory above is missing, and `parents` not set.
        """
        with self.lent() as client:
            client.mkdir(os.fspath(path), mode=mode, parents=parents, exist_ok=exist_ok)

    def makedirs(self, path: Path, mode: int = 0o755, *, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        self.mkdir(path, mode, parents=True, exist_ok=exist_ok)

    def touch(self, path: Path, mtime_ns: int | None = None) -> None:
        """Make an empty file where there is nothing, and set the modification time (nanoseconds; by default now)."""
        with self.lent() as client:
            client.set_attributes(os.fspath(path), mtime_ns=mtime_ns, create=True)

    def chmod(self, path: Path, mode: int) -> None:
        """Set permission bits."""
        with self.lent() as client:
            client.set_attributes(os.fspath(path), mode=stat_module.S_IMODE(mode))

    def rename(self, source: Path, target: Path, *, replace: bool = True) -> None:
        """Give something another name in one step, replacing a file or an empty directory there, as `os.replace`.

        A symlink is renamed itself. Missing directories on the way to `target` are made.

        Args:
            replace: False refuses to replace anything.

        Raises:
            FileExistsError: there is something, and `replace` is False.
            OSError: `target` is a directory that is not empty (`ENOTEMPTY`), or below `source`.
            IsADirectoryError, NotADirectoryError: one of the two is a directory and the other is not.
        """
        with self.lent() as client:
            client.rename(os.fspath(source), os.fspath(target), exclusive=not replace)

    def copy(self, source: Path, target: Path, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy a file, or a directory with all that it holds, to exactly `target`, which appears whole and durable.

        Nothing of it travels; where the file system shares blocks (XFS, btrfs) it takes no space either. Modes,
        modification times and symlinks are kept, holes stay holes, and hard links become files of their own. A file
        replaces a file that is there, a directory nothing but an empty one. Missing directories on the way are made.

        Args:
            progress: is called now and then with the number of files and of bytes that have been copied so far.

        Raises:
            IsADirectoryError, NotADirectoryError: one of the two is a directory and the other is not.
            OSError: `target` is a directory that is not empty (`ENOTEMPTY`), or below `source`; or something is a
                fifo, socket or device (`EINVAL`).
        """
        with self.lent() as client:
            client.copy(os.fspath(source), os.fspath(target), recursive=True, progress=progress)

    def remove(self, path: Path, *, recursive: bool = False) -> None:
        """Remove a file, a symlink or an empty directory; with `recursive` a directory with all that it holds, which
        is gone in one step."""
        with self.lent() as client:
            client.remove(os.fspath(path), recursive=recursive)

    # --- trees --------------------------------------------------------------------------------------------------

    def put(self, local: Path, path: Path, progress: ProgressLine | None = None) -> None:
        """Copy a local file or directory to exactly `path`; a directory is merged into one that is there.

        A file is replaced in one step, a directory as by `sync_dir(delete=False)`: all of it appears at once. Nothing
        is replaced by something of another kind but symlinks.

        Raises:
            SyncError: something local is a special file, cannot be read, or changes all the time while it is.
        """
        with self.lent() as client:
            client.put(os.fspath(local), os.fspath(path), progress)

    def get(self, path: Path, local: Path, progress: ProgressLine | None = None) -> list[str]:
        """Copy a file or directory of the volume to exactly `local`; a directory is merged into one that is there.

        A symlink that `path` ends in is followed, those in a directory are copied.

        Each file is written beside its name and renamed. No symlink below `local` is followed: one that stands where
        something comes is replaced. A file alone is written into a device or fifo that `local` is, and into what is
        open as `/dev/stdout` or `/dev/fd/N`; elsewhere devices, fifos and sockets are an error, and stay.

        Returns:
            what was left out, relative to `path`, since it is a fifo, socket or device.
        """
        with self.lent() as client:
            return client.get(os.fspath(path), os.fspath(local), progress)

    def sync(self, local: Path, path: Path, **options: Any) -> str:
        """Make `path` a mirror of a local directory; see `atoll.sync_dir`, whose options it takes."""
        from atoll.sdk.sync import sync_dir

        return sync_dir(local, path, host=self.host, **options)
