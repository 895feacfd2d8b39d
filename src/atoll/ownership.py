"""Ownership of paths: proof that no other user can change a directory or a file, before its contents are trusted.

Theory of operation. A path is walked from the root. Each component is opened relative to the one before, without
following symlinks, and checked by its own descriptor, so there is no moment between the check and the use. Directories
above the state directory follow the rules of ssh for the paths of its keys: each belongs to this user or to root, and
neither group nor others may write to it. Exceptions:

- a sticky directory such as `/tmp` may be written by all; the component below must then belong to this user or root;
- a group may write if it is this user's own one without other members, as Debian makes for each user;
- below a directory that only this user can enter, modes no longer matter, owners do;
- in a user namespace the machine's root has no number of its own, so the overflow uid counts as root.

A directory of the state that belongs to this user and that others may write to loses these bits. Whoever could write
there until then may have left something, so its entries must belong to this user or to root.

Linux alone has functions and a daemon. On other platforms nothing is checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from atoll.errors import StateUntrusted
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from typing import Self  # workers may run Python 3.10, which lacks the name

CHECKED = sys.platform == "linux"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH
_PATH = getattr(os, "O_PATH", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_MOST_LINKS = 40  # the kernel's own limit: MAXSYMLINKS
_ALL_UIDS = ["0", "0", "4294967295"]
_ELSEWHERE = "set ATOLL_HOME to a directory of your own, below directories that only you or root can change"


class Directory:
    """An open directory that no other user can change; closed at the end of its `with` block.

    Args:
        descriptor: opened with `O_PATH`; the object owns it.
        path: for messages.
        private: whether only this user and root can enter it.
    """

    def __init__(self, descriptor: int, path: str, private: bool) -> None:
        self.descriptor = descriptor
        self.path = path
        self.private = private

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def enter(self, name: str, *, make: bool = False) -> Directory:
        """Open a directory of the state, by its name in this one; it may be a symlink.

        Raises:
            StateUntrusted: another user can change it.
            OSError: it does not exist, or is no directory; with `make` it is made.
        """
        return _own(_walk(os.dup(self.descriptor), self.path, self.private, [name], make=make))

    def open(self, name: str, flags: int) -> int:
        """Open a file of this directory, which is made with mode 0600 if the flags say so; no symlink is followed.

        Raises:
            StateUntrusted: it is no ordinary file, or another user can change it.
        """
        path = os.path.join(self.path, name)
        try:
            # without waiting: a planted fifo would hold its opener
            descriptor = os.open(
                name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=self.descriptor
            )
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                _check_file(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False), path, self.private)
            raise
        try:
            _check_file(os.fstat(descriptor), path, self.private)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check_entries(self) -> None:
        """Check that all entries belong to this user or root.

        Raises:
            StateUntrusted: one does not.
        """
        readable = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(readable):
                found = os.stat(name, dir_fd=readable, follow_symlinks=False)
                if found.st_uid not in (0, os.geteuid()):
                    path = os.path.join(self.path, name)
                    raise StateUntrusted(
                        f"`{printable(path)}` belongs to {_user(found.st_uid)}, and is used by your functions and programs",
                        hint=f"remove it, or take others' rights with `chmod go-w {printable(self.path)}` if it is yours",
                        path=path,
                        uid=found.st_uid,
                    )
        finally:
            os.close(readable)


def directory(path: str | os.PathLike[str], *, make: bool = False) -> Directory:
    """Open a directory of the state; with `make` it is made, private to this user, and so are missing ones above.

    Raises:
        StateUntrusted: another user can change the path.
        OSError: it does not exist, or is no directory, or cannot be made.
    """
    names = [name for name in os.path.abspath(path).split("/") if name]
    return _own(_walk(os.open("/", _PATH), "", False, names, make=make))


def check(path: str | os.PathLike[str]) -> None:
    """Check a directory of the state as `directory` does; a missing one is in order."""
    if CHECKED:
        with contextlib.suppress(FileNotFoundError), directory(path):
            pass


def read(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """Return the contents of a file of the state, which may be a symlink.

    Args:
        most: bytes to return at most; -1 for all.

    Raises:
        StateUntrusted: another user can change the file or the path.
        OSError: it cannot be read.
    """
    if not CHECKED:
        with open(path, "rb") as file:
            return file.read(most)
    above, name = os.path.split(os.path.abspath(path))
    with directory(above) as held:
        found = _walk(os.dup(held.descriptor), held.path, held.private, [name])
    with found:
        _check_file(os.fstat(found.descriptor), found.path, found.private)
        with open(f"/proc/self/fd/{found.descriptor}", "rb") as file:
            return file.read(most)


# --- the walk -----------------------------------------------------------------------------------------------------


def _walk(descriptor: int, path: str, private: bool, names: list[str], *, make: bool = False) -> Directory:
    """Return the last component, an O_PATH descriptor of any kind of file, after a check of the directories before it.

    Args:
        descriptor: the directory to begin at, checked by the caller; closed here.
        private: whether only this user and root can enter that one.
        names: the components.
    """
    pending, links, shared = names[::-1], 0, False
    try:
        while pending:
            name = pending.pop()
            below = _open_below(descriptor, name, make=make, last=not pending)
            try:
                found = os.fstat(below)
                if stat.S_ISLNK(found.st_mode):
                    _check_owner(found, f"{path}/{name}", overflow=not shared)
                    target = os.readlink("", dir_fd=below)
                elif pending:
                    if name == "..":  # the one above has been passed before, maybe on the way to a private one
                        private = shared = False
                    shared = _check_above(found, f"{path}/{name}", private=private, overflow=not shared)
                    private = private or _is_private(found)
            except BaseException:
                os.close(below)
                raise
            if not stat.S_ISLNK(found.st_mode):
                os.close(descriptor)
                descriptor, path = below, f"{path}/{name}"
                continue
            os.close(below)
            if (links := links + 1) > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"{path}/{name}")
            pending += [part for part in target.split("/")[::-1] if part not in ("", ".")]
            if target.startswith("/"):
                os.close(descriptor)
                descriptor, path, private, shared = os.open("/", _PATH), "", False, False
    except BaseException:
        os.close(descriptor)
        raise
    return Directory(descriptor, path or "/", private)


def _open_below(descriptor: int, name: str, *, make: bool, last: bool) -> int:
    try:
        return os.open(name, _PATH, dir_fd=descriptor)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700 if last else 0o755, dir_fd=descriptor)
    return os.open(name, _PATH, dir_fd=descriptor)


def _own(found: Directory) -> Directory:
    """Check a directory of the state itself, and take the rights of others to write from it."""
    try:
        status = os.fstat(found.descriptor)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), found.path)
        _check_owner(status, found.path, overflow=False)
        if status.st_mode & OTHERS_WRITE and not found.private:
            if status.st_uid != os.geteuid():
                raise _writable(status, found.path)
            found.check_entries()
            os.chmod(f"/proc/self/fd/{found.descriptor}", stat.S_IMODE(status.st_mode) & ~OTHERS_WRITE)
            found.check_entries()  # those that came meanwhile
        found.private = found.private or _is_private(status)
    except BaseException:
        os.close(found.descriptor)
        raise
    return found


# --- the rules ----------------------------------------------------------------------------------------------------


def _check_above(found: os.stat_result, path: str, *, private: bool, overflow: bool) -> bool:
    """Check a directory above; return whether others may make entries in it, as in `/tmp`."""
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    _check_owner(found, path, overflow=overflow)
    if private or not found.st_mode & OTHERS_WRITE:
        return False
    if found.st_mode & stat.S_ISVTX:
        return True
    if found.st_mode & stat.S_IWOTH or not _is_own_group(found.st_gid):
        raise _writable(found, path)
    return False


def _check_file(found: os.stat_result, path: str, private: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StateUntrusted(f"`{printable(path)}` is no ordinary file", hint="look at it, and remove it")
    _check_owner(found, path, overflow=False)
    if (
        found.st_mode & OTHERS_WRITE
        and not private
        and (found.st_mode & stat.S_IWOTH or not _is_own_group(found.st_gid))
    ):
        raise _writable(found, path)


def _check_owner(found: os.stat_result, path: str, *, overflow: bool) -> None:
    uid = found.st_uid
    if uid == 0 or uid == os.geteuid() or (overflow and _is_unmapped(uid)):
        return
    raise StateUntrusted(
        f"`{printable(path)}` belongs to {_user(uid)}, who can change it; nothing was read there or sent",
        hint=_ELSEWHERE,
        path=path,
        uid=uid,
        mode=f"{stat.S_IMODE(found.st_mode):04o}",
    )


def _writable(found: os.stat_result, path: str) -> StateUntrusted:
    others = "every user" if found.st_mode & stat.S_IWOTH else f"the group {_group(found.st_gid)}"
    mode, own = f"{stat.S_IMODE(found.st_mode):04o}", found.st_uid == os.geteuid()
    return StateUntrusted(
        f"`{printable(path)}` can be changed by {others} (mode {mode}); nothing was read there or sent",
        hint=f"look at its contents and run `chmod go-w {printable(path)}`, or {_ELSEWHERE}" if own else _ELSEWHERE,
        path=path,
        uid=found.st_uid,
        mode=mode,
    )


def _is_private(found: os.stat_result) -> bool:
    return not found.st_mode & _OTHERS_ENTER and found.st_uid in (0, os.geteuid())


def _is_unmapped(uid: int) -> bool:
    """Return whether a uid stands for users outside of this process's user namespace."""
    try:
        with open("/proc/sys/kernel/overflowuid") as file:
            overflow = int(file.read())
        with open("/proc/self/uid_map") as file:
            return uid == overflow and file.read().split() != _ALL_UIDS
    except (OSError, ValueError):
        return False


def _is_own_group(gid: int) -> bool:
    """Return whether no account but this user's, and root, is known to be in a group.

    It is root's, or this user's own by number or name, or one without an entry that this process is in, as containers
    have them. A group that is merely this user's first one may have members that a directory service does not list.
    """
    import grp
    import pwd

    uid, name = os.geteuid(), ""
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(uid).pw_name
    try:
        group, _, _, members = grp.getgrgid(gid)
        own = gid in (0, uid) or (group == name and bool(name))
    except KeyError:
        members, own = [], gid in (0, uid) or gid in (os.getegid(), *os.getgroups())
    if not own or any(member not in (name, "root") for member in members):
        return False
    return gid == 0 or all(account.pw_uid == uid for account in pwd.getpwall() if account.pw_gid == gid)


def _user(uid: int) -> str:
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return f"the user `{printable(pwd.getpwuid(uid).pw_name)}`"
    return f"the user {uid}"


def _group(gid: int) -> str:
    with contextlib.suppress(ImportError, KeyError):
        import grp

        return f"`{printable(grp.getgrgid(gid).gr_name)}`"
    return str(gid)
