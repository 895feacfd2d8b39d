"""The local path that receives files from a volume, whose content hostile code may have written.

An earlier copy may have left symlinks here that point anywhere, and the next one may contain a directory of the same
name. So nothing below the destination is ever reached through a symlink. On POSIX each directory is opened relative to
the one above without following symlinks, and every change is made relative to such a descriptor. On Windows each
directory is checked before its use: a local program that swaps directories meanwhile could defeat that, no volume can.

A symlink in the place of a directory or a file is replaced, as rsync and tar do: its target is unchanged, and only
the link, which most likely came from the volume as well, is lost. Directories, devices, fifos and sockets are never
replaced, and files by nothing but files and symlinks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from atoll.errors import SyncError
from atoll.storage.files.scan import to_native
from atoll.storage.files.tree import check_path, special_name
from atoll.terminal_text import printable

_NEEDED = {os.open, os.mkdir, os.stat, os.rename, os.symlink, os.unlink}
_BY_DESCRIPTOR = (
    os.supports_dir_fd.issuperset(_NEEDED)
    and os.supports_fd.issuperset({os.chmod, os.utime})
    and hasattr(os, "O_NOFOLLOW")
)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_WALK = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY  # O_PATH: a directory that may be entered but not listed
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
for _flag in ("O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
    _NEW_FILE |= getattr(os, _flag, 0)


def holds_name(name: str, *, windows: bool) -> bool:
    """Return True if a platform takes a component of a tree's path literally."""
    if not windows:
        return True
    # Windows drops dots and spaces at the end, by which `.. ` would lead up.
    return name == name.rstrip(". ") and not any(char in '\\:*?"<>|' or char < " " for char in name)


_NAMELESS = getattr(os, "O_TMPFILE", 0) if _BY_DESCRIPTOR and os.path.isdir("/proc/self/fd") else 0
"""Flag for a file without a name, which disappears when the program is killed; Linux, on most file systems."""


class NewFile:
    """A new file beside its path, or without a name; `Destination.create` makes it.

    Attributes:
        descriptor: open for writing.
    """

    def __init__(self, name: str, parent: int | None) -> None:
        self._name = name
        self._parent = parent
        self._temporary = ""
        if _NAMELESS and parent is not None:
            with contextlib.suppress(OSError):  # not on this file system
                self.descriptor = os.open(".", _NAMELESS | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=parent)
                return
        self._temporary = _beside(name)
        self.descriptor = os.open(self._temporary, _NEW_FILE, 0o600, dir_fd=parent)

    def complete(self, mode: int, mtime_ns: int) -> None:
        """Give the file its path, replacing a file or symlink.

        Raises:
            OSError: the path cannot be taken; the caller still calls `discard`.
        """
        if self._parent is not None:
            os.chmod(self.descriptor, mode & 0o777)
            os.utime(self.descriptor, ns=(mtime_ns, mtime_ns))
        if not self._temporary and self._named():
            self._close()
            return
        self._close()
        if self._parent is None:
            os.chmod(self._temporary, mode & 0o777)
            os.utime(self._temporary, ns=(mtime_ns, mtime_ns))
        _check_replaceable(self._name, self._parent)
        os.replace(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)

    def _named(self) -> bool:
        """Link a file without a name to its path, or if that is taken beside it, to be renamed."""
        here = f"/proc/self/fd/{self.descriptor}"
        try:
            os.link(here, self._name, dst_dir_fd=self._parent)
        except FileExistsError:
            self._temporary = _beside(self._name)
            os.link(here, self._temporary, dst_dir_fd=self._parent)
            return False
        return True

    def discard(self) -> None:
        """Remove the incomplete file."""
        self._close()
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)

    def _close(self) -> None:
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


