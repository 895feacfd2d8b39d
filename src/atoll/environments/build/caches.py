"""Caches of packages: one for the ordinary way of fetching, and one for each other way.

A way of fetching is a set of proxies, certificates, unchecked hosts and credentials (`index.Index.fetch`). uv's cache
knows packages by address, and conda's by digest, so a shared one would give what one caller's credentials or proxy had
fetched to every other caller. The ordinary caches are `uv` and `conda` in the workshop, those of another way `uv` and
`conda` in `fetched/NAME`. Of these the ones used last are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from atoll.environments.build.workshop import CACHES, Workshop
from atoll.environments.built import locks
from atoll.environments.built.records import make_directory
from atoll.environments.built.removal import remove_tree

KEPT = 8
KEPT_DAYS = 30.0
"""How many caches of other ways are kept, and for how many days without use."""

_UNFINISHED = ".tmp"
"""Beginning of the names in uv's cache of what is not complete; uv itself removes it, unless it is killed."""
_NAME = re.compile(r"[0-9a-f]{32}")


def within(tool: str, name: str) -> str:
    """Return where a tool's cache is in the workshop; an empty name is the ordinary way's."""
    return f"fetched/{name}/{tool}" if name else tool


def _sweep(cache: Path, lock_path: Path) -> None:
    """Remove what uv unpacks before it is complete, unless a build uses the cache: as much as a disk may hold."""
    lock = locks.try_lock(lock_path, exclusive=True)
    if lock is None:
        return
    with lock, contextlib.suppress(FileNotFoundError), os.scandir(cache) as found:
        for entry in found:
            if entry.name.startswith(_UNFINISHED):
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(Path(entry.path))
                else:
                    os.unlink(entry.path)


class Caches:
    """The caches in a workshop.

    Args:
        workshop: where they are.
        lock_path: gives the file of a named lock.
    """

    def __init__(self, workshop: Workshop, lock_path: Callable[[str], Path]) -> None:
        self._workshop = workshop
        self._lock_path = lock_path
        self._directory = workshop.directory / "fetched"

    def prepare(self) -> None:
        """Make their directory; where there is none, earlier versions have put packages of all ways into one cache."""
        make_directory(self._workshop.directory, exist_ok=True)
        self._workshop.own(self._workshop.directory)
        try:
            make_directory(self._directory)
        except FileExistsError:
            return
        self._workshop.own(self._directory)
        for tool in CACHES:
            with contextlib.suppress(FileNotFoundError):
                (self._workshop.directory / tool).rename(self._directory / f"mixed-{tool}")  # `collect` removes it

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        """Keep a way's caches from being removed while the context is open; they are made if they are not there.

        Afterwards the parts are removed that a command which was ended has left, once no build uses the cache.
        """
        lock_path = self._lock_path(f"cache-{name or 'ordinary'}")
        try:
            with await locks.wait_shared(lock_path):
                if name:
                    directory = self._directory / name
                    for path in (directory, *(directory / tool for tool in CACHES)):
                        make_directory(path, exist_ok=True)
                        self._workshop.own(path)
                    os.utime(directory)
                yield
        finally:
            await asyncio.shield(asyncio.to_thread(_sweep, self._workshop.directory / within("uv", name), lock_path))

    async def collect(self, kept: int = KEPT) -> None:
        """Remove caches of other ways that are old or too many, unless a build uses them."""
        await asyncio.to_thread(self._collect, kept)

    def _collect(self, kept: int) -> None:
        oldest = time.time() - KEPT_DAYS * 86400
        with contextlib.suppress(FileNotFoundError):
            times = {path: path.stat().st_mtime for path in self._directory.iterdir()}
            named = sorted((path for path in times if _NAME.fullmatch(path.name)), key=lambda path: -times[path])
            for number, path in enumerate(named):
                if number >= kept or times[path] < oldest:
                    self._remove(path)
            for path in times.keys() - set(named):
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        lock = locks.try_lock(self._lock_path(f"cache-{path.name}"), exclusive=True)
        if lock is not None:
            with lock:
                shutil.rmtree(path, ignore_errors=True)

    async def clear(self) -> None:
        """Remove the caches of all other ways; builds that use one are waited for."""
        for path in list(self._directory.iterdir()):
            if _NAME.fullmatch(path.name):
                with await locks.wait_exclusive(self._lock_path(f"cache-{path.name}"), lambda: None):
                    await asyncio.to_thread(shutil.rmtree, path, True)
