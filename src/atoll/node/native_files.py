"""What is mounted for storage peers beside the library: compiled packages for digests, chunks and compression.

Copied out of the daemon's own environment, which other users may not be able to enter, into a directory named by
the versions. Functions never see it: they have what their environment has. Where a package is missing or does not
fit, a peer does without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.machinery
import os
import shutil
import tempfile
from pathlib import Path

PACKAGES = ("blake3", "zstandard", "pyfastcdc", "typing_extensions")  # the last is imported by pyfastcdc
_LEFT_OUT = ("_cffi.",)


def _files() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(package)  # found, and not imported
        if spec is None or spec.origin is None:
            continue
        if not spec.submodule_search_locations:  # a module of one file
            found[Path(spec.origin).name] = Path(spec.origin)
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".so") and not any(text in path.name for text in _LEFT_OUT):
                found[str(path.relative_to(root.parent))] = path
    return found


def hold(directory: Path) -> tuple[Path, int]:
    """Return a directory below `directory` that holds the packages, complete, and a descriptor that keeps it from
    `agent_files.remove_unused` while it is open.

    Raises:
        OSError: it cannot be made.
    """
    files = _files()
    digest = hashlib.blake2b(digest_size=8)
    for name, path in sorted(files.items()):
        info = path.stat()
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\0".encode())
    target = directory / f"native-{digest.hexdigest()}"
    while True:
        if not _whole(target, files):
            _make(directory, target, files)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(target)):
                    return target, descriptor
            os.close(descriptor)  # somebody removed it before it was held


def _whole(target: Path, files: dict[str, Path]) -> bool:
    try:
        return target.is_dir() and all(
            (target / name).stat().st_size == path.stat().st_size for name, path in files.items()
        )
    except OSError:
        return False


def _make(directory: Path, target: Path, files: dict[str, Path]) -> None:
    directory.mkdir(mode=0o755, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=directory))
    try:
        for name, path in files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / name)
        for path in [stage, *stage.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)
        if target.exists():  # damaged: what runs keeps it, what comes does not
            os.rename(target, f"{stage}-damaged")
            shutil.rmtree(f"{stage}-damaged", ignore_errors=True)
        with contextlib.suppress(OSError):  # another daemon may have been first
            os.rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