class Destination:
    """The directory tree, or the one file, at `local`; paths are those of trees.

    Symlinks above `local` are followed, as its caller spelled them; `local` itself is followed only if it is an existing
    directory with a separator (or `.` or `..`) at its end.

    Raises:
        OSError: from each method: the file system refuses; the error names the local path.
        SyncError: from each method: the platform cannot hold a name.
        ValueError: from each method: a path is not one inside a tree.
    """

    def __init__(self, local: str) -> None:
        self._base: int | None = None
        self._here: tuple[list[str], int] = ([], -1)
        self._parent, self._name = os.path.split(local)
        if self._name in ("", ".", ".."):
            self._parent, self._name = local, "."
        if _BY_DESCRIPTOR:
            self._base = os.open(self._parent or ".", _WALK)

    def close(self) -> None:
        """Close all descriptors; further calls do nothing."""
        self._leave()
        if self._base is not None and self._base >= 0:
            os.close(self._base)
            self._base = -1

    def make_directory(self, path: str) -> bool:
        """Make a directory, for its owner alone, if it is missing; return True if it was."""
        with self.errors_name(path):
            name, parent = self._place(path)
            try:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    return False
                if stat.S_ISLNK(found.st_mode):
                    os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass
            os.mkdir(name, 0o700, dir_fd=parent)
            return True

    def finish_directory(self, path: str, mode: int, mtime_ns: int) -> None:
        """Set mode and modification time of a directory that was made."""
        with self.errors_name(path):
            name, parent = self._place(path)
            if parent is None:
                _check_directory(name)
                os.utime(name, ns=(mtime_ns, mtime_ns))
                os.chmod(name, mode & 0o777)
                return
            descriptor = os.open(name, os.O_RDONLY | _DIRECTORY | _NOFOLLOW, dir_fd=parent)
            try:
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                os.chmod(descriptor, mode & 0o777)
            finally:
                os.close(descriptor)

    def create(self, path: str) -> NewFile:
        """Begin a file; complete or discard it before any other call."""
        with self.errors_name(path):
            name, parent = self._place(path)
            _check_replaceable(name, parent)
            return NewFile(name, parent)

    def complete(self, path: str, file: NewFile, mode: int, mtime_ns: int) -> None:
        """Give a file from `create` its path, mode and modification time."""
        with self.errors_name(path):
            file.complete(mode, mtime_ns)

    def make_symlink(self, path: str, target: str, mtime_ns: int) -> None:
        """Make a symlink, replacing a file or symlink; `target` is spelled as in trees."""
        with self.errors_name(path):
            name, parent = self._place(path)
            _check_replaceable(name, parent)
            temporary = _beside(name)
            os.symlink(to_native(target), temporary, dir_fd=parent)
            try:
                if os.utime in os.supports_follow_symlinks and (parent is None or os.utime in os.supports_dir_fd):
                    os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
                os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=parent)
                raise

    def _components(self, path: str) -> list[str]:
        parts = to_native(check_path(path)).split("/") if path else []
        if not all(holds_name(part, windows=os.sep != "/") for part in parts):
            raise SyncError(f"`{printable(path)}` is not a name that this platform can hold")
        return [self._name, *parts]

    def _local(self, path: str) -> str:
        return os.path.normpath(os.path.join(self._parent, *self._components(path)))

    @contextlib.contextmanager
    def errors_name(self, path: str) -> Iterator[None]:
        """Add the local path to errors of work on `path`."""
        try:
            yield
        except OSError as error:
            if isinstance(error, SyncError):
                raise
            raise OSError(error.errno, error.strerror, self._local(path)) from error

    def _place(self, path: str) -> tuple[str, int | None]:
        """Return the name of `path` and the open directory in which it is; without descriptors the local path."""
        *above, name = self._components(path)
        if self._base is None:
            where = self._parent
            for part in above:
                where = os.path.join(where, part)
                _check_directory(where)
            return os.path.join(where, name), None
        if not above:
            return name, self._base
        if above != self._here[0]:
            self._leave()
            self._here = (above, self._walk(self._base, above))
        return name, self._here[1]

    def _walk(self, base: int, parts: list[str]) -> int:
        descriptor = base
        for part in parts:
            above = descriptor
            try:
                descriptor = os.open(part, _WALK | _NOFOLLOW, dir_fd=above)
            finally:
                if above != base:
                    os.close(above)
        return descriptor

    def _leave(self) -> None:
        if self._here[1] >= 0:
            os.close(self._here[1])
        self._here = ([], -1)


def _beside(name: str) -> str:
    return os.path.join(os.path.dirname(name), f".atoll-{secrets.token_hex(8)}")


def _is_special(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def check_target(local: str) -> None:
    """Refuse devices, fifos, sockets and open descriptors (`/dev/stdout`) as the target of a copy.

    Raises:
        SyncError: `local` is one.
    """
    try:
        mode = os.lstat(local).st_mode
    except OSError:
        return  # the creation of the target reports a better error
    if _is_special(mode):
        kind = special_name(mode)
    elif stat.S_ISLNK(mode) and _of_the_system(local):
        kind = "link of the system"  # /dev/stdout, /dev/fd/3: replacing it would break other programs
    else:
        return
    raise SyncError(
        f"`{printable(local)}` is a {kind}, which is not replaced",
        hint="`-` is standard output: `atoll data get FILE - > TARGET`",
    )


def _of_the_system(link: str) -> bool:
    """Return True if only the system can make links in the directory of a symlink."""
    above = os.path.realpath(os.path.dirname(os.path.abspath(link)))
    return above == "/dev" or above.startswith("/proc/")


def _check_replaceable(name: str, parent: int | None) -> None:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if _is_special(mode):
        raise FileExistsError(errno.EEXIST, f"a {special_name(mode)} is there, which is not replaced")


def _check_directory(path: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
