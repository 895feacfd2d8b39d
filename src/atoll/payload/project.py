"""The user's project: its root directories, and the test whether a module lies below them.

The root is the nearest ancestor of the main script's directory that holds one of `MARKERS`, or else that directory.
A script that is a symlink counts at both ends, as `sys.path[0]` is the directory of the real file. In a notebook, at a
prompt, and for installed programs such as `pytest`, the working directory counts instead. A function's own file adds
its project's root. Environments, the standard library and Atoll itself never belong to a project, wherever they lie.
Other modules outside of the roots are the user's own too: see `is_own_elsewhere`.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from atoll.payload import install as installed_sources

MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
OWN_PACKAGES = frozenset({"atoll", "fal_serverless", "_atoll_cloudpickle", "_atoll_yaml"})
_PACKAGE_DIRECTORIES = frozenset({"site-packages", "dist-packages"})


def roots(function: Any = None) -> tuple[str, ...]:
    """Return the absolute directories of the project, without doubles.

    In a worker the root is the directory of the caller's bundle, so that nested calls send it on.
    """
    unpacked = installed_sources.installed()
    if unpacked:
        return (unpacked,)
    main = _main_file()
    if main is not None:
        found = [*_both(_run_from(os.path.dirname(main)))]
        if os.path.islink(main):
            found += _both(os.path.dirname(os.path.realpath(main)))
    else:
        found = [*_both(working_directory())]
    found += _own_directories(function)
    return tuple(dict.fromkeys(_marked(directory) for directory in found))


def directories(function: Any) -> tuple[str, ...]:
    """Return the places that a function's relative paths may be meant from, the nearest first.

    These are the directory of its own file, its project's roots, and the working directory.
    """
    named = inspect.unwrap(function) if callable(function) else function
    file = getattr(getattr(named, "__code__", None), "co_filename", "")
    own = [os.path.dirname(os.path.abspath(file))] if file and os.path.isfile(file) else []
    return tuple(dict.fromkeys((*own, *(roots(function) if own else ()), working_directory())))


def follows_working_directory() -> bool:
    """Return whether the roots depend on the working directory: there is no main script of the project's."""
    if installed_sources.installed():
        return False
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return _main_file() is None or not os.path.isabs(main)


def _main_file() -> str | None:
    """Return the absolute path of the main script, also in an archive; None where an installed program or none runs."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(main, str):
        return None
    path = os.path.abspath(main)
    exists = os.path.isfile(path) or os.path.isfile(os.path.dirname(path))
    return path if exists and not _is_installed_program(path) else None


def _own_directories(function: Any) -> Iterator[str]:
    """Yield the directory that the function's own file is imported or run from, unless a package brought it."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if isinstance(file, str) and module is not sys.modules.get("__main__"):
        if not in_environment(file):
            yield from _both(_import_directory(module, os.path.abspath(file)))
        return
    file = getattr(function, "__globals__", {}).get("__file__")  # of `%run`, `runpy.run_path`, a profiler's script
    if isinstance(file, str) and os.path.exists(file) and not _is_installed_program(os.path.abspath(file)):
        directory = os.path.dirname(os.path.realpath(file))
        package = function.__globals__.get("__package__") or ""
        yield from _both(_above(directory, package.count(".") + 1 if package else 0))


def working_directory() -> str:
    """Return the working directory; the file system's root where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return os.path.abspath(os.sep)


def _run_from(directory: str) -> str:
    """Return the directory of the main program's package, if it was started with `-m package.module`."""
    package = getattr(sys.modules.get("__main__"), "__package__", None) or ""
    return _above(directory, package.count(".") + 1 if package else 0)


def _above(directory: str, levels: int) -> str:
    for _ in range(levels):
        directory = os.path.dirname(directory)
    return directory


def _both(directory: str) -> Iterator[str]:
    """Yield the directory by the name given and by its real one: `sys.path` has either."""
    yield directory
    yield os.path.realpath(directory)


def _import_directory(module: Any, file: str) -> str:
    """Return the directory of the module's top-level package: the root of a project without a marker."""
    depth = module.__name__.count(".") + (1 if os.path.basename(file).startswith("__init__.") else 0)
    return _above(os.path.dirname(file), depth)


@functools.lru_cache(maxsize=64)
def _marked(directory: str) -> str:
    above = directory
    while True:
        if any(os.path.exists(os.path.join(above, marker)) for marker in MARKERS):
            return above
        parent = os.path.dirname(above)
        if parent == above:
            return directory
        above = parent


