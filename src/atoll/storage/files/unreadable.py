"""Names of a source that exist and cannot be read. A sync ends with all of them, and takes none for removed."""

from __future__ import annotations

import errno
import os
import shlex

from atoll.errors import SyncError
from atoll.storage.files.tree import DIRECTORY
from atoll.terminal_text import printable

MOST_NAMED = 10
"""Names in a message; further ones are counted."""
DENIED = (errno.EACCES, errno.EPERM)
"""Errors that a mode or an owner causes."""
_SPECIAL_IN_PATTERNS = "\\*?["


class Unreadable:
    """The unreadable names of one source.

    Args:
        root: the source, as its caller named it.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._reasons: dict[str, str] = {}
        self._denied: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def __contains__(self, path: str) -> bool:
        return path in self._reasons

    def add(self, path: str, why: OSError | str, kind: str = "") -> None:
        """Note a name.

        Args:
            path: in the tree.
            why: the error, or the reason in a few words.
            kind: `DIRECTORY` for a directory, whose mode needs other bits.
        """
        if not isinstance(why, OSError):
            self._reasons[path] = why
            return
        self._reasons[path] = (why.strerror or str(why)).lower()
        if why.errno in DENIED:
            self._denied[path] = "u+rx" if kind == DIRECTORY else "u+r"

    def error(self) -> SyncError:
        """Return the error that names them."""
        paths = list(self._reasons)
        if len(paths) == 1:
            reason = self._reasons[paths[0]]
            link = ": " if not reason.startswith("is ") else " "
            start = "cannot read " if link == ": " else ""
            text = f"{start}`{printable(self._local(paths[0]))}`{link}{reason}"
        else:
            text = f"cannot read {len(paths)} names in `{printable(self._root)}`: {self._grouped(paths[:MOST_NAMED])}"
            text += f"; and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
        # A path that is not UTF-8 has no place in the data of an error.
        return SyncError(text, hint=self._hint(paths), paths=[printable(path) for path in paths[:MOST_NAMED]])

    def _local(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    def _grouped(self, paths: list[str]) -> str:
        groups: dict[str, list[str]] = {}
        for path in paths:
            groups.setdefault(self._reasons[path], []).append(f"`{printable(path) or '.'}`")
        return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in groups.items())

    def _hint(self, paths: list[str]) -> str:
        steps = []
        if mends := self._mends():
            steps.append(f"{mends} mends {'it' if len(paths) == 1 else 'the permissions'}")
        names = [path for path in paths[:MOST_NAMED] if path and printable(path) == path]
        if names:
            options = " ".join(f"--exclude {shlex.quote(pattern(path))}" for path in names)
            listed = ", ".join(repr(pattern(path)) for path in names)
            steps.append(f"`exclude=[{listed}]` (`{options}`) leaves {'it' if len(paths) == 1 else 'them'} out")
        return "; ".join(steps) or "mend the file system, or exclude the names"

    def _mends(self) -> str:
        """Return the command for the names whose mode forbids to read them; empty where there is none."""
        own, others = dict[str, list[str]](), 0
        for path, bits in self._denied.items():
            try:
                owner = os.lstat(self._local(path)).st_uid
            except OSError:
                owner = os.geteuid() if hasattr(os, "geteuid") else 0
            if hasattr(os, "geteuid") and owner != os.geteuid():
                others += 1
            elif printable(path) == path:
                own.setdefault(bits, []).append(self._local(path))
        if len(self._denied) > MOST_NAMED:
            return f"`chmod -R u+rX {shlex.quote(self._root)}`" if not others else ""
        commands = [
            f"`chmod {bits} {' '.join(shlex.quote(path) for path in paths)}`" for bits, paths in sorted(own.items())
        ]
        return " and ".join(commands)


def pattern(path: str) -> str:
    """Return the pattern in gitignore's syntax that matches this path of a tree alone."""
    escaped = "".join(f"\\{char}" if char in _SPECIAL_IN_PATTERNS else char for char in path)
    if escaped.endswith(" "):
        escaped = f"{escaped[:-1]}\\ "
    return f"/{escaped}"
