"""Imports of the program's modules in a worker that has them by value: packages around them, and their files.

The module that defines an isolated function is rebuilt from pickles, not from its file (`program.namespaces`). Its
file, where the project's modules travel, still serves names that cannot be pickled, and says where a package's
modules are. Packages are imported when something imports them, and know the rebuilt module from then on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

_covered: dict[str, ModuleType | None] = {}
"""Modules of the same names that were imported from files before, while rebuilt ones are in their places."""


def install(name: str, module: ModuleType) -> None:
    """Put a rebuilt module in its place in `sys.modules`, and into its package."""
    if name not in _covered:
        _covered[name] = sys.modules.get(name)
    sys.modules[name] = module
    package, _, last = name.rpartition(".")
    if package:
        if package in sys.modules:
            setattr(sys.modules[package], last, module)
        if _Packages not in sys.meta_path:
            sys.meta_path.insert(0, _Packages)


def uninstall(name: str, module: ModuleType) -> None:
    """Take a rebuilt module out again."""
    covered = _covered.pop(name, None)
    if sys.modules.get(name) is module:
        if covered is None:
            del sys.modules[name]
        else:
            sys.modules[name] = covered
    package, _, last = name.rpartition(".")
    owner = sys.modules.get(package)
    if owner is not None and vars(owner).get(last) is module:
        if covered is None:
            delattr(owner, last)
        else:
            setattr(owner, last, covered)


def spec_of(name: str) -> ModuleSpec | None:
    """Return the spec of the file that a module would be imported from; None where it does not travel."""
    package = name.rpartition(".")[0]
    path = importlib.import_module(package).__path__ if package else None
    return PathFinder.find_spec(name, path)


def from_file(name: str) -> ModuleType:
    """Run a module's file, in a module that nothing else sees.

    Raises:
        ImportError: it does not travel; any other error is its own.
    """
    covered = _covered.get(name)
    if covered is not None:
        return covered
    spec = spec_of(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no file of the module {name!r} is here", name=name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _covered[name] = module
    return module


class _Packages:
    """Has packages know the rebuilt modules in them, as if these had been imported."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not any(one.rpartition(".")[0] == name for one in _covered):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not cls else None
            if spec is not None:
                spec.loader = cast("Any", _Loader(spec.loader))
                return spec
        return None


class _Loader:
    """A package's loader that adds the rebuilt modules."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None if self._loader is None else self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        for name in list(_covered):
            package, _, last = name.rpartition(".")
            if package == module.__name__ and name in sys.modules:
                setattr(module, last, sys.modules[name])
        if self._loader is not None:
            self._loader.exec_module(module)
