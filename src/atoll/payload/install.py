"""The project's modules in the worker: unpacked below a directory that is on `sys.path`.

The `sources` message, whose buffers are the files' contents in the order of `files`:

    {"type": "sources", "digest": hexadecimal, "files": [[path, bytes, mode], ...], "origins": {top: path}}

`path` is relative, with `/`, as an import needs it (`package/module.py`); `mode` is 420 or 493 (0644, 0755).
`origins` gives, for the first component of each path, its path on the caller's machine, which tracebacks show. For a
namespace package whose portions lie in several places it has the first two components of the others' paths besides.

Workers of one sandbox share the unpacked files: a bundle appears whole under its digest, by a rename.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{8,128}\Z")
_FORBIDDEN = ("", ".", "..")

_KEPT = frozenset({"__main__", "atoll", "fal_serverless", "_atoll_cloudpickle", "_atoll_yaml"})

_directory = ""
_origins: dict[str, str] = {}


def install(header: dict[str, Any], buffers: Sequence[Any], directory: str) -> str:
    """Unpack a bundle below `directory` and let this process import from it; return its path.

    Its position on `sys.path` is after Atoll's own library and before everything else, so that it wins over packages
    of the environment as the project's directory does in the caller. A bundle that was installed before leaves
    `sys.path`.

    Raises:
        ValueError: the message is not as described above.
        OSError: the files cannot be written.
    """
    global _directory, _origins
    digest = header.get("digest")
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise ValueError("`digest` must be hexadecimal")
    files = _checked(header.get("files"), buffers)
    origins = header.get("origins")
    if not isinstance(origins, dict) or not all(isinstance(value, str) for value in origins.values()):
        raise ValueError("`origins` must map names to paths")
    target = os.path.join(directory, digest)
    if not os.path.isdir(target):  # complete whenever it exists: it appears by a rename
        _unpack(files, buffers, directory, target)
    if _directory in sys.path:
        sys.path.remove(_directory)
    sys.path.insert(_place(), target)
    _directory, _origins = target, dict(origins)
    _forget_namesakes({path.partition("/")[0] for path, _ in files}, target)
    importlib.invalidate_caches()  # finders may have listed `sys.path` before the files appeared
    return target


def _forget_namesakes(tops: set[str], target: str) -> None:
    """Let the next import find the bundle's modules instead of loaded ones of the same names, as in the caller.

    Workers have modules of Python and of the environment before the bundle arrives.
    """
    for top in tops:
        name = top.partition(".")[0]
        module = sys.modules.get(name)
        if module is None or name in _KEPT or name in sys.builtin_module_names:
            continue
        if top == name and not any(entry.startswith("__init__.") for entry in os.listdir(os.path.join(target, top))):
            continue  # a portion of a namespace package, whose path follows `sys.path`
        if not str(getattr(module, "__file__", "")).startswith(target + os.sep):
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]


def installed() -> str:
    """Return the directory of the bundle that this process imports from; empty for none."""
    return _directory


def origins() -> dict[str, str]:
    """Return the caller's path of each top-level file and directory of the bundle."""
    return _origins


def original(path: str) -> str:
    """Return the caller's path of a file of the bundle; any other path as it is."""
    if not _directory or not path.startswith(_directory + os.sep):
        return path
    relative = path[len(_directory) + 1 :]
    top, _, rest = relative.partition(os.sep)
    second, _, deeper = rest.partition(os.sep)
    if (portion := _origins.get(f"{top}/{second}")) is not None:  # of a namespace package in several places
        base, rest = portion, deeper
    elif (base := _origins.get(top, "")) == "":
        return path
    return base + ("\\" if "\\" in base and "/" not in base else "/") + rest if rest else base


def _checked(files: Any, buffers: Sequence[Any]) -> list[tuple[str, int]]:
    if not isinstance(files, list) or len(files) != len(buffers):
        raise ValueError("`files` must be a list with one entry for each buffer")
    checked = []
    for entry, buffer in zip(files, buffers, strict=True):
        if not isinstance(entry, list) or len(entry) != 3:
            raise ValueError("an entry of `files` must be path, size and mode")
        path, size, mode = entry
        if not isinstance(path, str) or "\0" in path or "\\" in path:
            raise ValueError(f"`{path!r}` is not a relative path")
        if any(part in _FORBIDDEN for part in path.split("/")):
            raise ValueError(f"`{path}` is not a relative path without `.` and `..`")
        if size != memoryview(buffer).nbytes or mode not in (0o644, 0o755):
            raise ValueError(f"`{path}` has a wrong size or mode")
        checked.append((path, mode))
    return checked


def _unpack(files: list[tuple[str, int]], buffers: Sequence[Any], directory: str, target: str) -> None:
    import shutil  # these two cost an agent's start 4 ms, and most agents unpack nothing
    import tempfile

    os.makedirs(directory, 0o700, exist_ok=True)
    staging = tempfile.mkdtemp(prefix=".staging-", dir=directory)
    try:
        made = {staging}
        for (path, mode), buffer in zip(files, buffers, strict=True):
            full = os.path.join(staging, *path.split("/"))
            parent = os.path.dirname(full)
            if parent not in made:
                os.makedirs(parent, exist_ok=True)
                made.add(parent)
            descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
            with open(descriptor, "wb") as file:
                file.write(buffer)
        try:
            os.rename(staging, target)
        except OSError:
            if not os.path.isdir(target):  # else another worker was first
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _place() -> int:
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return sys.path.index(library) + 1 if library in sys.path else 0
