"""Removal of trees that code of packages has made: of any depth, any modes, and with symlinks that lead anywhere.

`shutil.rmtree` gives up at directories that their owner may not read, and raises `RecursionError` in a tree of some
hundred levels. A package's build can leave both.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 100


def remove_tree(path: Path) -> None:
    """Remove a directory and everything below it; no symlink is followed, and a path that is absent is no error.

    An entry that cannot be removed is left, with the directories above it.
    """
    with contextlib.suppress(OSError):
        _allow(path)
        top = os.open(path, _DIRECTORY)
        try:
            while _empty(top, top, 0):  # directories that were nested too deeply are below `top` now
                pass
        finally:
            os.close(top)
        os.rmdir(path)


def _empty(directory: int, top: int, depth: int) -> bool:
    """Remove the entries of an open directory; return True if some of them were moved up to `top` instead."""
    moved = False
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=directory)
                continue
            _allow(name, directory)
            if depth >= _MAX_DEPTH:
                os.rename(name, f".deep-{os.urandom(8).hex()}", src_dir_fd=directory, dst_dir_fd=top)
                moved = True
                continue
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                moved |= _empty(below, top, depth + 1)
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=directory)
    return moved


def _allow(name: str | Path, parent: int | None = None) -> None:
    """Give the owner of a directory all access to it."""
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{descriptor}", mode | 0o700)
    finally:
        os.close(descriptor)
