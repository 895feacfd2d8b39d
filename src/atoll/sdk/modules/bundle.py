"""Top-level modules and packages as files with contents, and the bundle that they make together.

The `sources` message that a bundle becomes is described in `payload.install`.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from atoll import file_stamp
from atoll.blake2 import blake2b
from atoll.errors import SerializationError

MOST_BYTES = 64 << 20
MOST_FILES = 20_000

_SKIPPED_DIRECTORIES = frozenset(
    {
        "__pycache__",
        ".git",
        ".hg",
        ".svn",
        ".venv",
        ".tox",
        ".nox",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".ipynb_checkpoints",
        ".hypothesis",
        "node_modules",
        "site-packages",
    }
)
_ENVIRONMENT_MARKERS = frozenset({"pyvenv.cfg", "conda-meta"})
_IMPORTS = re.compile(
    r"(?:^|[;:])[ \t]*(?:import[ \t]+(?P<names>[^\n;#]+)|from[ \t]+(?P<source>[\w.]+)[ \t]+import\b)", re.MULTILINE
)
_LITERALS = re.compile(r"""(?:import_module|__import__)\(\s*[rbuf]*["']([\w.]+)["']""")


def imports_of(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the top-level names that a module's text imports, and those in calls of `import_module`."""
    names: set[str] = set()
    for found in _IMPORTS.finditer(text.replace("\\\n", " ")):
        source = found["source"]
        entries = [source] if source else [entry.strip().partition(" ")[0] for entry in found["names"].split(",")]
        names.update(entry.partition(".")[0] for entry in entries)
    literals = frozenset(name.partition(".")[0] for name in _LITERALS.findall(text)) - {""}
    return frozenset(name for name in names if name.isidentifier()), literals


def imports_in(name: str, content: bytes) -> tuple[frozenset[str], frozenset[str]]:
    """As `imports_of`, for a file of any kind."""
    if not name.endswith((".py", ".pyw")):
        return frozenset(), frozenset()
    return imports_of(content.decode("utf-8", "replace").replace("\r\n", "\n"))


class File(NamedTuple):
    """A file of a unit as it was read: its path here, and its name, mode and content in the bundle."""

    path: str
    relative: str
    mode: int
    stamp: file_stamp.Stamp
    young: bool
    digest: bytes
    content: bytes
    imports: tuple[frozenset[str], frozenset[str]]


class Unit:
    """A top-level module (a file) or package (a directory) of the project; one object for each in a process.

    Args:
        name: the name of its import.
        path: the module's file or the package's directory.
        origin: the path that tracebacks show; empty means `path`.
    """

    def __init__(self, name: str, path: str, origin: str = "") -> None:
        self.name = name
        self.path = path
        self.key = (name, path)
        self.is_package = os.path.isdir(path)
        self.top = name if self.is_package else name + os.path.basename(path)[len(_stem(path)) :]
        self.origin = origin or path
        self.digest = ""
        self.imports: frozenset[str] = frozenset()
        self.literals: frozenset[str] = frozenset()
        self.files: tuple[File, ...] = ()
        self._directories: tuple[tuple[str, file_stamp.Stamp], ...] = ()
        self._young = True

    @property
    def size(self) -> int:
        return sum(len(file.content) for file in self.files)

    def has_code(self) -> bool:
        """Return whether there is anything to import in it; a directory of data may have the name of a module."""
        names = itertools.islice(self._walk([]), MOST_FILES)
        return any(relative.endswith((".py", ".so", ".pyd")) for _, relative in names)

    def refresh(self) -> None:
        """Read changed files again; without a change this is one `stat` for each file.

        Raises:
            SerializationError: a file cannot be read, or the whole is over `MOST_BYTES` or `MOST_FILES`.
        """
        if not self._young and self._is_as_it_was():
            return
        known = {file.path: file for file in self.files}
        directories: list[tuple[str, file_stamp.Stamp]] = []
        young = False
        files: list[File] = []
        total = 0
        for path, relative in self._walk(directories):
            file = _read(path, relative, known.get(path), MOST_BYTES - total, self)
            if file is None:
                continue
            files.append(file)
            young = young or file.young
            total += len(file.content)
            if len(files) > MOST_FILES:
                raise too_large(self, f"more than {MOST_FILES} files")
        self._young = young or any(file_stamp.is_young(stamp) for _, stamp in directories)
        self._directories = tuple(directories)
        self._keep(files)

    def _keep(self, files: list[File]) -> None:
        self.files = tuple(files)
        self.imports = frozenset().union(*(file.imports[0] for file in files))
        self.literals = frozenset().union(*(file.imports[1] for file in files))
        whole = blake2b(digest_size=16)
        for file in files:
            whole.update(f"{file.relative}\0{file.mode}\0".encode("utf-8", "surrogateescape") + file.digest)
        self.digest = whole.hexdigest() if files else ""

    def stamps(self) -> list[tuple[str, file_stamp.Stamp]] | None:
        """Return the stamps of all files and directories; None where one is too young to prove that nothing changed."""
        if self._young or not self.files:
            return None
        return [*((file.path, file.stamp) for file in self.files), *self._directories]

    def _is_as_it_was(self) -> bool:
        stat_ = os.stat
        try:
            for file in self.files:
                now = stat_(file.path)
                if (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) != file.stamp:
                    return False
        except OSError:
            return False
        return bool(self.files) and all(file_stamp.take(path) == stamp for path, stamp in self._directories)

    def _walk(self, directories: list[tuple[str, file_stamp.Stamp]]) -> Iterable[tuple[str, str]]:
        if not self.is_package:
            yield self.path, self.top
            return
        seen: set[tuple[int, int]] = set()
        pending = [(self.path, self.top)]
        while pending:
            directory, relative = pending.pop()
            try:
                found = os.stat(directory)
                names = sorted(os.listdir(directory))
            except OSError:
                continue
            if (found.st_dev, found.st_ino) in seen or (directory != self.path and _ENVIRONMENT_MARKERS & set(names)):
                continue
            seen.add((found.st_dev, found.st_ino))
            directories.append((directory, file_stamp.stamp_of(found)))
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isdir(path):
                    if name not in _SKIPPED_DIRECTORIES:
                        pending.append((path, f"{relative}/{name}"))
                else:
                    yield path, f"{relative}/{name}"


def _stem(path: str) -> str:
    return os.path.basename(path).partition(".")[0]


def _read(path: str, relative: str, known: File | None, room: int, unit: Unit) -> File | None:
    """Return a file with its content; None if it is no file (any more)."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return None
        stamp = file_stamp.stamp_of(found)
        if known is not None and known.stamp == stamp and not known.young:
            return known
        young = file_stamp.is_young(stamp)
        if found.st_size > room:
            raise too_large(unit, f"more than {MOST_BYTES >> 20} MiB, with `{path}` of {found.st_size >> 20} MiB")
        with open(path, "rb") as opened:
            content = opened.read(room + 1)
        if len(content) > room:
            raise too_large(unit, f"more than {MOST_BYTES >> 20} MiB")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SerializationError(
            f"cannot read `{path}`, which belongs to the module `{unit.name}`: {error.strerror}",
            hint="fix its permissions, or name the modules with `local_modules=[...]`",
        ) from error
    mode = 0o755 if found.st_mode & 0o100 else 0o644
    if known is not None and known.content == content:
        return known._replace(stamp=stamp, young=young, mode=mode)
    digest = blake2b(content, digest_size=16).digest()
    return File(path, relative, mode, stamp, young, digest, content, imports_in(relative, content))


def too_large(unit: Unit, what: str) -> SerializationError:
    """Return the error for a unit that cannot travel whole."""
    return SerializationError(
        f"the module `{unit.name}` is too large to travel with each call: `{unit.path}` holds {what}",
        hint="move data out of the package (`sync_dir` takes it to `/data`), or choose with `local_modules=[...]`",
        module=unit.name,
    )


# --- bundles ----------------------------------------------------------------------------------------------------


class BundleFile(NamedTuple):
    """A file of a bundle: its path there (with `/`), where it is here, its size in bytes."""

    path: str
    local: str
    size: int


@dataclass(frozen=True, eq=False)
class Bundle:
    """Modules of the project as they were at one moment; their contents are held in memory.

    Args:
        digest: hexadecimal; equal names and contents give equal digests.
    """

    digest: str
    _files: tuple[File, ...]
    _origins: dict[str, str]

    @cached_property
    def files(self) -> tuple[BundleFile, ...]:
        return tuple(BundleFile(file.relative, file.path, len(file.content)) for file in self._files)

    def message(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and buffers of the `sources` message."""
        header = {
            "type": "sources",
            "digest": self.digest,
            "files": [[file.relative, len(file.content), file.mode] for file in self._files],
            "origins": dict(self._origins),
        }
        return header, [file.content for file in self._files]


def make_bundle(units: Iterable[Unit]) -> Bundle | None:
    """Put units together; where two have a file of the same name, the first one's counts. None for no files.

    Raises:
        SerializationError: together they are over `MOST_BYTES`; the largest is named.
    """
    units = list(units)
    files: dict[str, File] = {}
    origins: dict[str, str] = {}
    for unit in units:
        portion = origins.setdefault(unit.top, unit.origin) != unit.origin
        for file in unit.files:
            files.setdefault(file.relative, file)
            if portion:
                second = file.relative.split("/")[1]
                origins.setdefault(f"{unit.top}/{second}", f"{unit.origin}/{second}")
    if not files:
        return None
    if sum(len(file.content) for file in files.values()) > MOST_BYTES:
        largest = max(units, key=lambda unit: unit.size)
        raise too_large(largest, f"{largest.size >> 20} MiB, and all modules more than {MOST_BYTES >> 20} MiB")
    if len(files) > MOST_FILES:
        largest = max(units, key=lambda unit: len(unit.files))
        raise too_large(largest, f"{len(largest.files)} files, and all modules more than {MOST_FILES}")
    whole = blake2b(digest_size=16)
    for relative in sorted(files):
        file = files[relative]
        whole.update(f"{relative}\0{file.mode}\0{len(file.content)}\0".encode("utf-8", "surrogateescape") + file.digest)
    return Bundle(whole.hexdigest(), tuple(files[relative] for relative in sorted(files)), origins)
