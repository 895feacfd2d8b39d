"""Entries of `requirements` with the contents of the files that they name.

The contents travel, and not the paths: the daemon opens no file for them.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from atoll.errors import EnvironmentBuildError
from atoll.sdk.requirements import locks, projects
from atoll.sdk.requirements.entries import CONSTRAINTS, FILE, names_files
from atoll.sdk.requirements.files import CONSTRAINT, lines, text_of
from atoll.sdk.requirements.local_stamps import stamped

MAX_DEPTH = 20
"""Files that include one another."""


def read(entries: Sequence[str], *, variables: bool = True) -> tuple[str, ...]:
    """Return the entries with the contents of the files that they name, as these are now, and stamps of local paths.

    Args:
        variables: whether `${NAME}` in a file is replaced by that variable of the environment, which may be a secret.

    Raises:
        EnvironmentBuildError: a file cannot be read or understood; the message names it.
    """
    found = tuple(_read(entries, (), variables)) if names_files(entries) else tuple(entries)
    return tuple(map(stamped, found))


def _read(entries: Iterable[str], within: tuple[str, ...], variables: bool) -> Iterator[str]:
    for entry in entries:
        if entry.startswith(FILE):
            yield from _contents(entry, within, variables)
        elif entry.startswith(CONSTRAINTS):
            for line in _contents(entry, within, variables):
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


def _contents(entry: str, within: tuple[str, ...], variables: bool) -> Iterable[str]:
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
        return _read(locks.read_uv_lock(path, text_of(path), options), (*within, path), variables)
    if re.fullmatch(r"pylock(\.[^.]+)?\.toml", name):
        return _read(locks.read_pylock(path, text_of(path), options), (*within, path), variables)
    if name.endswith(".toml"):
        return _read(projects.read(path, text_of(path), options), (*within, path), variables)
    if not name.endswith((".txt", ".in")):
        raise EnvironmentBuildError(
            f"`requirements` names the file `{path}`, which is none of requirements",
            hint="name `requirements.txt`, `pyproject.toml`, `uv.lock` or `pylock.toml`; for a package of that name write "
            f"`{name.replace('.', '-')}`",
        )
    if options:
        raise EnvironmentBuildError(
            f"`{path}` has no parts such as `{' '.join(options)}`",
            hint="extras and groups go with `pyproject.toml` and lock files",
        )
    return _read(lines(text_of(path), path, variables=variables), (*within, path), variables)
