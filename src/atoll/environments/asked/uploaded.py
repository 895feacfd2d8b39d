"""Requirements that a server's user has uploaded: entries that name them, and their places on the disk.

    atoll-upload:KEY/pkg-1.0-py3-none-any.whl[extra] ; marker      a wheel
    --find-links atoll-upload:KEY                                   a directory of wheels

KEY is a digest. A user's uploads are in a directory of the user's own, so that an entry names nobody else's. An environment
with such an entry has local paths, and so is its user's own (`build.recipes`).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from atoll.errors import EnvironmentBuildError
from atoll.model.specs import EnvironmentSpec

SCHEME = "atoll-upload:"
KEY = re.compile(r"[0-9a-f]{64}")
WHEEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.!+-]{0,200}\.whl")
_ENTRY = re.compile(
    rf"{SCHEME}(?P<key>{KEY.pattern})/(?P<name>{WHEEL.pattern})(?P<extras>\[[A-Za-z0-9_.,-]*\])?(?P<marker> ;.*)?"
)
_LINKS = re.compile(rf"--find-links {SCHEME}(?P<key>{KEY.pattern})")


def of_user(home: Path, user: str) -> Path:
    """Return the directory of a user's uploads."""
    return home / "uploads" / user


def names_uploads(spec: EnvironmentSpec) -> bool:
    """Return whether a spec has entries of uploads."""
    return any(SCHEME in entry for entry in (*spec.requirements, *spec.pip))


def split(spec: EnvironmentSpec) -> tuple[EnvironmentSpec, EnvironmentSpec]:
    """Return the spec without its entries of uploads, and one that has these alone.

    Raises:
        EnvironmentBuildError: an entry with the scheme is none of those that a client makes.
    """
    for entry in (*spec.requirements, *spec.pip):
        if SCHEME in entry and not _is_upload(entry):
            raise EnvironmentBuildError(
                f"`{entry[:200]}` in `requirements` names no upload", hint="give the path of the package"
            )
    others = replace(spec, requirements=_those(spec.requirements, False), pip=_those(spec.pip, False))
    return others, replace(spec, requirements=_those(spec.requirements, True), pip=_those(spec.pip, True))


def resolved(spec: EnvironmentSpec, directory: Path) -> EnvironmentSpec:
    """Return the spec with paths in place of uploads; the entries have been checked by `split`.

    Raises:
        EnvironmentBuildError: an upload is gone.
    """
    requirements = tuple(_path_entry(entry, directory) for entry in spec.requirements)
    return replace(spec, requirements=requirements, pip=tuple(_path_entry(entry, directory) for entry in spec.pip))


def shown(text: str, home: Path, user: str) -> str:
    """Return a text for the user, with names of uploads in place of their paths on the server."""
    place = str(of_user(home, user))
    if place not in text:
        return text
    return re.sub(rf"(file://)?{re.escape(place)}/({KEY.pattern}/(?={WHEEL.pattern}))?", "", text)


def _is_upload(entry: str) -> bool:
    return (_ENTRY.fullmatch(entry) or _LINKS.fullmatch(entry)) is not None


def _those(entries: Iterable[str], uploads: bool) -> tuple[str, ...]:
    return tuple(entry for entry in entries if _is_upload(entry) is uploads)


def _path_entry(entry: str, directory: Path) -> str:
    links = _LINKS.fullmatch(entry)
    if links is not None:
        return f"--find-links {shlex.quote(str(_existing(directory / links['key'], 'a directory of packages')))}"
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return entry
    path = _existing(directory / match["key"] / match["name"], match["name"])
    return f"{path}{match['extras'] or ''}{match['marker'] or ''}"


def _existing(path: Path, name: str) -> Path:
    try:
        os.utime(path)  # the oldest are removed first
    except OSError as error:
        raise EnvironmentBuildError(
            f"the upload of `{name}` is no longer on the server", hint="start the program again: it sends the file"
        ) from error
    return path
