"""Digests of local paths in requirements, so that an edit gives another environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from atoll.blake2 import blake2b
from atoll.environments.asked.local_path import LocalPath
from atoll.errors import EnvironmentBuildError

_SKIPPED = (
    " .git .hg .svn .venv venv .tox .nox node_modules __pycache__ .mypy_cache .pytest_cache .ruff_cache .hypothesis "
    ".idea .vscode .DS_Store .eggs "
)


def skipped(name: str) -> bool:
    """Return whether a name is a by-product of using the tree (caches, environments), and not part of the package."""
    return f" {name} " in _SKIPPED or name.endswith((".pyc", ".egg-info"))


_known: dict[str, tuple[str, str]] = {}


def digest_of(source: LocalPath) -> str:
    """Return the digest of a requirement on this machine's disk; of a repository, the digest of what it names.

    Raises:
        EnvironmentBuildError: it cannot be read, or is no repository.
    """
    if not source.repository:
        return content_digest(source.path)
    git = os.path.join(source.path, ".git")
    if not os.path.isdir(git):
        git = source.path  # a bare one
    if not os.path.isfile(os.path.join(git, "HEAD")):
        raise EnvironmentBuildError(
            f"there is no git repository at `{source.path}`, which `requirements` names",
            hint="check the path; a linked worktree is named by its main repository",
        )
    digest = blake2b(repr(source.revision).encode(), digest_size=16)
    for name in ("HEAD", "packed-refs", "refs"):  # a commit moves one of these
        if os.path.exists(os.path.join(git, name)):
            digest.update(content_digest(os.path.join(git, name)).encode())
    return digest.hexdigest()


def content_digest(path: str) -> str:
    """Return the digest of a file or tree: names, kinds, executable bits and contents.

    Files are read again only when something in the tree has another size, time or inode than at the last reading.

    Raises:
        EnvironmentBuildError: the path cannot be read.
    """
    try:
        entries = _entries(path)
        signature = blake2b(repr(entries).encode(), digest_size=16).hexdigest()
        known = _known.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        digest = blake2b(digest_size=16)
        digest.update(repr(os.path.basename(path) if not os.path.isdir(path) else "").encode())
        for name, mode, *_ in entries:
            full = os.path.join(path, name) if name else path
            digest.update(repr((name, stat.S_IFMT(mode), bool(mode & 0o100))).encode())
            if stat.S_ISLNK(mode):
                digest.update(repr(os.readlink(full)).encode())
            elif stat.S_ISREG(mode):
                with open(full, "rb") as file:
                    import hashlib  # for local projects alone

                    content = hashlib.file_digest(file, lambda: blake2b(digest_size=32))
                digest.update(content.digest())
    except FileNotFoundError as error:
        raise EnvironmentBuildError(
            f"there is nothing at `{error.filename}`, which `requirements` names", hint="check the path"
        ) from error
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot read `{error.filename or path}`, which `requirements` names: {error.strerror}",
            hint="check its permissions",
        ) from error
    _known[path] = (signature, digest.hexdigest())
    return _known[path][1]


def _entries(path: str) -> list[tuple[str, int, int, int, int, int]]:
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return [_entry("", status)]
    entries = []
    for directory, inner, names in os.walk(path, onerror=_raise):
        inner[:] = [name for name in inner if not skipped(name)]
        for name in (*inner, *names):
            if not skipped(name):
                full = Path(directory, name)
                entries.append(_entry(os.path.relpath(full, path), full.lstat()))
    return sorted(entries)


def _entry(name: str, status: os.stat_result) -> tuple[str, int, int, int, int, int]:
    directory = stat.S_ISDIR(status.st_mode)
    return (
        name,
        status.st_mode,
        0 if directory else status.st_size,
        0 if directory else status.st_mtime_ns,
        0 if directory else status.st_ctime_ns,
        status.st_ino,
    )


def _raise(error: OSError) -> None:
    raise error


def copy_source(source: Path, copy: Path) -> None:
    """Copy a file or source tree for a build, which may write into it; by-products of its use are left out."""
    if source.is_dir():
        shutil.copytree(
            source,
            copy,
            symlinks=True,
            ignore=lambda _directory, names: {name for name in names if skipped(name) and name != ".git"},
        )
    else:
        shutil.copy2(source, copy)
    with contextlib.suppress(OSError):
        copy.chmod(copy.stat().st_mode | 0o500)
