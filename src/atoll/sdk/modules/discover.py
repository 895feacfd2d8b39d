"""The project's modules that travel with a call, as they are on the disk now.

A call takes along the modules of the project that this process has imported, those that the function's code imports
when it runs, and what these import in turn. The user's modules from elsewhere (`project.is_own_elsewhere`) travel where
these, or the names of the function's module, refer to them. The unit is the top-level module or package; a package
travels whole, with its data. Nothing is imported to find out: names are looked up on `sys.path`, and imports are read
from the text of the files by a pattern that may find too many (in a docstring) but not too few; what is not the
project's falls away when it is looked up.

A warm call costs one `stat` for each file and directory. Text and bytes are read again only where a stamp differs or
is too young to be proof (`file_stamp`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterable, Sequence
from importlib.machinery import FileFinder
from types import FunctionType, MethodType, ModuleType
from typing import Any

from atoll import file_stamp
from atoll.errors import SerializationError
from atoll.payload import install as installed_sources
from atoll.payload import project
from atoll.payload.captures import Captures, imported_names
from atoll.sdk.modules import distributions
from atoll.sdk.modules.bundle import Bundle, Unit, make_bundle

_lock = threading.RLock()
_units: dict[tuple[str, str], Unit] = {}
_scans: dict[tuple[str, ...], tuple[dict[str, None], dict[str, int]]] = {}
"""By the project's roots: the imported modules that are the project's, and all that were looked at."""
_left_out: set[tuple[str, str]] = set()
"""Keys of units from elsewhere that cannot be read or are too large."""
_NOT_SHIPPED = frozenset({"__main__", "__mp_main__"})
if hasattr(os, "register_at_fork"):  # a fork waits until no thread is half-way, so that the child finds it all whole
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Sources:
    """The modules that travel with the calls of one function.

    Safe to use from several threads.

    Args:
        function: its code names the imports.
        local_modules: names or paths of the modules and packages to send instead; `[]` for none.
        requirements: of the function's environment; a package that they name does not travel from elsewhere.
    """

    def __init__(
        self,
        function: Any,
        local_modules: Sequence[str | os.PathLike[str]] | None = None,
        requirements: Iterable[str] = (),
    ) -> None:
        self._required = frozenset(map(_distribution_name, requirements))
        self._function = function
        self._given = None if local_modules is None else [os.fspath(name) for name in local_modules]
        self._captures: Captures | None = None
        self._imports: tuple[set[str], set[str]] = (set(), set())
        self._module_count = -1
        self._path: list[str] = []
        self._working_directory = ""
        self._roots: tuple[str, ...] = ()
        self._loaded: dict[str, None] = {}
        self._scanned: dict[str, int] = {}
        self._directories: dict[str, tuple[file_stamp.Stamp, bool]] = {}
        self._chosen: list[Unit] = []
        self._bundle: Bundle | None = None
        self._key: tuple[str, ...] = ()
        self._stamps: list[tuple[str, file_stamp.Stamp]] | None = None
        """All files and directories that the last choice rests on; None where one was too young for its stamp."""
        self._follows_working_directory = True

    def current(self, captures: Captures | None = None) -> Bundle | None:
        """Return the bundle as the files are now; None when nothing travels.

        Args:
            captures: of the function's pickle, unchanged as of now; by default a walk of its own.

        Raises:
            SerializationError: the modules are too large or cannot be read, or a name of `local_modules` is unknown.
        """
        if self._given is not None and not self._given:
            return None
        with _lock:
            if captures is not None and captures is self._captures and self._is_current():
                return self._bundle
            self._stamps = None
            if self._given is not None:
                self._captures = captures
                if not self._chosen or not all(unit.digest for unit in self._chosen):
                    units = [unit for name in self._given for unit in _given_units(name)]
                    self._chosen = [*units, *distributions.of_project(sys.path, (), units)]
            elif self._choice_is_stale(captures):
                self._choose()
            for unit in self._chosen:
                unit.refresh()
            key = tuple(unit.digest for unit in self._chosen)
            if key != self._key:
                if self._given is None:
                    self._choose()  # an edited file may import more
                    key = tuple(unit.digest for unit in self._chosen)
                self._bundle = make_bundle(self._chosen)
                self._key = key
            self._stamps = self._all_stamps()
            return self._bundle

    def _is_current(self) -> bool:
        """Return whether the last bundle is proven to be the present one: by one `stat` for each file."""
        stamps = self._stamps
        if stamps is None:
            return False
        if self._given is None and (
            len(sys.modules) != self._module_count
            or sys.path != self._path
            or (self._follows_working_directory and self._working_directory != project.working_directory())
        ):
            return False
        take = file_stamp.take
        return all(take(path) == stamp for path, stamp in stamps)

    def _all_stamps(self) -> list[tuple[str, file_stamp.Stamp]] | None:
        found: dict[str, file_stamp.Stamp] = {}
        for path, (stamp, young) in self._directories.items():
            if young:
                return None
            found[path] = stamp
        for unit in self._chosen:
            stamps = unit.stamps()
            if stamps is None:
                return None
            for path, stamp in stamps:
                if found.setdefault(path, stamp) != stamp:  # it changed between two looks
                    return None
        return list(found.items())

    def with_file(self, module: str, file: str) -> Bundle:
        """Return the bundle as the files are now, with a file that is the module of that name.

        Raises:
            SerializationError: as `current`.
        """
        self.current()
        top = module.partition(".")[0]
        in_package = module != top or os.path.basename(file).startswith("__init__.")
        with _lock:
            units = list(_given_units(top)) if in_package else [_unit(module, file)]
            for unit in units:
                unit.refresh()
            bundle = make_bundle([*units, *(one for one in self._chosen if one.name != top)])
        assert bundle is not None  # it has the file
        return bundle

    # --- the automatic choice -----------------------------------------------------------------------------------

    def _choice_is_stale(self, given: Captures | None) -> bool:
        captures = self._captures
        if (given is not None and given is not captures) or captures is None or not captures.unchanged():
            captures = self._captures = given if given is not None else Captures(self._function)
            imports = imported_names(captures)
            if imports != self._imports:
                self._imports = imports
                return True
        if len(sys.modules) != self._module_count or sys.path != self._path:
            return True
        if self._working_directory != project.working_directory():
            return True
        return any(young or file_stamp.take(path) != stamp for path, (stamp, young) in self._directories.items())

    def _choose(self) -> None:
        self._working_directory = project.working_directory()
        self._path = list(sys.path)
        self._follows_working_directory = project.follows_working_directory() or not all(map(os.path.isabs, self._path))
        roots = project.roots(self._function)
        if roots != self._roots:
            self._roots = roots
            self._loaded, self._scanned = _scans.setdefault(roots, ({}, {}))
        self._watch()
        self._scan_modules()
        found: dict[tuple[str, str], Unit] = {}
        pending: list[tuple[str, bool]] = [(name, False) for name in (*self._loaded, *self._imports[0])]
        pending += [(name, False) for name in _referenced(self._function)]
        pending += [(name, True) for name in self._imports[1]]
        asked: set[str] = set()
        metadata: list[distributions.Metadata] = []
        while pending:
            self._collect(pending, found, asked)
            metadata = distributions.of_project(self._path, roots, found.values())
            points = {point for one in metadata for point in one.entry_points}
            pending = [(point, True) for point in points - asked]  # plugins are named in metadata alone
        found.update((one.key, one) for one in metadata)
        self._chosen = [found[key] for key in sorted(found)]

    def _collect(self, pending: list[tuple[str, bool]], found: dict[tuple[str, str], Unit], asked: set[str]) -> None:
        """Add the units of the names that are pending, and of those that they import in turn."""
        for name, loosely in pending:
            if name in asked:
                continue
            asked.add(name)
            if name in _NOT_SHIPPED or name in project.OWN_PACKAGES:
                continue
            elsewhere = distributions.normalized(name) not in self._required
            for unit in _located(name, self._roots, loosely, elsewhere):
                if unit.key not in found and _is_read(unit, self._roots):
                    found[unit.key] = unit
                    pending.extend((inner, False) for inner in unit.imports)
                    pending.extend((inner, True) for inner in unit.literals)

    def _watch(self) -> None:
        """Remember the directories of the project that modules are imported from: a new file there may be meant."""
        self._directories = {}
        for entry in self._path:
            directory = os.path.abspath(entry or self._working_directory)
            if directory in self._roots or project.below(os.path.join(directory, "x"), self._roots):
                stamp = file_stamp.take(directory)
                if stamp == file_stamp.GONE:
                    continue
                young = file_stamp.is_young(stamp)
                finder = sys.path_importer_cache.get(entry or directory)
                if young and isinstance(finder, FileFinder):  # it trusts the time of its directory
                    finder.invalidate_caches()
                self._directories[directory] = stamp, young

    def _scan_modules(self) -> None:
        """Find which imported modules are the project's; those that were looked at before are not looked at again."""
        self._module_count = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if self._scanned.get(name) == id(module):
                continue
            self._scanned[name] = id(module)
            top = name.partition(".")[0]
            if top in project.OWN_PACKAGES or name in _NOT_SHIPPED or not isinstance(module, ModuleType):
                continue
            if any(project.below(path, self._roots) for path in project.locations(module)):
                self._loaded[top] = None


