"""Requirements that a server's user has uploaded: entries and settings that name them, and their places on the disk.

    atoll-upload:KEY/pkg-1.0-py3-none-any.whl[extra] ; marker      a wheel, or a source distribution
    --find-links atoll-upload:KEY                                   a directory of both
    UV_FIND_LINKS=atoll-upload:KEY                                  the same, as a setting of indexes

KEY is the SHA-256 of a file, or of a directory's list. A user's uploads are in a directory of the user's own, so that an
entry names nobody else's. It is beside the volumes: machines that share these find it, too. An environment with such an
entry has local paths or links, and so is its user's own (`build.recipes`).
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
from atoll.settings import Settings

SCHEME = "atoll-upload:"
KEY = re.compile(r"[0-9a-f]{64}")
PACKAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.!+-]{0,200}\.(whl|tar\.gz|zip)")
"""The name of a wheel or of a source distribution."""
MOST_BYTES = 1 << 30
"""Of one package."""
MOST_NAMES = 1000
"""Packages of one directory."""
LINKS_SETTINGS = ("UV_FIND_LINKS", "PIP_FIND_LINKS")
"""The settings whose words may name uploads."""
_ENTRY = re.compile(
    rf"{SCHEME}(?P<key>{KEY.pattern})/(?P<name>{PACKAGE.pattern})(?P<extras>\[[A-Za-z0-9_.,-]*\])?(?P<marker> ;.*)?"
)
_LINKS = re.compile(rf"--find-links {SCHEME}(?P<key>{KEY.pattern})")
_WORD = re.compile(rf"{SCHEME}(?P<key>{KEY.pattern})")


def of_user(settings: Settings, user: str) -> Path:
    """Return the directory of a user's uploads, beside the volumes."""
    return all_of(settings) / user


def all_of(settings: Settings) -> Path:
    """Return the directory of all users' uploads."""
    return settings.storage.root(settings.home) / "uploads"


def names_uploads(spec: EnvironmentSpec) -> bool:
    """Return whether a spec has entries or settings of uploads."""
    return any(SCHEME in entry for entry in (*spec.requirements, *spec.pip, *(text for _, text in spec.index)))


def split(spec: EnvironmentSpec) -> tuple[EnvironmentSpec, EnvironmentSpec]:
    """Return the spec without its entries and settings of uploads, and one that has these alone.

    Raises:
        EnvironmentBuildError: one with the scheme is none of those that a client makes.
    """
    for entry in (*spec.requirements, *spec.pip):
        if SCHEME in entry and not _is_upload(entry):
            raise EnvironmentBuildError(
                f"`{entry[:200]}` in `requirements` names no upload", hint="give the path of the package"
            )
    kept, uploads = list[tuple[str, str]](), list[tuple[str, str]]()
    for name, text in spec.index:
        words = re.split(r"[\s,]+", text.strip()) if name in LINKS_SETTINGS and SCHEME in text else []
        named = [word for word in words if _WORD.fullmatch(word)]
        rest = text if not named else " ".join(word for word in words if word not in named)
        if SCHEME in rest:
            raise EnvironmentBuildError(f"`{name[:200]}` names no upload", hint="give the path of the directory")
        kept += [(name, rest)] if rest else []
        uploads += [(name, " ".join(named))] if named else []
    others = replace(spec, requirements=_those(spec.requirements, False), pip=_those(spec.pip, False))
    mine = replace(spec, requirements=_those(spec.requirements, True), pip=_those(spec.pip, True))
    return replace(others, index=tuple(kept)), replace(mine, index=tuple(uploads))


def resolved(spec: EnvironmentSpec, directory: Path) -> EnvironmentSpec:
    """Return the spec with paths in place of uploads; the entries have been checked by `split`.

    Raises:
        EnvironmentBuildError: an upload is gone.
    """
    requirements = tuple(_path_entry(entry, directory) for entry in spec.requirements)
    index = tuple((name, " ".join(_links_of(word, directory) for word in text.split())) for name, text in spec.index)
    pip = tuple(_path_entry(entry, directory) for entry in spec.pip)
    return replace(spec, requirements=requirements, pip=pip, index=index)


def joined(spec: EnvironmentSpec, uploads: EnvironmentSpec) -> EnvironmentSpec:
    """Return a spec with the entries and settings of another, which `resolved` has given."""
    index = dict(spec.index)
    for name, text in uploads.index:
        index[name] = " ".join(filter(None, (index.get(name, ""), text)))
    pip = spec.pip + uploads.pip
    requirements = spec.requirements + uploads.requirements
    return replace(spec, requirements=requirements, pip=pip, index=tuple(sorted(index.items())))


def shown(text: str, settings: Settings, user: str) -> str:
    """Return a text for the user, with names of uploads in place of their paths on the server."""
    place = str(of_user(settings, user))
    if place not in text:
        return text
    return re.sub(rf"(file://)?{re.escape(place)}/({KEY.pattern}/(?={PACKAGE.pattern}))?", "", text)


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


def _links_of(word: str, directory: Path) -> str:
    return str(_existing(directory / word.removeprefix(SCHEME), "a directory of packages"))


def _existing(path: Path, name: str) -> Path:
    try:
        os.utime(path)  # the oldest are removed first
    except OSError as error:
        raise EnvironmentBuildError(
            f"the upload of `{name}` is no longer on the server",
            hint="start the program again: it sends the file",
        ) from error
    return path
