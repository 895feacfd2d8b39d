"""The cache of `numba.jit(cache=True)` for functions whose files are the caller's.

numba keeps compiled code beside a function's file, or in a directory of the user's, and asks the file's time whether it
is still right. A function of the program has no file here, and modules of the project have one that each worker
unpacks anew. So numba gets a way of its own to find the place for both: below `/data/.cache/numba`, named by the
caller's path, and right as long as the file's text is the same. Other functions are left to numba.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from atoll.payload import install
from atoll.payload.texts.load import text_of

_MODULE = "numba.core.caching"


def watch() -> None:
    """Have numba's cache extended when it is imported, in this process and in those that it forks."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds numba's module as the other finders do, and extends it once it is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # it has all that is asked of one
                return spec
        return None


class _Loader:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        classes: Any = getattr(module, "CacheImpl", None) or getattr(module, "_CacheImpl", None)
        if classes is not None and hasattr(module, "_CacheLocator"):
            classes._locator_classes = [_locator(module), *classes._locator_classes]


def _locator(caching: Any) -> Any:
    """Return the class by which numba finds the place for functions of the caller's files."""

    class CallersFileLocator(caching._CacheLocator):  # type: ignore[misc]  # the module is found at run time
        def __init__(self, file: str, stamp: str, name: str, directory: str) -> None:
            self._py_file = file
            self._stamp = stamp
            self._name = name
            self._directory = directory

        def get_cache_path(self) -> str:
            return self._directory

        def get_source_stamp(self) -> str:
            return self._stamp

        def get_disambiguator(self) -> str:
            return self._name

        @classmethod
        def from_function(cls, function: Any, file: str) -> Any:
            shown = install.original(file)
            text = text_of(file)
            if text is None and shown == file:
                return None
            name = str(function.__code__.co_firstlineno)
            directory = os.path.dirname(shown)
            try:
                if text is None:
                    with open(file, encoding="utf-8", errors="replace") as source:
                        text = source.read()
                if file.startswith("<") or os.path.basename(directory).startswith("ipykernel_"):
                    # A notebook's cell has another name at each start of its kernel.
                    text = inspect.getsource(function)
                    name, directory = _digest("".join(text.splitlines()[:2]))[:10], "notebook"
                base = caching.config.CACHE_DIR or caching.AppDirs(appname="numba", appauthor=False).user_cache_dir
                place = f"{os.path.basename(directory)}_{_digest(directory)}"
                found = cls(file, _digest(text), name, os.path.join(base, place))
                found.ensure_cache_path()
            except OSError:  # numba's own ways are tried next
                return None
            return found

    return CallersFileLocator


def _digest(text: str) -> str:
    import hashlib  # OpenSSL would cost the start of each agent some milliseconds

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