@functools.cache
def _library_directories() -> tuple[str, ...]:
    named = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__))
    found = {form for path in named if path for form in _both(os.path.abspath(path))}
    archive = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    found |= {os.path.join(os.path.dirname(path), archive) for path in found}
    return tuple(path + os.sep for path in found)


@functools.cache
def _program_directories() -> frozenset[str]:
    named = (sysconfig.get_path("scripts"), os.path.dirname(sys.executable or ""), "/usr/bin", "/usr/local/bin")
    return frozenset(form for path in named if path for form in _both(os.path.abspath(path)))


def _is_installed_program(main: str) -> bool:
    return os.path.dirname(main) in _program_directories() or in_environment(main)


_ENVIRONMENT_PARTS = frozenset({"lib", "lib64", "Lib", "bin", "Scripts", "include", "Include", "share", "DLLs"})


@functools.lru_cache(maxsize=4096)
def _is_environment(directory: str) -> bool:
    """Return whether the directory lies in the part of an environment that tools fill: a project may hold the rest."""
    parent, name = os.path.split(directory)
    if parent == directory:
        return False
    if name in _ENVIRONMENT_PARTS and any(
        os.path.exists(os.path.join(parent, marker)) for marker in ("pyvenv.cfg", "conda-meta")
    ):
        return True
    return _is_environment(parent)


_SITE_PARENT = re.compile(r"(?:(?:python|pypy)\d*(?:\.\d+)*t?|lib|lib64)\Z", re.IGNORECASE)
_INSTALLED = (".dist-info", ".egg-info", ".egg", ".pth")


@functools.lru_cache(maxsize=256)
def _is_site_directory(directory: str) -> bool:
    """Return whether a directory named like Python's `site-packages` is one: by its parent's name or its contents."""
    if _SITE_PARENT.match(os.path.basename(os.path.dirname(directory))):
        return True
    return _holds(directory, _INSTALLED)


def _holds(directory: str, endings: tuple[str, ...]) -> bool:
    try:
        return any(name.endswith(endings) for name in os.listdir(directory))
    except OSError:
        return False


@functools.lru_cache(maxsize=256)
def _is_install_target(directory: str) -> bool:
    """Return whether a tool installed packages into a directory of any name, as `pip install --target` does."""
    return _holds(directory, (".dist-info",))


def in_environment(path: str) -> bool:
    """Return whether a file belongs to the standard library or to an environment that packages are installed in."""
    path = os.path.abspath(path)
    if path.startswith(_library_directories()) or _is_environment(os.path.dirname(path)):
        return True
    parts = path.split(os.sep)
    return any(
        part in _PACKAGE_DIRECTORIES and _is_site_directory(os.sep.join(parts[: place + 1]))
        for place, part in enumerate(parts)
    )


def below(path: str, directories: tuple[str, ...]) -> bool:
    """Return whether a path lies in the project whose roots are given, and in no environment."""
    path = os.path.abspath(path)
    for root in directories:
        start = root.rstrip(os.sep) + os.sep
        if path.startswith(start) and _PACKAGE_DIRECTORIES.isdisjoint(path[len(start) :].split(os.sep)):
            return not in_environment(path)
    return False


def is_own_elsewhere(path: str, directories: tuple[str, ...]) -> bool:
    """Return whether a top-level module or package outside of the project's roots is the user's own.

    Such are those of a directory on `PYTHONPATH`, of another project that is installed as editable, and of an archive.
    Not those that a tool installed: into an environment, or into any other directory.
    """
    path = os.path.abspath(path)
    return (
        _PACKAGE_DIRECTORIES.isdisjoint(path.split(os.sep))
        and not any(path.startswith(root.rstrip(os.sep) + os.sep) for root in directories)
        and not in_environment(path)
        and not _is_install_target(os.path.dirname(path))
    )


def locations(module: Any) -> tuple[str, ...]:
    """Return the file of a module or of a module's spec, or the directories of a namespace package."""
    spec = module if not isinstance(module, ModuleType) else getattr(module, "__spec__", None)
    file = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if isinstance(file, str) and os.path.isabs(file):
        return (file,)
    if isinstance(file, str) and file not in ("built-in", "frozen", "namespace"):
        return (os.path.abspath(file),)
    portions = getattr(module, "__path__", None) or getattr(spec, "submodule_search_locations", None) or ()
    return tuple(os.path.abspath(portion) for portion in portions)
