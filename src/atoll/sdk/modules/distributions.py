"""Metadata of the project's distributions, which travels beside their modules.

With it `importlib.metadata` and `importlib.resources` say the same in the worker: versions, entry points, packages. Such
distributions are those that are installed as editable from the project's directory or from that of a module that
travels, and those whose metadata lies in the project itself. The first of a name on `sys.path` counts.

Files that speak of this machine stay here: `RECORD`, `direct_url.json` and what installers note for themselves. The
metadata is read when modules are chosen, and no call looks at it again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from atoll import file_stamp
from atoll.blake2 import blake2b
from atoll.payload import project
from atoll.sdk.modules.bundle import File, Unit

_ENDINGS = (".dist-info", ".egg-info")
_STAY = frozenset({"RECORD", "direct_url.json", "REQUESTED", "SOURCES.txt", "uv_build.json", "uv_cache.json"})
_STEM = re.compile(r"(?:__editable___?|_editable_impl_|_*)[._]?([\w.-]*?)(?:-\d[^-]*)?\Z")
_ENTRY = re.compile(r"^[^#=\[]+=\s*(\w+)", re.MULTILINE)
_SCRIPTS = re.compile(r"^\[(?:console|gui)_scripts\][^\[]*", re.MULTILINE)
_MOST_BYTES = 1 << 20
_OWN = frozenset({"atoll", "fal-serverless"})


class Distribution(NamedTuple):
    """A distribution that may be the project's.

    Args:
        name: normalized.
        path: its directory of metadata.
        sources: absolute directories that its modules lie in.
        tops: names of its modules; empty where only `sources` tells.
    """

    name: str
    path: str
    sources: tuple[str, ...]
    tops: frozenset[str]


class Metadata(Unit):
    """The metadata of one distribution as a unit of a bundle.

    Args:
        modules: its top-level modules that travel.
    """

    def __init__(self, path: str, modules: tuple[str, ...]) -> None:
        super().__init__(os.path.basename(path), path)
        self.key = (self.name, f"{path}\0{' '.join(modules)}")
        self._modules = modules
        self.entry_points: frozenset[str] = frozenset()

    def refresh(self) -> None:
        """Read the files, once."""
        if not self.files:
            self.read_again()

    def read_again(self) -> None:
        """Read the files as they are now."""
        files = [file for path, relative in self._walk([]) if (file := _file(path, relative)) is not None]
        top_level = f"{self.top}/top_level.txt"
        if self._modules and not any(file.relative == top_level for file in files):
            content = "".join(f"{name}\n" for name in self._modules).encode()
            files.append(_made(os.path.join(self.path, "top_level.txt"), top_level, content))
        points = b"".join(file.content for file in files if file.relative == f"{self.top}/entry_points.txt")
        self.entry_points = frozenset(_ENTRY.findall(_SCRIPTS.sub("", points.decode("utf-8", "replace"))))
        self._keep(files)

    def stamps(self) -> list[tuple[str, file_stamp.Stamp]] | None:
        """Return none: a change is seen with the next choice of modules."""
        return []


_known: dict[tuple[str, tuple[str, ...]], tuple[Metadata, file_stamp.Stamp]] = {}
_listed: dict[str, tuple[file_stamp.Stamp, tuple[Distribution, ...]]] = {}


def of_project(path: Sequence[str], roots: tuple[str, ...], units: Iterable[Unit]) -> list[Metadata]:
    """Return the metadata that travels with some units.

    Args:
        path: `sys.path`.
        roots: the project's; its own distributions travel in any case.
        units: the modules that travel.
    """
    modules = {form: unit.name for unit in units for form in (unit.path, os.path.realpath(unit.path))}
    found: dict[str, Metadata] = {}
    for one in _on(path):
        if one.name in found or one.name in _OWN:
            continue
        names = {
            name
            for place, name in modules.items()
            if (not one.tops or name in one.tops) and any(_is_in(place, source) for source in one.sources)
        }
        if names or any(_is_in(source, root) for source in one.sources for root in roots):
            found[one.name] = _metadata(one.path, tuple(sorted(names)))
    return [one for one in found.values() if one.files]


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def _metadata(path: str, modules: tuple[str, ...]) -> Metadata:
    stamp = file_stamp.take(path)
    known = _known.get((path, modules))
    if known is None or known[1] != stamp or file_stamp.is_young(stamp):
        unit = known[0] if known is not None else Metadata(path, modules)
        unit.read_again()
        known = _known[path, modules] = unit, stamp
    return known[0]


def _on(path: Sequence[str]) -> Iterator[Distribution]:
    for entry in path:
        directory = os.path.abspath(entry) if entry else project.working_directory()
        stamp = file_stamp.take(directory)
        listed = _listed.get(directory)
        if listed is None or listed[0] != stamp or file_stamp.is_young(stamp):
            listed = _listed[directory] = stamp, tuple(_in(directory))
        yield from listed[1]


def _in(directory: str) -> Iterator[Distribution]:
    """Yield the distributions whose metadata lies in a directory, if they are installed as editable or lie there too."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:  # an archive, or nothing
        return
    installed = project.in_environment(os.path.join(directory, "x"))
    links = _links(directory, names) if installed else {}
    for file in names:
        if not file.endswith(_ENDINGS):
            continue
        path = os.path.join(directory, file)
        name = normalized(file.rpartition(".")[0].partition("-")[0])
        if not installed:
            yield Distribution(name, path, (directory,), _tops(path, name))
        elif sources := _editable(path) or links.get(name, ()):
            yield Distribution(name, path, _both(sources), frozenset())


def normalized(name: str) -> str:
    """Return a distribution's name as comparisons take it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _both(directories: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form for path in directories for form in (path, os.path.realpath(path))))


def _editable(path: str) -> tuple[str, ...]:
    """Return the directory that an editable distribution was installed from (PEP 610)."""
    try:
        found = json.loads(_text(os.path.join(path, "direct_url.json")) or "{}")
        url = found["url"] if found.get("dir_info", {}).get("editable") else ""
    except (ValueError, KeyError, AttributeError):
        return ()
    if not isinstance(url, str) or not url.startswith("file://"):
        return ()
    from urllib.parse import unquote  # only where something is editable

    return (os.path.normpath(unquote(url.removeprefix("file://").removeprefix("localhost"))),)


def _links(directory: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the directories that `.pth` files add, by the name of the distribution that brought the file."""
    found = {}
    for name in names:
        if name.endswith(".pth") and (stem := _STEM.match(name.removesuffix(".pth"))):
            lines = (_text(os.path.join(directory, name)) or "").splitlines()
            places = tuple(line.strip() for line in lines if os.path.isabs(line.strip()))
            if places:
                found[normalized(stem[1])] = places
    return found


def _tops(path: str, name: str) -> frozenset[str]:
    listed = (_text(os.path.join(path, "top_level.txt")) or "").split()
    if not listed:
        record = (_text(os.path.join(path, "RECORD")) or "").splitlines()
        listed = [line.partition(",")[0].partition("/")[0].partition(".py")[0] for line in record]
    return frozenset(listed) or frozenset({name.replace("-", "_")})


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return None


def _file(path: str, relative: str) -> File | None:
    if os.path.basename(path) in _STAY:
        return None
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    return _made(path, relative, content) if len(content) <= _MOST_BYTES else None


def _made(path: str, relative: str, content: bytes) -> File:
    digest = blake2b(content, digest_size=16).digest()
    return File(path, relative, 0o644, file_stamp.GONE, False, digest, content, (frozenset(), frozenset()))
