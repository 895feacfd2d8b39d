"""Versions that the environments of a key are held to, on one machine or on all that share a file system.

A machine's own file counts first: nothing waits for a shared file system once it is there. The first machine that builds
an environment makes the shared file; others build from it. Only `upgrade` replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from functools import partial
from pathlib import Path

from atoll.environments.built.files import write_text
from atoll.work_threads import WorkThreads

READ_SECONDS = 5.0


class OtherVersions(Exception):
    """Another machine has built the same environment meanwhile, with other versions: they are this one's now."""


class Pins:
    """The versions of one store's environments.

    Args:
        directory: the machine's own, one file for each key.
        shared: the same of all machines; None where this one shares nothing.
    """

    def __init__(self, directory: Path, shared: Path | None = None) -> None:
        self._directory = directory
        self._shared = shared
        self._threads = WorkThreads("pins", 2)

    async def read(self, found: str) -> str:
        """Return the lock that the environments of a key are held to; empty for none."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / found).read_text("utf-8")
        if self._shared is not None:  # one that is gone, or does not answer, holds no build up for long
            with contextlib.suppress(OSError, TimeoutError):
                return await asyncio.wait_for(self._threads.run("", partial(_read, self._shared / found)), READ_SECONDS)
        return ""

    def keep(self, found: str, text: str, *, renewed: bool) -> None:
        """Hold the later environments of a key to the lock of one that has been built.

        Args:
            renewed: it was asked for with the newest versions, which all machines get from now on.

        Raises:
            OtherVersions: another machine was first, with other versions; later builds are held to them.
        """
        if self._shared is not None:
            with contextlib.suppress(OSError):
                agreed = self._agree(self._shared, found, text, renewed=renewed)
                write_text(self._directory / found, agreed)
                if agreed != text:
                    raise OtherVersions(found)
                return
        write_text(self._directory / found, text)

    def _agree(self, shared: Path, found: str, text: str, *, renewed: bool) -> str:
        """Share a lock unless there is one; return that which counts."""
        shared.mkdir(mode=0o700, exist_ok=True)
        staged = shared / f".{found}-{secrets.token_hex(8)}"
        staged.write_text(text, "utf-8")
        try:
            if renewed:
                os.replace(staged, shared / found)
                return text
            with contextlib.suppress(FileExistsError):
                os.link(staged, shared / found)
                return text
            return (shared / found).read_text("utf-8")
        finally:
            staged.unlink(missing_ok=True)


def _read(path: Path) -> str:
    return path.read_text("utf-8")
