"""Which names a sync leaves alone: `.atollignore` files and `exclude`, in gitignore's syntax.

An entry is decided by the last pattern of `exclude` that matches it; where none does, by the last matching pattern of
the `.atollignore` in its own directory, then of the one above, up to the root. A directory that is excluded is not
entered, so nothing below it can be taken in again. Patterns of a file are relative to its directory, those of
`exclude` to the root. The `.atollignore` files themselves are mirrored as ordinary files.

The same rules, those of the source, decide at the target: an excluded name there stays, with all that is below.
"""

from __future__ import annotations

from collections.abc import Iterable

from atoll.storage.files.gitignore import Patterns, lines_of

IGNORE_FILE = ".atollignore"


class IgnoreRules:
    """Rules that grow while the source is scanned; directories are added before what they hold is asked for.

    Args:
        exclude: patterns; one text is one pattern.
        files: whether `.atollignore` files count.
        paths: paths that are excluded whatever the patterns say.

    Raises:
        ValueError: `exclude` has something that is no text.
    """

    def __init__(self, exclude: Iterable[str] = (), *, files: bool = True, paths: Iterable[str] = ()) -> None:
        self._paths = frozenset(paths)
        self.reads_files = files
        lines = [exclude] if isinstance(exclude, str) else list(exclude)
        if not all(isinstance(line, str) for line in lines):
            raise ValueError("a pattern must be text")
        self._exclude = Patterns(lines)
        self._files: dict[str, Patterns] = {}

    def __bool__(self) -> bool:
        """Whether anything at all is excluded."""
        return bool(self._paths or self._files or self._exclude)

    def add(self, directory: str, text: str) -> None:
        """Take in the `.atollignore` of `directory` (a path of the tree), read without translation of line ends."""
        patterns = Patterns(lines_of(text))
        if patterns:
            self._files[directory] = patterns

    def excludes(self, path: str, is_directory: bool) -> bool:
        """Whether `path`, whose parents are not excluded, is."""
        if path in self._paths:
            return True
        if self._exclude and (verdict := self._exclude.verdict(path, is_directory)) is not None:
            return verdict
        directory = path
        while self._files and directory:
            directory = directory.rpartition("/")[0]
            patterns = self._files.get(directory)
            if patterns is not None:
                verdict = patterns.verdict(path[len(directory) + 1 :] if directory else path, is_directory)
                if verdict is not None:
                    return verdict
        return False