def _unit(name: str, path: str) -> Unit:
    unit = _units.get((name, path))
    if unit is None:
        unit = _units[name, path] = _new_unit(name, path)
    return unit


def _new_unit(name: str, path: str) -> Unit:
    if not os.path.exists(path):
        from atoll.sdk.modules import archive  # `zipfile` takes milliseconds to import

        if inside := archive.inside(path):
            return archive.ArchiveUnit(name, path, *inside)
    return Unit(name, path, installed_sources.origins().get(os.path.basename(path), ""))


def _distribution_name(text: str) -> str:
    """Return the normalized name that a requirement begins with."""
    found = re.match(r"\s*([\w.-]*\w)", text)
    return distributions.normalized(found[1]) if found else ""


def _referenced(function: Any) -> Iterable[str]:
    """Return the top-level modules of the values that the function's module has names for, without Python's own."""
    while isinstance(function, (functools.partial, MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    names = getattr(function, "__globals__", None)
    if names is None:
        names = vars(sys.modules.get(getattr(function, "__module__", None) or "", sys))
    found: dict[str, None] = {}
    for value in list(names.values()):
        kind = type(value)
        if kind is ModuleType:
            name: Any = value.__name__
        elif isinstance(value, type) or hasattr(kind, "__atoll_function__") or kind is FunctionType:
            name = vars(value).get("__module__") if kind is not FunctionType else value.__module__
        else:
            name = kind.__module__
        if isinstance(name, str):
            found[name.partition(".")[0]] = None
    return [name for name in found if name not in sys.stdlib_module_names]


def _is_read(unit: Unit, roots: tuple[str, ...]) -> bool:
    """Read a unit. One from elsewhere that is too large is left out: the environment may have it."""
    if unit.key in _left_out:
        return False
    try:
        unit.refresh()
    except SerializationError:
        if project.below(unit.path, roots):
            raise
        _left_out.add(unit.key)
        return False
    return True


def _spec(name: str) -> Any:
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError, TypeError):
        return None


def _located(name: str, roots: tuple[str, ...], loosely: bool, elsewhere: bool) -> Iterable[Unit]:
    """Return the units of a top-level name that are the project's.

    Args:
        loosely: the name is only a string in the code: a directory without `__init__` is not what it means.
        elsewhere: units outside of the project's roots count, too.
    """
    if not name.isidentifier():
        return
    for path in project.locations(_spec(name)):
        initial = os.path.basename(path).startswith("__init__.")
        top = os.path.dirname(path) if initial else path
        inside = project.below(path, roots)
        if not inside and not (elsewhere and project.is_own_elsewhere(top, roots)):
            continue
        if initial or os.path.isfile(path) or path.endswith((".py", ".pyc")):  # these may lie in an archive
            yield _unit(name, top)
        elif name in sys.modules or (inside and not loosely):
            unit = _unit(name, path)
            if unit.has_code():
                yield unit


def _given_units(name: str) -> Iterable[Unit]:
    """Return the units that an entry of `local_modules` names: a path, or a module that can be found."""
    path = os.path.abspath(os.path.expanduser(name))
    looks_like_path = os.sep in name or "/" in name or name.endswith(".py")
    top = name.partition(".")[0]
    if not looks_like_path and top.isidentifier():
        paths = project.locations(_spec(top))
        if paths:
            for found in paths:
                plain = os.path.basename(found).startswith("__init__.")
                yield _unit(top, os.path.dirname(found) if plain else found)
            return
    if not os.path.exists(path):
        raise SerializationError(
            f"`local_modules` names `{name}`, which is no module here and no file",
            hint="give the name of a module that can be imported, or the path of a module or package",
        )
    yield _unit(os.path.basename(path.rstrip(os.sep)).partition(".")[0], path.rstrip(os.sep))
