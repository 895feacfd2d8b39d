"""Requirements files of the project, read into entries: `requirements.txt`, constraints, and what they include.

The contents travel, and not the paths: the daemon opens no file for them. A file is read again when its stamp differs.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from atoll import file_stamp
from atoll.errors import EnvironmentBuildError
from atoll.payload.project import working_directory
from atoll.sdk.requirements.entries import CONSTRAINTS, FILE, absolute

CONSTRAINT = "--constraint-line"
"""Option of an entry that is one line of a file of constraints."""
MAX_BYTES = 8 << 20
"""The longest file."""
MAX_DEPTH = 20
"""Files that include one another."""

_known: dict[str, tuple[file_stamp.Stamp, str]] = {}
_MOST_KNOWN = 64


def names_files(entries: Iterable[str]) -> bool:
    """Return whether some of the entries, as `absolute` gives them, name files."""
    return any(entry.startswith((FILE, CONSTRAINTS)) for entry in entries)


def read(entries: Sequence[str]) -> tuple[str, ...]:
    """Return the entries with the contents of the files that they name, as these are now.

    Raises:
        EnvironmentBuildError: a file cannot be read or understood; the message names it.
    """
    if not names_files(entries):
        return tuple(entries)
    return tuple(_read(entries, ()))


def _read(entries: Iterable[str], within: tuple[str, ...]) -> Iterator[str]:
    for entry in entries:
        if entry.startswith(FILE):
            yield from _contents(entry, within)
        elif entry.startswith(CONSTRAINTS):
            for line in _contents(entry, within):
                yield line if line.startswith(CONSTRAINT) else _constraint(line, entry)
        else:
            yield entry


def _constraint(line: str, entry: str) -> str:
    if line.startswith("-"):
        raise EnvironmentBuildError(
            f"`{line}` in `{shlex.split(entry)[1]}` is no constraint",
            hint="a file of constraints has names with versions",
        )
    return f"{CONSTRAINT} {shlex.quote(line)}"


def _contents(entry: str, within: tuple[str, ...]) -> Iterable[str]:
    _, path, *options = shlex.split(entry)
    if "://" in path:
        raise EnvironmentBuildError(
            f"`requirements` names the file `{path}`, which is not on this machine",
            hint="download it beside the program",
        )
    if path in within:
        raise EnvironmentBuildError(f"`{path}` includes itself", hint="remove one of the two lines")
    if len(within) >= MAX_DEPTH:
        raise EnvironmentBuildError(f"`{path}` lies {MAX_DEPTH} files deep", hint="join some of the files")
    name = os.path.basename(path)
    if name == "uv.lock":
        from atoll.sdk.requirements import locks

        return _read(locks.read_uv_lock(path, text_of(path), options), (*within, path))
    if re.fullmatch(r"pylock(\.[^.]+)?\.toml", name):
        from atoll.sdk.requirements import locks

        return _read(locks.read_pylock(path, text_of(path), options), (*within, path))
    if name.endswith(".toml"):
        from atoll.sdk.requirements import projects

        return _read(projects.read(path, text_of(path), options), (*within, path))
    if options:
        raise EnvironmentBuildError(
            f"`{path}` has no parts such as `{' '.join(options)}`",
            hint="extras and groups go with `pyproject.toml` and lock files",
        )
    return _read(lines(text_of(path), path), (*within, path))


def text_of(path: str) -> str:
    """Return the text of a file.

    Raises:
        EnvironmentBuildError: it cannot be read, is not UTF-8, or is longer than `MAX_BYTES`.
    """
    stamp = file_stamp.take(path)
    known = _known.get(path)
    if known is not None and known[0] == stamp and not file_stamp.is_young(stamp):
        return known[1]
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise EnvironmentBuildError(f"`{path}` has more than {MAX_BYTES >> 20} MiB", hint="check the path")
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError as error:
        raise EnvironmentBuildError(
            f"there is no file `{path}`, which `requirements` names",
            hint="check the name; it is looked for beside the program, at its project's root and in the working directory",
        ) from error
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{path}`, which `requirements` names: {(error.strerror or str(error)).lower()}",
            hint="check the path and its permissions",
        ) from error
    except UnicodeDecodeError as error:
        raise EnvironmentBuildError(
            f"`{path}`, which `requirements` names, is not UTF-8", hint="save it in that encoding"
        ) from error
    if known is not None and known[1] == text:
        text = known[1]  # the same object: a reader that remembers its texts finds it fast
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[path] = stamp, text
    return text


def lines(text: str, path: str) -> tuple[str, ...]:
    """Return the entries of a requirements file, as pip reads them.

    A backslash at the end of a line continues it, `#` begins a comment, `${NAME}` is a variable of the environment, and
    relative paths are meant from the file's directory.
    """
    found = []
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line:
            found.append(re.sub(r"\$\{([A-Z0-9_]+)\}", _variable, line))
    return absolute(found, (os.path.dirname(path), working_directory()))


def _variable(match: re.Match[str]) -> str:
    from atoll import settings  # only for files that name variables

    return settings.variable(match[1]) or match[0]
