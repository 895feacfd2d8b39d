"""Changes of a local directory, as the system reports them to `atoll data sync --watch`.

A report only starts a scan, and the scan finds the changes. So reports may come twice or late, for a name that is not
text, or for one that was changed back. A report may be lost: of a directory with content that is older than its watch.
So each change is followed by one more scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from atoll import linux
from atoll.errors import SyncError
from atoll.storage.files.ignore import IGNORE_FILE, IgnoreRules
from atoll.storage.files.scan import to_name
from atoll.terminal_text import printable

QUIET_MS = 500
_SETTLED_MS = 100
_LONGEST_MS = 1500
_POLL_MS = 1500
_RAISE_LIMIT = (
    "run `sudo sysctl fs.inotify.max_user_watches=1048576`, and put the line into `/etc/sysctl.d/` to keep it"
)


class Watcher:
    """Report the changes below one directory.

    Args:
        source: the directory; a symlink to one is followed.
        exclude, leave_out: patterns of a sync, as in `SyncOptions`; `.atollignore` files are honoured.
        notice: called with a message and a hint when the directory has to be polled.
    """

    def __init__(
        self, source: str, exclude: tuple[str, ...], leave_out: str, notice: Callable[[str, str], None]
    ) -> None:
        self._source = source
        self._exclude = exclude
        self._leave_out = leave_out
        self._notice = notice
        self._rules: IgnoreRules | None = None
        self._known: set[str] = set()

    def changes(self) -> Iterator[frozenset[str]]:
        """Yield the paths that changed, some time after the last of them did; none when nothing did for a moment.

        Ends when the directory is gone or replaced. It is watched from the first result on.

        Raises:
            SyncError: it cannot be watched.
        """
        root = os.path.realpath(self._source)
        try:
            here = _identity(root)
        except OSError:
            return
        polling = linux.is_network(linux.kind_of(root))
        if polling:
            self._notice(
                f"`{printable(self._source)}` is on a network file system: it is looked through again and again", ""
            )
        lenient = False
        while True:
            try:
                for found in self._news(root, polling=polling, lenient=lenient):
                    if _gone(self._source, here):
                        return
                    paths = {self._relative(root, path) for path in found}
                    if any(path.rpartition("/")[2] == IGNORE_FILE for path in paths):
                        self._rules = None
                    wanted = frozenset(path for path in paths if not self._excluded(root, path))
                    if wanted or not found:
                        yield wanted
            except SyncError:
                raise
            except OSError as error:
                if _gone(self._source, here):
                    return
                if not lenient and "permission denied" in str(error).lower():  # of a directory that is left out
                    lenient = True
                    continue
                if polling:
                    raise SyncError(
                        f"`{printable(self._source)}` cannot be watched: {error.strerror or error}",
                        hint="sync without `--watch`",
                    ) from error
                polling = True
                self._notice(
                    "the system's limit of watched directories is reached: looking through it instead", _RAISE_LIMIT
                )
            except RuntimeError:  # a name that is not text, which the library cannot tell
                yield frozenset(("",))

    def _news(self, root: str, *, polling: bool, lenient: bool) -> Iterator[set[str]]:
        """Yield the library's reports.

        Its `ignore_permission_denied` hides every error, the limit of watches too: it is used only where it must be.
        """
        try:
            from watchfiles import watch
        except ImportError as error:
            raise SyncError(
                "watching needs the package `watchfiles`, which is not here",
                hint="inside a function, add `watchfiles` to its requirements",
            ) from error
        for found in watch(
            root,
            watch_filter=None,
            debounce=_LONGEST_MS,
            step=_SETTLED_MS,
            rust_timeout=QUIET_MS,
            yield_on_timeout=True,
            force_polling=polling,
            poll_delay_ms=_POLL_MS,
            ignore_permission_denied=lenient,
        ):
            yield {path for _, path in found}

    def _relative(self, root: str, path: str) -> str:
        relative = os.path.relpath(path, root)
        return "" if relative == os.curdir else to_name(relative.replace(os.sep, "/"))

    def _excluded(self, root: str, path: str) -> bool:
        """Return whether a sync leaves a path out by the rules of its own directory and its parents."""
        if self._rules is None:
            paths = [self._leave_out] if self._leave_out else []
            self._rules, self._known = IgnoreRules(self._exclude, paths=paths), set()
        parts = path.split("/") if path else []
        for depth in range(len(parts)):
            directory = "/".join(parts[:depth])
            if directory not in self._known:
                self._known.add(directory)
                self._read(root, directory)
            here = "/".join(parts[: depth + 1])
            there = os.path.join(root, here)
            is_directory = depth + 1 < len(parts) or (os.path.isdir(there) and not os.path.islink(there))
            if self._rules.excludes(here, is_directory):
                return True
        return False

    def _read(self, root: str, directory: str) -> None:
        assert self._rules is not None
        try:
            path = os.path.join(root, directory, IGNORE_FILE)
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                self._rules.add(directory, file.read())
        except (OSError, ValueError):
            return  # the sync itself reports the error


def exists(source: str) -> bool:
    """Return whether there is a directory to watch."""
    return os.path.isdir(source)


def _identity(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def _gone(source: str, here: tuple[int, int]) -> bool:
    try:
        return _identity(source) != here
    except OSError:
        return True
