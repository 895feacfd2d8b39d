"""Entries of `requirements`, with the local paths in them made absolute.

The daemon works in another directory. A relative path is looked for beside the function's own file, at the root of
its project, and in the working directory; the first place that has it counts.

Afterwards a file of the project stands in the list as one entry, `-r /PATH`, with its `--extra` and `--group` options.
`contents.read` replaces that entry by the file's contents when a call is made, so that an edit counts at the next call.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

FILE = "-r "
"""Beginning of an entry that names a file of the project."""
CONSTRAINTS = "-c "
"""Beginning of an entry that names a file of constraints."""

_FILES = {"-r": FILE, "--requirement": FILE, "--requirements": FILE}
_CONSTRAINTS = {"-c": CONSTRAINTS, "--constraint": CONSTRAINTS, "--constraints": CONSTRAINTS}
_EDITABLE = frozenset({"-e", "--editable"})
_LOCATIONS = frozenset({"-f", "--find-links", "-i", "--index-url", "--default-index", "--extra-index-url", "--index"})
"""Options whose value is an address, or a path."""
_PARTS = frozenset({"--extra", "--group"})
"""Options of the entry before, a file: an optional part of the project."""
_VALUES = frozenset({*_FILES, *_CONSTRAINTS, *_EDITABLE, *_LOCATIONS, *_PARTS})
_PROJECT_FILE = re.compile(r"(?:.*/)?(?:pyproject\.toml|uv\.lock|pylock(?:\.[^./]+)?\.toml|[^/\s]+\.(?:txt|in))")
_ARCHIVE = re.compile(r"[^@\s]+\.(?:whl|zip|tar\.gz|tar\.bz2|tar\.xz|tgz)(?:\[[^\]]*\])?", re.IGNORECASE)
_REFERENCE = re.compile(
    r"(?P<name>[\w.-]+\s*(?:\[[^\]]*\])?\s*@\s*)?(?P<scheme>git\+file:|git\+|file:)?(?P<path>.*)", re.DOTALL
)


def names_file(text: str) -> bool:
    """Return whether a text names a file of the project, such as `requirements.txt` or `pyproject.toml[dev]`."""
    return _PROJECT_FILE.fullmatch(_split_extras(text.strip())[0]) is not None


def names_files(entries: Iterable[str]) -> bool:
    """Return whether some of the entries, as `absolute` gives them, name files."""
    return any(entry.startswith((FILE, CONSTRAINTS)) for entry in entries)


def read_file_name(value: str | os.PathLike[str]) -> Any:
    """Return the entries of a text that names a file of the project with options, as in `"pyproject.toml --extra dev"`.

    Other texts come back as they are.
    """
    text = os.fspath(value)
    if not isinstance(text, str) or not (text.lstrip().startswith("-r") or names_file(text.partition(" --")[0])):
        return value
    first, _, options = text.strip().partition(" --")
    return [first, f"--{options}"] if options else [first]


def absolute(entries: Iterable[str], directories: Sequence[str]) -> tuple[str, ...]:
    """Return the entries with absolute paths, and one entry for each file of the project.

    Args:
        directories: where relative paths are looked for, in this order.
    """
    found: list[str] = []
    waiting = ""
    for entry in entries:
        if waiting:
            _append_option(found, waiting, entry, directories)
            waiting = ""
        elif entry.startswith("-"):
            waiting = _append_options(found, entry, directories)
        elif names_file(entry) or _is_file(entry, directories):
            _append_option(found, "-r", entry, directories)
        else:
            found.append(_with_absolute_path(entry, directories))
    if waiting:
        found.append(waiting)  # the daemon says that its value is missing
    return tuple(found)


def _append_options(found: list[str], entry: str, directories: Sequence[str]) -> str:
    """Append the options of an entry; return the one that waits for its value in the next entry."""
    try:
        words = shlex.split(entry, comments=True)
    except ValueError:
        words = []
    if not any(word.partition("=")[0] in _VALUES or word[:2] in _VALUES for word in words):
        found.append(entry)
        return ""
    while words:
        word = words.pop(0)
        if word[:2] in _VALUES and len(word) > 2 and word[1] != "-":  # `-rrequirements.txt`
            word = f"{word[:2]}={word[2:].removeprefix('=')}"
        name, equals, value = word.partition("=")
        if name not in _VALUES:  # an option without a path, which keeps its value
            rest = [words.pop(0)] if not equals and words and not words[0].startswith("-") else []
            found.append(shlex.join([name + equals + value, *rest]))
        elif not equals and not words:
            return name
        else:
            _append_option(found, name, value if equals else words.pop(0), directories)
    return ""


def _append_option(found: list[str], name: str, value: str, directories: Sequence[str]) -> None:
    if name in _FILES or name in _CONSTRAINTS:
        path, extras = _split_extras(value)
        options = "".join(f" --extra {extra}" for extra in extras)
        kind = _FILES.get(name) or _CONSTRAINTS[name]
        found.append(kind + shlex.quote(path if "://" in path else located(path, directories)) + options)
    elif name in _PARTS and found and found[-1].startswith(FILE):
        found[-1] += f" {name} {shlex.quote(value)}"
    elif name in _EDITABLE:
        found.append(f"-e {_with_absolute_path(value, directories, path=True)}")
    elif name in _LOCATIONS:
        local = "://" not in value and not (name == "--index" and re.match(r"[\w-]+=", value))
        found.append(f"{name} {shlex.quote(located(value, directories) if local else value)}")
    else:
        found.append(f"{name} {shlex.quote(value)}")


def _with_absolute_path(entry: str, directories: Sequence[str], *, path: bool = False) -> str:
    """Return an entry with the path in it made absolute; other entries as they are.

    Args:
        path: True if a plain text is a path in any case.
    """
    entry, semicolon, marker = entry.partition(" ;")
    return _with_path(entry, directories, path) + semicolon + marker


def _with_path(entry: str, directories: Sequence[str], path: bool) -> str:
    match = _REFERENCE.fullmatch(entry)
    assert match is not None
    name, scheme, rest = match["name"] or "", match["scheme"] or "", match["path"].strip()
    if scheme in ("file:", "git+file:"):
        where = rest.removeprefix("//") if rest.startswith("//") and not rest.startswith("///") else rest
        if (rest.startswith("/") and not rest.startswith("//.")) or where.startswith("localhost/"):
            return entry
        return f"{name}{scheme}//{_located_reference(where, directories)}"
    if scheme == "git+":
        return f"{name}git+file://{_located_reference(rest, directories)}" if _is_path(rest) else entry
    if name:
        return f"{name}file://{_located_reference(rest, directories)}" if _is_path(rest) else entry
    if path or _is_path(rest) or (_ARCHIVE.fullmatch(rest) and "://" not in rest) or _is_directory(rest, directories):
        bare, bracket, extras = rest.partition("[")
        return located(bare, directories) + bracket + extras
    return entry


def _is_path(text: str) -> bool:
    return text in (".", "..") or text.startswith(("./", "../", "~/", ".[", "..["))


def _is_directory(text: str, directories: Sequence[str]) -> bool:
    """Return whether a text such as `packages/own` is a directory, as pip takes it."""
    bare = text.partition("[")[0]
    return "/" in bare and not re.search(r"[\s@:;]", bare) and os.path.isdir(located(bare, directories))


def _is_file(text: str, directories: Sequence[str]) -> bool:
    """Return whether a plain name is that of a file of the project: no index is asked for a package of that name."""
    if "." not in text or not re.fullmatch(r"[\w.-]+", text) or _ARCHIVE.fullmatch(text):
        return False
    return any(os.path.isfile(os.path.join(directory, text)) for directory in directories)


def _located_reference(text: str, directories: Sequence[str]) -> str:
    """Return the absolute form of a path that may end in `@REVISION` and `#FRAGMENT`."""
    path, mark, rest = re.fullmatch(r"([^@#]*)([@#]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]  # fits all
    return located(path, directories) + mark + rest


def _split_extras(text: str) -> tuple[str, list[str]]:
    """Return a path without the `[extra,…]` at its end, and these."""
    path, bracket, extras = text.removesuffix("]").rpartition("[")
    if not bracket or not text.endswith("]") or "/" in extras:
        return text, []
    return path, [extra.strip() for extra in extras.split(",") if extra.strip()]


def located(path: str, directories: Sequence[str]) -> str:
    """Return the absolute path of the first place that has it; of the first place where none has."""
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return os.path.normpath(path)
    places = [os.path.normpath(os.path.join(directory, path)) for directory in directories]
    return next((place for place in places if os.path.exists(place)), places[0])
