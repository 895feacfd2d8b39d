"""Which names a sync leaves alone: `.atollignore` files and `exclude`, in gitignore's syntax.

A path is decided by the last pattern of `exclude` that matches it; where none does, by the last matching pattern of
the `.atollignore` in its own directory, then of the one above, up to the root. A directory that is excluded is not
entered, so nothing below it can be taken in again. Patterns of a file are relative to its directory, those of
`exclude` to the root. The `.atollignore` files themselves are mirrored as ordinary files.

The same rules, those of the source, decide at the target: an excluded name there stays, with all that is below.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atoll.errors import SyncError

IGNORE_FILE = ".atollignore"


class IgnoreRules:
    """Rules that grow while the source is scanned; directories are added before what they hold is asked for.

    Args:
        exclude: patterns; one text is one pattern.
        files: whether `.atollignore` files count.
        paths: paths that are excluded whatever the patterns say.

    Raises:
        ValueError: `exclude` has a pattern that is malformed.
    """

    def __init__(self, exclude: Iterable[str] = (), *, files: bool = True, paths: Iterable[str] = ()) -> None:
        self._paths = frozenset(paths)
        self.reads_files = files
        self._exclude = _compile([exclude] if isinstance(exclude, str) else list(exclude))
        self._files: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Whether anything at all is excluded."""
        return bool(self._paths or self._files) or self._exclude is not None

    def add(self, directory: str, text: str) -> None:
        """Take in the `.atollignore` of `directory` (a path of the tree).

        Raises:
            ValueError: a pattern is malformed.
        """
        spec = _compile(text.splitlines())
        if spec is not None:
            self._files[directory] = spec

    def excludes(self, path: str, is_directory: bool) -> bool:
        """Whether `path`, whose parents are not excluded, is."""
        if path in self._paths:
            return True
        if self._exclude is None and not self._files:
            return False
        name = path + "/" if is_directory else path
        if self._exclude is not None:
            verdict = self._exclude.check_file(name).include
            if verdict is not None:
                return bool(verdict)
        directory = path
        while self._files and directory:
            directory = directory.rpartition("/")[0]
            spec = self._files.get(directory)
            if spec is not None:
                verdict = spec.check_file(name[len(directory) + 1 :] if directory else name).include
                if verdict is not None:
                    return bool(verdict)
        return False


def _compile(lines: list[str]) -> Any:
    """Return what matches the patterns, or None when there are none; the library is loaded only for some."""
    if not all(isinstance(line, str) for line in lines):
        raise ValueError("a pattern must be text")
    if not any(line.strip() for line in lines):
        return None
    try:
        from pathspec import GitIgnoreSpec
    except ImportError as error:
        raise SyncError(
            "patterns of names to exclude need the package `pathspec`, which is not here",
            hint="inside a function, add `pathspec` to its requirements",
        ) from error
    return GitIgnoreSpec.from_lines(lines)
