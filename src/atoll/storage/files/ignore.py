r"""Rules for names that a sync leaves alone: `.atollignore` files and `exclude`, in gitignore's syntax.

An entry is decided by the last pattern of `exclude` that matches it; where none does, by the last matching pattern of
the `.atollignore` in its own directory, then of the one above, up to the root. A directory that is excluded is not
entered, so nothing below it can be taken in again. Patterns of a file are relative to its directory, those of
`exclude` to the root. The `.atollignore` files themselves are mirrored as ordinary files.

The same rules, those of the source, decide at the target: an excluded name there stays, with all that is below.

Patterns are read as git itself reads them (its `dir.c` and `wildmatch.c`).
Each entry is held against the patterns by itself: a pattern that matches a directory says nothing of the names in it.
Names in an excluded directory are out because it is not entered. Of the patterns that match, the last
decides; one that ends with `/` is for directories only; one with another `/` is for the path, any other for the name.
Libraries that answer for a whole path at once (`pathspec`) match each pattern below a directory as well,
and so decide differently from git (`.env`, then `!prod.d/`; and `*`, `!*/`, `!*.py`).

All patterns of a file become one regular expression, the last first: the group that matched is the pattern that
decides. Here `?` and `[...]` match a character, in git a byte; nothing else is known to differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

IGNORE_FILE = ".atollignore"
_SPECIAL = "*?[\\"
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": r" \t\n\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


class IgnoreRules:
    """Rules that grow while the source is scanned; a directory is added before its entries are asked for.

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
        """Tell if anything at all is excluded."""
        return bool(self._paths or self._files or self._exclude)

    def add(self, directory: str, text: str) -> None:
        """Take in the `.atollignore` of `directory` (a path of the tree), read without translation of line ends."""
        patterns = Patterns(lines_of(text))
        if patterns:
            self._files[directory] = patterns

    def excludes(self, path: str, is_directory: bool) -> bool:
        """Tell if `path` is excluded; its parents are not."""
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


class Patterns:
    """Patterns of one gitignore file, which decide about the entries below its directory.

    Args:
        lines: without their ends; comments, empty lines, and patterns without a match are ignored, as in git.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        found = [made for made in map(_translated, lines) if made is not None]
        found.reverse()
        self._of_files = _Decision([(glob, excludes) for glob, excludes, anything in found if anything])
        self._of_directories = _Decision([(glob, excludes) for glob, excludes, _ in found])

    def __bool__(self) -> bool:
        """Tell if there is any pattern."""
        return self._of_directories.matcher is not None

    def verdict(self, path: str, is_directory: bool) -> bool | None:
        """Return whether an entry is excluded, or None where no pattern matches it.

        Args:
            path: relative to the directory of the patterns.
            is_directory: a symlink to a directory is none.
        """
        decision = self._of_directories if is_directory else self._of_files
        if decision.matcher is None or (found := decision.matcher.fullmatch(path)) is None:
            return None
        return decision.excluding[(found.lastindex or 0) - 1]


class _Decision:
    def __init__(self, found: list[tuple[str, bool]]) -> None:
        self.excluding = [excludes for _, excludes in found]
        self.matcher = re.compile("|".join(f"({glob})" for glob, _ in found), re.DOTALL) if found else None


def lines_of(text: str) -> list[str]:
    """Return the lines of a gitignore file, read without any translation of line ends."""
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def _translated(line: str) -> tuple[str, bool, bool] | None:
    """Return a regular expression, True if it excludes, and True if it matches other files than directories.

    None where nothing can match.
    """
    if line.startswith("#"):
        return None
    pattern = _without_trailing_spaces(line)
    excludes = not pattern.startswith("!")
    pattern = pattern if excludes else pattern[1:]
    anything = not pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    anchored = "/" in pattern
    start = 1 if pattern.startswith("/") else 0
    if len(pattern) == start:
        return None
    # git compares the text before the first special character by itself: a `**` behind that is at the glob's start.
    special = next((number for number, char in enumerate(pattern) if char in _SPECIAL), len(pattern))
    glob = _glob(pattern[special:], anchored=anchored)
    if glob is None:
        return None
    return ("" if anchored else "(?:.*/)?") + re.escape(pattern[start:special]) + glob, excludes, anything


def _without_trailing_spaces(line: str) -> str:
    """Return a line without the spaces at its end, but for one that a backslash escapes."""
    bare = line.rstrip(" ")
    backslashes = len(bare) - len(bare.rstrip("\\"))
    return line[: len(bare) + 1] if backslashes % 2 and len(bare) < len(line) else bare


def _glob(pattern: str, *, anchored: bool) -> str | None:
    """Return the regular expression of a glob; None for one that matches nothing."""
    made: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            stars = at
            while pattern.startswith("*", at):
                at += 1
            whole = at - stars > 1 and (stars == 0 or pattern[stars - 1] == "/")
            if anchored and whole and pattern.startswith("/", at):
                made.append("(?:.*/)?")
                at += 1
            elif anchored and whole and (at == len(pattern) or pattern.startswith("\\/", at)):
                made.append(".*")
            else:
                made.append("[^/]*")
        elif char == "[":
            found = _bracket(pattern, at + 1)
            if found is None:
                return None
            expression, at = found
            made.append(expression)
        elif char == "?":
            made.append("[^/]")
            at += 1
        else:
            at += char == "\\"
            if at == len(pattern):
                return None
            made.append(re.escape(pattern[at]))
            at += 1
    return "".join(made)


def _bracket(pattern: str, at: int) -> tuple[str, int] | None:
    """Return the regular expression of a set of characters and where it ends; None for one that is malformed.

    Args:
        pattern: a glob.
        at: where its `[` has been passed.
    """
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    members: list[str] = []
    low = ""
    first = True
    while first or not pattern.startswith("]", at):
        first = False
        if at >= len(pattern):
            return None
        char = pattern[at]
        if char == "-" and low and pattern[at + 1 : at + 2] not in ("", "]"):
            at += 1
            if pattern[at] == "\\":
                at += 1
            high = pattern[at : at + 1]
            if not high:
                return None
            if low <= high:
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            low = ""
        elif char == "[" and pattern.startswith(":", at + 1) and (known := _named(pattern, at)) is not None:
            members.append(known[0])
            if not known[0]:
                return None
            at, low = known[1], ""
        else:
            if char == "\\":
                at += 1
            low = pattern[at : at + 1]
            if not low:
                return None
            members.append(re.escape(low))
        at += 1
    if not members:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"(?!/)[{'^' if negated else ''}{''.join(members)}]", at + 1


def _named(pattern: str, at: int) -> tuple[str, int] | None:
    """Return the members of a class such as `[:alpha:]`, none where it is unknown, and where its last `]` is.

    None where it is no class but a `[` like others.
    """
    end = pattern.find("]", at + 2)
    if end < 0:
        return "", len(pattern)
    if end < at + 3 or pattern[end - 1] != ":":
        return None
    return _CLASSES.get(pattern[at + 2 : end - 1], ""), end
